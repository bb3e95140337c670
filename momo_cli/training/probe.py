"""The probe: a task that is built before any run, to be checked, and then timed or trained."""

from __future__ import annotations

from typing import Any

from momo_cli.process_state import ProcessState
from momo_cli.task.definition import Task
from momo_cli.task.loading import TaskSource
from momo_cli.training.data import Generators


class Probe:
    """A task of one seed, for a single use; any other is built anew.

    Args:
        source: Builds the task.
        seed: The probe's seed.
        device: Where it is built for.

    Attributes:
        task: The probe; None once it is used.
    """

    def __init__(self, source: TaskSource, seed: int, device: Any) -> None:
        self._source, self._seed = source, seed
        before = ProcessState()
        self.task: Task | None = source.build(seed, device)
        self._state, self._generators = ProcessState().changed_since(before), Generators()

    def build(self, seed: int, device: Any) -> Task:
        """As :meth:`TaskSource.build`."""
        task = self.task
        if task is None or seed != self._seed:
            return self._source.build(seed, device)
        self.task = None
        self._state.restore()
        self._generators.restore()
        return task

    def load(self) -> object:
        """As :meth:`TaskSource.load`."""
        return self._source.load()
