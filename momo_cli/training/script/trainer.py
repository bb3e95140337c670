"""Runs that are commands: several scripts at once, read while they run, each run given as its script ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from momo_cli.plan.grid import RunSpec
from momo_cli.runs import Run
from momo_cli.script_log import LOG_VARIABLE
from momo_cli.training.dispatch.units import Claim, claim_first
from momo_cli.training.run.history import POINTS
from momo_cli.training.script.command import Command, fill
from momo_cli.training.script.folder import RunFolder
from momo_cli.training.script.processes import Processes
from momo_cli.training.script.reports import Divergence, Reports, curve
from momo_cli.training.script.sources import Reading, Source, sources

_LOOK = 0.1  # seconds between two looks at what a script reports
_SAY = 0.5  # seconds of ending scripts after which the user is told


@dataclasses.dataclass(frozen=True)
class Limits:
    """What ends a script before it ends itself, and how many run at once.

    Attributes:
        jobs: Scripts at once.
        devices: ``CUDA_VISIBLE_DEVICES`` of each script that runs at once, in turn; None leaves it as it is.
        timeout: ``--timeout``, seconds of a run; None for none.
    """

    jobs: int = 1
    devices: tuple[str | None, ...] = (None,)
    timeout: float | None = None


class ScriptTrainer:
    """Runs a command once for each run; use as a context manager: however it is left, no script outlives it.

    Args:
        command: The command.
        reading: How its numbers are read.
        under: The folder that takes the folders of the runs.
        objective: The objective's name, where stored runs know it; else the first run that ends well tells it.
        limits: How many at once, where, and for how long.
        watch: Told of each run's progress, where the number of its steps is known; True stops the run as pruned.
        say: Takes lines for the user.

    Attributes:
        last_way: How the script that ended last reported, and what.
    """

    def __init__(
        self,
        command: Command,
        reading: Reading,
        under: Path,
        objective: str = "",
        limits: Limits = Limits(),
        watch: Callable[[RunSpec, int, int, float], bool] = lambda *progress: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.command, self.reading, self.under, self.limits = command, reading, under, limits
        self.objective = reading.objective or objective or None
        self._watch, self._say = watch, say
        self.last_way = "", Reports()
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._free: list[str | None] = [limits.devices[i % len(limits.devices)] for i in range(limits.jobs)]
        self._active: set[_Active] = set()
        self._steps: float | None = command.steps
        self._handlers: dict[int, Any] = {}
        self._hurry = threading.Event()

    def __enter__(self) -> ScriptTrainer:
        if threading.current_thread() is threading.main_thread():
            # The scripts have sessions of their own, so that a signal that ends this process would leave them running.
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._handlers[number] = signal.signal(number, _interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        for active in self._active:
            active.interrupted.set()
        try:
            if not self._wait(_SAY):
                self._say(f"Ending {len(self._active)} scripts, which takes up to 10 s; Ctrl-C again kills them.")
                self._wait(None)
        finally:
            self._hurry.set()
            self._wait(None)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def train(self, specs: Sequence[RunSpec], claim: Claim | None = None) -> Iterator[tuple[RunSpec, Run]]:
        """Do every run that ``claim`` lets this process do, and yield each as it ends.

        Raises:
            UserError: The command can't be started.
        """
        waiting = list(specs)
        while True:
            if waiting and self._free:
                taken = (claim or claim_first)(waiting, len(self._free))
                waiting = [spec for spec in waiting if spec not in taken] if taken else []
                for spec in taken:
                    active = _Active(self, spec, self._free.pop(0))
                    self._active.add(active)  # before it starts: an interrupt may come at any line
                    active.start()
            if not self._active:
                return
            kind, content = self._messages.get()
            if kind == "advanced":
                active, step, steps, loss = content
                if self._watch(active.spec, int(step), int(steps), loss):
                    active.pruned.set()
                continue
            active, result = content
            self._active.remove(active)
            self._free.append(active.device)
            if kind == "raised":
                raise result
            self._steps = self._steps or result.steps or None
            if result.status == "ok":
                self.objective = self.objective or ("train_loss" if result.val_loss is None else "val_loss")
            yield active.spec, result

    def _wait(self, seconds: float | None) -> bool:
        """Whether every script has ended, after at most ``seconds``."""
        deadline = None if seconds is None else time.monotonic() + seconds
        return all(
            active.ended.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for active in list(self._active)
        )


class _Active:
    """A run whose script runs, in a thread of its own, where no interrupt can come between its start and its end."""

    def __init__(self, trainer: ScriptTrainer, spec: RunSpec, device: str | None) -> None:
        self.trainer, self.spec, self.device = trainer, spec, device
        self.interrupted, self.pruned, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._told = 0.0

    def start(self) -> None:
        """Start the script; what comes of it is told in the trainer's messages."""
        threading.Thread(target=self._run, name="momo-script", daemon=True).start()

    def _run(self) -> None:
        messages = self.trainer._messages
        try:
            run = self._script()
        except BaseException as error:
            messages.put(("raised", (self, error)))
        else:
            if run is not None:
                messages.put(("ended", (self, run)))
        finally:
            self.ended.set()

    def _script(self) -> Run | None:
        """Run the script to its end; None where it was interrupted."""
        trainer, folder = self.trainer, RunFolder(self.trainer.under, self.spec)
        folder.prepare()
        words, own = trainer.command.filled(self.spec, folder.path)
        environment = {"PYTHONUNBUFFERED": "1", **os.environ, **own, LOG_VARIABLE: str(folder.log)}
        if self.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.device
        reading = trainer.reading
        file = (
            None if reading.file is None else Path(fill(reading.file, trainer.command.values(self.spec, folder.path)))
        )
        ways = sources(reading, folder.log, [folder.stdout, folder.stderr], file)
        life = _Life(reading, trainer.objective, trainer.command.steps)
        life.look(_read(ways, ended=False).reports)  # what a script that was interrupted had reported
        with folder.stdout.open("ab") as stdout, folder.stderr.open("ab") as stderr:
            processes = Processes(words, environment, "MOMO_DIR", stdout, stderr)
        timed_out = False
        while not processes.ended.wait(_LOOK):
            life.look(_read(ways, ended=False).reports)
            timed_out = trainer.limits.timeout is not None and processes.running_for > trainer.limits.timeout
            if life.diverged or timed_out or self.pruned.is_set() or self.interrupted.is_set():
                processes.end(trainer._hurry)
                processes.ended.wait()
                break
            self._tell(life)
        processes.end_children(trainer._hurry)
        processes.release()
        if self.interrupted.is_set():
            return None
        used = _read(ways, ended=True)
        trainer.last_way = used.way, used.reports
        life.look(used.reports)
        reason = None
        if timed_out:
            reason = f"Ended after --timeout {trainer.limits.timeout:g} s."
        elif processes.code:
            reason = _exit_reason(processes.code)
        run = life.run(self.spec, processes.seconds, self.pruned.is_set(), reason, folder.last_errors())
        folder.close()
        return run

    def _tell(self, life: _Life) -> None:
        """Tell of the progress at about every 20th of the run."""
        losses, steps = life.reports.losses, self.trainer._steps
        if steps is None or not losses.values:
            return
        step = min(losses.step(-1), steps)
        if step * POINTS // steps > self._told * POINTS // steps:
            self._told = step
            self.trainer._messages.put(("advanced", (self, step, steps, curve(losses)[-1][1])))


