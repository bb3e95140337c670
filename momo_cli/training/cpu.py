"""The CPU that a process trains on: its cores, its threads, and memory that stays with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)
_LARGEST_MMAP = 32 << 20  # what glibc allows


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_are_given() -> bool:
    """Whether the user has said how many threads an operation may use."""
    return "OMP_NUM_THREADS" in os.environ


def prepare(device: torch.device, threads: int = 1) -> None:
    """Make this process ready to train on ``device``.

    On the CPU it uses ``threads`` threads, unless ``OMP_NUM_THREADS`` says otherwise: processes of one thread each use
    the cores best, and beside another busy process two threads that wait for each other at every operation can take a
    hundred times as long as one. And memory that a step frees is kept for the next one: by default glibc gives arrays
    of more than 128 kB back to the system and gets them anew, page by page, which took a stack a fifth of its time.
    """
    if device.type != "cpu":
        return
    if not threads_are_given():
        import torch

        torch.set_num_threads(threads)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
            libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
