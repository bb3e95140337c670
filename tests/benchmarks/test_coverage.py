"""How often the 95 % intervals from 3 seeds hold the truth, with a record of 64 seeds as the truth.

Run it with ``python -m pytest -m benchmark tests/benchmarks/test_coverage.py -s``: the table is printed. Making the two
records takes some minutes; with ``MOMO_RECORDS=FOLDER`` they are kept there, and read again.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from momo_cli import figures
from momo_cli.__main__ import run
from momo_cli.figures import Figures, Interval
from momo_cli.figures.transfer import transfers
from momo_cli.runs import FIELDS, Run

SEEDS, SUBSETS, SIZE, LEAST = 64, 2000, 3, 0.92

#: What a record is made of: the task, and the options of the sweep.
RECORDS = {
    "digits-mlp": ("-o", "momo,sgd-m,adam", "--lrs", "1e-2:1e1:5", "--lrs", "adam=1e-4:1e-1:5"),
    "digits-cnn": ("-o", "momo,sgd-m,adam", "--lrs", "1e-2:1e1:4", "--lrs", "adam=1e-4:1e-1:4", "--steps", "80"),
}


def record(task: str, folder: Path) -> list[Run]:
    """The runs of 64 seeds."""
    file = folder / f"{task}.json"
    if not file.exists():
        code = run(["sweep", task, *RECORDS[task], "--seeds", str(SEEDS), "--json", str(file), "-q"])
        assert code == 0
    return [Run(**{name: entry[name] for name in FIELDS}) for entry in json.loads(file.read_text())["runs"]]


def named(found: Figures) -> Iterator[tuple[str, Interval]]:
    """Every figure that has an interval."""
    for entry in found.optimizers:
        yield f"sensitivity of {entry.optimizer}", entry.sensitivity
        yield f"regret of {entry.optimizer}", entry.regret
    for pair in found.comparisons:
        yield f"ratio {pair.a} / {pair.b}", pair.sensitivity_ratio


@pytest.mark.benchmark
@pytest.mark.parametrize("task", RECORDS)
def test_intervals_from_three_seeds_hold_the_truth(task, folder, capsys):
    runs = record(task, Path(os.environ.get("MOMO_RECORDS", folder)).absolute())
    truth = {name: figure.value for name, figure in named(figures.analyze(runs))}
    held = dict.fromkeys(truth, 0)
    draw = random.Random(0)
    for _ in range(SUBSETS):
        seeds = draw.sample(range(SEEDS), SIZE)
        for name, figure in named(figures.analyze([one for one in runs if one.seed in seeds])):
            assert figure.low is not None
            held[name] += figure.low <= truth[name] and (figure.high is None or truth[name] <= figure.high)
    with capsys.disabled():
        print()
        for name, count in held.items():
            print(f"{task}: {name}: {100 * count / SUBSETS:.1f} % of {SUBSETS} (true value {truth[name]:.4g})")
    assert min(held.values()) >= LEAST * SUBSETS


VALUES, LRS = (32, 64, 128, 256), [10 ** (k / 2 - 4) for k in range(9)]


def studies(draw: random.Random, seeds: int, noise: float) -> list[list[Run]]:
    """A made-up optimizer whose optimum falls by half a decade for each decade, and differs from seed to seed."""
    tables = []
    for value in VALUES:
        centre = -2.2 - 0.5 * math.log10(value / VALUES[0])
        own = [(draw.gauss(0, 0.08), draw.gauss(0, 0.02)) for _ in range(seeds)]
        tables.append(
            [
                Run("made-up", lr, s, objective=2 + 0.35 * min((math.log10(lr) - centre - shift) ** 2, 4) + offset
                    + draw.gauss(0, noise), initial=4.6)
                for lr in LRS for s, (shift, offset) in enumerate(own)
            ]
        )  # fmt: skip
    return tables


@pytest.mark.benchmark
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_intervals_of_what_is_varied(seeds, noise, capsys):
    """The drift's interval holds the truth as it says. That of the shared rate's worst excess does so less often: the
    rate is the one that looked best with these seeds, and the contract's interval doesn't know that."""
    draw, held = random.Random(0), {"drift": 0, "worst excess": 0}
    truth = [transfers(VALUES, studies(draw, 1000, noise)).optimizers[0] for _ in range(2)]
    large = [figures.analyze(runs).optimizers[0] for runs in studies(draw, 2000, noise)]
    excess = {
        lr: max((dict(entry.curve)[lr] - entry.best) / (4.6 - entry.best) for entry in large) for lr in LRS
    }  # fmt: skip
    slope = sum(found.drift.value for found in truth) / len(truth)
    for _ in range(500):
        found = transfers(VALUES, studies(draw, seeds, noise)).optimizers[0]
        held["drift"] += found.drift.low <= slope <= found.drift.high
        worst = found.shared.worst
        held["worst excess"] += worst.low <= excess[found.shared.lr] <= (math.inf if worst.high is None else worst.high)
    with capsys.disabled():
        print(
            f"\n{seeds} seeds, noise {noise}: " + ", ".join(f"{name} {100 * n / 500:.1f} %" for name, n in held.items())
        )
    assert held["drift"] >= 0.92 * 500 and held["worst excess"] >= 0.78 * 500
