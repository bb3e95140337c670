"""A captured step, with a recorder on the CPU that does what a CUDA graph does: the same operations on the same memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.task import find_task
from momo_cli.training.run import record
from momo_cli.training.run.training_run import train_run
from momo_cli.training.stack import loop
from momo_cli.training.stack.graph import CapturedStep
from momo_cli.training.stack.loop import train_stack
from momo_cli.training.stack.step import Step

CPU = torch.device("cpu")
LABELS = ["momo", "momo(weight_decay=0.1,bias_correction=True)", "momo-star", "momo-adam", "momo-adam(weight_decay=0.1)",
          "momo-adam(weight_decay=0.1,divide=False)", "sgd", "sgd-m", "sgd-nesterov", "adam(weight_decay=0.1)", "adamw"]  # fmt: skip


class Tape(TorchDispatchMode):
    """Records each operation with the tensors themselves, and undoes at the end what they changed: a capture runs nothing."""

    def __init__(self):
        super().__init__()
        self.operations, self.changed = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for argument, value in zip(function._schema.arguments, args):
            # native_batch_norm's schema does not tell that it changes the running statistics.
            if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in (
                "running_mean",
                "running_var",
            ):
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    whole = tensor.detach().as_strided(
                        (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0
                    )
                    self.changed.setdefault(tensor.untyped_storage().data_ptr(), (whole, whole.clone()))
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for whole, before in self.changed.values():
            whole.copy_(before)

    def repeat(self):
        with torch.no_grad():
            for function, args, kwargs, result in self.operations:
                flat = lambda r: [
                    t for t in (r if isinstance(r, (list, tuple)) else [r]) if isinstance(t, torch.Tensor)
                ]
                for static, tensor in zip(flat(result), flat(function(*args, **kwargs))):
                    if static.data_ptr() != tensor.data_ptr():
                        static.copy_(tensor)


def taped(step):
    with Tape() as tape:
        report = step()
    return tape.repeat, report


@pytest.fixture
def captured(monkeypatch):
    """Stacks step as on a GPU: captured, and read every tenth step. Gives the captured steps that were made."""
    made = []

    def stepping(stack, groups, settings):
        made.append(CapturedStep(Step(stack, groups, settings), taped))
        return made[-1]

    monkeypatch.setattr(loop, "prepare_step", stepping)
    monkeypatch.setattr(record, "reading_interval", lambda device: 10)
    return made


def specs_of(labels, seeds=2):
    return [RunSpec(OptimizerSpec.parse(label), lr, seed) for label in labels
            for lr in ((1e-3, 1e-2) if "adam" in label else (0.1, 1.0)) for seed in range(seeds)]  # fmt: skip


@pytest.mark.parametrize("task", ["digits-mlp", "digits-cnn"])
@pytest.mark.parametrize(
    "settings",
    [Settings(steps=36), Settings(steps=36, schedule="cosine", warmup=0.2, clip=0.5)],
    ids=["plain", "schedule, clip"],
)
def test_captured_steps_are_the_plain_ones(captured, monkeypatch, task, settings):
    """36 steps of 23 batches a pass: two shapes of batch, the smaller one too rare to be captured."""
    specs = specs_of(LABELS if task == "digits-mlp" else LABELS[:1] + LABELS[3:4])
    runs = dict(train_stack(find_task(task), specs, settings, CPU))
    (step,) = captured
    assert step.gave_up is None and len(step._captured) == 1 and list(step._seen.values()) == [3, 1]
    monkeypatch.undo()
    for spec, plain in train_stack(find_task(task), specs, settings, CPU):
        assert runs[spec].status == plain.status
        assert runs[spec].objective == pytest.approx(plain.objective, rel=1e-6), spec.optimizer.label
        assert runs[spec].capped == plain.capped
        for a, b in zip(runs[spec].step_sizes or [], plain.step_sizes or [], strict=True):
            assert a == pytest.approx(b, rel=1e-3)  # differences of nearly equal numbers, in single precision


def test_a_stack_that_is_compacted_is_captured_anew(captured):
    specs = [
        RunSpec(OptimizerSpec.parse(label), lr, 0) for label in ("sgd", "momo", "adam") for lr in (1e-3, 3e-3, 1e6, 3e6)
    ]
    runs = dict(train_stack(find_task("digits-mlp"), specs, Settings(steps=60), CPU))
    assert len(captured) > 1 and all(step.gave_up is None for step in captured) and captured[-1]._captured
    for spec in specs:
        alone = train_run(find_task("digits-mlp"), spec, Settings(steps=60), CPU)
        assert runs[spec].status == alone.status
        if alone.status == "ok":
            assert runs[spec].objective == pytest.approx(alone.objective, rel=1e-4)


ODD = """
import torch
from torch import nn
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.calls, self.step = nn.Linear(6, 1), [0], 0
    def forward(self, x):
        self.calls[0] += 1
        return BODY
def build(seed):
    x = torch.randn(64, 6); y = x.sum(1, keepdim=True)
    loss = lambda model, b: nn.functional.mse_loss(model(b[0]), b[1])
    return Odd(), loss, list(zip(x.split(16), y.split(16)))
"""


@pytest.mark.parametrize(
    "body, reason",
    [("self.f(x) * (1 + 1 / self.calls[0])", "other values"), ("self.f(x) * torch.ones(3).sum().item()", "not permitted"),
     ("(setattr(self, 'step', self.step + 1), self.f(x) * (2 if self.step > 10 else 1))[1]", "a number in the model"),
     ("self.f(x) * (1 + __import__('random').random())", "draws numbers in Python"),
     ("nn.functional.dropout(self.f(x), 0.5)", None)],
)  # fmt: skip
def test_what_cannot_be_captured_is_stepped_plainly(captured, folder, body, reason):
    (folder / "odd.py").write_text(ODD.replace("BODY", body))
    specs = [RunSpec(OptimizerSpec.parse(label), 0.01, 0) for label in ("momo", "sgd-m")]
    runs = dict(train_stack(find_task("odd.py"), specs, Settings(steps=20), CPU))
    (step,) = captured
    assert (step.gave_up is None) if reason is None else (reason in step.gave_up and not step._captured)
    assert all(run.status == "ok" and run.steps == 20 and run.train_loss < 2 * run.initial for run in runs.values())


def test_an_optimizer_that_steps_run_by_run_is_not_captured(captured):
    specs = [RunSpec(OptimizerSpec.parse(label), 0.01, 0) for label in ("momo", "rmsprop")]
    runs = train_stack(find_task("digits-mlp"), specs, Settings(steps=10), CPU)
    assert all(run.status == "ok" for _, run in runs) and captured[0].gave_up


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("task", ["digits-mlp", "digits-cnn", "charlm"])
def test_cuda_graphs(task, monkeypatch):
    made, real = [], loop.prepare_step
    monkeypatch.setattr(loop, "prepare_step", lambda *a: made.append(real(*a)) or made[-1])
    specs, device = specs_of(LABELS[:1] + LABELS[3:4] + LABELS[7:8]), torch.device("cuda")
    runs = dict(train_stack(find_task(task), specs, Settings(steps=50), device))
    assert isinstance(made[0], CapturedStep) and made[0].gave_up is None and made[0]._captured
    for spec in specs:
        alone = train_run(find_task(task), spec, Settings(steps=50), device)
        assert runs[spec].status == alone.status and runs[spec].objective == pytest.approx(alone.objective, rel=1e-3)
