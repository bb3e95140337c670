"""Errors that the user's own code raises: which of their frames to show."""

from __future__ import annotations

import importlib
import re
import traceback
from pathlib import Path

from momo_cli.errors import UserError
from momo_cli.processes import Ended

_OURS = tuple(str(Path(__file__).resolve().parent.parent / package) for package in ("momo_cli", "momo"))


#: What is never the user's code's error, among all that may come out of it.
OURS = (UserError, KeyboardInterrupt, Ended)


class UserCodeError(Exception):
    """The user's code raised; ``frames`` is what they need to see of it."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.frames = user_frames(error)
        super().__init__(f"{where} raised {type(error).__name__}: {error}")


def user_frames(error: BaseException) -> str:
    """The traceback of ``error`` without frames of this command, of torch or of the import machinery.

    >>> def users_loss():
    ...     raise ValueError("no labels")
    >>> try:
    ...     users_loss()
    ... except ValueError as error:
    ...     print(user_frames(error).splitlines()[-1])
    ValueError: no labels
    """
    kept = []
    for frame in traceback.extract_tb(error.__traceback__):
        file = frame.filename
        in_torch = "/site-packages/torch/" in file.replace("\\", "/")
        ours = file.startswith(_OURS) and "builtin" not in file
        importing = file.startswith("<frozen") or file == importlib.__file__
        if not (in_torch or ours or importing):
            kept.append(frame)
    head = ["Traceback (your code):\n"] if kept else []
    # A file's module is named after the whole path, for the import machinery's sake and not for the reader's.
    of_file = re.match(r"momo_cli\.task\.files\.\w+\.", f"{type(error).__module__}.")
    tail = traceback.format_exception_only(type(error), error)
    if of_file:
        tail[-1] = tail[-1].removeprefix(of_file[0])
    return "".join(head + traceback.format_list(kept) + tail).rstrip()
