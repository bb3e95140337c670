"""An experiment: the runs a command needs, from the store where they are there, else trained and stored."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from momo_cli.errors import UserError
from momo_cli.plan.grid import RunSpec, run_key
from momo_cli.plan.optimizers import OptimizerSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.store import Store, StoredRuns, study_key
from momo_cli.task.definition import Task
from momo_cli.task.loading import TaskSource

if TYPE_CHECKING:
    from momo_cli.training.execute import Resources


class Display(Protocol):
    """What the user sees of an experiment while it runs; see :class:`momo_cli.report.progress.LiveDisplay`."""

    def started(self, specs: list[RunSpec], reused: int) -> None:
        """These runs are to be trained; ``reused`` ones are stored."""

    def advanced(self, spec: RunSpec, step: int, steps: int, loss: float) -> None:
        """A run has come to ``step``."""

    def finished(self, spec: RunSpec, run: Run) -> None:
        """A run has ended."""

    def said(self, line: str) -> None:
        """A line the user should know of."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A task, and how its runs are trained and kept.

    Attributes:
        source: The task.
        settings: What changes a result.
        store: Where runs are kept.
        device: ``--device``.
        study: ``--study``, or None.
        fresh: Train runs that are stored, too.
        together: ``--together``: ``auto``, ``off`` or a number.
        jobs: ``--jobs``, or None.
    """

    source: TaskSource
    settings: Settings
    store: Store
    device: str = "auto"
    study: str | None = None
    fresh: bool = False
    together: str = "auto"
    jobs: int | None = None

    def stored(self) -> StoredRuns:
        """The stored runs of this task and settings."""
        source = self.source
        key = study_key(source.name, source.fingerprint(), dict(source.arguments), self.settings.key())
        return self.store.open(key, self.study)

    def collect(self, specs: list[RunSpec], display: Display) -> Collected:
        """Every run of ``specs``: reused where it is stored, else trained and stored.

        Raises:
            UserError: The task, an optimizer, a device or the storage is wrong; nothing has been trained then.
            KeyboardInterrupt: The user's; every run that had ended is stored.
        """
        stored = self.stored()
        found = {} if self.fresh else {_key(run): run for run in stored.runs() if run.status != "failed"}
        missing = [spec for spec in specs if spec.key not in found]
        lines = self._changed_source(stored, bool(found))
        for line in lines:
            display.said(line)
        objective = stored.objective
        if missing:
            from momo_cli.training.execute import execute

            resources = self._resources()
            objective, task = self._check(missing, resources.devices[0])
            display.started(missing, len(specs) - len(missing))

            def watch(spec: RunSpec, step: int, steps: int, loss: float) -> bool:
                display.advanced(spec, step, steps, loss)
                return False

            with stored:
                stored.start(list(dict.fromkeys(spec.optimizer.label for spec in specs)), objective)
                for spec, run in execute(missing, self.source, self.settings, resources, watch, display.said, task):
                    stored.add(run)
                    found[spec.key] = run
                    display.finished(spec, run)
        runs = [found[spec.key] for spec in specs if spec.key in found]
        return Collected(stored.name, objective, runs, len(specs) - len(missing), lines)

    def _resources(self) -> Resources:
        from momo_cli.training.devices import parse_devices
        from momo_cli.training.execute import Resources

        if self.together not in ("auto", "off") and not (self.together.isdigit() and int(self.together) > 0):
            raise UserError(f"--together {self.together}: write auto, off, or how many runs to train at once.")
        together = {"auto": "auto", "off": 1}.get(self.together) or int(self.together)
        return Resources(parse_devices(self.device), together, self.jobs)

    def _check(self, specs: list[RunSpec], device: Any) -> tuple[str, Task]:
        """Find what is wrong before anything is trained; returns the objective's name and a task, built for that."""
        from momo_cli.training.evaluation import objective_name

        optimizers: dict[OptimizerSpec, RunSpec] = {spec.optimizer: spec for spec in specs}
        for optimizer, spec in optimizers.items():
            optimizer.check(spec.lr, dict(spec.params))
        task = self.source.build(specs[0].seed, device)
        return objective_name(task, self.settings), task

    def _changed_source(self, stored: StoredRuns, any_found: bool) -> list[str]:
        """A line where runs of this task and settings are stored that an earlier version of its file made."""
        if any_found or self.fresh:
            return []
        now = stored.key
        for info in reversed(self.store.studies()):
            before = info.key
            if before != now and {**before, "source": None} == {**now, "source": None}:
                runs = f"{info.runs} stored run" + "s" * (info.runs != 1)
                return [f"{self.source.file.name} has changed since its {runs} ({info.name}): starting afresh."]
        return []


@dataclasses.dataclass(frozen=True)
class Collected:
    """The runs of an experiment, in the order asked for, and where they came from."""

    study: str
    objective: str
    runs: list[Run]
    reused: int
    lines: list[str]


def _key(run: Run) -> tuple[object, ...]:
    return run_key(run.optimizer, run.lr, run.seed, run.params)
