"""The runs as CSV, one row a run; ``momo import`` reads it back with nothing lost that a figure needs."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import Any, TextIO

from momo_cli.report import Report
from momo_cli.report.document import RUN_FIELDS, finite
from momo_cli.runs import Run

#: Before the name of a metric or of a tuned argument in the header.
METRIC, PARAMETER = "metrics.", "params."


def write(report: Report, file: TextIO) -> None:
    """Writes the report's runs to a text file (opened with ``newline=""``)."""
    write_runs(report.runs, file)


def write_runs(runs: Iterable[Run], file: TextIO) -> None:
    """Writes runs: the fields of the JSON document, then a column for each metric and each tuned argument."""
    runs = list(runs)
    metrics = sorted({name for run in runs for name in run.metrics})
    params = sorted({name for run in runs for name in run.params})
    fields = [name for name in RUN_FIELDS if name != "metrics"]
    writer = csv.writer(file)
    writer.writerow(fields + [METRIC + name for name in metrics] + [PARAMETER + name for name in params])
    for run in runs:
        row = [getattr(run, name) for name in fields]
        row += [run.metrics.get(name) for name in metrics] + [run.params.get(name) for name in params]
        writer.writerow([_text(value) for value in row])


def _text(value: Any) -> str:
    """Numbers in full; nothing for None and for what isn't finite.

    >>> _text(0.1), _text(float("nan")), _text(None), _text(3)
    ('0.1', '', '', '3')
    """
    value = finite(value)
    return "" if value is None else repr(float(value)) if isinstance(value, float) else str(value)
