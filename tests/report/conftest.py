"""Reports of made-up sweeps."""

import math
import random

import pytest

from momo_cli import figures
from momo_cli.report import Report
from momo_cli.runs import Run

DEFAULTS = {"momo": 1.0, "momo-adam": 1e-2, "sgd-m": 1.0, "adam": 1e-3}


def a_report(
    optimizers=("momo", "sgd-m"), lrs=9, seeds=3, task="digits-mlp", command="momo sweep digits-mlp", failing=False
) -> Report:
    """Momo's methods good over three decades, the others over one; the others diverge at large learning rates."""
    rng, runs = random.Random(1), []
    defaults = {name: DEFAULTS.get(name.split("(")[0], 1e-3) for name in optimizers}
    for name in optimizers:
        momo = figures.is_momo(name)
        for i in range(lrs):
            x = (i - (lrs - 1) / 2) / 2
            lr = float(f"{defaults[name] * 10**x:.6g}")
            for seed in range(seeds):
                start = 2.3 + 0.02 * seed
                value = 0.09 + 0.7 * max(0, abs(x - 0.2) - (1.5 if momo else 0.6)) ** 2 + 0.01 * rng.random()
                run = Run(name, lr, seed, "ok", value, start, value, value, {"accuracy": 0.9}, steps=200, seconds=1.0)
                run.curve = [[t, value + (start - value) * math.exp(-t / 40)] for t in range(10, 201, 10)]
                if momo:
                    run.capped = 0.4
                    sizes = [(t, 0.3 + 0.2 * math.sin(t)) for t in range(0, 200, 2)]
                    run.step_sizes = [[t, min(lr, size), lr, size] for t, size in sizes]
                if x > 1.2 and not momo and rng.random() < 0.8:
                    run.status, run.objective, run.train_loss, run.val_loss = "diverged", None, None, None
                if failing and i == 2 and seed == 0:
                    run.status, run.objective, run.error = "failed", None, "Traceback\nValueError: bad shape"
                runs.append(run)
    return Report(
        task,
        "a-key",
        "val_loss",
        False,
        runs,
        figures.analyze(runs),
        None,
        {"epochs": 5},
        ["A note."],
        command,
        defaults,
    )


@pytest.fixture
def make_report():
    return a_report
