"""The stored runs of one key: read at once, taken and added to without holding up training."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from momo_cli.errors import UserError
from momo_cli.plan.grid import RunSpec, run_key
from momo_cli.runs import Run
from momo_cli.store.storage import Storage
from momo_cli.store.studies import BEFORE, Studies
from momo_cli.store.unstored import Unstored
from momo_cli.store.writing import Method, Writer, WriterHere, WriterProcess

_URGENT, _USUAL, _LAST = range(3)  # claims hold training up; what is to be stored can wait
_AGAIN = 5.0  # seconds until a storage that failed is tried again
_CLAIM = 20.0  # seconds in which a run is claimed from a storage that fails, before it is trained without
_END = 10.0  # seconds in which a storage that failed is tried at the command's end
_QUICK = 2.0  # seconds of a claim's work below which the next is always made ahead


class StoredRuns:
    """The runs of one key.

    Use it as a context manager around training: leaving it waits until every run given to :meth:`add` is stored, and
    gives back the runs that are held and not done. A storage that fails is tried again meanwhile; runs that it doesn't
    take until the end, and those that a second Ctrl-C leaves, are written to a file.

    Attributes:
        storage: Where the runs are.
        name: The study's name.
        key: Everything that changes a result.
        say: Takes a line for the user.
        warn: Takes a line that the user must see.
    """

    say: Callable[[str], None] = staticmethod(lambda line: None)
    warn: Callable[[str], None] = staticmethod(lambda line: None)

    def __init__(self, storage: Storage, name: str, key: dict[str, Any]) -> None:
        self.storage, self.name, self.key = storage, name, key
        self._studies = Studies(storage, name, key)
        self._folders = [Path.cwd()]
        self._writer: Writer | None = None
        self._started: tuple[list[str], str, bool] | None = None
        self._seen: frozenset[int] = frozenset()
        self._queue: queue.PriorityQueue[tuple[int, int, _Asked | None]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._all: dict[object, Run] = {}
        self._unstored: dict[object, Run] = {}
        self._failure: str | None = None
        self._failed_at = self._fails_since = 0.0
        self._claims = _Ahead(self._take)
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def note(self, objective: str, maximize: bool) -> None:
        """Keep what was asked last, for views of the store that ask for nothing, unless :meth:`start` has."""
        if self._started is not None:
            return
        noted = next((info for info in self.storage.every_study() if info.name == self.name), None)
        if noted is not None and (noted.objective, noted.maximize) != (objective, maximize):
            self._studies.note({"objective": objective, "maximize": maximize})

    def note_train_losses(self, before: dict[int, float]) -> None:
        """Keep ℓ0 of ``train_loss`` by seed, for runs that were stored without it."""
        self._studies.note({BEFORE: {str(seed): value for seed, value in before.items()}})

    def runs(self) -> list[Run]:
        """Every stored run; of equal ones the newest."""
        found: dict[tuple[object, ...], Run] = {}
        seen = []
        before = self._studies.noted(BEFORE)
        for study in self._studies.found():
            trials = self.storage.trials
            for trial in self.storage.guarded(lambda: trials.read(study.id, runs=True)):  # noqa: B023
                run = trial.as_run()
                if run is not None:
                    if run.initials and str(run.seed) in before:
                        run.initials.setdefault("train_loss", before[str(run.seed)])
                    key = run_key(run)
                    found.pop(key, None)
                    found[key] = run
                    seen.append(trial.id)
        self._seen = frozenset(seen)
        return list(found.values())

    def open_runs(self) -> list[Run]:
        """The runs that wait for a process, or that one is doing, without a result."""
        asked = []
        for study in self._studies.found():
            trials = self.storage.trials
            phases = self.storage.guarded(lambda: trials.phases(study.id))  # noqa: B023
            waiting = [trial for trial, phase in phases.items() if phase in ("waiting", "running")]
            if waiting:
                asked += [trial.asked() for trial in self.storage.guarded(lambda: trials.read(study.id, only=waiting))]  # noqa: B023
        return [run for run in asked if run is not None]

    def write_elsewhere(self) -> None:
        """Have a process of its own open the storage, from now on, and write to it.

        Opening takes Optuna a second and a run 10 ms, all of it Python's work: worth a process where this one has torch
        to load meanwhile.
        """
        self._writer = WriterProcess(self.storage, self.name, self.key)

    def start(self, optimizers: list[str], objective: str, maximize: bool = False) -> None:
        """Make the study, if it is new, for runs of ``optimizers``; the methods below may be called from here on.

        Raises:
            UserError: The storage refuses.
        """
        asked = objective, maximize
        if self._started is not None and set(optimizers) <= set(self._started[0]) and asked == self._started[1:]:
            return
        known = [] if self._started is None else self._started[0]
        self._started = (list(dict.fromkeys([*known, *optimizers])), *asked)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="momo-store", daemon=True)
            self._thread.start()
        self._ask(_URGENT, "start", *self._started, self._seen).result()

    def open(self, specs: Sequence[RunSpec]) -> None:
        """Let any process take the runs of ``specs``; returns at once."""
        self._ask(_URGENT, "open", [spec.result() for spec in specs])

    def claim(self, specs: Sequence[RunSpec], most: int) -> list[RunSpec]:
        """Those of ``specs``, at most ``most``, that are this process's to do, whatever others do meanwhile.

        Where the storage fails for long, they are this process's without it.
        """
        return self._claims.claim(specs, most)

    def look(self, specs: Sequence[RunSpec]) -> tuple[list[Run], list[RunSpec], str]:
        """What has become of ``specs`` that others may hold.

        Returns:
            The runs that have ended, the specs that nobody holds, and who holds one of the rest.

        Raises:
            UserError: The storage refuses.
        """
        ended, free, who = self._ask(_URGENT, "look", [spec.result() for spec in specs]).result()
        unheld = set(free)
        return ended, [spec for spec in specs if spec.key in unheld], who

    def add(self, run: Run) -> None:
        """Store ``run``; returns at once."""
        self._all[run_key(run)] = self._unstored[run_key(run)] = run
        self._ask(_USUAL, "end", run)

    def add_all(self, runs: Sequence[Run]) -> None:
        """Store many runs in one go.

        Raises:
            UserError: The storage refuses; none of them is stored then.
        """
        self._ask(_USUAL, "add", runs).result()

    @property
    def waiting(self) -> int:
        """How many of the runs given to :meth:`add` are not stored."""
        return len(self._unstored)

    def stores(self, key: object) -> bool:
        """Whether the run of this key, which is known or was given to :meth:`add`, is stored."""
        return key not in self._unstored

    def __enter__(self) -> StoredRuns:
        return self

    def __exit__(self, *exception: object) -> None:
        interrupted = False
        if self._thread is not None:
            self._queue.put((_LAST, next(self._count), None))
            if exception[0] is KeyboardInterrupt:
                self._say_waiting()
            try:
                # Not the thread's join: interrupted once, it takes the thread for ended (Python 3.10 and 3.11).
                try:
                    self._ended.wait()
                except KeyboardInterrupt:  # the user's first; a second one is obeyed at once
                    interrupted = True
                    self._say_waiting()
                    self._ended.wait()
            finally:
                self._save_unstored()
        if self._writer is not None:
            self._writer.close()
        if interrupted:
            raise KeyboardInterrupt

    def _say_waiting(self) -> None:
        if self.waiting:
            self.say(f"Storing {self.waiting} finished runs; Ctrl-C again writes them to a file instead.")

    def _save_unstored(self) -> None:
        """Write to a file what isn't stored, and say so."""
        runs = list(self._unstored.values())
        if not runs:
            return
        objective = self._started[1] if self._started is not None else ""
        path = Unstored(self.name, self.key, objective, runs).write(self._folders)
        reason = f" ({self._failure})" if self._failure else ""
        said = f"{len(runs)} finished run{'s' * (len(runs) != 1)} could not be stored{reason}"
        if path is None:
            self.warn(f"{said}, nor written to a file: no folder takes one.")
        else:
            self.warn(f"{said}, and went to {path}.\nmomo import {path} stores them when the storage is back.")

    # ------------------------------------------------------------------------------------------------ in the thread

    def _ask(self, priority: int, method: Method, *arguments: Any) -> Future[Any]:
        asked = _Asked(method, arguments)
        self._queue.put((priority, next(self._count), asked))
        return asked.done

    def _take(self, specs: Sequence[RunSpec], most: int) -> Future[Any]:
        return self._ask(_URGENT, "take", [spec.result() for spec in specs], most)

    def _work(self) -> None:
        # One thread alone talks to the writer, whoever asks and whenever that one is interrupted.
        if self._writer is None:
            self._writer = WriterHere(self.storage, self.name, self.key)
        while True:
            try:
                _, _, asked = self._queue.get(timeout=min(_AGAIN, self.storage.heartbeat))
            except queue.Empty:
                self._writer.beat()
                if self._unstored:
                    self._retry()
                continue
            if asked is None:
                break
            self._do(asked)
            self._writer.beat()
        self._finish()
        self._ended.set()

    def _do(self, asked: _Asked) -> None:
        while True:
            try:
                if asked.method == "end" and self._is_down():
                    return
                returned = self._call(asked.method, *asked.arguments)
            except UserError as error:
                if asked.method in ("start", "add", "look"):
                    asked.done.set_exception(error)
                    return
                self._failed(error)
                if asked.method != "take":
                    return
                if time.monotonic() - self._fails_since < _CLAIM:
                    self._restart()
                    time.sleep(0.5)
                    continue
                runs, most = asked.arguments
                returned = [run_key(run) for run in runs[:most]]
            except Exception as error:  # not the storage's: whoever asked must know
                asked.done.set_exception(error)
                return
            else:
                self._worked(asked)
            asked.done.set_result(returned)
            return

    def _is_down(self) -> bool:
        return self._failure is not None and time.monotonic() - self._failed_at < _AGAIN

    def _failed(self, error: UserError) -> None:
        first, self._failed_at = self._failure is None, time.monotonic()
        self._fails_since = self._failed_at if first else self._fails_since
        self._failure = str(error).splitlines()[0].partition("can't be used: ")[2] or str(error)
        if first:
            self.warn(
                f"The storage fails: {self._failure}. Training goes on; finished runs are kept, and stored when it is "
                "back."
            )

    def _worked(self, asked: _Asked) -> None:
        if asked.method == "end":
            self._unstored.pop(run_key(asked.arguments[0]), None)
        if self._failure is not None and asked.method in ("end", "take"):
            self._failure = None
            self.say("The storage is back.")
            for run in list(self._unstored.values()):
                self._ask(_USUAL, "end", run)

    def _retry(self) -> None:
        """Try to store one of the runs that are kept; the others follow where it succeeds."""
        self._restart()
        for run in list(self._unstored.values())[:1]:
            self._failed_at = 0.0
            self._do(_Asked("end", (run,)))

    def _restart(self) -> None:
        """Begin anew where the storage's file has been deleted."""
        if self._started is None or self.storage.exists():
            return
        try:
            self._call("start", *self._started, frozenset())
        except UserError as error:
            self._failed(error)
        else:
            self._unstored = dict(self._all)

    def _finish(self) -> None:
        deadline = time.monotonic() + _END
        while self._unstored:
            self._retry()
            while self._failure is None and not self._queue.empty():
                _, _, asked = self._queue.get()
                if asked is not None:
                    self._do(asked)
            if self._unstored and time.monotonic() > deadline:
                return
            if self._failure is not None:
                time.sleep(1)
        # If not, they go to others when their heartbeats are missed, or this process is seen to have ended.
        with contextlib.suppress(UserError):
            self._call("give_back")

    def _call(self, method: Method, *arguments: Any) -> Any:
        """Call the writer; where the writing process has died, a writer here."""
        assert self._writer is not None
        try:
            return self._writer.call(method, *arguments)
        except (EOFError, OSError):
            if not isinstance(self._writer, WriterProcess) or self._started is None:
                raise
            self._writer.close()
            self._writer = WriterHere(self.storage, self.name, self.key)
            self._writer.call("start", *self._started, self._seen)
            return self._writer.call(method, *arguments)


