"""Who trains what, where: every run of a list, reported as it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.task.loading import TaskSource
from momo_cli.training.single import train_run


class Progress(Protocol):
    """What is told of training while it goes on."""

    def advanced(self, spec: RunSpec, step: int, steps: int, loss: float) -> None:
        """A run has come to ``step``, with this mean training loss lately."""

    def finished(self, spec: RunSpec, run: Run) -> None:
        """A run has ended."""


def execute(
    specs: Sequence[RunSpec], source: TaskSource, settings: Settings, devices: Sequence[torch.device], progress: Progress
) -> Iterator[Run]:
    """Train every run, one after another, and give each as it ends."""

    def watch(spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        progress.advanced(spec, step, steps, loss)
        return False

    for spec in specs:
        run = train_run(source, spec, settings, devices[0], watch)
        progress.finished(spec, run)
        yield run
