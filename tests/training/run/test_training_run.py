"""A run equals a plain PyTorch loop written here, and every ending has its status."""

from __future__ import annotations

import math
import random

import numpy
import pytest
import torch

from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.task import find_task
from momo_cli.training.probe import Probe
from momo_cli.training.run.training_run import train_run

CPU = torch.device("cpu")
MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def build(seed, own_generator=False):
    x = torch.randn(90, 6)
    y = (x[:, :1] * x[:, 1:2]).sign()
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 1))
    generator = torch.Generator().manual_seed(seed + 7) if own_generator else None
    train = DataLoader(TensorDataset(x[:70], y[:70]), batch_size=16, shuffle=True, generator=generator)
    val = DataLoader(TensorDataset(x[70:], y[70:]), batch_size=8)
    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])
    def metrics(model, batch):
        return {"agreement": (model(batch[0]).sign() == batch[1]).float().mean()}
    return {"model": model, "loss": loss, "train": train, "val": val, "metrics": metrics}
"""


def plain_loop(build, make_optimizer, seed, steps, scheduler=None, clip=None):
    """What a user would write: nothing of momo_cli in it. Returns (val loss, agreement, mean of the last tenth)."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    parts = build(seed)
    model, train, val = parts["model"], parts["train"], parts["val"]
    optimizer = make_optimizer(model.parameters())
    schedule = scheduler(optimizer) if scheduler else None
    losses, batches = [], iter(train)
    for _ in range(steps):
        try:
            x, y = next(batches)
        except StopIteration:
            batches = iter(train)
            x, y = next(batches)

        def closure():
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            closure.first = loss.item() if closure.first is None else closure.first
            return loss

        closure.first = None
        optimizer.step(closure)
        losses.append(closure.first)
        if schedule:
            schedule.step()
    model.eval()
    with torch.no_grad():
        sums = [
            (len(x), torch.nn.functional.mse_loss(model(x), y).item(), (model(x).sign() == y).float().mean().item())
            for x, y in val
        ]
    n = sum(s[0] for s in sums)
    last = losses[-max(1, steps // 10) :]
    return sum(s[0] * s[1] for s in sums) / n, sum(s[0] * s[2] for s in sums) / n, sum(last) / len(last)


def momo_optimizer(name, **arguments):
    import momo

    return lambda parameters: getattr(momo, name)(parameters, **arguments)


CASES = {
    "momo": momo_optimizer("Momo", lr=0.03),
    "momo-adam(weight_decay=0.1)": momo_optimizer("MomoAdam", lr=0.03, weight_decay=0.1),
    "momo-star": momo_optimizer("Momo", lr=0.03, use_fstar=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03),
    "sgd-m": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, dampening=0.9),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03),
    "adamw(weight_decay=0.2, betas=(0.8, 0.9))": lambda p: torch.optim.AdamW(
        p, lr=0.03, weight_decay=0.2, betas=(0.8, 0.9)
    ),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.03),
    "lbfgs(max_iter=3)": lambda p: torch.optim.LBFGS(p, lr=0.03, max_iter=3),
    "torch.optim:Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.03),
}


@pytest.fixture
def source(folder):
    (folder / "noisy.py").write_text(MODULE)

    def find(**arguments):
        return find_task("noisy.py", arguments)

    return find


@pytest.mark.parametrize("label", CASES)
def test_equals_a_plain_loop(source, label):
    spec = RunSpec(OptimizerSpec.parse(label), 0.03, seed=3)
    run = train_run(source(), spec, Settings(steps=40), CPU)
    namespace: dict = {}
    exec(MODULE, namespace)
    val_loss, agreement, train_loss = plain_loop(namespace["build"], CASES[label], 3, 40)
    assert run.status == "ok"
    assert run.objective == run.val_loss == pytest.approx(val_loss, rel=1e-5)
    assert run.metrics["agreement"] == pytest.approx(agreement)
    assert run.train_loss == pytest.approx(train_loss, rel=1e-5)


@pytest.mark.parametrize(
    "settings, scheduler",
    [
        (Settings(steps=40, schedule="cosine"), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40)),
        (Settings(steps=40, schedule="linear"), lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-12, 40)),
        (
            Settings(steps=40, schedule="linear", warmup=0.25),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: (s + 1) / 10 if s < 10 else 1 - (s - 10) / 30),
        ),
        (
            Settings(steps=40, schedule="wsd"),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 if s < 32 else (40 - s) / 8),
        ),
        (Settings(steps=40, clip=0.05), None),
    ],
    ids=["cosine", "linear", "warm-up", "wsd", "clip"],
)
def test_schedules_and_clipping_equal_torchs(source, settings, scheduler):
    spec = RunSpec(OptimizerSpec.parse("adamw"), 0.02, seed=1)
    run = train_run(source(own_generator=True), spec, settings, CPU)
    namespace: dict = {}
    exec(MODULE, namespace)
    val_loss, _, _ = plain_loop(
        lambda seed: namespace["build"](seed, own_generator=True),
        lambda p: torch.optim.AdamW(p, lr=0.02),
        1,
        40,
        scheduler,
        settings.clip,
    )
    assert run.objective == pytest.approx(val_loss, rel=1e-5)


def test_initial_value_is_measured_before_the_first_step(source):
    spec = RunSpec(OptimizerSpec.parse("sgd"), 1e-12, seed=5)
    for objective in ("val_loss", "agreement"):
        run = train_run(source(), spec, Settings(steps=1, objective=objective), CPU)
        namespace: dict = {}
        exec(MODULE, namespace)
        torch.manual_seed(5)
        parts = namespace["build"](5)
        parts["model"].eval()
        with torch.no_grad():
            pairs = [
                (
                    len(b[0]),
                    parts["loss"](parts["model"], b)
                    if objective == "val_loss"
                    else parts["metrics"](parts["model"], b)["agreement"],
                )
                for b in parts["val"]
            ]
        assert run.initial == pytest.approx(float(sum(n * v for n, v in pairs) / sum(n for n, _ in pairs)), rel=1e-5)


