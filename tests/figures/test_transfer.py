"""Does one learning rate serve everywhere: the figures equal a second computation from the contract's text."""

from __future__ import annotations

import math
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from momo_cli.figures.transfer import transfers
from momo_cli.runs import Run

T = {1: 12.7062047362, 2: 4.30265272991, 3: 3.18244630528}  # 0.975 quantiles of Student's t, from a table


def studies(seed, values=3, lrs=6, seeds=3, optimizers=("adam", "momo"), shift=0.0, scale=1.0):
    """Runs of made-up optimizers whose curves are parabolas with noise, and that diverge at large learning rates."""
    random.seed(seed)
    tables = []
    for v in range(values):
        runs = []
        for name in optimizers:
            centre, width = random.uniform(-3, -1) - 0.4 * v, random.uniform(0.3, 2)
            for s in range(seeds):
                initial = 4.0 + 0.1 * s
                for k in range(lrs):
                    lost = random.random() < 0.06
                    loss = 1 + width * (k / 2 - 3 - centre) ** 2 + random.gauss(0, 0.1)
                    runs.append(
                        Run(name, scale * 10 ** (k / 2 - 3), s, "diverged" if lost else "ok",
                            objective=None if lost else loss + shift, initial=initial + shift)
                    )  # fmt: skip
        tables.append(runs)
    return tables


def plain(values, tables, name, left_out=None, at_lr=None):
    """The contract's text, by loops over runs."""
    lrs = sorted(set.intersection(*({r.lr for r in runs if r.optimizer == name} for runs in tables)))
    optima, excess = [], []
    for runs in tables:
        used = [r for r in runs if r.seed != left_out]
        by_seed = {s: next(r.initial for r in used if r.seed == s) for s in {r.seed for r in used}}
        initial = sum(by_seed.values()) / len(by_seed)
        curve = []
        for lr in lrs:
            ends = [r for r in used if r.optimizer == name and r.lr == lr]
            curve.append(
                sum(r.initial if r.status == "diverged" else min(r.objective, r.initial) for r in ends) / len(ends)
            )
        best = min(range(len(lrs)), key=lambda i: (curve[i], lrs[i]))
        optimum = lrs[best]
        if 0 < best < len(lrs) - 1:
            a, b, _ = np.polyfit(np.log10(lrs[best - 1 : best + 2]), curve[best - 1 : best + 2], 2)
            optimum = 10 ** (-b / (2 * a)) if a > 1e-12 else optimum
        optima.append(optimum)
        span = initial - curve[best]
        excess.append([(value - curve[best]) / span if span > 0 else 0.0 for value in curve])
    worst = [max(row[i] for row in excess) for i in range(len(lrs))]
    chosen = lrs.index(at_lr) if at_lr is not None else min(range(len(lrs)), key=lambda i: (worst[i], lrs[i]))
    slope = np.polyfit(np.log10(values), np.log10(optima), 1)[0]
    return lrs[chosen], worst[chosen], values[max(range(len(values)), key=lambda v: excess[v][chosen])], slope, optima


def interval(value, left_out, nonnegative):
    n = len(left_out)
    logarithmic = value > 0 and min(left_out) > 0
    thetas = np.log(left_out) if logarithmic else np.array(left_out)
    half = T[n - 1] * math.sqrt((n - 1) / n * ((thetas - thetas.mean()) ** 2).sum())
    low, high = (value * math.exp(-half), value * math.exp(half)) if logarithmic else (value - half, value + half)
    return (max(low, 0.0) if nonnegative else low), high


@pytest.mark.parametrize("seed", range(25))
def test_every_figure_equals_the_contracts_text(seed):
    values = [32, 64, 256]
    tables = studies(seed)
    for found in transfers(values, tables).optimizers:
        lr, worst, at, slope, optima = plain(values, tables, found.optimizer)
        assert (found.shared.lr, found.shared.at) == (lr, at)
        assert found.shared.worst.value == pytest.approx(worst, abs=1e-12)
        assert found.optima == pytest.approx(optima, rel=1e-6)
        assert found.drift.value == pytest.approx(slope, rel=1e-5, abs=1e-9)
        without = [plain(values, tables, found.optimizer, s, lr) for s in range(3)]
        ends = interval(worst, [each[1] for each in without], True)
        assert (found.shared.worst.low, found.shared.worst.high) == pytest.approx(ends, rel=1e-6, abs=1e-9)
        ends = interval(slope, [each[3] for each in without], False)
        assert (found.drift.low, found.drift.high) == pytest.approx(ends, rel=1e-4, abs=1e-6)


def numbers(found):
    shared = found.shared
    drift = (found.drift.value, found.drift.low, found.drift.high)
    return [shared.worst.value, shared.worst.low, shared.worst.high, *drift]


@hypothesis.given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(0.01, 100), st.floats(0.1, 10))
def test_what_changes_nothing(seed, shift, scale, stretch):
    """Constants added to all losses; learning rates in another unit; values in another unit, in another order."""
    values, plainly = [10, 20, 80], transfers([10, 20, 80], studies(seed)).optimizers
    shifted = transfers(values, studies(seed, shift=shift)).optimizers
    scaled = transfers(values, studies(seed, scale=scale)).optimizers
    stretched = transfers([stretch * value for value in values], studies(seed)).optimizers
    tables = studies(seed)
    turned = transfers(values[::-1], tables[::-1]).optimizers
    for one, *others in zip(plainly, shifted, scaled, stretched, turned):
        for other in others:
            assert numbers(other) == pytest.approx(numbers(one), rel=1e-5, abs=1e-6)
        assert others[0].shared == pytest.approx(one.shared) or others[0].shared.lr == one.shared.lr
        assert others[1].shared.lr == pytest.approx(scale * one.shared.lr)
        assert others[3].optima == pytest.approx(one.optima[::-1])


def test_what_is_not_known():
    tables = studies(1)
    assert all(each.drift.value is None for each in transfers(["small", "large", "huge"], tables).optimizers)
    assert transfers([8, 16, 32], studies(1, seeds=1)).optimizers[0].shared.worst.low is None
    foreign = [Run(run.optimizer, 3 * run.lr, run.seed, run.status, run.objective, run.initial) for run in tables[1]]
    found = transfers([8, 16, 32], [tables[0], foreign, tables[2]])
    assert all(each.shared is None and each.drift.value is None for each in found.optimizers)
    assert found.recommended is None


def test_the_recommended_one_is_near_the_best_everywhere():
    """A method that is equally bad at every learning rate has no excess, and isn't recommended."""

    def runs(v):
        good = [
            Run("good", 10.0**k, s, objective=1 + (k + v) ** 2 / 4, initial=4.0) for k in range(-3, 1) for s in (0, 1)
        ]
        return good + [Run("flat", 10.0**k, s, objective=3.0, initial=4.0) for k in range(-3, 1) for s in (0, 1)]

    found = transfers([10, 100], [runs(1), runs(2)])
    assert [each.shared.worst.value for each in found.optimizers] == [pytest.approx(1 / 12), 0.0]
    assert found.recommended == "good"
