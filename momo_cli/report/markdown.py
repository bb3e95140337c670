"""The report as Markdown, to be pasted into an issue or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from momo_cli.report import Advice, Report, conclusions, numbers, tables, varied
from momo_cli.report.advice import answer, use
from momo_cli.report.exports import Target
from momo_cli.report.varied import VariedReport
from momo_cli.report.warnings import split_command, warnings


def render(report: Report | VariedReport, target: Target | None = None) -> str:
    """The sentence, the tables, what follows and what is doubtful."""
    if isinstance(report, VariedReport):
        return _varied(report)
    strip = tables.strip(report)
    parts = [
        f"## {text(report.task)}: learning rates",
        *_answer(report),
        f"{text(conclusions.heading(report))}. **Bold**: best; ✗: diverged.",
        _strip(report, strip),
        _figures(strip.optimizers, tables.columns(report)),
    ]
    parts += [text(line) for line in conclusions.conclusions(report)]
    warned = [] if report.advice is None else report.advice.warnings
    parts += [f"> **Warning:** {_quoted(line)}" for line in warnings(report) if line not in warned]
    if report.settings:
        parts.append("Settings: " + ", ".join(f"`{_code(f'{key}={value}')}`" for key, value in report.settings.items()))
    parts += [text(line) for line in report.lines]
    return "\n\n".join(parts) + "\n"


def _varied(report: VariedReport) -> str:
    lead, reason = varied.answer(report)
    parts = [
        f"## {text(report.task)}: learning rates over {text(report.name)}",
        f"**{text(lead)}** {_quoted(reason)}".rstrip(),
        f"{text(varied.heading(report))}. **Bold**: best; ✗: diverged.",
    ]
    for each, strip in varied.strips(report):
        parts += [f"### {text(each.optimizer)}", _strip(report.reports[0], strip)]
    rows = [varied.COLUMNS, ("---",) * len(varied.COLUMNS), *varied.summary(report)]
    parts.append(
        "\n".join(f"| {' | '.join(text(cell) if i != 1 else cell for cell in row)} |" for i, row in enumerate(rows))
    )
    parts += [text(line) for line in varied.sentences(report)]
    parts += [f"> **Warning:** {_quoted(line)}" for line in report.warnings]
    return "\n\n".join(parts) + "\n"


def _answer(report: Report) -> list[str]:
    if report.advice is not None:
        return recommendation(report, report.advice)
    lead, reason = answer(report)
    return [f"**{text(lead)}** {_quoted(reason)}".rstrip()]


def recommendation(report: Report, advice: Advice) -> list[str]:
    """What to use, the code, why, and what is doubtful."""
    return [
        f"**{text(use(report, advice))}**",
        f"```python\n{advice.code.replace('```', '')}\n```",
        *(text(line) for line in advice.because),
        *(f"> **Warning:** {_quoted(line)}" for line in advice.warnings),
    ]


def text(words: object) -> str:
    """Text that Markdown leaves as it is, on one line.

    >>> text("a|b <b> *c*")
    'a\\\\|b &lt;b&gt; \\\\*c\\\\*'
    """
    line = " ".join(str(words).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", line)


def _code(words: str) -> str:
    return " ".join(words.split()).replace("`", "'").replace("|", "\\|")


def _quoted(line: str) -> str:
    """A warning, its command as code."""
    said, command = split_command(line)
    return text(said) + (f" `{_code(command)}`" if command else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _strip(report: Report, strip: tables.Strip) -> str:
    """Rows are learning rates where the optimizers' grids differ so much that the columns would be mostly empty."""
    places = numbers.decimals(tables.best_of_all(report), report.figures.initial)

    def cell(name: str, column: float) -> str:
        found = strip.cells.get((name, column))
        if found is None:
            return ""
        if found.level == "diverged":
            return "✗"
        value = numbers.fixed(found.value, places)
        return (f"**{value}**" if found.best else value) + ("✗" if found.diverged else "")

    if len(strip.columns) > tables.WIDE:
        rows = [[strip.title(c), *(cell(name, c) for name in strip.optimizers)] for c in strip.columns]
        return _table(["LR", *map(text, strip.optimizers)], rows)
    rows = [[text(name), *(cell(name, c) for c in strip.columns)] for name in strip.optimizers]
    return _table(["LR", *map(strip.title, strip.columns)], rows)


def _figures(optimizers: Sequence[str], columns: Sequence[tables.Column]) -> str:
    def cell(column: tables.Column, i: int) -> str:
        value = f"**{column.texts[i]}**" if column.best[i] else column.texts[i]
        return f"{value} ({column.intervals[i]})" if column.intervals[i] else value

    rows = [[text(name), *(cell(column, i) for column in columns)] for i, name in enumerate(optimizers)]
    return _table(["", *(column.title for column in columns)], rows)
