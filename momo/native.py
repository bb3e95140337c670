"""The two passes of a step in C, compiled on the user's machine when they are first needed.

A step on the CPU is limited by how often torch is called, not by what it computes: for each slice of memory there are some
operations, and each wakes torch's threads. ``native.c`` does a pass in one call. It is compiled with the system's C
compiler and kept in the user's cache folder. Where that doesn't work, for whatever reason, :func:`library` is None, and
the passes are made of torch's operations as on other devices. ``MOMO_NATIVE=0`` in the environment asks for that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_SOURCE = Path(__file__).with_name("native.c")
# No -ffast-math: NaN has to stay NaN. The sums may be reordered because the source says so (OpenMP's simd, which needs no
# library); without contraction the elements are the same on processors with and without fused multiplication.
_FLAGS = (
    ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd", "-fPIC", "-shared", "-pthread"]
)
_PATIENCE = 30  # seconds
_lock = threading.Lock()
_found: tuple[Library | None, str] | None = None


class _Unavailable(Exception):
    """Why there is no library."""


class Library:
    """The functions of ``native.c`` by dtype, and how they were compiled."""

    def __init__(self, path: Path, flags: list[str]) -> None:
        self._loaded = ctypes.CDLL(str(path))
        self.flags = flags
        self.accumulate: dict[torch.dtype, Any] = {}
        self.subtract: dict[torch.dtype, Any] = {}
        # Tables are bytes objects; ctypes passes where they are.
        table, count, address = ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p
        for dtype, name in DTYPES.items():
            function = self.accumulate[dtype] = getattr(self._loaded, f"momo_accumulate_{name}")
            function.argtypes = [count, *[table] * 6, address, address, count, address]
            function = self.subtract[dtype] = getattr(self._loaded, f"momo_subtract_{name}")
            function.argtypes = [count, *[table] * 5, count, address]
        self._team = _team()
        self._process = os.getpid()

    def threads(self) -> tuple[int, int | None]:
        """How many threads to use, and where to find them: see ``native.c``."""
        # OpenMP's threads are not there in a process made by a fork, and it would wait for them.
        return torch.get_num_threads(), self._team if os.getpid() == self._process else None


def _team() -> int | None:
    """The address of GNU OpenMP's ``GOMP_parallel``, if that is what torch computes with."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


def library() -> Library | None:
    """The compiled passes, or None. The first call compiles them."""
    global _found
    if os.environ.get("MOMO_NATIVE") == "0":
        return None
    if _found is None:
        with _lock:
            if _found is None:
                try:
                    _found = _load(), ""
                except _Unavailable as error:
                    _found = None, str(error)
                except Exception as error:  # whatever it is, there is another way to take the step
                    _found = None, f"{type(error).__name__}: {error}"
    return _found[0]


def status() -> str:
    """What the passes on the CPU are made of, and why, in one line."""
    if os.environ.get("MOMO_NATIVE") == "0":
        return "torch's operations, because MOMO_NATIVE=0"
    loaded = library()
    if loaded is None:
        why = " ".join(_found[1].split()) if _found else ""
        return f"torch's operations, because {why}"
    return "compiled passes" + (", for this processor" if "-march=native" in loaded.flags else "")


def _load() -> Library:
    if os.name != "posix":
        raise _Unavailable(f"the compiled passes are for POSIX systems, and this is {sys.platform}")
    compiler = _compiler()
    processor = _processor()
    choices = [_FLAGS]
    # What is compiled for one processor must not be found by another that shares the folder.
    if processor:
        choices.insert(0, [*_FLAGS, "-march=native"])
    identity = [_SOURCE.read_bytes().decode(), *_identity(compiler), processor, sys.platform, platform.machine()]
    folder = _cache_folder()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="momo-opt-") as private:
            return _compiled(compiler, choices, identity, Path(private))
    return _compiled(compiler, choices, identity, folder)


def _compiled(compiler: list[str], choices: list[list[str]], identity: list[str], folder: Path) -> Library:
    paths = [
        folder / f"native-{hashlib.sha256(chr(0).join([*identity, *flags]).encode()).hexdigest()[:32]}.so"
        for flags in choices
    ]
    for path, flags in zip(paths, choices):
        if _is_own_file(path):
            try:
                return Library(path, flags)
            except (OSError, AttributeError):
                continue
    why = "there is no way to compile"
    for path, flags in zip(paths, choices):
        try:
            return _compile(compiler, flags, path)
        except (OSError, AttributeError, _Unavailable) as error:
            why = str(error)
    raise _Unavailable(why)


def _compile(compiler: list[str], flags: list[str], path: Path) -> Library:
    # Others may be compiling the same at this moment: whoever is last replaces what is equal.
    handle, made = tempfile.mkstemp(prefix="making-", suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        process = subprocess.Popen(
            [*compiler, *flags, str(_SOURCE), "-o", made, "-lm"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            failed = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise _Unavailable(f"{compiler[0]} took longer than {_PATIENCE} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a compiler is several processes
                process.wait()
        if failed:
            raise _Unavailable(f"{compiler[0]} can't compile {_SOURCE.name}")
        loaded = Library(Path(made), flags)
        os.replace(made, path)
        return loaded
    finally:
        Path(made).unlink(missing_ok=True)


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CC", ""))
    for command in ([chosen] if chosen else []) + [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    raise _Unavailable("no C compiler was found")


def _identity(compiler: list[str]) -> list[str]:
    """What tells a compiler from another version of it, without the time it takes to ask it."""
    path = os.path.realpath(compiler[0])
    about = os.stat(path)
    return [path, *compiler[1:], str(about.st_size), str(about.st_mtime_ns)]


def _processor() -> str:
    """The processor's model and abilities; empty where they aren't known."""
    wanted = (
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "flags",
        "CPU implementer",
        "CPU part",
        "Features",
        "isa",
    )
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return ""
    lines = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    return "\n".join(f"{name.strip()}:{value.strip()}" for name, value in lines if name.strip() in wanted)


def _cache_folder() -> Path | None:
    """A folder that only this user can write to; None if there is none."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "momo-opt"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.lstat()
    except (OSError, RuntimeError):
        return None
    own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022
    return folder if own and os.access(folder, os.W_OK | os.X_OK) else None


def _is_own_file(path: Path) -> bool:
    try:
        about = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
