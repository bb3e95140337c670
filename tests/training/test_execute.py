"""Who trains what: what is chosen, and what happens when a choice doesn't work out."""

from __future__ import annotations

import pytest
import torch

from momo_cli.plan import OptimizerSpec, RunSpec, Settings, grid, parse_lrs, parse_optimizers
from momo_cli.task import find_task
from momo_cli.training import cpu, execute, measure, single, timing, together, unit
from momo_cli.training.execute import Resources, make_plan
from momo_cli.training.unit import train_unit

CPU = torch.device("cpu")


def specs_of(count=8, label="momo"):
    optimizers = parse_optimizers([label])
    return grid(optimizers, parse_lrs([f"1e-3:1:{count}"], optimizers), 1)


def test_out_of_memory_halves_the_stack_and_loses_nothing(monkeypatch):
    real, sizes, lines = unit.train_together, [], []

    def small_memory(source, specs, *rest):
        sizes.append(len(specs))
        if len(specs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from real(source, specs, *rest)

    monkeypatch.setattr(unit, "train_together", small_memory)
    specs = specs_of(8)
    runs = dict(train_unit(find_task("digits-mlp"), specs, Settings(steps=3), CPU, 8, say=lines.append))
    assert set(runs) == set(specs) and all(run.status == "ok" for run in runs.values())
    assert sizes == [8, 4, 2, 2, 2, 2] and "going on with 4" in lines[0] and "with 2" in lines[1]


def test_a_stack_that_breaks_on_the_way_is_trained_run_by_run(folder):
    (folder / "late.py").write_text(
        "import torch\n"
        "def build(seed):\n"
        "    x = torch.randn(30, 3)\n"
        "    def loss(model, batch):\n"
        "        value = model(batch).square().mean()\n"
        "        return value if len(batch) == 8 else torch.tensor(value.item()) + 0 * value\n"  # the last batch is shorter
        "    return torch.nn.Linear(3, 1), loss, list(x.split(8))\n"
    )
    lines = []
    specs = specs_of(4)
    runs = dict(train_unit(find_task("late.py"), specs, Settings(steps=6), CPU, 4, say=lines.append))
    assert set(runs) == set(specs) and all(run.status == "ok" and run.steps == 6 for run in runs.values())
    assert len(lines) == 1 and "can't be trained together" in lines[0]


def planned(monkeypatch, task, specs, resources, separate=1e-2, settings=Settings(steps=1000)):
    monkeypatch.setattr(execute, "gradient_seconds", lambda *a: separate)
    monkeypatch.setattr(measure, "separate_seconds", lambda *a: separate)
    monkeypatch.setattr(cpu, "cores", lambda: 4)
    plan = make_plan(specs, find_task(task), settings, resources, None)
    return plan.together, plan.jobs


def test_the_command_line_decides_where_it_says(monkeypatch):
    cpu = [CPU]
    assert planned(monkeypatch, "digits-mlp", specs_of(), Resources(cpu, 1, 1)) == (1, 0)
    assert planned(monkeypatch, "digits-mlp", specs_of(), Resources(cpu, 5, 2)) == (5, 2)
    assert planned(monkeypatch, "digits-mlp", specs_of(2), Resources(cpu, 1, 9)) == (
        1,
        2,
    )  # no more processes than runs
    assert planned(monkeypatch, "digits-mlp", specs_of(), Resources(cpu, 1, None)) == (1, 4)
    assert planned(monkeypatch, "digits-mlp", specs_of(), Resources(cpu, 1, None), separate=1e-4) == (
        1,
        0,
    )  # not worth it
    assert planned(monkeypatch, "digits-mlp", specs_of(8, "lbfgs"), Resources(cpu, 4, 1)) == (1, 0)  # needs closures
    assert planned(monkeypatch, "digits-mlp", specs_of(), Resources(cpu, 4, 1), settings=Settings(amp="fp16")) == (1, 0)


@pytest.mark.parametrize(
    "stacked, expected",
    [(lambda k: 0.012, 64), (lambda k: 0.012 * k, 1), (lambda k: 0.096 if k <= 32 else 0.004 * k, 32)],
)
def test_the_stack_that_measures_best_is_taken(monkeypatch, stacked, expected):
    """``stacked(k)`` seconds for a step of k runs, against 10 ms for a step of one run alone.

    The time without the optimizer, known first, may be any part of that.
    """
    monkeypatch.setattr(measure, "stack_seconds", lambda task, specs, *rest: stacked(len(specs)))
    asked = []
    monkeypatch.setattr(measure, "separate_seconds", lambda *a: asked.append(a) or 0.010)
    specs = [RunSpec(OptimizerSpec.parse("momo"), 0.01 * (i + 1), 0) for i in range(64)]
    for floor in (0.010, 0.005, 1e-9):
        chosen = measure.choose(find_task("digits-mlp").build(0, CPU), specs, Settings(), CPU, floor)
        assert chosen.together == expected and bool(chosen.line)
        if floor == 0.010 and expected > 1:
            assert not asked  # a stack that wins for certain is not compared with more than that
        if expected == 1:
            assert chosen.seconds == 0.010


SLOW = """
import time, torch
def build(seed):
    x = torch.randn(30, 3)
    def loss(model, batch):
        time.sleep(0.02)
        return model(batch).square().mean()
    return torch.nn.Linear(3, 1), loss, list(x.split(10))
"""


@pytest.mark.parametrize("read_every", [1, 10])
def test_a_step_is_timed_by_what_it_takes(folder, monkeypatch, read_every):
    """Also where losses are read ten at a time, as on a GPU. A stack calls the loss once for all its runs."""
    for module in (together, single):
        monkeypatch.setattr(module, "reading_interval", lambda device: read_every)
    (folder / "slow.py").write_text(SLOW)
    task = find_task("slow.py").build(0, CPU)
    for seconds in (
        timing.gradient_seconds(task, Settings(), CPU),
        timing.separate_seconds(task, specs_of(3, "momo"), Settings(), CPU),
        timing.stack_seconds(task, specs_of(3, "momo"), Settings(), CPU),
    ):
        assert 0.02 <= seconds < 0.2
    assert timing.stack_seconds(task, specs_of(3, "momo"), Settings(), CPU, limit=0.03) is None
    assert timing.gradient_seconds(task, Settings(), CPU, limit=0.03) == float("inf")
    assert timing.on_threads(2, lambda limit: torch.get_num_threads() + limit, 1.0) == 2 + 18
    (folder / "wrong.py").write_text(SLOW.replace("time.sleep(0.02)", "raise ValueError"))
    assert timing.gradient_seconds(find_task("wrong.py").build(0, CPU), Settings(), CPU) == 0.0


def test_a_stack_needs_no_optimizer_of_torchs(momo_process):
    """Making the first one takes torch a second: it imports its compiler."""
    code = (
        "import sys; from momo_cli.__main__ import run\n"
        "assert run(['sweep', 'digits-mlp', '--lrs', '1e-2:1:4', '--steps', '9', '--together', '8', '--jobs', '1', '-q']) == 0\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules and 'optuna' not in sys.modules\n"
    )
    process = momo_process(interpreter=("-c", code))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_a_task_that_cannot_be_stacked_says_so_in_one_line(momo, folder, monkeypatch):
    monkeypatch.setattr(execute, "_TRIFLE", 0.0)
    file = folder / "mymodule.py"
    file.write_text(
        file.read_text().replace(
            "model(batch[0]), batch[1])", "model(batch[0]), batch[1]) * (1 if model(batch[0]).mean().item() else 1)"
        )
    )
    for together in ("auto", "2"):
        code, out, err = momo(
            "sweep", "mymodule", "--lrs", "0.01,0.1", "--jobs", "1", "--together", together, "--fresh"
        )
        assert code == 0 and err.count("can't be trained together") == 1 and "item" in err


def test_half_a_grid_that_diverges_early_costs_little():
    """Counted in rows × steps of the stack, the cost that a clock would show with noise."""
    from momo_cli.training import stack

    calls = []
    real = stack.Stack.gradients

    def counted(self, batches):
        calls.append(len(self))
        return real(self, batches)

    optimizer = OptimizerSpec.parse("sgd")
    calm = [RunSpec(optimizer, 0.001 * (i + 1), 0) for i in range(8)]
    wild = [RunSpec(optimizer, 1e6 * (i + 1), 0) for i in range(8)]
    stack.Stack.gradients = counted
    try:
        runs = dict(together.train_together(find_task("digits-mlp"), calm + wild, Settings(steps=100), CPU))
    finally:
        stack.Stack.gradients = real
    assert [runs[s].status for s in calm + wild] == ["ok"] * 8 + ["diverged"] * 8
    assert sum(calls) < 0.6 * 16 * 100
