"""The one way in which the command refuses: a sentence or three, and an exit code."""

from __future__ import annotations

import ast
import warnings
from typing import Any


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and what to type instead.

    Args:
        message: One to three lines, shown on stderr as they stand.
        code: The exit code: 2 for a wrong command line or task, 1 for an input file that can't be used
            or a command whose runs all failed.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def literal(text: str) -> Any:
    """The Python literal that ``text`` is, else ``text`` itself.

    >>> literal("0.1"), literal("1x"), literal("-" * 100_000)[:2]
    (0.1, '1x', '--')
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of 1x, say
        try:
            return ast.literal_eval(text)
        except NO_LITERAL:
            return text


NO_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
"""What Python's parser, ``ast.literal_eval`` and whoever walks a syntax tree raise of a text that isn't one."""


def first_line(error: BaseException) -> str:
    """What ``error`` says in one line: the first of its message, or its type where it has none.

    >>> first_line(ValueError("no such thing\\nas this")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def printable(text: str) -> str:
    """``text`` with its control characters, but for tabs and ends of lines, as they are written in Python.

    >>> printable("a\\x1b[31mb") == "a" + chr(92) + "x1b[31mb", printable("å\\n")
    (True, 'å\\n')
    """
    if text.isprintable():
        return text
    shown = (c if c in "\t\n" or c.isprintable() or (c.isspace() and c > "\x20") else repr(c)[1:-1] for c in text)
    return "".join(shown)


def did_you_mean(word: str, known: list[str]) -> str:
    """``" Did you mean 'adam'?"`` where a known word is close to ``word``, else nothing.

    >>> did_you_mean("adm", ["adam", "sgd"])
    " Did you mean 'adam'?"
    >>> did_you_mean("xyz", ["adam", "sgd"])
    ''
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
