"""How often the 95 % intervals from 3 seeds hold the truth, with a record of 64 seeds as the truth.

Run it with ``python -m pytest -m benchmark tests/benchmarks/test_coverage.py -s``: the table is printed. Making the two
records takes some minutes; with ``MOMO_RECORDS=FOLDER`` they are kept there, and read again.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from momo_cli import figures
from momo_cli.__main__ import run
from momo_cli.figures import Figures, Interval
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
