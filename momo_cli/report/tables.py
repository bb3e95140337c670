"""What the tables hold, before any of them is drawn: cells of the strip, columns of the figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from momo_cli import figures
from momo_cli.report import Report, formats

#: More learning rates than this in one table (an Optuna study's) are gathered by half decades.
MOST_COLUMNS = 24


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
        return f"×{formats.number(column, 2)}" if self.relative else formats.number(column)


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
    return "good" if share <= figures.TOLERANCE + 1e-9 else "fair" if share <= 0.25 else "poor"


def best_of_all(report: Report) -> float | None:
    """The best ``ℓ*`` of the optimizers compared, in the metric's own sign."""
    values = [entry["best"] for entry in report.analysis["optimizers"] if entry["best"] is not None]
    return (max if report.maximize else min)(values, default=None)


def strip(report: Report, relative: bool = False) -> Strip:
    """The strip of every optimizer.

    Args:
        report: What to show.
        relative: Whether learning rates are taken relative to each optimizer's own default.
    """
    entries = report.analysis["optimizers"]
    best, initial = best_of_all(report), report.analysis["initial"]
    relative = relative and all(entry["optimizer"] in report.default_lrs for entry in entries)
    ended: dict[tuple[str, float], list[bool]] = {}
    for run in report.runs:
        if figures.counts(run):
            ended.setdefault((run.optimizer, run.lr), []).append(figures.diverged(run))

    def place(optimizer: str, lr: float) -> float:
        return float(f"{lr / report.default_lrs[optimizer]:.3g}") if relative else lr

    columns = {place(entry["optimizer"], lr) for entry in entries for lr in entry["lrs"] if lr > 0}
    gathered = len(columns) > MOST_COLUMNS
    found: dict[tuple[str, float], list[tuple[float | None, bool, list[bool]]]] = {}
    for entry in entries:
        for lr, value in zip(entry["lrs"], entry["values"]):
            if lr <= 0:
                continue
            name = entry["optimizer"]
            column = place(name, lr)
            if gathered:
                column = float(f"{10 ** (round(2 * math.log10(column)) / 2):.3g}")
            found.setdefault((name, column), []).append((value, lr == entry["best_lr"], ended.get((name, lr), [])))
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
        [entry["optimizer"] for entry in entries],
        sorted({column for _, column in cells}),
        cells,
        gathered,
        relative,
    )


# ------------------------------------------------------------------------------------------------------ the figures


@dataclasses.dataclass
class Column:
    """One figure of every optimizer: its title, its text, the interval's text, and which are best."""

    title: str
    texts: list[str]
    intervals: list[str]
    best: list[bool]


def _column(
    title: str,
    entries: list[dict],
    get: Callable[[dict], Any],
    text: Callable[[dict], str],
    better: str | None = None,
    spread: Callable[[dict], dict] | None = None,
) -> Column:
    values = [get(entry) for entry in entries]
    known = [value for value in values if value is not None]
    marked = (better is not None and len(set(known)) > 1) or (better is not None and len(entries) > len(known) > 0)
    top = (min if better == "low" else max)(known) if marked else None
    return Column(
        title,
        [text(entry) for entry in entries],
        [formats.interval(spread(e)["low"], spread(e)["high"]) if spread else "" for e in entries],
        [marked and value == top for value in values],
    )


def decades(entry: dict[str, Any]) -> str:
    """A good range's width: ``≥`` where it runs off the grid.

    >>> decades({"good_range": {"decades": 2.04, "open_low": False, "open_high": True}})
    '≥2.0'
    """
    width = entry["good_range"]
    if width["decades"] is None:
        return formats.NOTHING
    return ("≥" if width["open_low"] or width["open_high"] else "") + f"{width['decades']:.1f}"


def short_figures(report: Report) -> list[Column]:
    """The figures beside the sweep's table."""
    entries = report.analysis["optimizers"]
    return [
        _column("best LR", entries, lambda e: e["best_lr"], best_lr),
        _column(
            "LR sensitivity",
            entries,
            lambda e: e["sensitivity"]["value"],
            lambda e: formats.number(e["sensitivity"]["value"]),
            "low",
            lambda e: e["sensitivity"],
        ),
        _column("good range, decades", entries, lambda e: e["good_range"]["decades"], decades, "high"),
        _column("diverged", entries, lambda e: e["diverged"], diverged, "low"),
    ]


def long_figures(report: Report) -> list[Column]:
    """The figures side by side, as ``momo compare`` shows them."""
    entries = report.analysis["optimizers"]
    better = "high" if report.maximize else "low"
    short = short_figures(report)
    columns = [
        _column("best", entries, lambda e: e["best"], lambda e: formats.number(e["best"], 4), better),
        short[0],
        short[1],
        _column(
            "regret",
            entries,
            lambda e: e["regret"]["value"],
            lambda e: formats.number(e["regret"]["value"]),
            "low",
            lambda e: e["regret"],
        ),
        short[2],
    ]
    for k in map(str, figures.GUESSES):
        columns.append(
            _column(
                f"best of {k}",
                entries,
                lambda e, k=k: e["expected_best"][k],
                lambda e, k=k: formats.number(e["expected_best"][k], 4),
                better,
            )
        )
    columns.append(short[3])
    if any(entry["capped"] is not None for entry in entries):
        columns.append(_column("capped", entries, lambda e: e["capped"], capped))
    return columns


def best_lr(entry: dict[str, Any]) -> str:
    """The best learning rate, with ``!`` where it is at an end of its grid."""
    return formats.number(entry["best_lr"]) + ("!" if entry["best_at_edge"] else "")


def diverged(entry: dict[str, Any]) -> str:
    """How many runs diverged of those that count; the others are named."""
    other = [f"{entry[status]} {status}" for status in ("failed", "pruned") if entry[status]]
    return ", ".join([f"{entry['diverged']}/{entry['runs'] - entry['failed'] - entry['pruned']}", *other])


def capped(entry: dict[str, Any]) -> str:
    """The share of steps that took the cap."""
    return formats.NOTHING if entry["capped"] is None else f"{100 * entry['capped']:.0f} %"
