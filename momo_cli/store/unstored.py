"""Runs that could not be stored, in a file: ``momo import`` puts them where they belong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from momo_cli.errors import UserError
from momo_cli.runs import Run

_SCHEMA = "momo/unstored/1"
_FIELDS = {field.name for field in dataclasses.fields(Run)}

written: list[Path] = []
"""The files that this process has written."""


@dataclasses.dataclass(frozen=True)
class Unstored:
    """Runs of one key that are in no store: the study's name, its key, the objective's name, and the runs."""

    name: str
    key: dict[str, Any]
    objective: str
    runs: Sequence[Run]

    def write(self, folders: Iterable[Path]) -> Path | None:
        """Write them to a new file in the first of ``folders`` that takes it; None where none does."""
        head = {"schema": _SCHEMA, "name": self.name, "key": self.key, "objective": self.objective}
        text = "\n".join(json.dumps(line) for line in [head, *map(dataclasses.asdict, self.runs)]) + "\n"
        stem = re.sub(r"[^\w.+-]+", "_", self.name)[:100]
        for folder in [*folders, Path(tempfile.gettempdir())]:
            for number in range(1, 100):
                path = folder / f"{stem}-unstored{'' if number == 1 else f'-{number}'}.jsonl"
                try:
                    with open(path, "x", encoding="utf-8") as file:
                        file.write(text)
                        file.flush()
                        os.fsync(file.fileno())
                except FileExistsError:
                    continue
                except OSError:
                    path.unlink(missing_ok=True)
                    break
                written.append(path)
                return path
        return None


def read(path: str | Path) -> Unstored | None:
    """What :meth:`Unstored.write` wrote to ``path``; None for any other file.

    Raises:
        UserError: It is one, and damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            head = json.loads(file.readline(1_000_000))
            if not isinstance(head, dict) or head.get("schema") != _SCHEMA:
                return None
            lines = file.readlines()
    except (OSError, ValueError):
        return None
    try:
        fields = [{name: value for name, value in json.loads(line).items() if name in _FIELDS} for line in lines]
        return Unstored(head["name"], head["key"], head["objective"], [Run(**of_run) for of_run in fields])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged: it is no longer what momo wrote.", code=1) from None
