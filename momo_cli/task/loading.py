"""Finding TASK (``package.module:function``, ``path/to/file.py:function`` or a built-in name) and calling it."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import random
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from momo_cli.errors import NO_LITERAL, UserError, did_you_mean
from momo_cli.process_state import channels, restored
from momo_cli.task.builtin import BUILTIN
from momo_cli.task.definition import Task
from momo_cli.task.files import module_name
from momo_cli.user_code import OURS, UserCodeError

_returned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""The trainable parameters of the models that tasks have returned, by id."""

_building: list[str] = []
"""The tasks that are being built: one's function may build another's."""


@dataclasses.dataclass(frozen=True)
class TaskSource:
    """Where a task comes from; small and picklable, so that worker processes can build it themselves.

    Attributes:
        name: The task's name in tables and in the store: ``module:function`` or a built-in name.
        module: Dotted module name, or the path of a ``.py`` file.
        function: Name of the function in it.
        file: The source file, whose content is part of the store's key.
        arguments: The user's ``--set key=value``.
    """

    name: str
    module: str
    function: str
    file: Path
    arguments: tuple[tuple[str, Any], ...] = ()

    def fingerprint(self) -> str:
        """A digest of the code of the source file and of the user's files that it imports.

        Another one means other results: comments, formatting and docstrings don't count.
        """
        digest = hashlib.sha256()
        for file in local_sources(self.file):
            digest.update(code_of(file.read_bytes()))
        return digest.hexdigest()[:16]

    def build(self, seed: int, device: Any) -> Task:
        """Seed everything with ``seed``, call the function and check what it returns.

        Raises:
            UserError: The function doesn't exist, doesn't take an argument, or returns no task.
            UserCodeError: The user's code raised.
        """
        function = self.load()
        offered = {"seed": seed, "device": device}
        keywords = _keywords(function, self.name, offered, dict(self.arguments))
        seed_everything(seed)
        _building.append(self.name)
        try:
            returned = function(**keywords)
        except OURS:
            raise
        except BaseException as error:
            raise UserCodeError(self.name, error) from error
        finally:
            _building.pop()
        task = Task.from_returned(returned, self.name)
        if not _building:
            _check_new(task.model, self.name)
        return task

    def load(self) -> Callable[..., Any]:
        """The function; its module is imported at the first call, and keeps what it sets in the process.

        Raises:
            UserError: There is no such function.
            UserCodeError: The module raises.
        """
        with restored(channels):
            module = _import(self)
        function: Any = getattr(module, self.function, None)
        if function is None:
            public = [
                name
                for name, value in vars(module).items()
                if callable(value)
                and not name.startswith("_")
                and getattr(value, "__module__", None) == module.__name__
            ]
            has = f"It has {', '.join(public[:8])}." if public else "It has no function."
            raise UserError(
                f"There is no function {self.function!r} in {self.file.name}."
                f"{did_you_mean(self.function, public)}\n{has}"
            )
        if not callable(function):
            raise UserError(f"{self.name} is a {type(function).__name__}, not a function that returns a task.")
        return cast(Callable[..., Any], function)


def find_task(reference: str, arguments: dict[str, Any] | None = None) -> TaskSource:
    """Resolve TASK to a source file and a function's name without importing the user's code.

    Args:
        reference: TASK as typed; ``:function`` may be left off and is then ``build``.
        arguments: The user's ``--set`` arguments.

    Raises:
        UserError: There is no such module, file or built-in task.
    """
    given = tuple(sorted((arguments or {}).items()))
    if reference in BUILTIN:
        module, function = BUILTIN[reference].split(":")
        return TaskSource(reference, module, function, _module_file(module, reference), given)
    place, function = reference, "build"
    if ":" in reference:
        place, function = reference.rsplit(":", 1)
    if not place or not function.isidentifier():
        raise UserError(
            f"{reference!r} is not a task.\n"
            f"Write module:function, path/to/file.py:function or one of {', '.join(BUILTIN)}."
        )
    if place.endswith(".py") or os.sep in place:
        file = Path(place)
        if not _is_file(file):
            near = [path.name for path in Path.cwd().joinpath(*file.parts[:-1]).glob("*.py")]
            raise UserError(f"There is no file {place!r} (looked in {Path.cwd()}).{did_you_mean(file.name, near)}")
        return TaskSource(f"{place}:{function}", str(file.resolve()), function, file.resolve(), given)
    return TaskSource(f"{place}:{function}", place, function, _module_file(place, reference), given)


