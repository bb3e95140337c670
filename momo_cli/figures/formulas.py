"""The formulas of the figures, each once, as plain functions on NumPy arrays; smaller values are better.

References:
    M. Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023,
    arXiv 2309.14322, Section 2.2: the learning rate sensitivity.
    J. Dodge et al., "Show Your Work: Improved Reporting of Experimental Results", 2019, arXiv 1909.03004: the
    expected best of k tries.
    R. Tang et al., "Showing Your Work Doesn't Always Work", 2020, arXiv 2004.13705: its unbiased form for a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from momo_cli.figures.results import GoodRange, good_bound

Array = NDArray[np.float64]


def sensitivity(lrs: Array, values: Array, best: float | None = None) -> float:
    """The mean of ``values - best`` over log10 of the learning rate, by the trapezoid rule.

    With ``best`` left out it is the curve's own minimum, and this is the LR sensitivity of Wortsman et al. (2023);
    with ``best`` the best value of any optimizer compared, it is the regret.

        1 / (log10 η_n - log10 η_1) · ∫ (ℓ(η) - ℓ*) d log10 η

    Args:
        lrs: The grid, ascending.
        values: ``ℓ`` at each learning rate.
        best: Where to measure from.

    Returns:
        NaN for a grid of one.

    >>> sensitivity(np.array([0.1, 1.0, 10.0]), np.array([2.0, 1.0, 2.0]))
    0.5
    >>> sensitivity(np.array([0.1, 1.0, 10.0]), np.array([2.0, 1.0, 2.0]), best=0.0)
    1.5
    """
    if len(lrs) < 2:
        return math.nan
    x = np.log10(lrs)
    above = values - (values.min() if best is None else best)
    return float(((above[1:] + above[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def good_range(lrs: Array, values: Array, initial: float) -> GoodRange:
    """The interval around the best learning rate in which ``ℓ(η) ≤ ℓ* + 0.05 (ℓ0 - ℓ*)``.

    Its ends are interpolated linearly in log10 η where ℓ crosses the bound. Where ℓ stays under the bound up to the
    end of the grid, the range ends there and is marked open. The width of a grid of one is unknown, not 0.

    >>> wide = good_range(np.array([0.01, 0.1, 1.0]), np.array([3.0, 1.0, 1.1]), initial=3.0)
    >>> round(wide.low, 4), wide.high, wide.open_low, wide.open_high
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
    decades = math.log10(high) - math.log10(low) if len(lrs) > 1 else None
    return GoodRange(low, high, decades, open_low, open_high)


def expected_best(values: Array, k: int) -> float:
    """The expected best value of ``k`` guesses from the grid, with replacement (Dodge et al., 2019).

    With the n values sorted from best to worst, v_1 … v_n:  ``Σ_i v_i [(1 - (i-1)/n)^k - (1 - i/n)^k]``.

    >>> expected_best(np.array([3.0, 1.0]), k=1), expected_best(np.array([3.0, 1.0]), k=2)
    (2.0, 1.5)
    """
    left = 1 - np.arange(len(values) + 1) / len(values)  # share of the grid that is worse than v_i
    return float((np.sort(values) * (left[:-1] ** k - left[1:] ** k)).sum())


def expected_best_of_sample(values: Array, k: int) -> float:
    """The same estimated without bias where the values are a sample, as a study's trials are (Tang et al., 2020).

    With the n values sorted from best to worst, v_1 … v_n:  ``Σ_i v_i C(n-i, k-1) / C(n, k)``; NaN for k > n.

    >>> expected_best_of_sample(np.array([3.0, 1.0, 2.0]), k=1), expected_best_of_sample(np.array([3.0, 1.0]), k=2)
    (2.0, 1.0)
    """
    n = len(values)
    if k > n:
        return math.nan
    weights = [math.comb(n - i, k - 1) / math.comb(n, k) for i in range(1, n + 1)]
    return math.fsum(weight * value for weight, value in zip(weights, np.sort(values).tolist()))


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


def ratio(a: float, b: float) -> float:
    """``a / b``: infinite over zero, NaN for zero over zero.

    >>> ratio(1.0, 2.0), ratio(1.0, 0.0), ratio(0.0, 0.0)
    (0.5, inf, nan)
    """
    return a / b if b else math.inf * a if a else math.nan
