"""What is reported, and one file for each form of it: terminal, JSON, CSV, Markdown, plots, HTML."""

from __future__ import annotations

import dataclasses
from typing import Any

from momo_cli.runs import Run


@dataclasses.dataclass
class Report:
    """A table of runs and all that is said of it.

    Attributes:
        task: The task as typed.
        study: Name of the study that stores the runs.
        objective: Name of the value that is compared.
        maximize: Whether larger is better.
        runs: The runs.
        analysis: From :func:`momo_cli.figures.analyze`.
        recommendation: From :func:`momo_cli.recommendation.recommend`, where one was asked for.
        settings: How the runs were trained, name to value.
        lines: Notes to show with it (what was reused, what an import did).
        command: The command line that adds runs to this study, without ``-o`` and ``--lrs`` (as
            ``momo sweep task.py --epochs 5``); None where it can't be run again, as for an imported table.
        default_lrs: Each optimizer's own default learning rate, by label.
    """

    task: str
    study: str
    objective: str
    maximize: bool
    runs: list[Run]
    analysis: dict[str, Any]
    recommendation: dict[str, Any] | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)
    command: str | None = None
    default_lrs: dict[str, float] = dataclasses.field(default_factory=dict)
