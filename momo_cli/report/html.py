"""The report as one HTML file to send on: no network, no scripts, the plots inside it, all user text escaped."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from html import escape

from momo_cli.errors import UserError
from momo_cli.report import Report, conclusions, numbers, plot, tables, varied
from momo_cli.report.advice import answer, use
from momo_cli.report.exports import Target
from momo_cli.report.varied import VariedReport
from momo_cli.report.warnings import split_command, warnings

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #555; --code: #f4f4f4; --line: #888 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #161616; --soft: #a8a8a8; --code: #262626; --line: #777 }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
body { color: var(--ink); background: var(--paper) }
h1 { font-size: 1.4rem; margin-bottom: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin-top: 2rem }
p { max-width: 50rem; overflow-wrap: anywhere }
.lead { font-size: 1.1rem } .note { color: var(--soft) }
.warning { border-left: 4px solid #d55e00; padding-left: .7rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .45rem; text-align: right; white-space: nowrap; vertical-align: top; font-size: .93rem }
thead th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: var(--paper) }
.pairs td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere }
thead th { border-bottom: 1px solid var(--line); font-weight: 600 }
.b { font-weight: 700 } .i { color: var(--soft); font-size: .85em; display: block }
.best { background: #41ab5d } .good { background: #a1d99b } .fair { background: #fee08b }
.poor { background: #fdae61 } .diverged { background: #f4a5a0 }
.best, .good, .fair, .poor, .diverged { color: #000 }
pre { background: var(--code); padding: .7rem; overflow-x: auto }
img { display: block; width: 44rem; min-width: 34rem; max-width: 100%; height: auto; background: #fff; padding: .5rem }
"""

PICTURES = {
    "lr": "Final value against learning rate",
    "curves": "Training loss over the steps",
    "steps": "Step size against its cap",
    "transfer": "Final value against learning rate at every value",
}


def check(target: Target) -> None:
    """Find out before any training whether the pictures can be drawn.

    Raises:
        UserError: matplotlib isn't installed.
    """
    plot.check_library()


def render(report: Report | VariedReport, target: Target | None = None) -> str:
    """The sentence, the tables, the plots, the settings and the versions, as one file.

    Raises:
        UserError: matplotlib isn't installed.
    """
    plot.check_library()
    parts = [f"<h1>{escape(report.task)}</h1>"]
    if isinstance(report, VariedReport):
        parts += [*_varied(report), *_pictures(report)]
        for value, one in zip(report.values, report.reports):
            parts += [f"<h1>{escape(report.place(value))}</h1>", *_one(one)]
    else:
        parts += _one(report)
    parts += ["<h2>Versions</h2>", _pairs(versions())]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.task)}: learning rates</title>\n"
        f"<style>{CSS}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _one(report: Report) -> list[str]:
    return [
        *_results(report),
        *_pictures(report),
        "<h2>Settings</h2>",
        _pairs(report.settings | {"study": report.study}),
        *(_paragraph(line, "note") for line in report.lines),
    ]


def fragment(report: Report) -> str:
    """The sentence and the tables, to stand in another page, as a notebook: styled by themselves alone."""
    return _scoped([*_results(report), *(_paragraph(line, "note") for line in report.lines)])


def varied_fragment(report: VariedReport) -> str:
    """As :func:`fragment`."""
    return _scoped(_varied(report))


def _varied(report: VariedReport) -> list[str]:
    """The answer, a table for each optimizer with a row for each value, and how the best learning rates move."""
    lead, reason = varied.answer(report)
    parts = [
        _paragraph(varied.heading(report), "note"),
        _paragraph(lead, "lead b"),
        *([_paragraph(reason)] if reason else []),
        *map(_paragraph, varied.sentences(report)),
        *map(_warning, report.warnings),
        f"<h2>One learning rate for every value of {escape(report.name)}</h2>",
        _table(varied.COLUMNS, ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in varied.summary(report)]),
    ]
    for each, strip in varied.strips(report):
        parts += [f"<h2>{escape(each.optimizer)}</h2>", _strip(report.reports[0], strip)]
    return parts


def _scoped(parts: Sequence[str]) -> str:
    scoped = re.sub(r"([^{}]+)\{", lambda m: ", ".join(f".momo {part.strip()}" for part in m[1].split(",")) + " {", CSS)
    return f'<div class="momo">\n<style>{scoped}</style>\n' + "\n".join(parts) + "\n</div>"


