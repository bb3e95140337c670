"""The command ``momo``: how robust is my training to the learning rate, and what should I set?

>>> import momo_cli
>>> momo_cli.Task(model=None, loss=None, train=[]).steps is None
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from momo_cli.api import compare, load, recommend, sweep
    from momo_cli.asked import Options
    from momo_cli.errors import UserError
    from momo_cli.report import Report
    from momo_cli.script_log import log
    from momo_cli.task.definition import Task

# Imported when they are first used (PEP 562): a training script that only logs pays for nothing else.
_MODULES = {
    "Options": "momo_cli.asked",
    "Report": "momo_cli.report",
    "Task": "momo_cli.task.definition",
    "UserError": "momo_cli.errors",
    "compare": "momo_cli.api",
    "load": "momo_cli.api",
    "log": "momo_cli.script_log",
    "recommend": "momo_cli.api",
    "sweep": "momo_cli.api",
}

__all__ = ["Options", "Report", "Task", "UserError", "compare", "load", "log", "recommend", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
