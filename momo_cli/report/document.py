"""The report as JSON: the schema ``momo/1``."""

from __future__ import annotations

import math
from typing import Any

from momo_cli.report import Report
from momo_cli.runs import Run

SCHEMA = "momo/1"

#: What a run has in the document and in the CSV file, in this order (``metrics`` is taken apart in the CSV).
RUN_FIELDS = (
    "optimizer", "lr", "seed", "status", "objective", "initial", "train_loss", "val_loss",
    "metrics", "steps", "seconds", "capped", "error",
)  # fmt: skip


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain dicts, lists, strings and finite numbers; what isn't finite or isn't known is None."""
    document = {
        "schema": SCHEMA,
        "task": report.task,
        "study": report.study,
        "objective": {"name": report.objective, "direction": "maximize" if report.maximize else "minimize"},
        "initial": report.analysis["initial"],
        "runs": [run_to_json(run) for run in report.runs],
        "optimizers": report.analysis["optimizers"],
        "comparisons": report.analysis["comparisons"],
    }
    if report.recommendation is not None:
        document["recommendation"] = report.recommendation
    return finite(document)


def run_to_json(run: Run) -> dict[str, Any]:
    """One run's entry."""
    return {name: getattr(run, name) for name in RUN_FIELDS}


def finite(value: Any) -> Any:
    """The same with None for every number that isn't finite.

    >>> finite({"a": [1.0, float("inf")], "b": "text"})
    {'a': [1.0, None], 'b': 'text'}
    """
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
