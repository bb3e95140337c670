"""Intervals over seeds: the delete-one jackknife with Student's t.

Reference:
    B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, Chapter 11.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from momo_cli.figures.results import Interval


def jackknife(figure: float, left_out: Sequence[float], nonnegative: bool = True) -> Interval:
    """The 95 % interval of a figure θ from the n figures θ_j that all seeds but the j-th give.

    With ``se = sqrt((n-1)/n Σ_j (θ_j - θ̄)²)`` and t the 0.975 quantile of Student's t with n-1 degrees of freedom:
    ``θ exp(± t se)``, with se taken of log θ_j, where θ and every θ_j are positive; else ``θ ± t se``.

    Args:
        figure: θ; where it isn't finite, nothing is known.
        left_out: The θ_j; for fewer than two, or one that isn't finite, there is no interval.
        nonnegative: Whether the figure can't be negative, so that neither can the lower end.

    >>> jackknife(2.0, [2.0, 2.0, 2.0])
    Interval(value=2.0, low=2.0, high=2.0)
    >>> jackknife(2.0, [2.0])
    Interval(value=2.0, low=None, high=None)
    """
    if not math.isfinite(figure):
        return Interval()
    n = len(left_out)
    if n < 2 or not all(map(math.isfinite, left_out)):
        return Interval(figure + 0.0)
    logarithmic = min(figure, *left_out) > 0
    values = [math.log(value) for value in left_out] if logarithmic else left_out
    mean = math.fsum(values) / n
    width = student_t(n - 1) * math.sqrt((n - 1) / n * math.fsum((value - mean) ** 2 for value in values))
    if logarithmic:
        high = figure * math.exp(width) if width < 700 else math.inf
        low = figure * math.exp(-width)
    else:
        low, high = figure - width, figure + width
        if nonnegative:
            low = max(low, 0.0)
    return Interval(figure + 0.0, low + 0.0, high if math.isfinite(high) else None)


@functools.cache
def student_t(degrees: int) -> float:
    """The 0.975 quantile of Student's t with ``degrees`` degrees of freedom.

    Solved by bisection for ``θ = atan(t / sqrt(degrees))`` in the distribution's closed form (Abramowitz and Stegun,
    "Handbook of Mathematical Functions", 26.7.3 and 26.7.4).

    >>> [round(student_t(degrees), 3) for degrees in (1, 2, 9)]
    [12.706, 4.303, 2.262]
    """
    low, high = 0.0, math.pi / 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return math.sqrt(degrees) * math.tan(middle)
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)


def _within(angle: float, degrees: int) -> float:
    """The probability of ``|t| < sqrt(degrees) tan(angle)``."""
    cos2, odd = math.cos(angle) ** 2, degrees % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cos2 * (k - 1) / k
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
