"""Numbers as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

#: Stands where there is no figure.
NOTHING = "–"


def _short(text: str) -> str:
    """``1e-05`` as ``1e-5``."""
    return re.sub(r"e([+-])0*(\d)", lambda m: "e" + m[1].replace("+", "") + m[2], text)


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits.

    >>> number(0.012345), number(1e-5), number(1234.5), number(123456.0), number(None), number(2.0)
    ('0.0123', '1e-5', '1230', '1.23e5', '–', '2')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text and abs(float(text)) < 1e5 else _short(text)


def lr(value: float | None, grid: Iterable[float] = ()) -> str:
    """A learning rate to at most 3 significant digits; to more where those name another one of ``grid``, too.

    >>> lr(0.0316227766017, [0.01, 0.0316227766017]), lr(1e-05), lr(0.12345, [0.12345, 0.12349]), lr(1000.0)
    ('0.0316', '1e-5', '0.12345', '1000')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    others = [other for other in grid if other != value]
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if all(f"{other:.{digits}g}" != text for other in others):
            break
    return f"{float(text):.0f}" if "e+" in text and abs(float(text)) < 1e5 else _short(text)


def decimals(best: float | None, initial: float | None) -> int:
    """How many decimals tell final values apart: a five-hundredth of the way from the best to the initial value.

    >>> decimals(0.09, 2.3), decimals(95.0, 10.0), decimals(1.0, 1.0)
    (3, 1, 3)
    """
    if best is None or initial is None or best == initial:
        return 3
    return min(max(math.ceil(-math.log10(abs(initial - best) / 500)), 0), 6)


def fixed(value: float | None, places: int) -> str:
    """A number to so many decimals; in powers of ten where that would hide it.

    >>> fixed(0.0912, 3), fixed(0.00012, 3), fixed(1234567.0, 1), fixed(0.0, 2), fixed(None, 2)
    ('0.091', '1.2e-4', '1.2e6', '0.00', '–')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) >= 1e6 or 0 < abs(value) < 10.0 ** (1 - places) / 2:
        return _short(f"{value:.1e}")
    return f"{value:.{places}f}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval's ends; nothing where it has none.

    >>> interval(2.41, 4.0), interval(2.4, None), interval(None, None)
    ('2.41–4', 'at least 2.4', '')
    """
    if low is None and high is None:
        return ""
    if high is None:
        return f"at least {number(low, digits)}"
    if low is None:
        return f"at most {number(high, digits)}"
    return f"{number(low, digits)}–{number(high, digits)}"


def names(items: list[str], last: str = "and") -> str:
    """Names in a sentence.

    >>> names(["a"]), names(["a", "b"]), names(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def count(n: int, what: str) -> str:
    """
    >>> count(1, "run"), count(2, "run")
    ('1 run', '2 runs')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
