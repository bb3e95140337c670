"""All figures of a table of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from momo_cli.figures.formulas import expected_best, expected_best_of_sample, good_range, ratio, sensitivity
from momo_cli.figures.intervals import jackknife
from momo_cli.figures.results import GUESSES, Comparison, Figures, GoodRange, Interval, OptimizerFigures
from momo_cli.figures.samples import Curves, Samples, counts, diverged, is_finite
from momo_cli.plan.optimizers import is_momo
from momo_cli.runs import Run


def analyze(runs: Sequence[Run], *, maximize: bool = False, sampled: bool = False) -> Figures:
    """All figures of a table of runs.

    An unknown figure is None:

    - everything where there is no value, and the best, the sensitivity and the good range of an optimizer
      all of whose runs diverged (its regret remains);
    - sensitivity and regret for a grid of one;
    - an interval with one seed, or where seeds differ between the learning rates that the figure uses.

    Args:
        runs: The runs.
        maximize: Whether larger values are better.
        sampled: Whether the learning rates are a sample (a study's trials) and not a grid.

    >>> runs = [Run("sgd", lr, objective=value, initial=3.0) for lr, value in [(0.1, 2.0), (1.0, 1.0), (10.0, 2.0)]]
    >>> [sgd] = analyze(runs).optimizers
    >>> sgd.best_lr, sgd.best, sgd.sensitivity
    (1.0, 1.0, Interval(value=0.5, low=None, high=None))
    """
    samples = Samples(runs, maximize)
    jackknives = _Jackknives(samples)
    trained, initial = jackknives.curves.trained, samples.initial()

    compared = [name for name, cells in samples.cells.items() if len(cells.lrs)]

    def sensitivity_of(curves: Curves, name: str) -> float:
        return sensitivity(samples.cells[name].lrs, curves.values[name]) if name in curves.trained else math.nan

    def regret_of(curves: Curves, name: str) -> float:
        # Not of those trained alone: one that diverged everywhere may have seeds of its own, that began lower.
        best = min((float(curve.min()) for curve in curves.values.values() if len(curve)), default=math.nan)
        return sensitivity(samples.cells[name].lrs, curves.values[name], best) if curves.trained else math.nan

    def figures_of(name: str) -> OptimizerFigures:
        cells, curve, own = (
            samples.cells[name],
            jackknives.curves.values[name],
            [r for r in runs if r.optimizer == name],
        )
        values = dict(zip(cells.lrs.tolist(), curve.tolist()))
        lrs = sorted({float(run.lr) for run in own if is_finite(run.lr)})
        best = int(np.argmin(curve)) if name in trained else None  # the first of equals: the smaller learning rate
        guess = expected_best_of_sample if sampled else expected_best
        return OptimizerFigures(
            optimizer=name,
            lrs=tuple(lrs),
            values=tuple(known(samples.sign * values.get(lr, math.nan)) for lr in lrs),
            best_lr=None if best is None else float(cells.lrs[best]),
            best=None if best is None else known(samples.sign * curve[best]),
            best_at_edge=None if best is None else best in (0, len(cells.lrs) - 1),
            sensitivity=jackknives.interval(lambda curves: sensitivity_of(curves, name), [name]),
            regret=jackknives.interval(lambda curves: regret_of(curves, name), compared),
            good_range=good_range(cells.lrs, curve, initial) if name in trained else GoodRange(),
            expected_best={k: known(samples.sign * guess(curve, k)) if len(curve) else None for k in GUESSES},
            runs=len(own),
            diverged=sum(map(diverged, own)),
            failed=sum(run.status == "failed" for run in own),
            pruned=sum(run.status == "pruned" for run in own),
            capped=_capped(own),
            params={lr: samples.params[name, lr] for lr in cells.lrs.tolist() if samples.params[name, lr]},
        )

    def comparison(a: str, b: str) -> Comparison:
        return Comparison(
            a, b, jackknives.interval(lambda c: ratio(sensitivity_of(c, a), sensitivity_of(c, b)), [a, b])
        )

    with np.errstate(over="ignore", invalid="ignore"):
        return Figures(
            known(samples.sign * initial),
            tuple(figures_of(name) for name in samples.cells),
            tuple(comparison(a, b) for a in samples.cells if is_momo(a) for b in samples.cells if not is_momo(b)),
            maximize,
            initial_known=samples.knows_initial,
            sampled=sampled,
        )


class _Jackknives:
    """Figures of a table of runs, with their intervals."""

    def __init__(self, samples: Samples) -> None:
        self.samples, self.curves = samples, samples.curves()

    def interval(self, figure: Callable[[Curves], float], optimizers: Iterable[str]) -> Interval:
        """A figure with its interval over the seeds, if these are the same at every learning rate of ``optimizers``."""
        value = figure(self.curves)
        seeds = {self.samples.cells[name].seeds for name in optimizers}
        shared = seeds.pop() if len(seeds) == 1 else None
        if shared is None or len(shared) < 2 or not math.isfinite(value):
            return jackknife(value, [])
        return jackknife(value, [figure(self.samples.curves(without=seed)) for seed in shared])


def value_intervals(runs: Sequence[Run], *, maximize: bool = False) -> dict[str, list[tuple[float, Interval]]]:
    """``ℓ(η)`` with its interval at each learning rate of each optimizer, in the metric's own sign.

    >>> value_intervals([Run("sgd", 0.1, s, objective=1.0, initial=9.0) for s in range(2)])
    {'sgd': [(0.1, Interval(value=1.0, low=1.0, high=1.0))]}
    """
    samples = Samples(runs, maximize)
    found: dict[str, list[tuple[float, Interval]]] = {}
    for name, cells in samples.cells.items():
        found[name] = []
        for lr, row in zip(cells.lrs.tolist(), samples.sign * samples.values(name)):
            values = row[~np.isnan(row)]
            left_out = (values.sum() - values) / max(len(values) - 1, 1)
            found[name].append((lr, jackknife(float(values.mean()), left_out.tolist(), nonnegative=False)))
    return found


def known(number: float) -> float | None:
    """A figure as a report has it: None where it isn't finite.

    >>> known(np.float64(1.5)), known(float("nan")), known(-0.0)
    (1.5, None, 0.0)
    """
    return float(number) + 0.0 if math.isfinite(number) else None


def _capped(runs: Sequence[Run]) -> float | None:
    """The share of all steps that took the cap."""
    shares = [(run.capped, max(run.steps, 0)) for run in runs if run.capped is not None and counts(run)]
    shares = [(share, steps) for share, steps in shares if math.isfinite(share)]
    if not shares:
        return None
    steps = sum(steps for _, steps in shares)
    if not steps:
        return math.fsum(share for share, _ in shares) / len(shares)
    return math.fsum(share * taken for share, taken in shares) / steps
