"""The executor: chooses how the runs are trained, and trains them in this process or in several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from momo_cli import processes
from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.process_state import restored
from momo_cli.runs import Run
from momo_cli.task.definition import Builds
from momo_cli.task.loading import TaskSource
from momo_cli.training import cpu
from momo_cli.training.dispatch.candidates import Candidate, Resources, Work, choose
from momo_cli.training.dispatch.trainer import Trainer
from momo_cli.training.dispatch.units import Claim, Units, claim_first
from momo_cli.training.dispatch.workers import Workers
from momo_cli.training.probe import Probe
from momo_cli.training.run.record import Watch


class Trains(Protocol):
    """Whatever trains a list of runs, however it does that."""

    def train(self, specs: Sequence[RunSpec], claim: Claim | None = None) -> Iterator[tuple[RunSpec, Run]]:
        """Train the runs that ``claim`` returns, and yield each as it ends."""


class Executor:
    """Trains runs as the resources allow; use as a context manager: its processes end with it.

    Args:
        source: The task.
        settings: As for a single run.
        resources: Devices, processes, runs at once.
        watch: Told of each run's progress; True stops that run as pruned.
        say: Takes lines for the user: what was chosen, and what went otherwise.
        probe: A task built already, for timing or for the first run.
        batch: How many runs :meth:`train` will be given at a time; by default as many as at first. Batches that wait
            for one another are trained in this process unless ``--jobs`` says otherwise.
    """

    def __init__(
        self,
        source: TaskSource,
        settings: Settings,
        resources: Resources,
        watch: Watch,
        say: Callable[[str], None],
        probe: Probe | None = None,
        batch: int | None = None,
    ) -> None:
        self.source, self.settings, self.resources = source, settings, resources
        self.watch, self.say, self._batch = watch, say, batch
        self._built: Builds = probe or source
        self.chosen: Candidate | None = None
        self._workers: Workers | None = None
        self._trainer = Trainer(self._built, settings, resources.devices[0], watch, say, resources.checkpoints)

    def __enter__(self) -> Executor:
        cpu.prepare(self.resources.devices[0])
        return self

    def __exit__(self, *exception: object) -> None:
        if self._workers is not None:
            self._workers.close()

    def train(self, specs: Sequence[RunSpec], claim: Claim | None = None) -> Iterator[tuple[RunSpec, Run]]:
        """Train the runs and yield each as it ends. The first call chooses how, for all.

        Args:
            specs: The runs.
            claim: Asked before each unit of work, a single run or a stack, which of its runs this process may train
                (see :data:`~momo_cli.training.dispatch.units.Claim`); all of them by default. Runs that it never
                returns are not yielded.

        Raises:
            UserError: The task or the settings are wrong in a way that no run can mend.
        """
        chosen = self.chosen or self._choose(specs)
        size = min(chosen.together, math.ceil(len(specs) / chosen.processes))
        begun = [checkpoint.specs for checkpoint in self.resources.checkpoints.find(specs, self.say)]
        units = Units(specs, size, claim or claim_first, begun)
        if chosen.processes > 1 or self.resources.timeout is not None:
            if self._workers is None:
                self._workers = Workers(
                    self.source, self.settings, self.resources, chosen.processes, self.watch, self.say
                )
            yield from self._workers.train(units, chosen.together)
            return
        if chosen.threads > 1:
            torch.set_num_threads(chosen.threads)
        while unit := units.next():
            yield from self._trainer.train(unit, chosen.together)

    def _choose(self, specs: Sequence[RunSpec]) -> Candidate:
        work = Work(self._built, specs, self.settings, self.resources, self._batch)
        with restored():
            self.chosen, lines = choose(work)
        if work.needs_compiler(self.chosen):
            processes.preload_compiler()
        for line in lines:
            self.say(line)
        return self.chosen
