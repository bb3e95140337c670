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
    direction = "larger" if report.maximize else "smaller"
    initial = numbers.number(report.figures.initial)
    start = f"{initial} before training" if report.knows_initial else f"worst {initial}"
    seeds = report.seeds()
    over = f", {numbers.count(seeds, 'seed')}" if seeds else ""
    return f"{report.task}: final {report.objective} ({direction} is better, {start}){over}"


def conclusions(report: Report) -> list[str]:
    """What the runs say: each optimizer's best and good range, then how they compare."""
    lines = [of_best(report), of_ranges(report), *(of_comparison(report, pair) for pair in report.figures.comparisons)]
    return [line for line in lines if line]


def of_best(report: Report) -> str:
    """The best value reached, and where."""
    entry = report.figures.best
    if entry is None:
        return ""
    reached = f"The best {report.objective} is {numbers.number(entry.best, 4)}"
    return f"{reached}, with {entry.optimizer} at a learning rate of {numbers.number(entry.best_lr)}."


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
    least = "at least " if width.is_open else ""
    return f"{numbers.number(width.low, 2)} to {numbers.number(width.high, 2)} ({least}{width.decades:.1f} decades)"


def of_comparison(report: Report, pair: Comparison) -> str:
    """One pair of sensitivities, or that the data can't tell."""
    a, b, figure = pair.a, pair.b, pair.sensitivity_ratio
    value, low = figure.value, figure.low
    if value is None:
        return ""
    above = math.inf if figure.high is None else figure.high
    if low is not None and low <= 1 <= above:
        spread = numbers.interval(low, figure.high, 2)
        return (
            f"Whether {a} or {b} is less sensitive to the learning rate, {numbers.count(report.seeds(), 'seed')} "
            f"can't tell (a ratio of {numbers.number(value, 2)}, 95 % interval {spread})."
        )
    if value == 0:
        return f"{a} isn't sensitive to the learning rate at all over its grid; {b} is."
    less = value < 1
    times = 1 / value if less else value
    if low is None:
        spread = " (one seed)" if report.seeds() == 1 else ""
    else:
        between = (1 / above if above else None, 1 / low if low > 0 else None) if less else (low, figure.high)
        spread = f" (95 % interval {numbers.interval(*between, 2)})"
    if numbers.number(times, 2) == "1":
        return f"{a} and {b} are equally sensitive to the learning rate{spread}."
    word = "less" if less else "more"
    return f"{a} is {numbers.number(times, 2)}× {word} sensitive to the learning rate than {b}{spread}."
