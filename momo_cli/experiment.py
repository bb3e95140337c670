"""An experiment: the runs a command needs, from the store where they are there, else trained and stored."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from momo_cli import processes
from momo_cli.errors import UserError
from momo_cli.plan.grid import RunSpec, run_key
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run, check_objective
from momo_cli.store import Store, StoredRuns, study_key
from momo_cli.task.loading import TaskSource
from momo_cli.training.cpu import cores

FOLDER = "momo-runs"
"""The folder beside the store that takes the folders of the studies."""

_LOOK = 1.0  # seconds between looks at runs that others hold

if TYPE_CHECKING:
    from momo_cli.training.checkpoints import Checkpoints
    from momo_cli.training.dispatch.executor import Trains
    from momo_cli.training.probe import Probe
    from momo_cli.training.run.record import Watch


class Display(Protocol):
    """What the user sees of an experiment while it runs; see :class:`momo_cli.report.progress.LiveDisplay`."""

    def started(self, specs: list[RunSpec], reused: int) -> None:
        """These runs are to be trained; ``reused`` ones are stored."""

    def advanced(self, spec: RunSpec, step: int, steps: int, loss: float) -> None:
        """A run has come to ``step``."""

    def finished(self, spec: RunSpec, run: Run) -> None:
        """A run has ended."""

    def lost(self, runs: int) -> None:
        """So many runs had ended and could not be stored."""

    def doing(self, what: str) -> None:
        """What is done while no run is trained, as ``timing a few steps``."""

    def said(self, line: str) -> None:
        """A line the user should know of."""


class Source(Protocol):
    """What is trained: a task's function or a command."""

    @property
    def name(self) -> str:
        """Its name in tables and in the store."""

    @property
    def file(self) -> Path:
        """The file that says what it is."""

    @property
    def arguments(self) -> tuple[tuple[str, Any], ...]:
        """The user's ``--set key=value``."""

    def fingerprint(self) -> str:
        """A digest of its code: another one means other results."""


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
        together: ``--together``: how many runs to train at once, 1 being ``off``; ``auto`` measures.
        jobs: ``--jobs``, or None.
        timeout: ``--timeout``, seconds of a run, or None.
        checkpoint: ``--checkpoint``, seconds between two checkpoints of a run, or None.
        search: How an Optuna study samples its runs, which then are a study of their own; None for grids.
        tuned_have_defaults: Whether arguments that ``--tune`` varies may be left out.
    """

    source: Source
    settings: Settings
    store: Store
    device: str = "auto"
    study: str | None = None
    fresh: bool = False
    together: int | Literal["auto"] = "auto"
    jobs: int | None = None
    timeout: float | None = None
    checkpoint: float | None = None
    search: dict[str, Any] | None = None
    tuned_have_defaults: ClassVar[bool] = True

    def stored(self) -> StoredRuns:
        """The stored runs of this task and settings."""
        return self.store.open(self.key(), self.study)

    def folder(self, stored: StoredRuns) -> Path:
        """The folder that takes what its runs leave while they are under way, and what scripts leave for good."""
        return self.store.folder / FOLDER / re.sub(r"[^\w.+-]", "_", stored.name)

    def checkpoints(self, stored: StoredRuns) -> Checkpoints:
        """The checkpoints of its runs."""
        from momo_cli.training.checkpoints import NOWHERE, Checkpoints

        return NOWHERE if self.fresh else Checkpoints(self.folder(stored), stored.key, self.checkpoint)

    def key(self) -> dict[str, Any]:
        """Everything that changes a result."""
        source = self.source
        settings = self.settings if self.search else dataclasses.replace(self.settings, objective=None, maximize=False)
        return study_key(source.name, source.fingerprint(), dict(source.arguments), settings.key(), search=self.search)

    def train_losses_before(self, seeds: Iterable[int]) -> dict[int, float]:
        """ℓ0 of ``train_loss`` by seed, which isn't measured where another objective was asked for."""
        from momo_cli.training.devices import parse_devices
        from momo_cli.training.evaluation import measure_initial

        assert isinstance(self.source, TaskSource)
        device = parse_devices(self.device)[0]
        return {
            seed: measure_initial(self.source.build(seed, device), "train_loss", self.settings, device).of["train_loss"]
            for seed in seeds
        }

    def trainer(
        self,
        specs: list[RunSpec],
        stored: StoredRuns,
        objective: str,
        watch: Watch,
        display: Display,
        batch: int | None,
    ) -> tuple[str, contextlib.AbstractContextManager[Trains]]:
        """Find what is wrong before anything is trained, and make what trains the runs.

        Args:
            specs: The runs to begin with.
            stored: The store's part of it.
            objective: The objective's name, where stored runs know it.
            watch: Told of each run's progress; True stops that run as pruned.
            display: What the user sees.
            batch: As for :class:`Session`.

        Returns:
            The objective's name, empty where only the first run tells it, and the trainer.

        Raises:
            UserError: The task, an optimizer or a device is wrong.
        """
        most = min(len(specs), self.jobs or (1 if batch is not None else cores()))
        if self.device in ("auto", "cpu") and (most > 1 or self.timeout is not None):
            processes.preload()
        display.doing("loading torch")
        from momo_cli.training.devices import parse_devices
        from momo_cli.training.dispatch.candidates import Resources
        from momo_cli.training.dispatch.executor import Executor

        assert isinstance(self.source, TaskSource)
        devices = parse_devices(self.device)
        resources = Resources(devices, self.together, self.jobs, self.timeout, self.checkpoints(stored))
        display.doing("building the task")
        name, probe, untrained = self._check(self.source, specs, resources.devices[0])
        if untrained:
            display.said(untrained)
        display.doing("timing a few steps and measuring where training begins")
        return name, Executor(self.source, self.settings, resources, watch, display.said, probe, batch)

    def check_optimizers(self, specs: list[RunSpec]) -> None:
        """Find a wrong optimizer, or wrong arguments of it, before any run.

        Raises:
            UserError: An optimizer can't be built.
        """
        for optimizer, spec in {spec.optimizer: spec for spec in specs}.items():
            optimizer.check(spec.lr, dict(spec.params))

    def collect(self, specs: list[RunSpec], display: Display) -> Collected:
        """Every run of ``specs``: reused where it is stored, else trained and stored.

        Raises:
            UserError: The task, an optimizer, a device or the storage is wrong; nothing has been trained then.
            KeyboardInterrupt: The user's; every run that had ended is stored.
        """
        with Session(self, display) as session:
            runs = session.collect(specs)
        return Collected(session.stored.name, session.objective, runs, session.reused)

    def _check(self, source: TaskSource, specs: list[RunSpec], device: Any) -> tuple[str, Probe, str]:
        """Find what is wrong before training; returns the objective's name, a task built for that, and a note."""
        from momo_cli.process_state import restored
        from momo_cli.training.evaluation import check_metric, objective_name
        from momo_cli.training.probe import Probe
        from momo_cli.training.untrained import untrained_line, untrained_tensors

        self.check_optimizers(specs)
        source.load()
        with restored():
            probe = Probe(source, specs[0].seed, device)
            assert probe.task is not None
            name = objective_name(probe.task, self.settings)
            check_metric(probe.task, name, device)
            return name, probe, untrained_line(untrained_tensors(probe.task, self.settings, device))

    def _changed_source(self, stored: StoredRuns, any_found: bool) -> list[str]:
        """A line where runs of this task and settings are stored that an earlier version of its file made."""
        if any_found or self.fresh:
            return []
        now = stored.key
        for info in reversed(self.store.studies()):
            before = info.key
            if before != now and {**before, "source": None} == {**now, "source": None}:
                runs = f"{info.runs} stored run" + "s" * (info.runs != 1)
                return [
                    f"{self.source.file.name} has changed since its {runs} ({info.name}), or a file that it imports "
                    "has: starting afresh."
                ]
        return []