def code_of(source: bytes) -> bytes:
    """The code alone, from a file's syntax tree; the file as it is where it can't be parsed.

    >>> code_of(b"x = 1  # one") == code_of(b"'Of x.'\\nx  =  1"), code_of(b"x = 1") == code_of(b"x = 2")
    (True, False)
    """
    try:
        tree = ast.parse(source)
    except NO_LITERAL:
        return source
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree).encode()


def local_sources(file: Path) -> list[Path]:
    """``file`` and, transitively, the files that it imports from its folder or the current one, not packages."""
    roots = list(dict.fromkeys([file.parent, Path.cwd()]))
    found, waiting = [file], [file]
    while waiting:
        at = waiting.pop()
        try:
            tree = ast.parse(at.read_bytes())
        except (*NO_LITERAL, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names, places = [alias.name for alias in node.names], roots
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
                places = [at.parents[node.level - 1]] if node.level else roots
            else:
                continue
            for place, name in itertools.product(places, filter(None, names)):
                stem = place.joinpath(*name.split("."))
                for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                    if path.is_file() and path not in found:
                        found.append(path)
                        waiting.append(path)
    return [file, *sorted(found[1:])]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's (if it is loaded or can be) and torch's generators on every device."""
    import torch

    random.seed(seed)
    try:
        import numpy
    except ImportError:
        pass
    else:
        numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, or its folder can't be read
        return False


def _check_new(model: Any, name: str) -> None:
    own = {id(parameter): parameter for parameter in model.parameters() if parameter.requires_grad}
    if any(_returned.get(key) is parameter for key, parameter in own.items()):
        raise UserError(
            f"{name} returned a model that it had returned before, and every run trains its own.\n"
            "Build the model in the function, or return copy.deepcopy(model)."
        )
    _returned.update(own)


def _module_file(module: str, reference: str) -> Path:
    local = [path.stem for path in Path.cwd().glob("*.py")]
    if Path.cwd().as_posix() not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(module)
    except UserError:
        raise
    except (ImportError, ValueError, OSError):  # no name of a module, or one that is too long
        spec = None
    except Exception as error:  # a parent package is imported on the way, and it is the user's
        raise UserCodeError(reference, error) from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(
            f"There is no module {module!r} (looked in {Path.cwd()} and the installed packages)."
            f"{did_you_mean(module, local + list(BUILTIN))}\n"
            f"Write module:function, path/to/file.py:function or one of {', '.join(BUILTIN)}."
        )
    return Path(spec.origin)


def _import(source: TaskSource) -> Any:
    try:
        if not source.module.endswith(".py"):
            if str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(source.module)
        folder = str(source.file.parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(module_name(source.file))
    except OURS:
        raise
    except BaseException as error:
        raise UserCodeError(source.name, error) from error


def _keywords(
    function: Callable[..., Any], name: str, offered: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        raise UserError(f"{name} doesn't say which arguments it takes: write a Python function.") from None
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in given:
        if key not in named and not takes_any:
            takes = ", ".join(n for n in named if n not in offered) or "none"
            raise UserError(
                f"--set {key}: {name} takes no argument {key!r}.{did_you_mean(key, named)}\nIts arguments: {takes}."
            )
    keywords = {key: value for key, value in offered.items() if key in named or takes_any} | given
    for key in named:
        if key not in keywords and parameters[key].default is inspect.Parameter.empty:
            raise UserError(f"{name} needs the argument {key!r}.\nGive it with --set {key}=…, or give it a default.")
    return keywords
