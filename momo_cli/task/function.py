"""A task that is a function in this process, as in a notebook: its source is its identity."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from momo_cli.errors import UserError
from momo_cli.task.loading import TaskSource, find_task


@dataclasses.dataclass(frozen=True)
class FunctionSource(TaskSource):
    """A function that no other process can import.

    Attributes:
        called: The function.
    """

    called: Callable[..., Any] = dataclasses.field(kw_only=True)

    def fingerprint(self) -> str:
        """A digest of the source of the function and of what it uses of its own module."""
        digest = hashlib.sha256()
        for part in _parts(self.called, set()):
            digest.update(part.encode())
        return digest.hexdigest()[:16]

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        return self.called


def source_of(function: Callable[..., Any], arguments: dict[str, Any]) -> TaskSource:
    """The task of a function: by its module and name where any process can import it, else the function itself.

    Args:
        function: The user's.
        arguments: The user's ``task_args``.

    Raises:
        UserError: It isn't a function.
    """
    if not callable(function):
        raise UserError(f"The task is a {type(function).__name__}: give a function, or a string as the command takes.")
    name = getattr(function, "__qualname__", type(function).__name__)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module is not None and module.__name__ != "__main__" and file and getattr(module, name, None) is function:
        return find_task(f"{module.__name__}:{name}", arguments)
    given = tuple(sorted(arguments.items()))
    return FunctionSource(name, "__main__", name, Path(file or name), given, called=function)


def _parts(used: object, seen: set[int]) -> Iterator[str]:
    """The sources of ``used`` and, transitively, of what it uses of its own module."""
    if id(used) in seen:
        return
    seen.add(id(used))
    if isinstance(used, types.FunctionType):
        yield _source(used)
        for cell in used.__closure__ or ():
            yield from _parts(cell.cell_contents, seen)
        for name in _names(used.__code__):
            value = used.__globals__.get(name)
            if _is_constant(value):
                yield f"{name}={value!r}"
            elif getattr(value, "__module__", None) == used.__module__:
                yield from _parts(value, seen)
    elif isinstance(used, type):
        yield used.__qualname__
        for value in [*used.__bases__, *vars(used).values()]:
            if isinstance(value, types.FunctionType) or getattr(value, "__module__", None) == used.__module__:
                yield from _parts(value, seen)
    elif _is_constant(used):
        yield repr(used)


def _source(function: types.FunctionType) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):  # typed at a prompt, or made by exec
        code = function.__code__
        return (
            f"{code.co_code.hex()} {[c for c in code.co_consts if not isinstance(c, types.CodeType)]} {code.co_names}"
        )


def _names(code: types.CodeType) -> list[str]:
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def _is_constant(value: object) -> bool:
    return isinstance(value, (bool, int, float, str, tuple)) and len(repr(value)) < 1000