def test_divergence_stops_a_run_at_once(source):
    run = train_run(source(), RunSpec(OptimizerSpec.parse("sgd"), 1e6, 0), Settings(steps=200), CPU)
    assert run.status == "diverged" and run.objective is None and run.initial is not None
    assert run.steps <= 25  # a tenth of the steps, and the few it takes to explode
    calm = train_run(source(), RunSpec(OptimizerSpec.parse("sgd"), 1e-3, 0), Settings(steps=200), CPU)
    assert calm.status == "ok" and calm.steps == 200
    assert 15 <= len(calm.curve) <= 25 and calm.curve[-1][0] == 200


def test_a_nan_loss_is_divergence(folder):
    (folder / "t.py").write_text(
        MODULE.replace(
            "return nn.functional.mse_loss(model(batch[0]), batch[1])", "return model(batch[0]).sum() * float('nan')"
        )
    )
    run = train_run(find_task("t.py"), RunSpec(OptimizerSpec.parse("sgd"), 0.1, 0), Settings(steps=50), CPU)
    assert run.status == "diverged" and run.steps == 1


def test_a_failing_run_shows_the_users_frames(folder):
    (folder / "t.py").write_text(
        MODULE.replace("    def loss(model, batch):\n", "    def loss(model, batch):\n        batch[2]\n")
    )
    run = train_run(find_task("t.py"), RunSpec(OptimizerSpec.parse("sgd"), 0.1, 0), Settings(), CPU)
    assert run.status == "failed"
    assert "batch[2]" in run.error and "IndexError" in run.error
    assert "momo_cli" not in run.error


def test_a_closure_optimizer_and_one_with_modes(source, folder):
    (folder / "modal.py").write_text(
        "import torch\n"
        "class Modal(torch.optim.SGD):\n"
        "    calls = []\n"
        "    def train(self): self.calls.append('train')\n"
        "    def eval(self): self.calls.append('eval')\n"
        "    def step(self, closure=None):\n"
        "        assert self.calls[-1] == 'train'\n"
        "        return super().step(closure)\n"
    )
    import sys

    sys.path.insert(0, str(folder))
    try:
        run = train_run(source(), RunSpec(OptimizerSpec.parse("modal:Modal"), 0.1, 0), Settings(steps=5), CPU)
        import modal

        assert run.status == "ok" and modal.Modal.calls == ["train", "eval"]
    finally:
        sys.path.remove(str(folder))


def test_capped_share_and_step_sizes(source):
    small = train_run(source(), RunSpec(OptimizerSpec.parse("momo"), 1e-6, 0), Settings(steps=50), CPU)
    large = train_run(source(), RunSpec(OptimizerSpec.parse("momo"), 1e6, 0), Settings(steps=50), CPU)
    assert small.capped == 1.0 and large.capped == 0.0
    assert all(math.isclose(size, 1e-6) and math.isclose(cap, 1e-6) for _, size, cap, _ in small.step_sizes)
    assert train_run(source(), RunSpec(OptimizerSpec.parse("adam"), 1e-3, 0), Settings(steps=5), CPU).capped is None


def test_bf16_runs_and_keeps_float32_parameters(source):
    run = train_run(source(), RunSpec(OptimizerSpec.parse("momo"), 0.1, 0), Settings(steps=30, amp="bf16"), CPU)
    exact = train_run(source(), RunSpec(OptimizerSpec.parse("momo"), 0.1, 0), Settings(steps=30), CPU)
    assert (
        run.status == "ok"
        and run.objective == pytest.approx(exact.objective, rel=0.1)
        and run.objective != exact.objective
    )


STATEFUL = """
import numpy, torch

builds = []

class Drawing(torch.utils.data.Dataset):
    def __init__(self, seed):
        self.generator = numpy.random.default_rng(seed)
    def __len__(self):
        return 32
    def __getitem__(self, i):
        return torch.from_numpy(self.generator.normal(size=3)).float()

def build(seed):
    builds.append(seed)
    train = torch.utils.data.DataLoader(Drawing(seed), batch_size=8, shuffle=True)
    return torch.nn.Linear(3, 1), lambda model, batch: (model(batch) - 1).square().mean(), train
"""


def test_measuring_before_the_first_step_changes_no_run(folder):
    """Nor does it where ℓ0 is known from another run of the seed, or where the task was built before and waits."""
    (folder / "stateful.py").write_text(STATEFUL)
    source = find_task("stateful.py")
    specs = [RunSpec(OptimizerSpec.parse(label), 0.01, 0) for label in ("sgd", "sgd(momentum=0)")]
    initials: dict = {}
    probe = Probe(source, 0, CPU)
    torch.manual_seed(5)  # something is done meanwhile
    curves = [train_run(built, spec, Settings(steps=20), CPU, None, initials).curve
              for built, spec in zip((source, probe, probe), (*specs, specs[0]))]  # fmt: skip
    assert curves[0] == curves[1] == curves[2] and len(initials) == 1
    namespace: dict = {}
    exec(STATEFUL, namespace)
    torch.manual_seed(0)
    model, loss_of, train = namespace["build"](0)
    losses = []
    for _ in range(5):
        for batch in train:
            loss = loss_of(model, batch)
            losses.append(loss.item())
            for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
                parameter.data -= 0.01 * gradient
    assert [loss for _, loss in curves[0]] == pytest.approx(losses, rel=1e-4)
