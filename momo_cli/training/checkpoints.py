"""Checkpoints of runs under way: kept every so many seconds, and found again by the runs that they hold."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from momo_cli.errors import first_line
from momo_cli.plan.grid import RunSpec

_SCHEMA = "momo/checkpoint/1"

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file that holds runs under way: one, or those of a stack.

    Attributes:
        path: The file.
        specs: Those of its runs that were asked for, in its order.
        rows: Where they stand in it.
        stacked: Whether they were trained in a stack.
    """

    path: Path
    specs: tuple[RunSpec, ...]
    rows: tuple[int, ...]
    stacked: bool

    def load(self) -> dict[str, Any]:
        """What was kept, and :attr:`rows`.

        Raises:
            ValueError: The file is damaged.
        """
        return _read(self.path)["state"] | {"rows": self.rows}  # type: ignore[no-any-return]


class Checkpoints:
    """The checkpoints of the runs of one key.

    Args:
        folder: Where their files are; None for nowhere.
        key: Everything that changes a result; files of another key are left alone.
        every: ``--checkpoint``: seconds from one checkpoint of a run to the next; None keeps none.
    """

    def __init__(
        self, folder: Path | None = None, key: Mapping[str, Any] | None = None, every: float | None = None
    ) -> None:
        self.folder, self.every = folder or Path(os.devnull), every
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True, default=repr).encode()).hexdigest()[:16]

    def find(self, specs: Iterable[RunSpec], say: Callable[[str], None] = lambda line: None) -> list[Checkpoint]:
        """The checkpoints of ``specs``, each run in one of them at most: the newest; damaged ones are said."""
        left = {repr(spec.key): spec for spec in specs}
        found = []
        for path in self._files():
            try:
                content = _read(path)
            except ValueError as error:
                say(f"{error}.")
                continue
            of_file = {row: left.pop(run) for row, run in enumerate(content["runs"]) if run in left}
            if of_file:
                found.append(Checkpoint(path, tuple(of_file.values()), tuple(of_file), content["stacked"]))
        return found

    def drop(self, keys: Iterable[object]) -> None:
        """Delete the files that hold no runs but those of these keys."""
        runs = set(map(repr, keys))
        for path in self._files():
            with contextlib.suppress(ValueError, OSError):
                if runs.issuperset(_read(path)["runs"]):
                    path.unlink()
        if self.folder.is_dir():
            with contextlib.suppress(OSError):  # where they are not empty
                self.folder.rmdir()
                self.folder.parent.rmdir()

    def path(self, specs: Sequence[RunSpec]) -> Path:
        """The file for runs that are trained together from now on."""
        name = hashlib.sha256(repr([spec.key for spec in specs]).encode()).hexdigest()[:16]
        return self.folder / f"{self._key}-{name}.checkpoint"

    def _files(self) -> list[Path]:
        """Every file of this key, the newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(self.folder.glob(f"{self._key}-*.checkpoint"), key=lambda path: -path.stat().st_mtime_ns)


NOWHERE = Checkpoints()
"""Of no runs."""


class Keeper:
    """Keeps the checkpoint of runs that are trained together.

    Args:
        path: The file.
        every: Seconds from one to the next; None keeps none.
        goes_on: The checkpoint that the runs go on from, or None.
        say: Takes a line for the user.
        steps: Called before each step.
    """

    def __init__(
        self,
        path: Path,
        every: float | None,
        goes_on: Checkpoint | None = None,
        say: Callable[[str], None] = lambda line: None,
        steps: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._every, self._goes_on, self._say, self._steps = path, every, goes_on, say, steps
        self._last = time.monotonic()
        self._failed = False

    def begin(self, make: Callable[[dict[str, Any] | None], R]) -> R:
        """The runs at their checkpoint, ``make(state)``; where there is none to go on from, ``make(None)``."""
        if self._goes_on is not None:
            specs = self._goes_on.specs
            which = f"{len(specs)} runs" if len(specs) > 1 else specs[0].name
            try:
                state = self._goes_on.load()
                made = make(state)
            except (LookupError, RuntimeError, TypeError, ValueError) as error:
                self._say(f"{which}: begun anew, as the checkpoint can't be gone on from: {first_line(error)}.")
            else:
                self._say(f"{which}: going on from a checkpoint at step {state['taken']}.")
                return made
        return make(None)

    @property
    def keeps(self) -> bool:
        """Whether any checkpoint is kept."""
        return self._every is not None

    def before_step(self) -> bool:
        """Called before each step: whether a checkpoint is to be kept after it."""
        self._steps()
        return self._every is not None and time.monotonic() - self._last >= self._every

    def save(self, specs: Sequence[RunSpec], state: dict[str, Any], stacked: bool = False) -> None:
        """Keep the ``state`` of ``specs``; where the disk doesn't take it, the one before stays, and a line says so."""
        runs = [repr(spec.key) for spec in specs]
        content = {"schema": _SCHEMA, "runs": runs, "stacked": stacked, "state": state}
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except (OSError, RuntimeError) as error:  # torch's own for a full disk
            with contextlib.suppress(OSError):
                beside.unlink()
            if not self._failed:
                self._say(f"A checkpoint could not be kept ({first_line(error)}). Training goes on.")
            self._failed = True
        self._last = time.monotonic()


NOT_KEPT = Keeper(Path(), None)
"""Keeps nothing."""


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors left in the file until they are used."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if content["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}")
    except Exception as error:
        raise ValueError(f"{path.name} can't be read: {first_line(error)}") from None
    return content  # type: ignore[no-any-return]
