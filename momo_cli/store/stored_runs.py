"""The stored runs of one key: read at once, added to without holding up training."""

from __future__ import annotations

import queue
import threading
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

    Use it as a context manager around training: leaving it waits until every run given to :meth:`add` is stored.
    """

    def __init__(self, storage: Storage, name: str, key: dict[str, Any]) -> None:
        self.storage, self.name, self.key = storage, name, key
        self._studies = Studies(storage, name, key)
        self._writer: Writer = WriterHere(self._studies)
        self._started: tuple[list[str], str] | None = None
        self._queue: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

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
        self._started = (optimizers, objective)
        self._do(lambda: self._writer.start(optimizers, objective))
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="momo-store", daemon=True)
            self._thread.start()

    def add(self, run: Run) -> None:
        """Store ``run``; returns at once."""
        self._queue.put(run)

    def __enter__(self) -> StoredRuns:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._writer.close()
        if self._error is not None and exception[0] is None:
            raise UserError(f"--storage {self.storage.url} failed while runs were stored: {self._error}", code=1)

    def _write(self) -> None:
        while (run := self._queue.get()) is not None:
            try:
                self._do(lambda: self._writer.add(run))  # noqa: B023
            except Exception as error:  # the other runs may still be stored
                self._error = self._error or error

    def _do(self, act: Any) -> None:
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
