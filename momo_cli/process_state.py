"""The state of this process that the user's code may change, and that every run is to find as the first one did."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class _Setting(NamedTuple):
    """One part of the state: its name, how it is read, and how it is set to what was read."""

    name: str
    read: Callable[[], Any]
    set: Callable[[Any], object]


class ProcessState:
    """The state at one moment.

    What a task's file sets when it is imported counts for every run: the state to go back to is taken after that.

    Args:
        settings: The parts of it; all that are known by default.
    """

    def __init__(self, settings: Callable[[], list[_Setting]] | None = None) -> None:
        self._values = [(setting, setting.read()) for setting in (settings or _all)()]

    def restore(self) -> None:
        """Set what is other now to what it was."""
        for setting, value in self._values:
            if not _same(setting.read(), value):
                with contextlib.suppress(Exception):  # a folder that has been deleted
                    setting.set(value)

    def changed_since(self, before: ProcessState) -> ProcessState:
        """What of this state was other before, alone."""
        changed = ProcessState(list)
        changed._values = [mine for mine, (_, value) in zip(self._values, before._values) if not _same(mine[1], value)]
        return changed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProcessState) and [(s.name, v) for s, v in self._values] == [
            (s.name, v) for s, v in other._values
        ]

    def names(self) -> list[str]:
        """The names of its parts."""
        return [setting.name for setting, _ in self._values]


def of_torch() -> ProcessState:
    """What changes the numbers of every model in this process."""
    return ProcessState(_torch)


@contextlib.contextmanager
def restored(state: Callable[[], ProcessState] = ProcessState) -> Iterator[None]:
    """Leave the process as it was found, whatever the user's code that is called in here does to it."""
    before = state()
    try:
        yield
    finally:
        before.restore()


def channels() -> ProcessState:
    """What the user's code must never take, not even for all runs: the process's output, and its answer to Ctrl-C."""
    return ProcessState(_channels)


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) in (bool, int, str, tuple, list, dict, type(None)) and bool(one == other))


def _attribute(owner: Any, name: str, shown: str = "") -> _Setting:
    return _Setting(shown or name, lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _content(name: str, of: Callable[[], Any]) -> _Setting:
    """A list, or a mapping, that others hold: what is in it is changed, and not the object."""

    def read() -> Any:
        return dict(of()) if hasattr(of(), "keys") else list(of())

    def put(value: Any) -> None:
        owner = of()
        owner.clear()
        (owner.update if isinstance(value, dict) else owner.extend)(value)

    return _Setting(name, read, put)


def _signal(name: str) -> _Setting:
    number = getattr(signal, name)
    return _Setting(
        name, lambda: signal.getsignal(number), lambda value: None if value is None else signal.signal(number, value)
    )


def _channels() -> list[_Setting]:
    streams = [_attribute(sys, name) for name in ("stdin", "stdout", "stderr", "excepthook")]
    if threading.current_thread() is not threading.main_thread():
        return streams
    return streams + [_signal(name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _autocast(kind: str) -> _Setting:
    import torch

    return _Setting(
        f"autocast on {kind}",
        lambda: torch.is_autocast_enabled(kind),
        lambda value: torch.set_autocast_enabled(kind, value),
    )


def _torch() -> list[_Setting]:
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    cudnn = torch.backends.cudnn
    return [
        _Setting("default dtype", lambda: str(torch.get_default_dtype()), _set_default_dtype),
        _Setting("default device", lambda: str(torch.get_default_device()), _set_default_device),
        _Setting("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        _Setting("number of threads", torch.get_num_threads, torch.set_num_threads),
        _Setting(
            "deterministic algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ),
        _Setting("matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        _Setting("anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        _attribute(cudnn, "benchmark", "cuDNN's benchmark"),
        _attribute(cudnn, "deterministic", "cuDNN's determinism"),
        *map(_autocast, ("cpu", "cuda")),
        # 1e-310 is no normal number: the processor's own setting, which has no getter, shows in what becomes of it.
        _Setting("treatment of denormals", lambda: float("1e-310") * 1.0 == 0.0, torch.set_flush_denormal),
    ]


def _all() -> list[_Setting]:
    root = logging.getLogger()
    return [
        *_channels(),
        *_torch(),
        _Setting("folder", _folder, os.chdir),
        _content("environment", lambda: os.environ),
        _content("sys.path", lambda: sys.path),
        _content("warnings' filters", lambda: warnings.filters),
        _attribute(warnings, "showwarning"),
        _content("handlers of logging", lambda: root.handlers),
        _attribute(root, "level"),
        _attribute(root.manager, "disable"),
        _attribute(threading, "excepthook"),
        _Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        _Setting("tracing", sys.gettrace, sys.settrace),
        _Setting("profiling", sys.getprofile, sys.setprofile),
    ]


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _set_default_dtype(name: str) -> None:
    import torch

    torch.set_default_dtype(getattr(torch, name.removeprefix("torch.")))


def _set_default_device(name: str) -> None:
    import torch

    # A default that has been set costs time at every operation that makes a tensor, "cpu" too.
    torch.set_default_device(None if name == "cpu" else name)
