"""Which optimizer and learning rate to use."""

from __future__ import annotations

import math
from typing import Literal

from momo_cli.figures.results import Figures, OptimizerFigures, Recommendation

Prefer = Literal["robust", "best"]


def recommend(figures: Figures, prefer: Prefer = "robust") -> Recommendation | None:
    """The optimizer and learning rate to use; None where no run ended with a finite value, or nothing was learned.

    Args:
        figures: What is known.
        prefer: ``robust``: the optimizer of least regret among those whose ``ℓ*`` is within 5 % of the way from the
            best of all to ``ℓ0``, and of its learning rates the one nearest the log-centre of its good range.
            ``best``: the optimizer and learning rate of the smallest ``ℓ(η)`` of all.

    >>> from momo_cli.figures import analyze
    >>> from momo_cli.runs import Run
    >>> runs = [Run("momo", lr, objective=v, initial=3.0) for lr, v in [(0.1, 1.0), (1.0, 1.01), (10.0, 1.02)]]
    >>> advice = recommend(analyze(runs))
    >>> advice.optimizer, advice.lr, advice.best_lr
    ('momo', 1.0, 0.1)
    """

    def regret(entry: OptimizerFigures) -> tuple[float, float]:
        value = entry.regret.value
        return math.inf if value is None else value, figures.loss(entry.best or 0.0)

    if not figures.learned:
        return None
    chosen = figures.best if prefer == "best" else min(figures.near, key=regret, default=None)
    if chosen is None or chosen.best_lr is None:
        return None
    lr = chosen.best_lr if prefer == "best" else central_lr(chosen, figures.maximize)
    return Recommendation(
        chosen.optimizer, lr, chosen.best_lr, chosen.good_range, dict(chosen.curve)[lr], chosen.params.get(lr, {})
    )


def central_lr(entry: OptimizerFigures, maximize: bool = False) -> float:
    """The learning rate tried that is nearest the log-centre of the good range; of two as near, the better."""
    low, high = entry.good_range.low, entry.good_range.high
    assert low is not None and high is not None
    centre = (math.log10(low) + math.log10(high)) / 2

    def order(point: tuple[float, float]) -> tuple[float, float, float]:
        lr, value = point
        return round(abs(math.log10(lr) - centre), 9), -value if maximize else value, lr

    return min(entry.curve, key=order)[0]
