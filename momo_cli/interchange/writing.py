"""The runs as CSV, one row a run; ``momo import`` reads it back with nothing lost that a figure needs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from momo_cli.report import Report
from momo_cli.report.exports import Target
from momo_cli.report.varied import VariedReport
from momo_cli.runs import FIELDS, Run

#: Before the name of a metric or of a tuned argument in the header.
METRIC, PARAMETER = "metrics.", "params."


def render(report: Report | VariedReport, target: Target) -> str:
    """The report's runs."""
    if isinstance(report, VariedReport):
        values = [value for value, one in zip(report.values, report.reports) for _ in one.runs]
        return table(report.runs, (report.name, values))
    return table(report.runs)


def table(runs: Iterable[Run], varied: tuple[str, Sequence[Any]] | None = None) -> str:
    """Runs: their fields, then a column for each metric and each tuned argument; before them what is varied."""
    runs = list(runs)
    name, values = varied or ("", [None] * len(runs))
    metrics = sorted({name for run in runs for name in run.metrics})
    params = sorted({name for run in runs for name in run.params})
    fields = [name for name in FIELDS if name != "metrics"]
    file = io.StringIO()
    writer = csv.writer(file)
    head = [] if varied is None else [name]
    writer.writerow(head + fields + [METRIC + name for name in metrics] + [PARAMETER + name for name in params])
    for run, value in zip(runs, values, strict=True):
        row = [value] * len(head) + [getattr(run, name) for name in fields]
        row += [run.metrics.get(name) for name in metrics] + [run.params.get(name) for name in params]
        writer.writerow([_text(value) for value in row])
    return file.getvalue()


def _text(value: Any) -> str:
    """Numbers in full; nothing for None and for what isn't finite.

    >>> _text(0.1), _text(float("nan")), _text(None), _text(3)
    ('0.1', '', '', '3')
    """
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    return "" if value is None else str(value)
