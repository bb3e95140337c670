"""The figures: what a table of runs says about each optimizer, each formula once.

Plain functions on NumPy arrays: no torch, no Optuna, no printing. The last axis of ``values`` is always the grid of
learning rates, and any axes before it are carried along, so that a thousand bootstrap resamples are one call.
Inside, smaller is better; :func:`analyze` turns the sign of a maximized metric on the way in and back on the way out.

References:
    M. Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023,
    arXiv 2309.14322, Section 2.2: the learning rate sensitivity.
    J. Dodge et al., "Show Your Work: Improved Reporting of Experimental Results", 2019, arXiv 1909.03004: the
    expected best of k tries.
    B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, Chapter 13: the percentile interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from momo_cli.runs import Run

#: The share of the way from the best value to the initial one that still counts as good.
TOLERANCE = 0.05

#: Numbers of blind guesses for which the expected best is given.
GUESSES = (1, 2, 4, 8)

#: Momo's methods by name; their classes, as ``momo:Momo``, count too.
MOMO_METHODS = ("momo", "momo-adam", "momo-star", "momo-adam-star", "momo-muon")


# ---------------------------------------------------------------------------------------------------- the formulas


def sensitivity(lrs: np.ndarray, values: np.ndarray, best: np.ndarray | float | None = None) -> np.ndarray:
    """The mean of ``values - best`` over log10 of the learning rate, by the trapezoid rule.

    With ``best`` left out it is each curve's own minimum, and this is the LR sensitivity of Wortsman et al. (2023);
    with ``best`` the best value of any optimizer compared, it is the regret.

        1 / (log10 η_n - log10 η_1) · ∫ (ℓ(η) - ℓ*) d log10 η

    Args:
        lrs: The grid, ascending, shape ``[n]``.
        values: Final values, shape ``[..., n]``.
        best: What to measure from, shape ``[...]``.

    Returns:
        Shape ``[...]``; NaN for a grid of one.

    >>> sensitivity(np.array([0.1, 1.0, 10.0]), np.array([2.0, 1.0, 2.0])).item()
    0.5
    >>> sensitivity(np.array([0.1, 1.0, 10.0]), np.array([2.0, 1.0, 2.0]), best=0.0).item()
    1.5
    """
    values = np.asarray(values, dtype=float)
    best = values.min(axis=-1) if best is None else np.asarray(best, dtype=float)
    if len(lrs) < 2:
        return np.full(values.shape[:-1], np.nan)
    x = np.log10(lrs)
    above = values - best[..., None]
    return ((above[..., 1:] + above[..., :-1]) / 2 * np.diff(x)).sum(axis=-1) / (x[-1] - x[0])


def good_bound(best: float, initial: float) -> float:
    """The worst value that still counts as good: ``ℓ* + 0.05 (ℓ0 - ℓ*)``, and never below ``ℓ*``.

    >>> good_bound(1.0, 3.0)
    1.1
    """
    return best + TOLERANCE * max(initial - best, 0.0)


def good_range(lrs: np.ndarray, values: np.ndarray, initial: float) -> dict[str, Any]:
    """The interval around the best learning rate in which ``ℓ(η) ≤ ℓ* + 0.05 (ℓ0 - ℓ*)``.

    Its ends are interpolated linearly in log10 η where ℓ crosses the bound. Where ℓ stays under the bound up to the
    end of the grid, the range ends there and is marked open. The width of a grid of one is unknown, not 0.

    >>> wide = good_range(np.array([0.01, 0.1, 1.0]), np.array([3.0, 1.0, 1.1]), initial=3.0)
    >>> round(wide["low"], 4), wide["high"], wide["open_low"], wide["open_high"]
    (0.0891, 1.0, False, True)
    """
    x = np.log10(lrs)
    i = int(np.argmin(values))
    bound = good_bound(float(values[i]), initial)

    def end(step: int) -> tuple[float, bool]:
        j = i
        while 0 <= j + step < len(lrs):
            inside, outside = float(values[j]), float(values[j + step])
            if outside > bound:
                share = (bound - inside) / (outside - inside)
                return float(10 ** (x[j] + share * (x[j + step] - x[j]))) if share > 0 else float(lrs[j]), False
            j += step
        return float(lrs[j]), True

    low, open_low = end(-1)
    high, open_high = end(+1)
    decades = math.log10(high) - math.log10(low) if len(lrs) > 1 else math.nan
    return {"low": low, "high": high, "decades": decades, "open_low": open_low, "open_high": open_high}


def expected_best(values: np.ndarray, k: int) -> np.ndarray:
    """The expected best value of ``k`` blind guesses from the grid (Dodge et al., 2019).

    With the n values sorted from best to worst, v_1 … v_n:  ``Σ_i v_i [(1 - (i-1)/n)^k - (1 - i/n)^k]``.

    >>> expected_best(np.array([3.0, 1.0]), k=1).item(), expected_best(np.array([3.0, 1.0]), k=2).item()
    (2.0, 1.5)
    """
    v = np.sort(np.asarray(values, dtype=float), axis=-1)
    left = 1 - np.arange(v.shape[-1] + 1) / v.shape[-1]  # share of the grid that is worse than v_i
    return (v * (left[:-1] ** k - left[1:] ** k)).sum(axis=-1)


def next_lrs(lrs: Sequence[float], best_lr: float, decades: float = 1.0) -> list[float]:
    """The learning rates to run next where the best is at an end of its grid: on past that end, ``decades`` further.

    They have the grid's own spacing (the median of its steps in log10 η; half a decade for a grid of one, which goes
    on both ways) and are rounded to four digits. Empty where the best has a neighbour on either side.

    >>> next_lrs([0.1, 1.0, 10.0], best_lr=10.0, decades=2)
    [100.0, 1000.0]
    >>> next_lrs([0.1, 0.3162, 1.0], best_lr=0.1)
    [0.01, 0.03162]
    >>> next_lrs([0.1, 1.0, 10.0], best_lr=1.0)
    []
    >>> next_lrs([1.0], best_lr=1.0)
    [0.1, 0.3162, 3.162, 10.0]
    """
    grid = sorted(lrs)
    x = np.log10(grid)
    step = max(round(float(np.median(np.diff(x))), 3), 0.001) if len(grid) > 1 else 0.5
    count = max(1, math.floor(decades / step + 0.01))
    further = [x[0] - i * step for i in range(count, 0, -1)] if best_lr == grid[0] else []
    further += [x[-1] + i * step for i in range(1, count + 1)] if best_lr == grid[-1] else []
    return [float(f"{10**value:.4g}") for value in further]


def ratio(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """``a / b``: infinite over zero, NaN for zero over zero.

    >>> ratio(np.array([1.0, 1.0, 0.0]), np.array([2.0, 0.0, 0.0])).tolist()
    [0.5, inf, nan]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(a, dtype=float) / np.asarray(b, dtype=float)


