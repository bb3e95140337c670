"""Does one learning rate serve everywhere? The figures of studies that differ in one value, a width say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from momo_cli.figures.formulas import Array
from momo_cli.figures.intervals import jackknife
from momo_cli.figures.results import TOLERANCE, Interval, Shared, Transfer, Transfers
from momo_cli.figures.samples import Samples
from momo_cli.runs import Run


def transfers(values: Sequence[object], tables: Sequence[Sequence[Run]], *, maximize: bool = False) -> Transfers:
    """The figures of each optimizer, over the learning rates that it has at every value.

    Args:
        values: What the studies differ in; numbers have a drift.
        tables: The runs of each value.
        maximize: Whether larger values of the objective are better.

    >>> def runs(best):
    ...     return [Run("sgd", 10.0**k, objective=1.0 + abs(k - best), initial=9.0) for k in range(-3, 2)]
    >>> [sgd] = transfers([10, 100], [runs(-1), runs(-2)]).optimizers
    >>> sgd.best_lrs, sgd.shared.lr, sgd.drift.value
    ((0.1, 0.01), 0.01, -1.0)
    """
    studies = [Samples(runs, maximize) for runs in tables]
    names = dict.fromkeys(run.optimizer for runs in tables for run in runs)
    varied = [_Varied(name, values, studies) for name in names]
    found = tuple(each.figures() for each in varied)
    return Transfers(tuple(values), found, _recommended(varied, found, studies))


class _Varied:
    """One optimizer at every value, over the learning rates that it has at all of them."""

    def __init__(self, name: str, values: Sequence[object], studies: Sequence[Samples]) -> None:
        self.name, self.values, self.studies = name, values, studies
        grids = [set(study.cells[name].lrs.tolist()) if name in study.cells else set() for study in studies]
        self.lrs = sorted(set.intersection(*grids))

    def figures(self) -> Transfer:
        """What is known of it."""
        curves = self.curves()
        optima = [None if curve is None else _optimum(self.lrs, curve) for curve in curves]
        best = [None if curve is None else self.lrs[int(np.argmin(curve))] for curve in curves]
        if not self.lrs:
            return Transfer(self.name, (), tuple(best), tuple(optima), None, Interval())
        excess = self.excess()
        worst = excess.max(axis=0)
        chosen = int(np.argmin(worst))
        shared = Shared(
            self.lrs[chosen],
            self._interval(float(worst[chosen]), lambda without: float(self.excess(without)[:, chosen].max())),
            self.values[int(np.argmax(excess[:, chosen]))],
        )
        drift = self._interval(self.drift(), self.drift, nonnegative=False)
        return Transfer(self.name, tuple(self.lrs), tuple(best), tuple(optima), shared, drift)

    def curves(self, without: int | None = None) -> list[Array | None]:
        """``ℓ`` at each value; None where there is none, as every run diverged."""
        return [
            self.curve(study, without)
            if self.lrs and self.name in study.curves(_place(study, without)).trained
            else None
            for study in self.studies
        ]

    def curve(self, study: Samples, without: int | None = None) -> Array:
        """``ℓ`` at one value."""
        rows = np.searchsorted(study.cells[self.name].lrs, self.lrs)
        return study.curves(_place(study, without)).values[self.name][rows]

    def excess(self, without: int | None = None) -> Array:
        """``(ℓ_v(η) - ℓ*_v) / (ℓ0_v - ℓ*_v)``, a row for each value; 0 where the denominator is not positive."""
        rows = []
        for study in self.studies:
            curve = self.curve(study, without)
            rows.append(_share(curve, float(curve.min()), study.initial(_place(study, without))))
        return np.array(rows)

    def drift(self, without: int | None = None) -> float:
        """The least-squares slope of log10 of the optimum over log10 of the value; NaN where it has none."""
        values = [
            float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else math.nan for v in self.values
        ]
        optima = [math.nan if curve is None else _optimum(self.lrs, curve) for curve in self.curves(without)]
        if len(set(values)) < 2 or not all(v > 0 for v in [*values, *optima]):
            return math.nan
        x, y = np.log10(values), np.log10(optima)
        x = x - x.mean()
        return float((x * (y - y.mean())).sum() / (x * x).sum())

    def _interval(self, value: float, figure: Callable[[int], float], nonnegative: bool = True) -> Interval:
        """A figure with its interval over the seeds, if these are the same at every learning rate and value."""
        seeds = {self._seeds(study) for study in self.studies}
        shared = seeds.pop() if len(seeds) == 1 else None
        if shared is None or len(shared) < 2:
            return jackknife(value, [])
        return jackknife(value, [figure(seed) for seed in shared], nonnegative)

    def _seeds(self, study: Samples) -> tuple[int, ...] | None:
        columns = study.cells[self.name].at(self.lrs).seeds
        return None if columns is None else tuple(study.seeds[i] for i in columns)


def _place(study: Samples, seed: int | None) -> int | None:
    """Where a seed that is left out stands in a study."""
    return None if seed is None else study.seeds.index(seed)


def _share(values: Array, best: float, initial: float) -> Array:
    """How much of the way from the best value to ℓ0 values stay behind; 0 where there is no such way."""
    span = initial - best
    return (values - best) / span if span > 0 else np.zeros_like(values)


def _optimum(lrs: Sequence[float], curve: Array) -> float:
    """The vertex of the parabola through the best point and its neighbours in (log10 η, ℓ); the best point itself at an
    end of the grid, or where the three don't bend upwards."""
    best = int(np.argmin(curve))
    if best in (0, len(lrs) - 1):
        return lrs[best]
    x = [math.log10(lr) for lr in lrs[best - 1 : best + 2]]
    y = curve[best - 1 : best + 2].tolist()
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bend = (right - left) / (x[2] - x[0])
    return float(10 ** ((x[0] + x[1]) / 2 - left / (2 * bend))) if bend > 0 else lrs[best]


def _recommended(varied: Sequence[_Varied], found: Sequence[Transfer], studies: Sequence[Samples]) -> str | None:
    """The optimizer of the least worst excess, of those that come near the best of all at the mean over the values."""
    known = [each for each in varied if each.lrs]
    best = {each.name: np.array([each.curve(study).min() for study in studies]) for each in known}
    near = []
    for each in known:
        least = np.min(list(best.values()), axis=0)
        shares = [_share(best[each.name][i], least[i], study.initial()) for i, study in enumerate(studies)]
        if math.fsum(shares) / len(shares) <= TOLERANCE and any(curve is not None for curve in each.curves()):
            near.append(each.name)
    worst = {each.optimizer: each.shared.worst.value or 0.0 for each in found if each.shared is not None}
    return min(near, key=worst.__getitem__, default=None)
