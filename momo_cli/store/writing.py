"""Adding runs to the store: here, or in a process of its own."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection
from typing import Any, Protocol

from momo_cli import processes
from momo_cli.errors import UserError
from momo_cli.runs import Run
from momo_cli.store.storage import Storage
from momo_cli.store.studies import Studies
from momo_cli.store.trials import trial_of


class Writer(Protocol):
    """Adds the runs of one key."""

    def start(self, optimizers: list[str], objective: str) -> None:
        """Make the study, if it is new, for runs of ``optimizers``.

        Raises:
            UserError: The storage refuses.
        """

    def add(self, run: Run) -> None:
        """Store ``run``, and return when that is done."""

    def close(self) -> None:
        """Nothing more will be added."""


class WriterHere:
    """Writes in this process."""

    def __init__(self, studies: Studies) -> None:
        self.studies = studies

    def start(self, optimizers: list[str], objective: str) -> None:
        """As :meth:`Writer.start`."""
        self.studies.start(optimizers, objective)

    def add(self, run: Run) -> None:
        """As :meth:`Writer.add`."""
        study = self.studies.of(run.optimizer)
        study.add_trial(trial_of(run, study.user_attrs["optimizers"]))

    def close(self) -> None:
        """As :meth:`Writer.close`."""


class WriterProcess:
    """Writes in a process of its own, which loads Optuna while this one loads torch, and leaves training its core.

    For one thread alone. Every method but ``close`` raises EOFError or OSError where that process has died.
    """

    def __init__(self, url: str, name: str, key: dict[str, Any]) -> None:
        self._process, self._connection = processes.start(_serve, url, name, key, daemon=True)

    def start(self, optimizers: list[str], objective: str) -> None:
        """As :meth:`Writer.start`."""
        self._call("start", optimizers, objective)

    def add(self, run: Run) -> None:
        """As :meth:`Writer.add`."""
        self._call("add", run)

    def close(self) -> None:
        """As :meth:`Writer.close`."""
        self._connection.close()
        processes.end([self._process])

    def _call(self, method: str, *arguments: Any) -> None:
        self._connection.send((method, arguments))
        error = self._connection.recv()
        if error is not None:
            message, code = error
            raise UserError(message, code)


def _serve(connection: Connection, url: str, name: str, key: dict[str, Any]) -> None:
    storage = Storage(url)
    storage.warm_up()
    writer = WriterHere(Studies(storage, name, key))
    # What was sent before the other end was closed, or died, is still received.
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = connection.recv()
            try:
                getattr(writer, method)(*arguments)
                connection.send(None)
            except UserError as error:
                connection.send((str(error), error.code))
            except Exception as error:
                connection.send((f"{type(error).__name__}: {error}", 1))
