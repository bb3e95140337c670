"""Runs trained together are the runs trained separately."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.task import find_task
from momo_cli.training.run.training_run import train_run
from momo_cli.training.stack.checks import check_stack
from momo_cli.training.stack.loop import train_stack
from momo_cli.training.stack.models import CannotStack, Stack

CPU = torch.device("cpu")
TORCHS = ["muon", "muon(weight_decay=0.2,nesterov=False)"] if hasattr(torch.optim, "Muon") else []
MUONS = ["momo-muon", "momo-muon(weight_decay=0.1,adam_lr=0.001)", "momo-muonmax", *TORCHS]
LABELS = [
    "momo", "momo(weight_decay=0.1,bias_correction=True)", "momo-star", "momo-adam", "momo-adam(weight_decay=0.1)",
    "momo-adam(weight_decay=0.1,divide=False)", "momo-adam-star", "sgd", "sgd(weight_decay=0.1)", "sgd-m", "sgd-nesterov",
    "adam", "adam(weight_decay=0.1)", "adamw", "rmsprop", "adam(amsgrad=True)", "adamw+cosine", "momo+wsd+warmup=0.2",
    *MUONS,
]  # fmt: skip


@pytest.fixture
def exactly(monkeypatch):
    """Muon's iteration in the parameters' own precision: roundings to bfloat16 that flip would hide a wrong number."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


DOUBLE = """
import torch
from momo_cli.task import find_task

class Cast:
    def __init__(self, batches): self.batches = batches
    def __len__(self): return len(self.batches)
    def __iter__(self):
        for batch in self.batches:
            yield tuple(t.double() if t.is_floating_point() else t for t in batch)

def build(seed, task):
    made = find_task(task, {"length": 24, "batch_size": 8, "width": 32} if task == "charlm" else {}).build(seed, "cpu")
    made.model.double()
    made.train, made.val = Cast(made.train), Cast(made.val)
    return made
"""


def specs_of(labels, seeds=2):
    lrs = {"momo": (0.1, 1.0), "sgd": (0.01, 0.1)}
    return [
        RunSpec(OptimizerSpec.parse(label), lr, seed)
        for label in labels
        for lr in lrs.get("" if re.search("adam|muon", label) else re.split(r"[(-]", label)[0], (1e-4, 1e-3))
        for seed in range(seeds)
    ]


def both(source, specs, settings):
    together = dict(train_stack(source, specs, settings, CPU))
    assert set(together) == set(specs)
    return [(together[spec], train_run(source, spec, settings, CPU)) for spec in specs]


@pytest.mark.parametrize("task", ["digits-mlp", "digits-cnn", "charlm"])
def test_every_optimizer_agrees_in_float64(folder, task, exactly):
    (folder / "doubled.py").write_text(DOUBLE)
    source = find_task("doubled.py", {"task": task})
    labels = LABELS if task == "digits-mlp" else ["momo", "momo-adam(weight_decay=0.1)", "sgd-m", "adamw", *MUONS]
    for stacked, alone in both(source, specs_of(labels), Settings(steps=50 if task != "charlm" else 20)):
        assert stacked.status == alone.status == "ok"
        assert stacked.objective == pytest.approx(alone.objective, rel=1e-9), stacked.optimizer
        assert stacked.initial == pytest.approx(alone.initial, rel=1e-12)
        assert stacked.metrics == pytest.approx(alone.metrics)
        assert (stacked.capped is None) == (alone.capped is None)
        if alone.capped is not None:
            assert stacked.capped == pytest.approx(alone.capped)
            for a, b in zip(stacked.step_sizes, alone.step_sizes, strict=True):
                assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [Settings(steps=50, schedule="cosine", warmup=0.2), Settings(steps=50, clip=0.1), Settings(steps=50)],
    ids=["schedule", "clip", "plain"],
)
def test_schedule_and_clipping_agree_in_float32(folder, settings, exactly):
    for stacked, alone in both(find_task("digits-mlp"), specs_of(LABELS), settings):
        assert stacked.status == alone.status
        assert stacked.objective == pytest.approx(alone.objective, rel=1e-4), stacked.optimizer


def test_a_specs_own_schedule_is_that_schedule_for_its_runs_alone(folder):
    source = find_task("digits-mlp")
    mixed = {
        spec.optimizer.label: run
        for spec, run in train_stack(
            source, specs_of(["adamw", "adamw+cosine", "momo+wsd+warmup=0.2"], 1), Settings(steps=30), CPU
        )
        if spec.lr in (1e-3, 1.0)
    }
    for label, name, schedule in (
        ("adamw", "adamw", {}),
        ("adamw+cosine", "adamw", {"schedule": "cosine"}),
        ("momo+wsd+warmup=0.2", "momo", {"schedule": "wsd", "warmup": 0.2}),
    ):
        run = train_run(source, RunSpec(OptimizerSpec.parse(name), 1e-3, 0), Settings(steps=30, **schedule), CPU)
        assert mixed[label].objective == pytest.approx(run.objective, rel=1e-4)
    assert mixed["adamw"].objective != pytest.approx(mixed["adamw+cosine"].objective, rel=1e-3)


