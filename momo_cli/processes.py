"""Processes beside the command: how one is started, talked to and ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PATIENCE = 1.0  # seconds a process has to end when told to
_PRELOADED = "momo_cli.training.dispatch.preloaded"

_MORE = "MOMO_PRELOADS_MORE"  # the environment variable that names the pipe by which a process that preloads is told

_preloading_in: list[Any] = []  # the surroundings of the process that preloads, once there is one
_untold: list[int] = []  # the pipe, until it is told


class Ended(SystemExit):
    """This process was told to end."""


def preload() -> None:
    """Have a process load torch from now on, so that :func:`start` can make copies of it.

    A copy is there at once, where a new process takes five seconds to load torch and its compiler, which torch's first
    optimizer imports; the process waits with that until :func:`preload_compiler` or the first copy. Only on Linux:
    elsewhere there is no ``fork``, or Apple's libraries don't bear it.
    """
    if sys.platform != "linux" or _preloading_in:
        return
    from multiprocessing import forkserver

    with contextlib.suppress(OSError), _interrupts_ignored(), _without_main():
        pipe = os.path.join(util.get_temp_dir(), "more")
        os.mkfifo(pipe)
        # Open for reading, too: so it opens at once, and what is written stays until the other end reads it.
        _untold.append(os.open(pipe, os.O_RDWR))
        forkserver.set_forkserver_preload([_PRELOADED])
        os.environ[_MORE] = pipe
        try:
            forkserver.ensure_running()
        finally:
            del os.environ[_MORE]
        _preloading_in.append(_surroundings())


def preload_compiler(wanted: bool = True) -> None:
    """Have the process that preloads load torch's compiler, too, or not; what it is told first holds."""
    if _untold:
        os.write(_untold.pop(), b"1" if wanted else b"0")


def compiler_wanted() -> bool:
    """In the process that preloads: whether to load torch's compiler; returns when the command has said it or ended."""
    name = os.environ.get(_MORE, "")
    try:
        pipe = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # without blocking, it opens also where the command has ended
        os.unlink(name)
    except OSError:  # the command has ended, and has taken its files away
        return False
    os.set_blocking(pipe, True)
    with open(pipe, "rb", buffering=0) as told:
        return told.read(1) == b"1"


def can_copy() -> bool:
    """Whether a process preloads, and a copy of it would be no other than a new one."""
    return _preloading_in == [_surroundings()]


def _surroundings() -> list[Any]:
    """What a copy has of the process that preloaded, and a new process of this one."""

    def opened(descriptor: int) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            return os.fstat(descriptor)[1:3]
        return None

    return [opened(1), opened(2), os.environ.get("OMP_NUM_THREADS")]


def start(
    target: Callable[..., None], *arguments: Any, daemon: bool = False, copied: bool = False
) -> tuple[Any, Connection]:
    """A new process that runs ``target(connection, *arguments)``, and our end of the connection.

    Ctrl-C reaches every process of the terminal; this one ignores it from its first moment and ends when it is told to.
    A daemon ends itself when its connection is closed; any other ends with this process, whatever it is at. With
    ``copied`` it is a copy of the one that preloads, where it can be; such a process must not use a GPU.
    """
    if copied and can_copy():
        preload_compiler(False)
        with contextlib.suppress(OSError, EOFError):  # the system has ended the one that preloads
            return _start("forkserver", target, arguments, daemon)
    return _start("spawn", target, arguments, daemon)


def _start(method: str, target: Callable[..., None], arguments: Sequence[Any], daemon: bool) -> tuple[Any, Connection]:
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(dict(os.environ), target, theirs, *arguments), daemon=daemon)
    with _interrupts_ignored(), _without_main():
        process.start()
    theirs.close()
    return process, ours


def _run(environment: Mapping[str, str], target: Callable[..., None], *arguments: Any) -> None:
    if environment != os.environ:
        os.environ.clear()
        os.environ.update(environment)
    # A process hands the way in which it was started down to those that it starts. The user's DataLoader is to start
    # its workers as in a fresh interpreter; started like this one, each would import torch and the user's libraries.
    multiprocessing.set_start_method(None, force=True)
    # Python's own way out ends such workers; killed by the signal, this process would leave them behind.
    signal.signal(signal.SIGTERM, _told_to_end)
    if not multiprocessing.current_process().daemon:
        threading.Thread(target=_end_with_the_parent, name="momo-parent", daemon=True).start()
    try:
        target(*arguments)
    finally:
        end_children()


def _told_to_end(*_: object) -> None:
    raise Ended(128 + signal.SIGTERM)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    end_children()
    os._exit(1)


def end_children() -> None:
    """End every process that this one has started and that is still there: the user's code may have left some.

    Only on Linux, where they are listed. Python's own tracker of shared memory ends by itself, after its work.
    """
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, listed.read_text().split()):
                if child != getattr(tracker, "_pid", None):
                    os.kill(child, signal.SIGKILL)


def leave() -> None:
    """End every process that is still there, and delete what Python would at its own end."""
    end_children()
    if _preloading_in:
        shutil.rmtree(util.get_temp_dir(), ignore_errors=True)


def end(processes: Sequence[Any]) -> None:
    """End them, however long what they are at would take."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A process that is started in here doesn't run the file that this one runs: a user's script calls momo there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


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
