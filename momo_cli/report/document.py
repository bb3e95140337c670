"""The report as JSON: the schema ``momo/1``, and the one place that knows its keys."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from momo_cli.report import Report
from momo_cli.report.exports import Target
from momo_cli.report.varied import VariedReport
from momo_cli.report.warnings import warnings
from momo_cli.runs import FIELDS, Run

SCHEMA = "momo/1"


def render(report: Report | VariedReport, target: Target) -> str:
    """The document as text."""
    return json.dumps(report.to_dict(), indent=1) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain dicts, lists, strings and finite numbers; what isn't finite or isn't known is None."""
    figures = report.figures
    # The attributes of the figures are named as the document's keys are, and stand in their order.
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "task": report.task,
        "study": report.study,
        "objective": {"name": report.objective, "direction": "maximize" if report.maximize else "minimize"},
        "initial": figures.initial,
        "runs": [run_to_json(run) for run in report.runs],
        "optimizers": [_without(entry, "params") for entry in figures.optimizers],
        "comparisons": [dataclasses.asdict(pair) for pair in figures.comparisons],
    }
    if report.advice is not None:
        document["recommendation"] = _without(report.advice, "params")
    elif report.view == "recommend":
        document |= {"recommendation": None, "warnings": warnings(report)}
    return dict(_finite(document))


def varied_to_json(report: VariedReport) -> dict[str, Any]:
    """The reports of all values and the figures over them, as plain as :func:`to_json`."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "task": report.task,
        "vary": {
            "name": report.name,
            "values": report.values,
            "reports": [to_json(one) for one in report.reports],
            "optimizers": [_without(each, "lrs") for each in report.optimizers],
        },
    }
    if report.view == "recommend":
        advice = report.recommendation
        document["recommendation"] = None if advice is None else dataclasses.asdict(advice)
        document |= {"warnings": report.warnings} if advice is None else {}
    return dict(_finite(document))


def _without(value: Any, name: str) -> dict[str, Any]:
    """A dataclass's fields but one."""
    return {key: item for key, item in dataclasses.asdict(value).items() if key != name}


def run_to_json(run: Run) -> dict[str, Any]:
    """One run's entry."""
    return {name: getattr(run, name) for name in FIELDS}


def _finite(value: Any) -> Any:
    """The same with None for every number that isn't finite.

    >>> _finite({"a": [1.0, float("inf")], 2: "text"})
    {'a': [1.0, None], '2': 'text'}
    """
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
