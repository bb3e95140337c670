"""Which process holds a run, told so that another one can see whether it lives."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path


@functools.cache
def this_process() -> str:
    """This process, as it is noted with the runs that it holds: ``host/machine:pid:start``.

    >>> is_gone(this_process()), is_gone("elsewhere/1:1:1")
    (False, False)
    """
    return f"{_machine()}:{os.getpid()}:{_started(os.getpid())}"


def is_gone(holder: str) -> bool:
    """Whether ``holder`` is a process of this machine that has ended; of other machines nothing is known."""
    machine, _, process = holder.partition(":")
    pid, _, started = process.partition(":")
    if machine != _machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return _started(int(pid)) != started


def where(holder: str) -> str:
    """``holder`` as a user knows it.

    >>> where("node7/4026531836:123:4567")
    'process 123 on node7'
    """
    machine, _, process = holder.partition(":")
    return f"process {process.partition(':')[0]} on {machine.partition('/')[0]}" if process else "another process"


@functools.cache
def _machine() -> str:
    # Containers may share a host's name and not its processes.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        boot = processes = ""
    return f"{socket.gethostname()}/{boot}{processes}".replace(":", "-")


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; a number that is given again tells another process by it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
