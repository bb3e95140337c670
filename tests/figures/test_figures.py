"""Every figure equals a plain computation written from its definition, and behaves as it must."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momo_cli import figures
from momo_cli.figures.intervals import student_t
from momo_cli.plan.optimizers import is_momo
from momo_cli.runs import Run

LRS = [10 ** (k / 2) for k in range(-6, 5)]
NAMES = ["momo", "adam", "momo:MomoAdam(lb=-1)", "sgd(momentum=0.9)"]

numbers = st.floats(-5, 5).map(lambda x: round(x, 3))


@st.composite
def tables(draw, optimizers=4, seeds=4, initial=True, clean=False):
    """Runs of some optimizers on grids of their own, with holes, divergence, failures and missing values."""
    starts = [draw(numbers) for _ in range(seeds)] if initial else [None] * seeds
    runs = []
    for name in NAMES[: draw(st.integers(1, optimizers))]:
        for lr in sorted(draw(st.sets(st.sampled_from(LRS), min_size=1, max_size=6))):
            for seed in range(draw(st.integers(1, seeds))):
                status = "ok" if clean else draw(st.sampled_from(["ok"] * 6 + ["diverged", "failed", "pruned"]))
                value = draw(
                    numbers if clean else st.one_of(numbers, numbers, st.sampled_from([None, math.nan, math.inf]))
                )
                runs.append(Run(name, lr, seed, status, value, starts[seed]))
    return runs


# ------------------------------------------------------------------------------------- the plain computation


def plainly(runs, maximize):
    """The definitions, one number at a time: ℓ0, ℓ(η), sensitivities and regrets; None where there is no value."""
    sign = -1 if maximize else 1
    finite = lambda x: x is not None and math.isfinite(x)
    runs = [r for r in runs if r.status in ("ok", "diverged")]
    ended = lambda r: r.status == "ok" and finite(r.objective)
    starts = {r.seed: sign * r.initial for r in runs if finite(r.initial)}
    if starts:
        l0 = sum(starts.values()) / len(starts)
    else:
        ends = [sign * r.objective for r in runs if ended(r)]
        if not ends:
            return None
        l0 = max(ends)

    cells = {}
    for r in runs:
        own = starts.get(r.seed, l0)
        cells.setdefault(r.optimizer, {}).setdefault(r.lr, {})[r.seed] = (
            min(sign * r.objective, own) if ended(r) else own
        )

    def area(values, floor):
        if len(values) < 2:
            return None
        points = [(math.log10(lr), v - floor) for lr, v in values.items()]
        total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))
        return total / (points[-1][0] - points[0][0])

    alive = [o for o in cells if any(ended(r) for r in runs if r.optimizer == o)]
    curves = {o: {lr: sum(by.values()) / len(by) for lr, by in sorted(cells[o].items())} for o in cells}
    floor = min((min(curve.values()) for curve in curves.values()), default=None)
    return {
        "initial": sign * l0,
        "l0": l0,
        "cells": cells,
        "alive": alive,
        "curves": curves,
        "sensitivity": {o: area(c, min(c.values())) if o in alive else None for o, c in curves.items()},
        "regret": {o: area(c, floor) if alive else None for o, c in curves.items()},
    }


#: Student's t, 0.975, for 1 to 3 degrees of freedom, from a printed table.
T = {1: 12.7062047362, 2: 4.3026527297, 3: 3.1824463053}


def interval_of(figure, runs, optimizers, value, everything):
    """The jackknife as the contract has it, each θ_j from the runs of the other seeds; None where there is none."""
    seeds = {frozenset(by_seed) for o in optimizers for by_seed in everything["cells"][o].values()}
    if len(seeds) != 1 or value is None or len(shared := next(iter(seeds))) < 2:
        return None, None
    n, left_out = len(shared), []
    for seed in shared:
        found = figure([r for r in runs if r.seed != seed])
        if found is None:
            return None, None
        left_out.append(found)
    logs = min(value, *left_out) > 0
    thetas = [math.log(x) for x in left_out] if logs else left_out
    mean = sum(thetas) / n
    width = T[n - 1] * math.sqrt((n - 1) / n * sum((x - mean) ** 2 for x in thetas))
    if not logs:
        return max(value - width, 0), value + width
    return value * math.exp(-width), value * math.exp(width) if width < 700 else None


def near(a, b):
    return a is b is None or (a is not None and b is not None and a == pytest.approx(b, rel=1e-7, abs=1e-9))


@given(st.one_of(tables(), tables(initial=False)), st.booleans())
def test_the_figures_equal_a_plain_computation(runs, maximize):
    result = figures.analyze(runs, maximize=maximize)
    expected = plainly(runs, maximize)
    assert [entry.optimizer for entry in result.optimizers] == list(dict.fromkeys(r.optimizer for r in runs))
    if expected is None:
        assert result.initial is None
        assert all(e.best is e.sensitivity.value is e.regret.value is None for e in result.optimizers)
        return
    sign = -1 if maximize else 1
    assert near(result.initial, expected["initial"])
    for entry in result.optimizers:
        name = entry.optimizer
        own = [r for r in runs if r.optimizer == name]
        assert entry.lrs == tuple(sorted({r.lr for r in own}))
        assert entry.runs == len(own) and entry.failed == sum(r.status == "failed" for r in own)
        if name not in expected["cells"]:
            assert set(entry.values) == {None} and entry.best is None
            continue
        for figure, used in (("sensitivity", [name]), ("regret", list(expected["cells"]))):
            found, value = getattr(entry, figure), expected[figure][name]
            again = lambda some, figure=figure, name=name: (plainly(some, maximize) or {figure: {}})[figure].get(name)
            low, high = interval_of(again, runs, used, value, expected)
            assert near(found.value, value) and near(found.low, low) and near(found.high, high)
        values = expected["curves"][name]
        assert all(near(v, sign * values[lr] if lr in values else None) for lr, v in zip(entry.lrs, entry.values))
        if name not in expected["alive"]:
            assert entry.best is entry.best_lr is entry.good_range.low is None
            continue
        best = min(values.values())
        assert near(entry.best, sign * best)
        ranked = sorted(values.values())
        n = len(ranked)
        for k in (1, 2, 4, 8):
            expectation = sum(v * ((1 - i / n) ** k - (1 - (i + 1) / n) ** k) for i, v in enumerate(ranked))
            assert near(entry.expected_best[k], sign * expectation)
        check_range(entry, values, best, expected["l0"])


@pytest.mark.parametrize(
    "degrees, quantile",
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (63, 1.9983), (1000, 1.9623)],
)
def test_students_t_is_the_printed_tables(degrees, quantile):
    assert student_t(degrees) == pytest.approx(quantile, abs=6e-5)


def test_the_expected_best_of_a_sample_is_the_mean_over_its_subsets():
    values = [0.3, 0.1, 0.7, 0.2, 0.9]
    runs = [Run("adam", 10.0**i, 0, objective=v, initial=1.0) for i, v in enumerate(values)]
    [entry] = figures.analyze(runs, sampled=True).optimizers
    for k in (1, 2, 4):
        subsets = [min(some) for some in itertools.combinations(values, k)]
        assert entry.expected_best[k] == pytest.approx(sum(subsets) / len(subsets))
    assert entry.expected_best[8] is None


def check_range(entry, values, best, l0):
    """The good range, found by walking along the interpolated curve in small steps."""
    width, lrs = entry.good_range, sorted(values)
    bound = best + 0.05 * max(l0 - best, 0)
    assert width.low <= entry.best_lr <= width.high
    x = [math.log10(lr) for lr in lrs]
    y = [values[lr] for lr in lrs]
    for end, is_open, last, beyond in (
        (width.low, width.open_low, x[0], -1e-3),
        (width.high, width.open_high, x[-1], 1e-3),
    ):
        at = math.log10(end)
        inside = np.linspace(math.log10(entry.best_lr), at, 50)
        assert (np.interp(inside, x, y) <= bound + 1e-6).all()
        if is_open:
            assert at == pytest.approx(last)
        elif abs(y[0]) < 1e6 and max(y) - bound > 1e-2:
            assert np.interp(at + beyond, x, y) > bound - 1e-6
    if len(lrs) > 1:
        assert width.decades == pytest.approx(math.log10(width.high / width.low), abs=1e-9)
    else:
        assert width.decades is None and width.open_low and width.open_high


# ----------------------------------------------------------------------------------------------- properties


@given(tables())
def test_scaling_all_learning_rates_changes_learning_rates_alone(runs):
    plain = figures.analyze(runs)
    scaled = figures.analyze([Run(r.optimizer, r.lr * 100, r.seed, r.status, r.objective, r.initial) for r in runs])
    for a, b in zip(plain.optimizers, scaled.optimizers):
        assert a.values == b.values and a.best == b.best and a.expected_best == b.expected_best
        assert near(a.best_lr and a.best_lr * 100, b.best_lr)
        assert near(a.good_range.decades, b.good_range.decades)
        for one, other in ((a.sensitivity, b.sensitivity), (a.regret, b.regret)):
            assert all(map(near, dataclasses.astuple(one), dataclasses.astuple(other)))


@given(tables(clean=True), st.floats(-100, 100))
def test_adding_a_constant_changes_no_sensitivity_or_regret(runs, constant):
    plain = figures.analyze(runs)
    moved = figures.analyze(
        [Run(r.optimizer, r.lr, r.seed, "ok", r.objective + constant, r.initial + constant) for r in runs]
    )
    for a, b in zip(plain.optimizers, moved.optimizers):
        for one, other in ((a.sensitivity, b.sensitivity), (a.regret, b.regret)):
            assert all(map(near, dataclasses.astuple(one), dataclasses.astuple(other)))


@given(st.data())
def test_better_values_at_every_learning_rate_never_worsen_regret(data):
    lrs = sorted(data.draw(st.sets(st.sampled_from(LRS), min_size=2)))
    worse = [data.draw(numbers) for _ in lrs]
    gains = [data.draw(st.floats(0, 3)) for _ in lrs]
    runs = [Run("adam", lr, 0, objective=v, initial=9.0) for lr, v in zip(lrs, worse)]
    runs += [Run("momo", lr, 0, objective=v - gain, initial=9.0) for lr, v, gain in zip(lrs, worse, gains)]
    adam, momo = figures.analyze(runs).optimizers
    assert momo.regret.value <= adam.regret.value + 1e-9


@given(tables(), st.booleans())
def test_intervals_hold_the_figure_and_nothing_is_negative_or_not_finite(runs, maximize):
    result = figures.analyze(runs, maximize=maximize)
    every = [figure for e in result.optimizers for figure in (e.sensitivity, e.regret)]
    every += [pair.sensitivity_ratio for pair in result.comparisons]
    for figure in every:
        assert all(v is None or (math.isfinite(v) and v >= -1e-12) for v in dataclasses.astuple(figure))
        assert figure.low is None or figure.low <= figure.value
        assert figure.high is None or figure.value <= figure.high
    names = [e.optimizer for e in result.optimizers]
    assert [(p.a, p.b) for p in result.comparisons] == [
        (a, b) for a in names for b in names if is_momo(a) and not is_momo(b)
    ]


def grid(name, values, **more):
    return [Run(name, 10.0**i, 0, "diverged" if v is None else "ok", v, **more) for i, v in enumerate(values)]


def test_nothing_is_made_up():
    assert figures.analyze([]) == figures.Figures()
    [lost] = figures.analyze(grid("adam", [None, None, None])).optimizers
    assert lost.values == (None,) * 3 and lost.expected_best == dict.fromkeys((1, 2, 4, 8))
    [lost] = figures.analyze(grid("adam", [None, None, None], initial=2.0)).optimizers
    assert lost.best is lost.sensitivity.value is lost.regret.value is lost.good_range.decades is None
    runs = grid("adam", [None, None], initial=2.0) + grid("momo", [1.0, 1.0], initial=2.0)
    lost, fine = figures.analyze(runs).optimizers
    assert lost.regret.value == 1.0 and lost.sensitivity.value is None and fine.sensitivity.value == 0.0
    [one] = figures.analyze(grid("adam", [1.0], initial=2.0)).optimizers
    assert one.best == 1.0 and one.best_at_edge and one.sensitivity.value is one.regret.value is None
    [odd] = figures.analyze([Run("adam", lr, objective=1.0) for lr in (math.nan, 0.0, -1.0)]).optimizers
    assert odd.best is None and odd.runs == 3
    [failed] = figures.analyze([Run("adam", 0.1, status="failed", objective=1.0)]).optimizers
    assert failed.best is None and failed.failed == 1


def test_an_interval_needs_the_same_seeds_at_every_learning_rate():
    runs = [Run("adam", lr, seed, objective=lr + seed, initial=9.0) for lr in (0.1, 1.0) for seed in range(3)]
    assert figures.analyze(runs).optimizers[0].sensitivity.low is not None
    assert figures.analyze(runs[:5]).optimizers[0].sensitivity.low is None
    assert figures.analyze([runs[0], runs[3]]).optimizers[0].sensitivity.low is None


def test_leaving_a_seed_out_leaves_it_out_of_every_optimizer():
    """The ratio of one method to its exact double has no spread."""
    rng = np.random.default_rng(0)
    runs = []
    for lr in (0.1, 1.0, 10.0):
        for seed in range(5):
            value = rng.random()
            runs += [
                Run("momo", lr, seed, objective=value, initial=9.0),
                Run("adam", lr, seed, objective=2 * value, initial=9.0),
            ]
    [pair] = figures.analyze(runs).comparisons
    assert all(value == pytest.approx(0.5) for value in dataclasses.astuple(pair.sensitivity_ratio))


def test_ties_go_to_the_smaller_learning_rate_and_capped_counts_steps():
    runs = [
        Run("momo", lr, 0, "ok", 1.0, 2.0, steps=steps, capped=share)
        for lr, steps, share in ((1.0, 300, 0.5), (0.1, 100, 0.1))
    ]
    [entry] = figures.analyze(runs).optimizers
    assert entry.best_lr == 0.1 and entry.capped == pytest.approx(0.4)


def test_an_optimizer_that_diverged_on_seeds_of_its_own_has_no_negative_regret():
    """An example that exploring found: its ℓ0 lies below the best value of the others."""
    runs = [Run("adam", lr, 0, objective=1.0, initial=2.0) for lr in (0.1, 1.0)]
    runs += [Run("momo", lr, 1, "diverged", initial=0.5) for lr in (0.1, 1.0)]
    adam, momo = figures.analyze(runs).optimizers
    assert momo.regret.value == 0.0 and adam.regret.value == 0.5