# --------------------------------------------------------------------------------------------------- the bootstrap


def draw_seeds(seeds: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each seed is drawn in each resample: ``seeds`` draws with replacement, shape ``[resamples, seeds]``.

    >>> draw_seeds(3, 4).sum(axis=1).tolist()
    [3, 3, 3, 3]
    """
    return np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)


def resampled_values(cells: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The mean over the drawn seeds at each learning rate.

    Args:
        cells: One value a run, shape ``[n, seeds]``; NaN where there is none.
        draws: From :func:`draw_seeds`, shape ``[resamples, seeds]``: the same for every learning rate and every
            optimizer, so that differences and ratios are paired.

    Returns:
        Shape ``[resamples, n]``. A learning rate that has none of the drawn seeds keeps its plain mean.

    >>> cells = np.array([[1.0, 3.0], [5.0, np.nan]])
    >>> resampled_values(cells, np.array([[1, 1], [2, 0], [0, 2]])).tolist()
    [[2.0, 5.0], [1.0, 5.0], [3.0, 5.0]]
    """
    present = ~np.isnan(cells)
    counts = draws @ present.T.astype(float)
    sums = draws @ np.where(present, cells, 0.0).T
    plain = np.where(present, cells, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), plain)


def interval(point: float, samples: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap ``samples`` of a figure, widened to hold the figure itself.

    The ends are samples (the 2.5 % point rounded down, the 97.5 % point rounded up). A figure made with a minimum
    is biased under the bootstrap and can lie outside its own percentiles; widening the interval up to it can only
    raise the interval's coverage. NaN samples (zero over zero) are left out; without a figure there is no interval.

    >>> interval(20.0, np.arange(41.0))
    (1.0, 39.0)
    >>> interval(99.0, np.arange(41.0))
    (1.0, 99.0)
    """
    samples = samples[~np.isnan(samples)]
    if not len(samples) or not math.isfinite(point):
        return math.nan, math.nan
    low = np.percentile(samples, 2.5, method="lower")
    high = np.percentile(samples, 97.5, method="higher")
    return min(float(low), point), max(float(high), point)


# ----------------------------------------------------------------------------------------------- from runs to arrays


def is_momo(optimizer: str) -> bool:
    """Whether a spec names one of Momo's methods.

    >>> [is_momo(spec) for spec in ("momo", "momo-adam(lb=-1)", "momo:MomoAdam", "adam", "mine:Momo")]
    [True, True, True, False, False]
    """
    name = optimizer.split("(")[0].strip()
    module, _, cls = name.partition(":")
    return name in MOMO_METHODS or (module.split(".")[0] == "momo" and cls.startswith("Momo"))


@dataclasses.dataclass
class Table:
    """One optimizer's runs as an array, in the direction in which smaller is better.

    Attributes:
        lrs: Learning rates with at least one run that counts, ascending, shape ``[n]``.
        cells: ``min(objective, ℓ0)`` of each run, shape ``[n, seeds]``; NaN where there is none.
        trained: Whether any run ended with a number of its own; else every run that counts diverged.
    """

    lrs: np.ndarray
    cells: np.ndarray
    trained: bool

    @property
    def values(self) -> np.ndarray:
        """``ℓ(η)``, the mean over seeds."""
        return np.nanmean(self.cells, axis=1)

    @property
    def repeated(self) -> bool:
        """Whether every learning rate has two seeds or more, so that an interval over seeds means something."""
        return len(self.lrs) > 0 and bool(((~np.isnan(self.cells)).sum(axis=1) >= 2).all())


def is_finite(number: float | None) -> bool:
    """Whether there is a number and it is finite.

    >>> is_finite(1.0), is_finite(float("nan")), is_finite(None)
    (True, False, False)
    """
    return number is not None and math.isfinite(number)


def counts(run: Run) -> bool:
    """Whether a run enters the figures: failed and pruned runs don't, nor does one without a learning rate above 0."""
    return run.status in ("ok", "diverged") and is_finite(run.lr) and run.lr > 0


def diverged(run: Run) -> bool:
    """Whether a run counts as its ℓ0: it was stopped as diverged, or ended without a finite value."""
    return run.status == "diverged" or (run.status == "ok" and not is_finite(run.objective))


def initial_values(runs: Iterable[Run], maximize: bool = False) -> tuple[float, dict[int, float]]:
    """``ℓ0``, the mean over seeds, and that of each seed (in the direction in which smaller is better).

    A run's own ℓ0 counts for its seed. Where no run knows its ℓ0 (imported tables), it is the worst value of any
    run; NaN where there is none either.

    >>> initial_values([Run("adam", 0.1, 0, objective=1.0, initial=3.0), Run("adam", 0.1, 1, objective=2.0)])
    (3.0, {0: 3.0})
    >>> initial_values([Run("adam", 0.1, 0, objective=1.0), Run("adam", 0.1, 1, objective=2.0)])
    (2.0, {})
    """
    sign = -1.0 if maximize else 1.0
    counted = [run for run in runs if counts(run)]
    seen: dict[int, list[float]] = {}
    for run in counted:
        if is_finite(run.initial):
            seen.setdefault(run.seed, []).append(sign * run.initial)
    by_seed = {seed: math.fsum(values) / len(values) for seed, values in seen.items()}
    if by_seed:
        return math.fsum(by_seed.values()) / len(by_seed), by_seed
    return max((sign * run.objective for run in counted if not diverged(run)), default=math.nan), {}


def tables(runs: Sequence[Run], maximize: bool = False) -> dict[str, Table]:
    """Every optimizer's :class:`Table`, in order of first appearance; the seeds' axis is the same for all.

    Of several runs with the same optimizer, learning rate and seed, the last counts.
    """
    sign = -1.0 if maximize else 1.0
    mean_initial, initial_of_seed = initial_values(runs, maximize)
    seeds = sorted({run.seed for run in runs if counts(run)})
    cells: dict[str, dict[tuple[float, int], float]] = {run.optimizer: {} for run in runs}
    trained: set[str] = set()
    for run in runs:
        if not counts(run):
            continue
        own = sign * run.initial if is_finite(run.initial) else initial_of_seed.get(run.seed, mean_initial)
        value = own if diverged(run) else min(sign * run.objective, own)
        cells[run.optimizer][run.lr, run.seed] = value
        if not diverged(run):
            trained.add(run.optimizer)
    result = {}
    for optimizer, found in cells.items():
        lrs = sorted({lr for lr, _ in found} if not math.isnan(mean_initial) else ())
        array = np.array([[found.get((lr, seed), np.nan) for seed in seeds] for lr in lrs], dtype=float)
        result[optimizer] = Table(np.array(lrs), array.reshape(len(lrs), len(seeds)), optimizer in trained)
    return result


# --------------------------------------------------------------------------------------------------- all of it


def plain(number: float) -> float | None:
    """A figure as JSON has it: None where it isn't finite.

    >>> plain(np.float64(1.5)), plain(float("nan")), plain(-0.0)
    (1.5, None, 0.0)
    """
    return float(number) + 0.0 if math.isfinite(number) else None


def _with_interval(point: float, samples: np.ndarray | None) -> dict[str, float | None]:
    low, high = interval(point, samples) if samples is not None else (math.nan, math.nan)
    return {"value": plain(point), "low": plain(low), "high": plain(high)}


def analyze(runs: Sequence[Run], *, maximize: bool = False, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """All figures of a table of runs: ``initial``, ``optimizers`` and ``comparisons`` of the JSON document.

    ``ℓ(η)`` is the mean over seeds of ``min(objective, ℓ0)``, with the ℓ0 of the run's own seed. A diverged run
    counts as that ℓ0; failed and pruned runs don't count. ``values``, ``best`` and ``expected_best`` stand in the
    metric's own sign, sensitivity and regret are never negative. What can't be known is None:

    - everything where there is no value, and the best, the sensitivity and the good range of an optimizer
      all of whose runs diverged (its regret remains);
    - sensitivity and regret for a grid of one;
    - an interval where some learning rate of the optimizer has one seed only. An upper end that is None beside a
      lower end that isn't means: not bounded.

    >>> runs = [Run("sgd", lr, objective=value, initial=3.0) for lr, value in [(0.1, 2.0), (1.0, 1.0), (10.0, 2.0)]]
    >>> [sgd] = analyze(runs)["optimizers"]
    >>> sgd["best_lr"], sgd["best"], sgd["sensitivity"]
    (1.0, 1.0, {'value': 0.5, 'low': None, 'high': None})
    """
    sign = -1.0 if maximize else 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        initial, _ = initial_values(runs, maximize)
        by_optimizer = tables(runs, maximize)
        best_of_all = min((table.values.min() for table in by_optimizer.values() if table.trained), default=math.nan)

        # Each resample draws seeds once, for every learning rate and every optimizer.
        seeds = len({run.seed for run in runs if counts(run)})
        draws = draw_seeds(seeds, resamples, seed) if seeds > 1 and resamples > 0 else None
        resampled: dict[str, np.ndarray] = {}
        resampled_best = np.array(math.nan)
        if draws is not None:
            resampled = {name: resampled_values(table.cells, draws) for name, table in by_optimizer.items()}
            trained = [resampled[name].min(axis=1) for name, table in by_optimizer.items() if table.trained]
            resampled_best = np.min(trained, axis=0) if trained else np.full(len(draws), math.nan)

        optimizers, sensitivities = [], {}
        for name, table in by_optimizer.items():
            own = resampled[name] if name in resampled and table.repeated else None
            entry: dict[str, Any] = {"optimizer": name}
            entry.update(_grid(name, table, runs, sign))
            nothing = np.array(math.nan)
            point = sensitivity(table.lrs, table.values).item() if table.trained else math.nan
            samples = None if own is None else sensitivity(table.lrs, own)
            sensitivities[name] = (point, samples)
            entry["sensitivity"] = _with_interval(point, samples)
            regret = sensitivity(table.lrs, table.values, best_of_all) if len(table.lrs) else nothing
            samples = None if own is None else sensitivity(table.lrs, own, resampled_best)
            entry["regret"] = _with_interval(regret.item(), samples)
            empty = {"low": None, "high": None, "decades": None, "open_low": None, "open_high": None}
            entry["good_range"] = (
                empty
                if not table.trained
                else {
                    key: end if isinstance(end, bool) else plain(end)
                    for key, end in good_range(table.lrs, table.values, initial).items()
                }
            )
            entry["expected_best"] = {
                str(k): plain(sign * expected_best(table.values, k).item()) if len(table.lrs) else None for k in GUESSES
            }
            entry.update(_tally([run for run in runs if run.optimizer == name]))
            optimizers.append(entry)

        comparisons = []
        for a in filter(is_momo, by_optimizer):
            for b in by_optimizer:
                if not is_momo(b):
                    (point_a, samples_a), (point_b, samples_b) = sensitivities[a], sensitivities[b]
                    both = samples_a is not None and samples_b is not None
                    samples = ratio(samples_a, samples_b) if both else None
                    figure = _with_interval(ratio(point_a, point_b).item(), samples)
                    comparisons.append({"a": a, "b": b, "sensitivity_ratio": figure})
    return {"initial": plain(sign * initial), "optimizers": optimizers, "comparisons": comparisons}


def _grid(name: str, table: Table, runs: Sequence[Run], sign: float) -> dict[str, Any]:
    """The grid and its best value; a learning rate none of whose runs counts has the value None."""
    lrs = sorted({float(run.lr) for run in runs if run.optimizer == name and is_finite(run.lr)})
    values = {lr: plain(sign * value) for lr, value in zip(table.lrs.tolist(), table.values.tolist())}
    entry: dict[str, Any] = {"lrs": lrs, "values": [values.get(lr) for lr in lrs]}
    if not table.trained:
        return entry | {"best_lr": None, "best": None, "best_at_edge": None}
    i = int(np.argmin(table.values))  # the first of equals: the smaller learning rate
    return entry | {
        "best_lr": float(table.lrs[i]),
        "best": plain(sign * table.values[i]),
        "best_at_edge": i in (0, len(table.lrs) - 1),
    }


def _tally(runs: Sequence[Run]) -> dict[str, Any]:
    """How many runs there are and how they ended, and the share of all their steps that took the cap."""
    capped = [(run.capped, max(run.steps, 0)) for run in runs if is_finite(run.capped) and counts(run)]
    steps = sum(n for _, n in capped)
    share = sum(c * n for c, n in capped) / steps if steps else math.fsum(c for c, _ in capped) / max(len(capped), 1)
    return {
        "runs": len(runs),
        "diverged": sum(diverged(run) for run in runs),
        "failed": sum(run.status == "failed" for run in runs),
        "pruned": sum(run.status == "pruned" for run in runs),
        "capped": plain(share) if capped else None,
    }


def value_intervals(
    runs: Sequence[Run], *, maximize: bool = False, resamples: int = 1000, seed: int = 0
) -> dict[str, list[tuple[float, float, float] | tuple[float, None, None]]]:
    """``(lr, low, high)`` for each learning rate of each optimizer: the interval of ``ℓ(η)``, for the plot's shading.

    In the metric's own sign; None with one seed.

    >>> value_intervals([Run("sgd", 0.1, s, objective=float(s), initial=9.0) for s in range(2)])
    {'sgd': [(0.1, 0.0, 1.0)]}
    """
    seeds = len({run.seed for run in runs if counts(run)})
    draws = draw_seeds(seeds, resamples, seed) if seeds > 1 else None
    result = {}
    for name, table in tables(runs, maximize).items():
        samples = resampled_values(table.cells, draws) if draws is not None and len(table.lrs) else None
        rows = []
        for i, lr in enumerate(table.lrs.tolist()):
            if samples is None or np.count_nonzero(~np.isnan(table.cells[i])) < 2:
                rows.append((lr, None, None))
                continue
            low, high = interval(table.values[i].item(), samples[:, i])
            rows.append((lr, -high + 0.0, -low + 0.0) if maximize else (lr, low, high))
        result[name] = rows
    return result