def test_diverging_runs_leave_and_the_others_do_not_notice(folder):
    specs = [
        RunSpec(OptimizerSpec.parse("sgd"), lr, seed) for lr in (1e-2, 1e5, 1e-1, 1e6, 3e-2, 1e7) for seed in (0, 1)
    ]
    pairs = both(find_task("digits-mlp"), specs, Settings(steps=60))
    assert {stacked.status for stacked, _ in pairs} == {"ok", "diverged"}
    for stacked, alone in pairs:
        assert (stacked.status, stacked.steps) == (alone.status, alone.steps)
        if alone.status == "ok":
            assert stacked.objective == pytest.approx(alone.objective, rel=1e-4)


def test_a_run_can_be_stopped(folder):
    specs = specs_of(["momo", "adam"], seeds=1)
    runs = dict(
        train_stack(
            find_task("digits-mlp"),
            specs,
            Settings(steps=40),
            CPU,
            lambda spec, step, steps, loss: spec is specs[1] and step >= 10,
        )
    )
    assert [runs[s].status for s in specs] == ["ok", "pruned", "ok", "ok"] and runs[specs[1]].steps < 20


MODELS = {
    "dropout": ("nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 1))", None),
    "batch norm": ("nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 1))", None),
    "frozen": ("frozen(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1)))", None),
    "item": ("Item()", "item"),
    "unused": ("Unused()", "no gradient"),
    "captured": ("nn.Linear(6, 1)", "other values"),
}
ODD = """
import torch
from torch import nn
def frozen(model):
    model[0].weight.requires_grad_(False)
    return model
class Item(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(6, 1)
    def forward(self, x):
        y = self.f(x)
        return y if y.mean().item() > 100 else 2 * y
class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.idle = nn.Linear(6, 1), nn.Linear(2, 2)
    def forward(self, x):
        return self.f(x)
def build(seed):
    x = torch.randn(64, 6); y = x.sum(1, keepdim=True)
    model = MODEL
    batches = [{"x": a, "meta": {"y": b}, "name": "b"} for a, b in zip(x.split(16), y.split(16))]
    penalized = list(model.parameters()) if PENALTY else []
    loss = lambda model, b: nn.functional.mse_loss(model(b["x"]), b["meta"]["y"]) + sum(p.square().sum() for p in penalized)
    metrics = lambda model, b: {"error": (model(b["x"]) - b["meta"]["y"]).abs().mean().item()}
    return {"model": model, "loss": loss, "train": batches, "val": batches[:2], "metrics": metrics, "epochs": 6}
"""


@pytest.mark.parametrize("kind", MODELS)
def test_odd_models_are_right_or_found_out(folder, kind):
    model, refusal = MODELS[kind]
    (folder / "odd.py").write_text(ODD.replace("MODEL", model).replace("PENALTY", str(kind == "captured")))
    source = find_task("odd.py")
    task = source.build(0, CPU)
    batch = next(iter(task.train))
    before = [p.clone() for p in task.model.parameters()]
    if refusal is None:
        check_stack(task, batch, Settings())
    else:
        with pytest.raises(CannotStack, match=refusal):
            check_stack(task, batch, Settings())
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters()))
    if refusal is None:
        specs = [RunSpec(OptimizerSpec.parse("momo"), lr, seed) for lr in (0.01, 0.1) for seed in (0, 1)]
        for stacked, alone in both(source, specs, Settings()):
            assert stacked.status == alone.status == "ok"
            if kind != "dropout":
                assert stacked.objective == pytest.approx(alone.objective, rel=1e-4)
                assert stacked.metrics == pytest.approx(alone.metrics, rel=1e-4)
        if kind == "dropout":  # each run has its own: equal runs part
            twins = [RunSpec(OptimizerSpec.parse(label), 0.1, 0) for label in ("sgd", "sgd(weight_decay=0.0)")]
            ends = [run.objective for run in dict(train_stack(source, twins, Settings(), CPU)).values()]
            assert ends[0] != ends[1]


