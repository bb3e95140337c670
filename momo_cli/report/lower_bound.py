"""What to do about Momo's lower bound ``lb``: where the loss went below it, or stayed far above."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from momo_cli.figures import is_finite
from momo_cli.plan.optimizers import is_momo
from momo_cli.report import numbers
from momo_cli.runs import Run


def lowest_loss(runs: Sequence[Run]) -> float | None:
    """The lowest training loss that any run saw.

    >>> lowest_loss([Run("momo", 1.0, train_loss=0.5, curve=[[10, 0.4], [20, -1.0]])])
    -1.0
    """
    losses = [run.train_loss for run in runs] + [loss for run in runs for _, loss in run.curve]
    return min((loss for loss in losses if loss is not None and is_finite(loss)), default=None)


def went_below(runs: Sequence[Run], optimizer: str) -> bool:
    """Whether a loss of the optimizer's own runs went below 0."""
    own = [run for run in runs if run.optimizer == optimizer]
    lowest = lowest_loss(own)
    values = [run.val_loss for run in own if run.val_loss is not None and is_finite(run.val_loss)]
    return min([*values, *([] if lowest is None else [lowest])], default=0.0) < 0


def level_of_loss(runs: Sequence[Run], optimizer: str) -> float | None:
    """The training loss at which an optimizer's best run levelled off, if that is clearly above 0; else None.

    Levelled off: over the last quarter of the run the mean loss is lower than over the quarter before it by less
    than 2 % of all that it fell. Clearly above 0: more than a tenth of the loss at the start is left.

    >>> falling = [[t, 2.0 + 3.0 * 0.5**t] for t in range(20)]
    >>> level_of_loss([Run("momo", 1.0, train_loss=2.0, curve=falling)], "momo")
    2.0
    """
    own = [r for r in runs if r.optimizer == optimizer and r.status == "ok" and len(r.curve) >= 8]
    own = [run for run in own if all(is_finite(loss) for _, loss in run.curve)]
    if not own:
        return None
    run = min(own, key=lambda run: run.curve[-1][1])
    losses = np.array([loss for _, loss in run.curve])
    quarter = len(losses) // 4
    last, before, start = losses[-quarter:].mean(), losses[-2 * quarter : -quarter].mean(), losses[0]
    levelled = start > last and before - last < 0.02 * (start - last)
    return float(f"{last:.3g}") if levelled and last > 0.1 * start else None


def bound_below(lowest: float) -> float:
    """A lower bound a little below the lowest loss seen: by a fifth of it, rounded down to one digit.

    Measured on a Gaussian negative log-likelihood, whose lowest loss was -2.5: momo and momo-adam with such a bound end
    as low as adam or lower; with ``use_fstar=True``, whatever the bound, they stop above half of the way; and with a
    bound far too low they are their baselines, capped at nearly every step.

    >>> bound_below(-2.47), bound_below(-0.5), bound_below(-120.0)
    (-3.0, -0.6, -200.0)
    """
    target = 1.2 * lowest
    digit = 10.0 ** math.floor(math.log10(-target))
    return float(f"{math.floor(target / digit + 1e-9) * digit:.6g}")


def lower_bound_advice(runs: Sequence[Run], optimizer: str) -> str:
    """What to do about Momo's lower bound ``lb`` (0 unless set): where the loss went below it, or stayed far above."""
    if not is_momo(optimizer) or re.search(r"\blb\s*=", optimizer):
        return ""
    lowest = lowest_loss(runs)
    if lowest is not None and lowest < 0:
        fixed = optimizer.replace("-star", "")
        seen = (
            f"The training loss went below 0 (to {numbers.number(lowest)}), but {optimizer} takes 0 for its lower bound"
        )
        if all(is_momo(run.optimizer) for run in runs):
            return (
                f"{seen} and stops there: run adam beside it to see how low the loss goes, and set lb a little below "
                "that. use_fstar doesn't help there."
            )
        return (
            f"{seen} and stops there: set lb a little below the lowest loss that any optimizer reaches, as in "
            f"-o '{_with_argument(fixed, f'lb={bound_below(lowest):g}')}'. use_fstar doesn't help there."
        )
    level = None if re.search("star|[Mm]uon", optimizer) else level_of_loss(runs, optimizer)
    if level is not None:
        return (
            f"The training loss levelled off at about {numbers.number(level)}, clearly above the lower bound of 0 that "
            f"{optimizer} takes: use_fstar=True estimates the bound "
            f"(-o '{_with_argument(optimizer, 'use_fstar=True')}'), or set lb."
        )
    return ""


def lower_bound_comment(runs: Sequence[Run], optimizer: str) -> str:
    """The same as a comment for the line of code."""
    if not lower_bound_advice(runs, optimizer):
        return ""
    lowest = lowest_loss(runs)
    if lowest is not None and lowest < 0:
        return f"add lb=…, a little below the lowest loss that can be reached (seen: {numbers.number(lowest)})"
    return "add use_fstar=True, or lb=… if you know how low the loss can go"


def _with_argument(optimizer: str, argument: str) -> str:
    """
    >>> _with_argument("momo", "lb=-1"), _with_argument("momo(weight_decay=0.1)", "lb=-1")
    ('momo(lb=-1)', 'momo(weight_decay=0.1, lb=-1)')
    """
    return f"{optimizer[:-1]}, {argument})" if optimizer.endswith(")") else f"{optimizer}({argument})"