def _results(report: Report) -> list[str]:
    """The sentence, the warnings and the tables."""
    strip = tables.strip(report)
    said = conclusions.conclusions(report)
    advice = report.advice
    lead, reason = answer(report) if advice is None else (use(report, advice), "")
    parts = [
        _paragraph(conclusions.heading(report), "note"),
        _paragraph(lead, "lead b"),
        *([_paragraph(reason)] if reason and report.figures.learned else []),
    ]
    if advice is not None:
        parts += [f"<pre>{escape(advice.code)}</pre>", *map(_paragraph, advice.because)]
    parts += [_paragraph(line) for line in said if advice is None or line not in advice.because]
    warned = [] if advice is None else advice.warnings
    warned = warned + [line for line in warnings(report) if line not in warned]
    parts += map(_warning, warned)
    parts += [
        "<h2>Learning rates</h2>",
        _strip(report, strip),
        "<h2>Figures</h2>",
        _figures(strip.optimizers, tables.columns(report)),
    ]
    return parts


def versions() -> dict[str, str]:
    """What made the report.

    >>> "Python" in versions()
    True
    """
    found = {"Python": platform.python_version()}
    for name in ("momo-opt", "torch", "optuna", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _warning(line: str) -> str:
    """A warning; a command at its end stands in lines of its own, to be copied whole."""
    said, command = split_command(line)
    return _paragraph(f"Warning: {said}", "warning") + (f"\n<pre>{escape(command)}</pre>" if command else "")


def _pairs(pairs: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in pairs.items())
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _strip(report: Report, strip: tables.Strip) -> str:
    places = numbers.decimals(tables.best_of_all(report), report.figures.initial)

    def cell(name: str, column: float) -> str:
        found = strip.cells.get((name, column))
        if found is None:
            return "<td></td>"
        text = (
            "✗" if found.level == "diverged" else numbers.fixed(found.value, places) + ("✗" if found.diverged else "")
        )
        mark = "*" if found.best else ""
        return f'<td class="{found.level}{" b" if found.best else ""}">{text}{mark}</td>'

    if len(strip.columns) > tables.WIDE:
        header = ["LR", *strip.optimizers]
        rows = [
            f"<td>{strip.title(column)}</td>" + "".join(cell(name, column) for name in strip.optimizers)
            for column in strip.columns
        ]
    else:
        header = ["LR", *map(strip.title, strip.columns)]
        rows = [
            f"<td>{escape(name)}</td>" + "".join(cell(name, column) for column in strip.columns)
            for name in strip.optimizers
        ]
    legend = (
        "* the optimizer's best; ✗ diverged (beside a value: some seeds). Green: within 5 % of the way from the best "
        "of all to the start; yellow: within 25 %."
    )
    return _table(header, rows) + _paragraph(legend, "note")


def _figures(optimizers: Sequence[str], columns: Sequence[tables.Column]) -> str:
    def cell(column: tables.Column, i: int) -> str:
        spread = f'<span class="i">{escape(column.intervals[i])}</span>' if column.intervals[i] else ""
        kind, mark = (' class="b"', "*") if column.best[i] else ("", "")
        return f"<td{kind}>{escape(column.texts[i])}{mark}{spread}</td>"

    rows = [
        f"<td>{escape(name)}</td>" + "".join(cell(column, i) for column in columns) for i, name in enumerate(optimizers)
    ]
    legend = (
        "* best of its column. Small: 95 % interval over seeds. ! the best is at an end of the grid; "
        "≥ the good range runs off the grid."
    )
    return _table(["", *(column.title for column in columns)], rows) + _paragraph(legend, "note")


def _pictures(report: Report | VariedReport) -> list[str]:
    """The plots that these runs allow, as images inside the file."""
    parts = []
    for kind, title in PICTURES.items():
        try:
            drawn = plot.svg(report, kind)
        except UserError:  # these runs don't hold what this plot shows
            continue
        data = base64.b64encode(drawn.encode()).decode()
        parts.append(
            f'<h2>{title}</h2>\n<div class="scroll"><img alt="{escape(f"{title}: {report.task}")}" '
            f'src="data:image/svg+xml;base64,{data}"></div>'
        )
    return parts
