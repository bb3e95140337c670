"""The processes of a script: started as a group of their own, and ended with all that they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from momo_cli.errors import UserError

PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL
_LEAVING = 1.0  # seconds that children have to end after the script itself
_GONE = 5.0  # seconds that the system may take to end what was killed
_PAUSE = 0.02  # seconds between two looks
# Where this process ends and hasn't said so, by kill -9 say, everything of the script is ended.
_GUARD = """read said && exit
end() {
    kill "-$1" -- "-$2"
    for process in /proc/[0-9]*; do grep -qzxF -- "$3" "$process/environ" && kill "-$1" "${process#/proc/}"; done
}
end TERM "$@"
sleep 10
end KILL "$@"
"""


class Processes:
    """A script and every process that it starts.

    Args:
        words: The argument list; no shell reads it.
        environment: All of the script's environment.
        mark: A variable of ``environment`` whose value no other process has: what the script starts inherits it, also
            where it leaves the process group, as the workers of ``torchrun`` do.
        stdout: A file for its output.
        stderr: A file for its errors.

    Raises:
        UserError: The program can't be started.
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], mark: str, stdout: IO[bytes], stderr: IO[bytes]
    ) -> None:
        self._mark = f"{mark}={environment[mark]}".encode()
        self._started = time.monotonic()
        self.seconds = 0.0
        try:
            self._script = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"The command {words[0]!r} can't be started: {error.strerror}.") from None
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "momo-guard", str(self._script.pid), self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.ended = threading.Event()
        # Waiting with a time limit, Python looks again and again; this tells at once.
        threading.Thread(target=self._wait, name="momo-wait", daemon=True).start()

    @property
    def running_for(self) -> float:
        """Seconds since the script was started."""
        return time.monotonic() - self._started

    @property
    def code(self) -> int:
        """The script's exit code; of one that a signal ended, its negative number."""
        return self._script.returncode

    def release(self) -> None:
        """Let what the script may have left be: to be called when it has ended."""
        self._guard.communicate(b"ended\n")

    def end(self, hurry: threading.Event) -> None:
        """End every process of the script: SIGTERM, after 10 s SIGKILL; at once when ``hurry`` is set."""
        self._signal(signal.SIGTERM, self._marked())
        if not self._gone(PATIENCE, hurry):
            self._signal(signal.SIGKILL, self._marked())
            self._gone(_GONE, None)

    def end_children(self, hurry: threading.Event) -> None:
        """End what the script, which has ended itself, has left of its process group."""
        if self._group_is_empty() or self._gone(_LEAVING, hurry, marked=False):
            return
        self._signal(signal.SIGTERM, [])
        if not self._gone(PATIENCE, hurry, marked=False):
            self._signal(signal.SIGKILL, [])
            self._gone(_GONE, None, marked=False)

    def _wait(self) -> None:
        self._script.wait()
        self.seconds = self.running_for
        self.ended.set()

    def _signal(self, number: int, more: Sequence[int]) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._script.pid, number)
        for process in more:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, number)

    def _gone(self, seconds: float, hurry: threading.Event | None, marked: bool = True) -> bool:
        """Wait until no process is left; False when they take longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        while not (self._group_is_empty() and not (marked and self._marked())):
            if time.monotonic() > deadline or (hurry is not None and hurry.is_set()):
                return False
            time.sleep(_PAUSE)
        return True

    def _group_is_empty(self) -> bool:
        try:
            os.killpg(self._script.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        # In a container nobody may ask for the ended ones (Z), which the system then counts as there.
        states = [_state(pid) for pid in _processes()]
        return bool(states) and not any(group == self._script.pid and state not in "ZX" for state, group in states)

    def _marked(self) -> list[int]:
        """Running processes of any group that inherited the script's environment; none where there is no /proc."""
        found = []
        for pid in _processes():
            with contextlib.suppress(OSError):
                marked = self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if marked and _state(pid)[0] not in "ZX":
                    found.append(pid)
        return found


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _state(pid: int) -> tuple[str, int]:
    """The letter of a process's state, and its group; ``X`` where it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return after_name[0], int(after_name[2])
