"""The user's task files as modules of this package, each under a name by which any process can import it.

Pickle stores a class by the name of its module. A ``Dataset`` that a task file defines reaches a DataLoader's worker in
that way, and torch started that process: all it can do is import. So the name holds the file's path.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

__path__: list[str] = []  # makes this module one that has modules
_PREFIX = f"{__name__}.file_"


def module_name(file: Path) -> str:
    """The name to import ``file`` by; it need not have the form of a module's name itself.

    >>> module_name(Path("my-task.py"))
    'momo_cli.task.files.file_6d792d7461736b2e7079'
    """
    return _PREFIX + os.fsencode(file).hex()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the file in the name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(_PREFIX):
            return None
        return importlib.util.spec_from_file_location(name, os.fsdecode(bytes.fromhex(name.removeprefix(_PREFIX))))


sys.meta_path.append(_Finder())