class _Asked:
    """A call of the writer, and what comes of it."""

    def __init__(self, method: Method, arguments: tuple[Any, ...]) -> None:
        self.method, self.arguments = method, arguments
        self.done: Future[Any] = Future()


class _Ahead:
    """Claims, each but the first made while the runs of the one before are trained, so that none holds training up.

    A process that is alone with its runs is always one claim ahead. Where others take part it is so only where runs are
    short, and leaves them what it hasn't begun.
    """

    def __init__(self, take: Callable[[Sequence[RunSpec], int], Future[Any]]) -> None:
        self._take = take
        self._next: Future[Any] | None = None
        self._held: dict[object, RunSpec] = {}
        self._asked: dict[object, RunSpec] = {}
        self._claimed_at = 0.0
        self._alone = True

    def claim(self, specs: Sequence[RunSpec], most: int) -> list[RunSpec]:
        """As :meth:`StoredRuns.claim`."""
        now = time.monotonic()
        quick, self._claimed_at = now - self._claimed_at < _QUICK, now
        if self._next is not None:
            self._receive(self._next, most)
        if not any(spec.key in self._held for spec in specs):
            self._ask(specs, most)
            assert self._next is not None
            self._receive(self._next, most)
        ours = [spec for spec in specs if spec.key in self._held][:most]
        for spec in ours:
            del self._held[spec.key]
        keys = {spec.key for spec in ours}
        rest = [spec for spec in specs if spec.key not in keys and spec.key not in self._held]
        if rest and not self._held and (self._alone or quick):
            self._ask(rest, most)
        return ours

    def _ask(self, specs: Sequence[RunSpec], most: int) -> None:
        self._asked = {spec.key: spec for spec in specs}
        self._next = self._take(specs, most)

    def _receive(self, future: Future[Any], most: int) -> None:
        keys = future.result()
        self._next = None
        self._held.update((key, self._asked[key]) for key in keys)
        # Alone, a process is granted the first of what it asks for.
        self._alone = list(keys) == list(self._asked)[: len(keys)] and len(keys) == min(most, len(self._asked))
