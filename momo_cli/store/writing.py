"""Who talks to the storage: this process, or one of its own."""

from __future__ import annotations

import contextlib
import signal
import time
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

from momo_cli import processes
from momo_cli.errors import UserError
from momo_cli.store.storage import Storage

_PATIENCE = 5.0  # seconds for what it was told last

Method = Literal["start", "open", "take", "look", "end", "add", "give_back"]
"""A method of :class:`momo_cli.store.claims.Claims`."""


class Writer(Protocol):
    """Takes and ends the runs of one key."""

    def call(self, method: Method, *arguments: Any) -> Any:
        """What the method of :class:`momo_cli.store.claims.Claims` returns.

        Raises:
            UserError: The storage refuses.
        """

    def beat(self) -> None:
        """Send heartbeats, if they are due and nothing else does; called about as often as they are."""

    def close(self) -> None:
        """Nothing more will be called."""


class WriterHere:
    """Writes in this process."""

    def __init__(self, storage: Storage, name: str, key: dict[str, Any]) -> None:
        from momo_cli.store.claims import Claims

        self._storage = storage.again()  # of its own: a transaction is no other reader's
        self._claims = Claims(self._storage, name, key)
        self._last_beat = time.monotonic()

    def call(self, method: Method, *arguments: Any) -> Any:
        """As :meth:`Writer.call`."""
        return self._storage.guarded(lambda: getattr(self._claims, method)(*arguments))

    def beat(self) -> None:
        """As :meth:`Writer.beat`."""
        if time.monotonic() - self._last_beat >= self._storage.heartbeat:
            self._last_beat = time.monotonic()
            with contextlib.suppress(UserError):  # whatever the storage has to say, the next call meets it
                self._storage.guarded(self._claims.beat)

    def close(self) -> None:
        """As :meth:`Writer.close`."""


class WriterProcess:
    """Writes in a process of its own, which loads Optuna while this one loads torch, and leaves training its core.

    For one thread alone. ``call`` raises EOFError or OSError where that process has died. Where this process dies, it
    stores what it was told to, and gives back what is held.
    """

    def __init__(self, storage: Storage, name: str, key: dict[str, Any]) -> None:
        self._process, self._connection = processes.start(_serve, storage.again(), name, key, daemon=True)

    def call(self, method: Method, *arguments: Any) -> Any:
        """As :meth:`Writer.call`."""
        self._connection.send((method, arguments))
        error, returned = self._connection.recv()
        if error is not None:
            raise UserError(*error)
        return returned

    def beat(self) -> None:
        """Nothing: the process does."""

    def close(self) -> None:
        """As :meth:`Writer.close`."""
        self._connection.close()
        self._process.join(_PATIENCE)
        processes.end([self._process])


def _serve(connection: Connection, storage: Storage, name: str, key: dict[str, Any]) -> None:
    for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # the other end says when it is time
        signal.signal(ending, signal.SIG_IGN)
    storage.warm_up()
    writer = WriterHere(storage, name, key)
    # What was sent before the other end was closed, or died, is still received.
    with contextlib.suppress(EOFError, OSError):
        while True:
            writer.beat()
            if not connection.poll(storage.heartbeat):
                continue
            method, arguments = connection.recv()
            error, returned = None, None
            try:
                returned = writer.call(method, *arguments)
            except UserError as refused:
                error = (str(refused), refused.code)
            connection.send((error, returned))
    with contextlib.suppress(UserError):
        writer.call("give_back")
