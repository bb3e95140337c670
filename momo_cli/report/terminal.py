"""The report on a terminal: tables that hold at any width, in colour or without.

Colour only repeats what a plain mark or a number says. Where a table is too wide it is taken apart or turned on its
side, never cut.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from momo_cli.report import Report, conclusions, numbers, tables, varied
from momo_cli.report.advice import answer, use
from momo_cli.report.varied import VariedReport
from momo_cli.report.warnings import split_command, warnings

#: Styles of the cells' levels: dark text on a light ground, legible on dark and on light terminals.
STYLES = {
    "best": "bold black on #41ab5d",
    "good": "black on #a1d99b",
    "fair": "black on #fee08b",
    "poor": "black on #fdae61",
    "diverged": "black on #f4a5a0",
    "none": "dim",
}


def print_sweep(report: Report, console: Console) -> None:
    """A row for each optimizer, a column for each learning rate, then what follows from them."""
    _print_answer(console, report)
    _say(console, conclusions.heading(report))
    strip = tables.strip(report)
    columns = tables.columns(report, beside=True)
    widest = _strip_table(console, report, strip, strip.optimizers, columns)
    if _fits(console, widest):
        _print(console, widest)
    else:
        _print_strip(console, report, strip)
        _print_figures(console, strip.optimizers, columns)
    _print_legend(console, strip, columns)
    _print_sentences(console, report)


def print_compare(report: Report, console: Console) -> None:
    """The strips aligned on each optimizer's default learning rate, the figures side by side, and what follows."""
    _print_answer(console, report)
    _say(console, conclusions.heading(report))
    strip = tables.strip(report, relative=True)
    if strip.relative:
        defaults = [f"{name} {numbers.number(report.default_lrs[name])}" for name in strip.optimizers]
        _say(console, f"Learning rates relative to each optimizer's default: {numbers.names(defaults)}.")
    _print_strip(console, report, strip)
    columns = tables.columns(report)
    _print_figures(console, strip.optimizers, columns)
    _print_legend(console, strip, columns)
    _print_sentences(console, report)


def print_recommendation(report: Report, console: Console) -> None:
    """The optimizer and the learning rate to use, why, what is doubtful, and the line to paste."""
    advice = report.advice
    if advice is None:
        _print_answer(console, report)
        for line in warnings(report):
            _warn(console, line)
    else:
        _say(console, use(report, advice), style="bold")
        console.print()
        for line in advice.code.splitlines():
            console.print(Text("    " + _safe(console, line), style="cyan"), soft_wrap=True)
        console.print()
        for line in advice.because:
            _say(console, line)
        for line in advice.warnings:
            _warn(console, line)
    for line in report.lines:
        _say(console, line, style="dim")


def print_varied(report: VariedReport, console: Console) -> None:
    """For each optimizer a row for each value, then the shared learning rates, and how the best ones move."""
    lead, reason = varied.answer(report)
    _say(console, lead, style="bold")
    if reason:
        _say(console, reason)
    if report.view == "recommend" and report.recommendation is not None:
        console.print()
        for line in report.recommendation.code.splitlines():
            console.print(Text("    " + _safe(console, line), style="cyan"), soft_wrap=True)
    console.print()
    _say(console, varied.heading(report))
    for each, strip in varied.strips(report):
        _say(console, each.optimizer, style="bold")
        _print_strip(console, report.reports[0], strip)
    table = _new_table()
    for title in varied.COLUMNS:
        table.add_column(" " + _wrapped(title).replace("\n", " \n ") + " ", overflow="fold")
    for row in varied.summary(report):
        table.add_row(*(Text(" " + _safe(console, cell) + " ") for cell in row))
    _print(console, table)
    console.print()
    for line in varied.sentences(report):
        _say(console, line)
    for line in varied.warnings(report):
        _warn(console, line)
    for one in report.reports:
        for line in one.lines:
            _say(console, line, style="dim")


def text(report: Report | VariedReport, width: int = 100) -> str:
    """The view that a report is for, without colour."""
    views = {"sweep": print_sweep, "compare": print_compare, "recommend": print_recommendation}
    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        if isinstance(report, VariedReport):
            print_varied(report, console)
        else:
            views[report.view](report, console)
    return captured.get().rstrip()