class _Life:
    """What the reports of a script come to while it runs, and in the end.

    Args:
        reading: How its numbers are read.
        objective: The objective's name, or None where the script's reports tell it.
        steps: ``--steps``, or None.
    """

    def __init__(self, reading: Reading, objective: str | None, steps: int | None) -> None:
        self.reading, self.objective, self.steps = reading, objective, steps
        self.reports = Reports()
        self.diverged = False
        self._divergence: Divergence | None = None

    def look(self, reports: Reports) -> None:
        """Look at what has been reported so far."""
        losses, self.reports = reports.losses, reports
        if losses.values:
            if self._divergence is None or self._divergence.losses is not losses:
                self._divergence = Divergence(losses, reports.loss_before(), self.steps)
            self._divergence()
        self.diverged = not reports.finite or (self._divergence is not None and self._divergence.passed)

    def run(self, spec: RunSpec, seconds: float, pruned: bool, reason: str | None, errors: str) -> Run:
        """The run that this was.

        Args:
            spec: Which run.
            seconds: How long the script ran.
            pruned: Whether it was stopped as pruned.
            reason: Why it failed, or None where it ended as it should.
            errors: The end of the script's stderr.
        """
        reports, losses = self.reports, self.reports.losses
        objective = reports.objective(self.objective)
        value = reports.last(objective)
        if losses.values and not self.diverged:
            self.diverged = Divergence(losses, reports.loss_before(), losses.span)()
        common: dict[str, Any] = {
            "initial": reports.initial(objective),
            "initials": {name: start for name in reports.names if (start := reports.initial(name)) is not None},
            "train_loss": reports.last("train_loss"),
            "val_loss": reports.last("val_loss"),
            "metrics": {n: reports.last(n) for n in reports.series if n not in ("loss", "val_loss")},
            "steps": int(max([losses.span, *(series.step(-1) for series in reports.series.values() if series.values)])),
            "seconds": seconds,
            "curve": curve(losses) if losses.values else [],
        }
        if self.diverged:
            return spec.result(status="diverged", **common)
        if pruned:
            return spec.result(status="pruned", **common)
        if reason is None and value is None:
            reason = _no_objective(self.reading, reports, objective)
        if reason is not None:
            return spec.result(status="failed", error=f"{reason}\n{errors}".strip(), **common)
        return spec.result(status="ok", objective=value, **common)


def _read(ways: Sequence[Source], ended: bool) -> Source:
    """The first way that has any reports."""
    for way in ways:
        way.read(ended)
        if way.reports.series:
            return way
    return ways[-1]


def _exit_reason(code: int) -> str:
    if code > 0:
        return f"The script ended with exit code {code}."
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"The script was ended by {name}" + (", often for want of memory." if name == "SIGKILL" else ".")
    return f"The script was ended by signal {-code}."


def _no_objective(reading: Reading, reports: Reports, objective: str) -> str:
    if reports.series:
        return (
            f"The script reported no {objective}, but {', '.join(sorted(reports.series))}: name one with --objective."
        )
    if reading.pattern is not None or reading.file is not None:
        told = " and ".join(filter(None, [reading.pattern and f"--read {reading.pattern!r}", reading.file]))
        return f"The script ended well, but {told} found no number."
    return (
        'The script reported no number: call momo_cli.log(loss=…), print JSON lines such as {"loss": 0.5}, or say\n'
        "with --read REGEX or --read-file PATH where its numbers are."
    )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
