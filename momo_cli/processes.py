"""Processes beside the command: how one is started, talked to and ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

_PATIENCE = 1.0  # seconds a process has to end when told to


def start(target: Callable[..., None], *arguments: Any, daemon: bool = False) -> tuple[Any, Connection]:
    """A new process that runs ``target(connection, *arguments)``, and our end of the connection.

    Ctrl-C reaches every process of the terminal; this one ignores it from its first moment and ends when it is told to.
    A daemon ends itself when its connection is closed; any other ends with this process, whatever it is at.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    run = target if daemon else _run_while_the_parent_lives
    process = context.Process(target=run, args=(theirs, *([] if daemon else [target]), *arguments), daemon=daemon)
    with _interrupts_ignored():
        process.start()
    theirs.close()
    return process, ours


def _run_while_the_parent_lives(connection: Connection, target: Callable[..., None], *arguments: Any) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="momo-parent", daemon=True).start()
    target(connection, *arguments)


def end(processes: Sequence[Any]) -> None:
    """End them, however long what they are at would take."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that is started in here inherits that Ctrl-C is ignored; only the main thread can set that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
