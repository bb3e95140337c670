"""Who trains what: the candidates, their times, and what is chosen."""

from __future__ import annotations

import math

import pytest
import torch

from momo_cli.plan import OptimizerSpec, RunSpec, Settings, grid, parse_lrs, parse_optimizers
from momo_cli.task import find_task
from momo_cli.training import cpu
from momo_cli.training.dispatch import candidates
from momo_cli.training.dispatch.candidates import Resources, Work, choose
from momo_cli.training.dispatch.timing import StepTimes
from momo_cli.training.run import record

CPU = torch.device("cpu")
STEPS = Settings(steps=1000)


def specs_of(count=8, label="momo"):
    optimizers = parse_optimizers([label])
    return grid(optimizers, parse_lrs([f"1e-3:1:{count}"], optimizers), 1)


class Times(StepTimes):
    """Times as if they had been measured: ``stacked(k)`` seconds for a step of k runs."""

    gradient, operations, measured, stacked = 0.0, 1000, 0.0, staticmethod(lambda size: math.inf)

    @property
    def alone(self):
        asked.append("alone")
        return self.measured

    def stack(self, size, limit=None):
        return self.stacked(size) / size

    def on_threads(self, threads, together, on_one):
        return math.inf


asked: list[str] = []


@pytest.fixture
def chosen(monkeypatch):
    """The choice where a step of one run takes so many seconds, without its optimizer and with it, on 4 cores."""
    monkeypatch.setattr(cpu, "cores", lambda: 4)
    monkeypatch.setattr(candidates, "StepTimes", Times)

    def choice(specs, resources, gradient=1e-2, alone=1e-2, stacked=lambda size: math.inf, settings=STEPS):
        asked.clear()
        for name, value in {"gradient": gradient, "measured": alone, "stacked": staticmethod(stacked)}.items():
            monkeypatch.setattr(Times, name, value)
        return choose(Work(find_task("digits-mlp"), specs, settings, resources))

    return choice


@pytest.mark.parametrize(
    "runs, label, together, jobs, gradient, settings, expected",
    [
        (8, "momo", 1, 1, 1e-2, {}, (1, 1)),
        (8, "momo", 5, 2, 1e-2, {}, (5, 2)),
        (2, "momo", 1, 9, 1e-2, {}, (1, 2)),  # no more processes than runs
        (8, "momo", 1, None, 1e-2, {}, (1, 4)),
        (8, "momo", 1, None, 1e-4, {}, (1, 1)),  # not worth the start of processes
        (8, "lbfgs", 4, 1, 1e-2, {}, (1, 1)),  # needs closures
        (8, "momo", 4, 1, 1e-2, {"amp": "fp16"}, (1, 1)),
    ],
)
def test_the_command_line_decides_where_it_says(chosen, runs, label, together, jobs, gradient, settings, expected):
    settings = Settings(steps=1000, **settings)
    best, _ = chosen(specs_of(runs, label), Resources([CPU], together, jobs), gradient, settings=settings)
    assert (best.together, best.processes, best.threads) == (*expected, 1)


@pytest.mark.parametrize(
    "stacked, expected",
    [(lambda k: 0.012, 64), (lambda k: 0.012 * k, 1), (lambda k: 0.096 if k <= 32 else 0.004 * k, 32)],
)
def test_the_stack_that_measures_best_is_taken(chosen, stacked, expected):
    """``stacked(k)`` seconds for a step of k runs, against 10 ms for a step of one run alone.

    The time without the optimizer, known first, may be any part of that.
    """
    specs = [RunSpec(OptimizerSpec.parse("momo"), 0.01 * (i + 1), 0) for i in range(64)]
    for gradient in (0.010, 0.005, 1e-4):
        best, lines = chosen(specs, Resources([CPU], "auto", 1), gradient, 0.010, stacked)
        assert best.together == expected and len(lines) == 1
        if gradient == 0.010 and expected > 1:
            assert not asked  # a stack that wins for certain is not compared with more than that
        if expected == 1:
            assert best.seconds == pytest.approx(0.010 * 64 * 1000)


def test_no_stack_is_timed_where_steps_are_long_for_their_operations(chosen, monkeypatch):
    """Stacks save launches; a step of 10 ms with 10 operations hardly has any."""
    monkeypatch.setattr(Times, "operations", 10)
    best, lines = chosen(specs_of(64), Resources([CPU]), 1e-2, stacked=lambda size: pytest.fail("timed a stack"))
    assert (best.together, best.processes) == (1, 4) and lines[0].startswith("Runs are trained one after another")


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
    monkeypatch.setattr(record, "reading_interval", lambda device: read_every)
    (folder / "slow.py").write_text(SLOW)
    times = StepTimes(find_task("slow.py").build(0, CPU), specs_of(3), Settings(), CPU)
    assert times.operations == 6  # a linear layer with its two parameters and weight's transpose, square, mean
    for seconds in (times.gradient, times.alone, 3 * times.stack(3)):
        assert 0.02 <= seconds < 0.2
    assert times.stack(3, limit=0.03) is None
    assert times.on_threads(2, 1, times.gradient / 20) == math.inf  # given up
    (folder / "wrong.py").write_text(SLOW.replace("time.sleep(0.02)", "raise ValueError"))
    assert StepTimes(find_task("wrong.py").build(0, CPU), specs_of(3), Settings(), CPU).gradient == 0.0


GRID_OF_FOUR = ("--lrs", "1e-2:1:4")


@pytest.mark.parametrize(
    "how",
    [(*GRID_OF_FOUR, "--together", "8", "--jobs", "1"), GRID_OF_FOUR, ("--lrs", "0.1", "-o", "adam")],
    ids=["together", "little work", "one run"],
)
def test_a_stack_needs_no_optimizer_of_torchs(momo_process, how):
    """Making the first one takes torch a second: it imports its compiler. So little work goes into a stack, untimed."""
    code = (
        "import sys; from momo_cli.__main__ import run\n"
        f"assert run(['sweep', 'digits-mlp', '--steps', '9', '-q', *{how}]) == 0\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules and 'optuna' not in sys.modules\n"
    )
    process = momo_process(interpreter=("-c", code))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_a_task_that_cannot_be_stacked_says_so_in_one_line(momo, folder, monkeypatch):
    monkeypatch.setattr(candidates, "_TRIFLE", 0.0)
    file = folder / "mymodule.py"
    file.write_text(
        file.read_text().replace(
            "model(batch[0]), batch[1])", "model(batch[0]), batch[1]) * (1 if model(batch[0]).mean().item() else 1)"
        )
    )
    for together in ("auto", "2"):
        code, _, err = momo("sweep", "mymodule", "--lrs", "0.01,0.1", "--jobs", "1", "--together", together, "--fresh")
        assert code == 0 and err.count("can't be trained together") == 1 and "item" in err