class Session:
    """An experiment while its runs are trained, in one go or in several; use as a context manager.

    Args:
        experiment: The task, and how its runs are trained and kept.
        display: What the user sees.
        watch: Asked at about every 20th of a run whether to stop it as pruned.
        batch: How many runs will be asked for at a time, where that is known; else what is asked for first.

    Attributes:
        stored: The store's part of it.
        objective: The objective's name, known when the first run is collected.
        reused: How many of the runs collected were stored.
    """

    def __init__(
        self, experiment: Experiment, display: Display, watch: Watch | None = None, batch: int | None = None
    ) -> None:
        self.experiment, self.display, self._batch = experiment, display, batch
        self.stored = experiment.stored()
        self.stored.say, self.stored.warn = display.said, _warn
        stored = self.stored.runs()  # read in any case: what has been read isn't waited for as another process's
        kept = [run for run in stored if run.status != "failed" and not experiment.fresh]
        self.objective = experiment.settings.objective or next((run.own_objective for run in kept), "")
        self.reused = 0
        self.found = {run_key(run): self._under(run) for run in kept}
        check_objective(self.objective, kept)
        for line in experiment._changed_source(self.stored, bool(self.found)):
            display.said(line)
        self._watch = watch
        self._trainer: Trains | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._open.__exit__(kind, error, traceback)
        finally:
            self.display.lost(self.stored.waiting)
            self._drop_checkpoints()

    def collect(self, specs: list[RunSpec]) -> list[Run]:
        """The runs of ``specs``, in that order."""
        missing = [spec for spec in specs if spec.key not in self.found]
        self.reused += len(specs) - len(missing)
        if missing:
            if self._trainer is None:
                self._trainer = self._start(missing)
            self.stored.start(_labels(specs), self.objective, self.experiment.settings.maximize)
            self.stored.open(missing)
            self.display.started(missing, len(specs) - len(missing))
            self._do(missing, self._trainer)
        self._measure_before(specs)
        self.stored.note(self.objective, self.experiment.settings.maximize)
        return [self.found[spec.key] for spec in specs if spec.key in self.found]

    def _drop_checkpoints(self) -> None:
        """Delete the checkpoints of runs that are stored."""
        experiment, stored = self.experiment, self.stored
        if isinstance(experiment.source, TaskSource) and experiment.folder(stored).is_dir():
            experiment.checkpoints(stored).drop(filter(stored.stores, self.found))

    def _under(self, run: Run) -> Run:
        return run.under(self.objective) if self.objective else run

    def _measure_before(self, specs: list[RunSpec]) -> None:
        """Measure ℓ0 of ``train_loss`` for stored runs that were trained for another objective."""
        if self.objective != "train_loss" or not isinstance(self.experiment.source, TaskSource):
            return
        runs = {spec.key: self.found[spec.key] for spec in specs if spec.key in self.found}
        lacking = {key: run for key, run in runs.items() if run.initials and "train_loss" not in run.initials}
        if lacking:
            self.display.doing("measuring where training begins")
            before = self.experiment.train_losses_before(dict.fromkeys(run.seed for run in lacking.values()))
            self.stored.note_train_losses(before)
            for key, run in lacking.items():
                initials = run.initials | {"train_loss": before[run.seed]}
                self.found[key] = dataclasses.replace(run, initials=initials).under(self.objective)

    def _do(self, specs: list[RunSpec], trainer: Trains) -> None:
        """Train those of ``specs`` that no other process takes, and wait for the others."""
        left, free, said = {spec.key: spec for spec in specs}, specs, False
        while True:
            for spec, run in trainer.train(free, self.stored.claim):
                if not self.objective and run.status == "ok":
                    self.objective = run.own_objective
                    self.stored.start(_labels(specs), self.objective, self.experiment.settings.maximize)
                self.stored.add(run if self.experiment.search else run.for_any_objective())
                self._ended(left.pop(spec.key), run)
            if not left:
                return
            ended, free, who = self._look(list(left.values()))
            for run in ended:
                self._ended(left.pop(run_key(run)), run)
            if left and not free:
                if not said:
                    said = True
                    runs = f"{len(left)} run{'s' * (len(left) != 1)}"
                    self.display.said(f"Waiting for {runs} that others do, among them {who}.")
                time.sleep(_LOOK)

    def _look(self, specs: list[RunSpec]) -> tuple[list[Run], list[RunSpec], str]:
        """What has become of runs that others hold; where the storage fails, they are free to be claimed."""
        try:
            return self.stored.look(specs)
        except UserError:
            return [], specs, ""

    def _ended(self, spec: RunSpec, run: Run) -> None:
        self.found[spec.key] = self._under(run)
        self.display.finished(spec, run)
        self._drop_checkpoints()

    def _start(self, specs: list[RunSpec]) -> Trains:
        experiment = self.experiment
        if not experiment.store.has_heartbeats:
            self.display.said(
                f"{experiment.store.url} takes no heartbeats: runs of a process that dies are taken up when the "
                "command is started again on its machine."
            )
        self._open.enter_context(self.stored)
        if "torch" not in sys.modules:
            self.stored.write_elsewhere()
        self.objective, trainer = experiment.trainer(
            specs, self.stored, self.objective, self._advanced, self.display, self._batch
        )
        return self._open.enter_context(trainer)

    def _advanced(self, spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        self.display.advanced(spec, step, steps, loss)
        return self._watch is not None and self._watch(spec, step, steps, loss)


def _labels(specs: list[RunSpec]) -> list[str]:
    return list(dict.fromkeys(spec.optimizer.label for spec in specs))


def _warn(line: str) -> None:
    print(f"momo: {line}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Collected:
    """The runs of an experiment, in the order asked for, how many were stored, and lines to show with them."""

    study: str
    objective: str
    runs: list[Run]
    reused: int
    lines: list[str] = dataclasses.field(default_factory=list)
