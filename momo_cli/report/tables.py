"""What the tables hold, before any of them is drawn: cells of the strip, columns of the figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from momo_cli.figures import GUESSES, TOLERANCE, Interval, OptimizerFigures, counts, diverged
from momo_cli.report import Report, numbers

#: More learning rates than this in one table (an Optuna study's) are gathered by half decades.
MOST_COLUMNS = 24

#: With more learning rates than this a page's table has a row for each: its columns would be mostly empty.
WIDE = 12


@dataclasses.dataclass
class Cell:
    """One optimizer at one learning rate.

    Attributes:
        value: The mean final value; None where every run diverged or none counts.
        level: How far on the way from the best of all to ℓ0: ``best``, ``good`` (to 5 %), ``fair`` (to 25 %),
            ``poor``, ``diverged``, or ``none`` where no run counts.
        best: Whether it is its optimizer's best.
        diverged: Whether some run diverged.
    """

    value: float | None
    level: str
    best: bool = False
    diverged: bool = False


@dataclasses.dataclass
class Strip:
    """Cells by optimizer and column; a column is a learning rate, or one relative to each optimizer's default."""

    optimizers: list[str]
    columns: list[float]
    cells: dict[tuple[str, float], Cell]
    gathered: bool = False
    relative: bool = False

    def title(self, column: float) -> str:
        """A column's title."""
        return f"×{numbers.number(column, 2)}" if self.relative else numbers.number(column)


def level(value: float | None, best: float | None, initial: float | None) -> str:
    """A cell's level, from how far on the way from the best to ℓ0 its value is.

    >>> [level(value, best=1.0, initial=3.0) for value in (1.0, 1.1, 1.5, 2.0)]
    ['best', 'good', 'fair', 'poor']
    """
    if value is None or best is None or initial is None:
        return "none"
    if value == best:
        return "best"
    share = (value - best) / (initial - best) if initial != best else math.inf
    return "good" if share <= TOLERANCE + 1e-9 else "fair" if share <= 0.25 else "poor"


def best_of_all(report: Report) -> float | None:
    """The best ``ℓ*`` of the optimizers compared, in the metric's own sign."""
    return report.figures.best.best if report.figures.best else None


def strip(report: Report, relative: bool = False) -> Strip:
    """The strip of every optimizer.

    Args:
        report: What to show.
        relative: Whether learning rates are taken relative to each optimizer's own default.
    """
    entries = report.figures.optimizers
    best, initial = best_of_all(report), report.figures.initial
    relative = relative and all(entry.optimizer in report.default_lrs for entry in entries)
    ended: dict[tuple[str, float], list[bool]] = {}
    for run in report.runs:
        if counts(run):
            ended.setdefault((run.optimizer, run.lr), []).append(diverged(run))

    def place(optimizer: str, lr: float) -> float:
        return float(f"{lr / report.default_lrs[optimizer]:.3g}") if relative else lr

    columns = {place(entry.optimizer, lr) for entry in entries for lr in entry.lrs if lr > 0}
    gathered = len(columns) > MOST_COLUMNS
    found: dict[tuple[str, float], list[tuple[float | None, bool, list[bool]]]] = {}
    for entry in entries:
        for lr, value in zip(entry.lrs, entry.values):
            if lr <= 0:
                continue
            name = entry.optimizer
            column = place(name, lr)
            if gathered:
                column = float(f"{10 ** (round(2 * math.log10(column)) / 2):.3g}")
            found.setdefault((name, column), []).append((value, lr == entry.best_lr, ended.get((name, lr), [])))
    cells = {}
    for key, members in found.items():
        values = [value for value, _, _ in members if value is not None]
        ends = [end for _, _, ends in members for end in ends]
        mean = math.fsum(values) / len(values) if values else None
        lost = bool(ends) and all(ends)
        cells[key] = Cell(
            value=None if lost else mean,
            level="diverged" if lost else level(mean, best, initial),
            best=any(is_best for _, is_best, _ in members),
            diverged=any(ends),
        )
    return Strip(
        [entry.optimizer for entry in entries],
        sorted({column for _, column in cells}),
        cells,
        gathered,
        relative,
    )


# ------------------------------------------------------------------------------------------------------ the figures


