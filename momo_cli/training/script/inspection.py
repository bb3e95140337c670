"""``momo check`` of a script: one run that is kept nowhere, and how its numbers were read."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from pathlib import Path

from momo_cli.plan.grid import RunSpec
from momo_cli.runs import Run
from momo_cli.training.script.command import Command
from momo_cli.training.script.sources import Reading
from momo_cli.training.script.trainer import Limits, ScriptTrainer


@dataclasses.dataclass(frozen=True)
class ScriptInspection:
    """What was seen of a script.

    Attributes:
        command: The command that was run.
        run: What came of it.
        objective: The objective's name.
        way: How the script reports.
        reported: How many values of each name it reported.
        files: The files whose content is part of the study's identity.
    """

    command: str
    run: Run
    objective: str
    way: str
    reported: dict[str, int]
    files: tuple[str, ...]


def inspect_script(command: Command, reading: Reading, limits: Limits, spec: RunSpec) -> ScriptInspection:
    """Run ``command`` once, for ``spec``."""
    with tempfile.TemporaryDirectory(prefix="momo-") as folder:
        with ScriptTrainer(command, reading, Path(folder), limits=limits) as trainer:
            ((_, run),) = trainer.train([spec])
        way, reports = trainer.last_way
        words, _ = command.filled(spec, Path(folder))
    return ScriptInspection(
        shlex.join(words),
        run,
        reports.objective(reading.objective),
        way,
        {name: len(series.values) for name, series in reports.series.items()},
        tuple(file.name for file in command.files()),
    )