# ------------------------------------------------------------------------------------------------------------ pieces


def _safe(console: Console, text: str) -> str:
    """Text that the console's encoding can hold."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        for sign, plain in {"✗": "x", "×": "x", "–": "-", "≥": ">=", "ℓ": "l", "…": "..."}.items():
            text = text.replace(sign, plain)
        text = text.encode(console.encoding, "replace").decode(console.encoding)
    return text


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(_safe(console, text), style=style))


def _warn(console: Console, text: str) -> None:
    said, command = split_command(text)
    console.print(Text.assemble(("Warning: ", "bold yellow"), _safe(console, said)))
    for line in command_lines(command, console.width - 4):
        console.print(Text("    " + _safe(console, line), style="cyan"), soft_wrap=True)


def command_lines(command: str, width: int) -> list[str]:
    r"""A command to paste, broken before its flags as a shell takes it.

    >>> print("\n".join(command_lines("momo sweep task.py -o sgd --lrs sgd=10,100", 30)))
    momo sweep task.py -o sgd \
      --lrs sgd=10,100
    >>> print("\n".join(command_lines("momo sweep task.py -o sgd", 24)))
    momo sweep task.py \
      -o sgd
    """
    unquoted = r"(?=(?:[^']*'[^']*')*[^']*$)"
    lines = [""]
    for flag in re.split(rf" (?=-){unquoted}", command) if command else []:
        # A flag and its value stay together, unless they are wider than a line.
        for part in [flag] if len(flag) + 4 <= width else re.split(rf" {unquoted}", flag):
            if lines[-1] and len(lines[-1]) + len(part) + 3 > width:
                lines[-1] += " \\"
                lines.append("  " + part)
            else:
                lines[-1] += " " + part if lines[-1] else part
    return lines if command else []


def _print(console: Console, table: Table) -> None:
    console.print(table)


def _fits(console: Console, table: Table) -> bool:
    return Measurement.get(console, console.options.update_width(10_000), table).maximum <= console.width


def _new_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)


def _cell(console: Console, cell: tables.Cell | None, places: int, width: int) -> Text:
    text = _cell_text(cell, places)
    return Text(_safe(console, text.rjust(width)), style=STYLES[cell.level] if cell else "")


def _cell_text(cell: tables.Cell | None, places: int) -> str:
    """``0.091*`` the best, ``0.123 `` another, ``0.45✗`` where some seeds diverged, ``✗ `` where all did."""
    if cell is None:
        return ""
    if cell.level == "none":
        return numbers.NOTHING + " "
    if cell.level == "diverged":
        return "✗ "
    mark = "*" if cell.best else "✗" if cell.diverged else " "
    return numbers.fixed(cell.value, places) + mark


def _strip_table(
    console: Console,
    report: Report,
    strip: tables.Strip,
    optimizers: Sequence[str],
    columns: Sequence[tables.Column] = (),
    turned: bool = False,
) -> Table:
    """The strip, with figures beside it; ``turned``: a row for each learning rate."""
    places = numbers.decimals(tables.best_of_all(report), report.figures.initial)
    table = _new_table()

    def cell(name: str, column: float, width: int) -> Text:
        return _cell(console, strip.cells.get((name, column)), places, width)

    def widths(keys: Iterable[tuple[str, float]]) -> int:
        return max((len(_cell_text(strip.cells.get(key), places)) for key in keys), default=0)

    if turned:
        table.add_column("LR / default" if strip.relative else "LR", justify="right", no_wrap=True)
        for name in optimizers:
            table.add_column(Text(_safe(console, name)), justify="right", overflow="fold", min_width=min(len(name), 12))
        shown = [c for c in strip.columns if any((name, c) in strip.cells for name in optimizers)]
        own = {name: widths((name, c) for c in strip.columns) for name in optimizers}
        for column in shown:
            title = _safe(console, strip.title(column))
            table.add_row(title, *(cell(name, column, own[name]) for name in optimizers))
        return table
    table.add_column("" if strip.relative else "LR", overflow="fold", max_width=28)
    wide = max(
        widths((name, c) for name in optimizers for c in strip.columns), *map(len, map(strip.title, strip.columns)), 0
    )
    for column in strip.columns:
        title = strip.title(column)
        table.add_column(_safe(console, title + " " * (len(title) < wide)), justify="right", no_wrap=True)
    for figure in columns:
        table.add_column(" " + _wrapped(figure.title).replace("\n", " \n") + " ", justify="right", no_wrap=True)
    for name in optimizers:
        row = [cell(name, c, wide) for c in strip.columns]
        beside = [_figure(console, figure, strip.optimizers.index(name), " ") for figure in columns]
        table.add_row(Text(_safe(console, name)), *row, *beside)
    return table


def _wrapped(title: str) -> str:
    """A long title over two lines, broken at its last space."""
    return title if len(title) < 10 else "\n".join(title.rsplit(" ", 1))


def _figure(console: Console, column: tables.Column, i: int, between: str) -> Text:
    text = Text(_safe(console, column.texts[i]), style="bold green" if column.best[i] else "")
    text.append("*" if column.best[i] else " ")
    if column.intervals[i]:
        text.append(_safe(console, f"{between}{column.intervals[i]} "), style="not bold default dim")
    return text


def _print_strip(console: Console, report: Report, strip: tables.Strip) -> None:
    table = _strip_table(console, report, strip, strip.optimizers)
    if _fits(console, table):
        _print(console, table)
    else:
        _print_groups(console, strip.optimizers, lambda some: _strip_table(console, report, strip, some, turned=True))
    console.print()


def _print_figures(console: Console, optimizers: Sequence[str], columns: Sequence[tables.Column]) -> None:
    table = _new_table()
    table.add_column("", overflow="fold", max_width=28)
    for column in columns:
        table.add_column(" " + _wrapped(column.title).replace("\n", " \n") + " ", justify="right", no_wrap=True)
    for i, name in enumerate(optimizers):
        table.add_row(Text(_safe(console, name)), *(_figure(console, column, i, " ") for column in columns))
    if _fits(console, table):
        _print(console, table)
        return

    def turned(some: Sequence[str]) -> Table:
        table = _new_table()
        table.add_column("", overflow="fold", max_width=24)
        for name in some:
            table.add_column(Text(_safe(console, name)), justify="right", overflow="fold", min_width=min(len(name), 12))
        for column in columns:
            table.add_row(column.title, *(_figure(console, column, optimizers.index(name), "\n") for name in some))
        return table

    _print_groups(console, optimizers, turned)


def _print_groups(console: Console, optimizers: Sequence[str], build: Callable[[Sequence[str]], Table]) -> None:
    """Tables of as many optimizers beside each other as the console holds."""
    start = 0
    while start < len(optimizers):
        stop = len(optimizers)
        while stop > start + 1 and not _fits(console, build(optimizers[start:stop])):
            stop -= 1
        if start:
            console.print()
        _print(console, build(optimizers[start:stop]))
        start = stop


def _print_legend(console: Console, strip: tables.Strip, columns: Sequence[tables.Column]) -> None:
    parts = ["* best of its row" if len(strip.optimizers) == 1 else "* best"]
    cells = strip.cells.values()
    if any(cell.level == "diverged" for cell in cells):
        parts.append("✗ diverged")
    if any(cell.diverged and cell.level != "diverged" for cell in cells):
        parts.append("✗ beside a value: some seeds diverged")
    if any(text.endswith("!") for column in columns for text in column.texts):
        parts.append("! at an end of the grid")
    if any(text.startswith("≥") for column in columns for text in column.texts):
        parts.append("≥ runs off the grid")
    if any(column.intervals and any(column.intervals) for column in columns):
        parts.append("a–b is a 95 % interval")
    if strip.gathered:
        parts.append("learning rates gathered by half decades")
    _say(console, "; ".join(parts), style="dim")
    console.print()


def _print_answer(console: Console, report: Report) -> None:
    lead, reason = answer(report)
    _say(console, lead, style="bold")
    if reason and report.figures.learned:
        _say(console, reason)
    console.print()


def _print_sentences(console: Console, report: Report) -> None:
    for line in conclusions.conclusions(report):
        _say(console, line)
    for line in warnings(report):
        _warn(console, line)
    for line in report.lines:
        _say(console, line, style="dim")