@dataclasses.dataclass(frozen=True)
class Figure:
    """A column of the figures.

    Attributes:
        title: Its title.
        value: What is compared.
        text: What is shown.
        better: Whether the ``low`` or the ``high`` one is best; ``own``: as the objective; None: neither is.
        spread: The figure with its interval, where it has one.
        beside: Whether a sweep's table shows it beside the learning rates.
        near: Whether it can be best only for an optimizer whose ``ℓ*`` is near the best of all.
    """

    title: str
    value: Callable[[OptimizerFigures], float | None]
    text: Callable[[OptimizerFigures], str]
    better: str | None = None
    spread: Callable[[OptimizerFigures], Interval] = lambda entry: Interval()
    beside: bool = False
    near: bool = True


@dataclasses.dataclass
class Column:
    """One figure of every optimizer: its title, its text, the interval's text, and which are best."""

    title: str
    texts: list[str]
    intervals: list[str]
    best: list[bool]


def columns(report: Report, beside: bool = False) -> list[Column]:
    """The figures side by side; ``beside``: those alone that stand beside a sweep's learning rates."""
    entries = report.figures.optimizers
    shown = [figure for figure in FIGURES if figure.beside or not beside]
    return [_column(figure, report) for figure in shown if any(map(figure.text, entries))]


def _column(figure: Figure, report: Report) -> Column:
    entries, near = report.figures.optimizers, report.figures.near
    values = [figure.value(entry) if entry in near or not figure.near else None for entry in entries]
    known = [value for value in values if value is not None]
    best = None
    if figure.better and (len(set(known)) > 1 or len(entries) > len(known) > 0):
        high = report.maximize if figure.better == "own" else figure.better == "high"
        best = max(known) if high else min(known)
    spreads = [figure.spread(entry) for entry in entries]
    return Column(
        figure.title,
        [figure.text(entry) or numbers.NOTHING for entry in entries],
        [numbers.interval(spread.low, spread.high) for spread in spreads],
        [best is not None and value == best for value in values],
    )


def decades(entry: OptimizerFigures) -> str:
    """A good range's width: ``≥`` where it runs off the grid."""
    width = entry.good_range
    return numbers.NOTHING if width.decades is None else "≥" * width.is_open + f"{width.decades:.1f}"


def best_lr(entry: OptimizerFigures) -> str:
    """The best learning rate, with ``!`` where it is at an end of its grid."""
    return numbers.lr(entry.best_lr, entry.lrs) + ("!" if entry.best_at_edge else "")


def of_diverged(entry: OptimizerFigures) -> str:
    """How many runs diverged of those that count; the others are named."""
    other = [f"{n} {status}" for n, status in ((entry.failed, "failed"), (entry.pruned, "pruned")) if n]
    return ", ".join([f"{entry.diverged}/{entry.runs - entry.failed - entry.pruned}", *other])


def capped(entry: OptimizerFigures) -> str:
    """The share of steps that took the cap; empty for optimizers that have none."""
    return "" if entry.capped is None else f"{100 * entry.capped:.0f} %"


def _expected_best(k: int) -> Figure:
    return Figure(
        f"best of {k}", lambda e: e.expected_best[k], lambda e: numbers.number(e.expected_best[k], 4), better="own"
    )


#: Every figure that the tables show, in their order. One that no optimizer has a text for is left out.
FIGURES = (
    Figure("best", lambda e: e.best, lambda e: numbers.number(e.best, 4), better="own"),
    Figure("best LR", lambda e: e.best_lr, best_lr, beside=True),
    Figure(
        "LR sensitivity",
        lambda e: e.sensitivity.value,
        lambda e: numbers.number(e.sensitivity.value),
        better="low",
        spread=lambda e: e.sensitivity,
        beside=True,
    ),
    Figure(
        "regret",
        lambda e: e.regret.value,
        lambda e: numbers.number(e.regret.value),
        better="low",
        spread=lambda e: e.regret,
    ),
    Figure("good range, decades", lambda e: e.good_range.decades, decades, better="high", beside=True),
    *map(_expected_best, GUESSES),
    Figure("diverged", lambda e: e.diverged, of_diverged, better="low", beside=True, near=False),
    Figure("capped", lambda e: e.capped, capped),
)