def test_every_step_draws_anew_whatever_the_seeds(folder):
    """Several seeds have their own generators for their batches; what a step draws, for dropout say, never comes
    twice."""
    (folder / "drawing.py").write_text(
        "import random, torch\n"
        "drawn = []\n"
        "def build(seed):\n"
        "    x = torch.randn(40, 3)\n"
        "    def loss(model, batch):\n"
        "        if model.training and torch.is_grad_enabled(): drawn.append((random.random(), torch.get_rng_state().sum().item()))\n"
        "        return (model(batch) * torch.nn.functional.dropout(torch.ones(1))).square().mean()\n"
        "    return torch.nn.Linear(3, 1), loss, list(x.split(10))\n"
    )
    source = find_task("drawing.py")
    specs = [RunSpec(OptimizerSpec.parse("sgd"), 0.01, seed) for seed in (0, 1)]
    assert all(run.status == "ok" for _, run in train_stack(source, specs, Settings(steps=12), CPU))
    drawn = source.load().__globals__["drawn"]
    assert len(drawn) == 12 and len(set(drawn)) == 12 and len({number for number, _ in drawn}) == 12


SEEDED = """
import torch
def build(seed):
    x = torch.randn(40, 3)
    teacher = torch.nn.Linear(3, 1)
    loss = lambda model, batch: (model(batch[0]) - OF).square().mean() * (batch[1] if SCALED else 1)
    return torch.nn.Linear(3, 1), loss, [(part, 1 + seed) for part in x.split(10)]
"""


@pytest.mark.parametrize("of, scaled", [("teacher(batch[0]).detach()", False), ("0", True)], ids=["closure", "numbers"])
def test_seeds_that_differ_in_more_than_their_batches_are_not_stacked(folder, of, scaled):
    (folder / "seeded.py").write_text(SEEDED.replace("OF", of).replace("SCALED", str(scaled)))
    specs = [RunSpec(OptimizerSpec.parse("sgd"), lr, seed) for lr in (0.01, 0.1) for seed in (0, 1)]
    with pytest.raises(CannotStack, match="differ in more than"):
        list(train_stack(find_task("seeded.py"), specs, Settings(steps=8), CPU))
    for stacked, alone in both(find_task("seeded.py"), specs[::2], Settings(steps=8)):  # one seed can be
        assert stacked.objective == pytest.approx(alone.objective, rel=1e-5)


def test_the_order_of_the_data_does_not_depend_on_how_many_runs_share_a_stack(folder):
    (folder / "order.py").write_text(
        "import torch\n"
        "seen = []\n"
        "def build(seed):\n"
        "    data = torch.utils.data.DataLoader(torch.arange(40.0)[:, None], batch_size=10, shuffle=True)\n"
        "    def loss(model, batch):\n"
        "        if model.training and torch.is_grad_enabled(): seen.append(batch.sum())\n"
        "        return torch.nn.functional.dropout(model(batch)).square().mean()\n"
        "    return torch.nn.Linear(1, 1), loss, data\n"
    )
    orders = []
    for lrs in ((1e-6,), (1e-6, 2e-6, 3e-6)):
        source = find_task("order.py")
        seen = source.load().__globals__["seen"]
        seen.clear()
        list(train_stack(source, [RunSpec(OptimizerSpec.parse("sgd"), lr, 0) for lr in lrs], Settings(steps=12), CPU))
        orders.append([float(value) for value in seen])
    assert orders[0] == orders[1] and len(set(orders[0])) > 6


def test_optimizers_with_modes_are_put_into_them(folder):
    (folder / "modal2.py").write_text(
        "import torch\n"
        "class Modal(torch.optim.SGD):\n"
        "    modes = []\n"
        "    def train(self): self.modes.append('train')\n"
        "    def eval(self):\n"
        "        self.modes.append('eval')\n"
        "        for p in self.param_groups[0]['params']: p.data.zero_()\n"
    )
    sys.path.insert(0, str(folder))
    try:
        specs = [RunSpec(OptimizerSpec.parse("modal2:Modal"), lr, 0) for lr in (0.01, 0.1)]
        runs = dict(train_stack(find_task("digits-mlp"), specs, Settings(steps=5), CPU)).values()
        import modal2

        assert modal2.Modal.modes == ["train"] * 2 + ["eval"] * 2
        assert all(run.objective == pytest.approx(2.302585, rel=1e-4) for run in runs)  # all-zero logits
    finally:
        sys.path.remove(str(folder))


def test_half_a_grid_that_diverges_early_costs_little():
    """Counted in rows × steps of the stack, the cost that a clock would show with noise."""
    calls = []
    real = Stack.gradients

    def counted(self, batches):
        calls.append(len(self))
        return real(self, batches)

    optimizer = OptimizerSpec.parse("sgd")
    calm = [RunSpec(optimizer, 0.001 * (i + 1), 0) for i in range(8)]
    wild = [RunSpec(optimizer, 1e6 * (i + 1), 0) for i in range(8)]
    Stack.gradients = counted
    try:
        runs = dict(train_stack(find_task("digits-mlp"), calm + wild, Settings(steps=100), CPU))
    finally:
        Stack.gradients = real
    assert [runs[s].status for s in calm + wild] == ["ok"] * 8 + ["diverged"] * 8
    assert sum(calls) < 0.6 * 16 * 100
