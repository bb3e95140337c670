"""What follows from the figures, in full sentences. Every format of the report shows the same ones."""

from __future__ import annotations

import math

from momo_cli.figures import Comparison, OptimizerFigures
from momo_cli.report import Report, numbers


def heading(report: Report) -> str:
    """What the values are, and where they began.

    >>> from momo_cli.figures import Figures
    >>> heading(Report("task.py", "", "accuracy", [], Figures(0.1, maximize=True)))
    'task.py: final accuracy (larger is better, worst 0.1)'
    """
    seeds = report.seeds()
    over = f", {numbers.count(seeds, 'seed')}" if seeds else ""
    return f"{report.task}: final {report.objective} ({of_direction(report)}){over}"


def of_direction(report: Report) -> str:
    """Which values are better, and where they began."""
    direction = "larger" if report.maximize else "smaller"
    initial = numbers.number(report.figures.initial)
    start = f"{initial} before training" if report.figures.initial_known else f"worst {initial}"
    return f"{direction} is better, {start}"


def conclusions(report: Report) -> list[str]:
    """What the runs say: each optimizer's best and good range, then how they compare."""
    if not report.figures.learned:
        return []
    lines = [of_best(report), of_ranges(report), of_far(report)]
    lines += [of_comparison(report, pair) for pair in report.figures.comparisons]
    return [line for line in lines if line]


def of_best(report: Report) -> str:
    """The best value reached, and where."""
    entry = report.figures.best
    if entry is None:
        return ""
    reached = f"The best {report.objective} is {numbers.number(entry.best, 4)}"
    return f"{reached}, with {entry.optimizer} at a learning rate of {report.lr(entry.best_lr, entry.optimizer)}."


def of_ranges(report: Report) -> str:
    """Which learning rates are good, as one sentence for all the optimizers."""
    parts = [
        f"{entry.optimizer} from {ends(entry)}"
        for entry in report.figures.optimizers
        if entry.good_range.decades is not None
    ]
    return f"Learning rates that come within 5 % of an optimizer's best: {numbers.names(parts)}." if parts else ""


def ends(entry: OptimizerFigures) -> str:
    """A good range's ends and width in words."""
    width = entry.good_range
    return f"{numbers.number(width.low, 2)} to {numbers.number(width.high, 2)} ({wide(entry)})"


def wide(entry: OptimizerFigures) -> str:
    """A good range's width in words.

    >>> from momo_cli.figures import analyze
    >>> from momo_cli.runs import Run
    >>> [sgd] = analyze([Run("sgd", lr, objective=lr, initial=9.0) for lr in (1.0, 1.4, 9.0)]).optimizers
    >>> wide(sgd)
    'at least 0.1 decades'
    """
    width = entry.good_range
    if width.decades is None or (width.is_open and width.decades < 0.05):
        return "its width isn't known"
    return f"{'at least ' if width.is_open else ''}{width.decades:.1f} decades"


def of_far(report: Report) -> str:
    """The optimizers whose best value is far from the best of all: being flat there is no robustness."""
    best, near = report.figures.best, report.figures.near
    far = [entry for entry in report.figures.known if entry not in near]
    if best is None or not far:
        return ""
    parts = [f"{entry.optimizer} ({numbers.number(entry.best, 4)})" for entry in far]
    stay = "stays" if len(far) == 1 else "stay"
    return (
        f"{numbers.names(parts)} {stay} far from the best value, {best.optimizer}'s {numbers.number(best.best, 4)}, "
        "so a small sensitivity there is no advantage."
    )


def of_comparison(report: Report, pair: Comparison) -> str:
    """One pair of sensitivities, or that the data can't tell; nothing if the less sensitive is far from the best."""
    a, b, figure = pair.a, pair.b, pair.sensitivity_ratio
    value, low = figure.value, figure.low
    if value is None:
        return ""
    less, more = (a, b) if value <= 1 else (b, a)
    if less not in [entry.optimizer for entry in report.figures.near]:
        return ""
    above = math.inf if figure.high is None else figure.high
    if low is None:
        why = "one seed" if report.seeds() == 1 else "seeds that differ between learning rates"
        return f"The sensitivity of {a} is {numbers.number(value, 2)}× that of {b}; {why} can't tell it from chance."
    if low <= 1 <= above:
        spread = numbers.interval(low, figure.high, 2)
        return (
            f"Whether {a} or {b} is less sensitive to the learning rate, {numbers.count(report.seeds(), 'seed')} "
            f"can't tell (a ratio of {numbers.number(value, 2)}, 95 % interval {spread})."
        )
    if value == 0:
        return f"{a} isn't sensitive to the learning rate at all over its grid; {b} is."
    if value < 1:
        times, spread = 1 / value, numbers.interval(1 / above, 1 / low if low > 0 else None, 2)
    else:
        times, spread = value, numbers.interval(low, figure.high, 2)
    return (
        f"{less} is {numbers.number(times, 2)}× less sensitive to the learning rate than {more} "
        f"(95 % interval {spread})."
    )
