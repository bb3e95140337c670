"""The stored runs of one key: read at once, added to without holding up training."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from momo_cli.errors import UserError
from momo_cli.plan.grid import run_key
from momo_cli.runs import Run
from momo_cli.store.storage import Storage
from momo_cli.store.studies import Studies
from momo_cli.store.trials import run_of
from momo_cli.store.writing import Writer, WriterHere, WriterProcess


class StoredRuns:
    """The runs of one key.

    Use it as a context manager around training: leaving it waits until every run given to :meth:`add` is stored, and only a
    second Ctrl-C ends that early; ``say`` takes a line about it for the user.
    """

    say: Callable[[str], None] = staticmethod(lambda line: None)

    def __init__(self, storage: Storage, name: str, key: dict[str, Any]) -> None:
        self.storage, self.name, self.key = storage, name, key
        self._studies = Studies(storage, name, key)
        self._writer: Writer = WriterHere(self._studies)
        self._started: tuple[list[str], str] | None = None
        self._queue: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._adding: list[Future[None]] = []
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def objective(self) -> str:
        """The objective's name as the runs that are stored resolved it; empty before the first."""
        if self._started is not None:
            return self._started[1]
        return next((info.objective for info in self.storage.every_study() if info.name == self.name), "")

    def runs(self) -> list[Run]:
        """Every stored run; of equal ones the newest."""
        found: dict[tuple[object, ...], Run] = {}
        for study in self._studies.found():
            for trial in self.storage.guarded(lambda: study.get_trials(deepcopy=False)):  # noqa: B023
                run = run_of(trial)
                if run is not None:
                    key = run_key(run)
                    found.pop(key, None)
                    found[key] = run
        return list(found.values())

    def write_elsewhere(self) -> None:
        """Have a process of its own open the storage, from now on, and add the runs.

        Opening takes Optuna a second and a run 30 ms, all of it Python's work: worth a process where this one has torch
        to load meanwhile.
        """
        self._writer = WriterProcess(self.storage.url, self.name, self.key)

    def start(self, optimizers: list[str], objective: str) -> None:
        """Make the study, if it is new, for runs of ``optimizers``; :meth:`add` may be called from here on.

        Raises:
            UserError: The storage refuses.
        """
        if self._started is not None and set(optimizers) <= set(self._started[0]):
            return
        known = [] if self._started is None else self._started[0]
        self._started = (list(dict.fromkeys([*known, *optimizers])), objective)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="momo-store", daemon=True)
            self._thread.start()
        done: Future[None] = Future()
        self._queue.put((lambda: self._writer.start(*self._started), done))
        done.result()

    def add(self, run: Run) -> None:
        """Store ``run``; returns at once."""
        done: Future[None] = Future()
        self._adding.append(done)
        self._queue.put((lambda: self._writer.add(run), done))

    @property
    def waiting(self) -> int:
        """How many of the runs given to :meth:`add` are not stored."""
        return sum(not done.done() or done.exception() is not None for done in self._adding)

    def __enter__(self) -> StoredRuns:
        return self

    def __exit__(self, *exception: object) -> None:
        interrupted = False
        if self._thread is not None:
            self._queue.put(None)
            if exception[0] is KeyboardInterrupt:
                self._say_waiting()
            # Not the thread's join: interrupted once, it takes the thread for ended (Python 3.10 and 3.11).
            try:
                self._ended.wait()
            except KeyboardInterrupt:  # the user's first; a second one is obeyed at once
                interrupted = True
                self._say_waiting()
                self._ended.wait()
        self._writer.close()
        if interrupted:
            raise KeyboardInterrupt
        errors = [error for done in self._adding if (error := done.exception()) is not None]
        if errors and exception[0] is None:
            raise UserError(f"--storage {self.storage.url} failed while runs were stored: {errors[0]}", code=1)

    def _say_waiting(self) -> None:
        if self.waiting:
            self.say(f"Storing {self.waiting} finished runs; Ctrl-C again gives them up.")

    def _write(self) -> None:
        # One thread alone talks to the writer, whoever asks and whenever that one is interrupted.
        while (asked := self._queue.get()) is not None:
            act, done = asked
            try:
                self._do(act)
            except Exception as error:  # the other runs may still be stored
                done.set_exception(error)
            else:
                done.set_result(None)
        self._ended.set()

    def _do(self, act: Callable[[], None]) -> None:
        """Call ``act``; where the writing process has died, again with a writer here."""
        try:
            act()
        except (EOFError, OSError):
            if not isinstance(self._writer, WriterProcess) or self._started is None:
                raise
            self._writer.close()
            self._writer = WriterHere(Studies(self.storage, self.name, self.key))
            self._writer.start(*self._started)
            act()
