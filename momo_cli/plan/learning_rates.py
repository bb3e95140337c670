"""The grammar of ``--lrs``: ``0.01,0.1,1``, ``1e-4:1e1:11``, ``momo=0.1,1,10``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from momo_cli.errors import UserError, did_you_mean
from momo_cli.plan.optimizers import OptimizerSpec

_HELP = "Write 0.01,0.1,1 or LOW:HIGH:COUNT (log-spaced), for one optimizer NAME=…."


def parse_lrs(texts: Iterable[str], optimizers: list[OptimizerSpec]) -> dict[str, list[float]]:
    """The learning rates of each optimizer, ascending, by label.

    A text with ``NAME=`` in front is for that optimizer alone and comes before one for all; optimizers
    that none speaks of get :func:`default_lrs`.

    >>> parse_lrs(["0.1,1", "adam=1e-4:1e-2:3"], [OptimizerSpec.parse("momo"), OptimizerSpec.parse("adam")])
    {'momo': [0.1, 1.0], 'adam': [0.0001, 0.001, 0.01]}

    Raises:
        UserError: A value is no positive number, or an optimizer isn't among those to run.
    """
    labels = [spec.label for spec in optimizers]
    for_all: list[float] = []
    for_one: dict[str, list[float]] = {}
    for text in texts:
        label, values = _owner(text, labels)
        if label is None:
            for_all += parse_values(values)
        else:
            for_one[label] = for_one.get(label, []) + parse_values(values)
    return {spec.label: sorted(set(for_one.get(spec.label) or for_all or default_lrs(spec))) for spec in optimizers}


def parse_values(text: str) -> list[float]:
    """The values of one list or range, rounded to 12 digits so that equal ones are found equal again.

    >>> parse_values("1e-2:1:5")
    [0.01, 0.0316227766017, 0.1, 0.316227766017, 1.0]
    """
    values: list[float] = []
    for part in (p.strip() for p in text.split(",")):
        pieces = part.split(":")
        if len(pieces) == 3:
            low, high = _number(pieces[0], text), _number(pieces[1], text)
            if not re.fullmatch(r"\s*0*[1-9][0-9]{0,4}\s*", pieces[2]):
                raise UserError(f"--lrs {text}: {pieces[2]!r} is not a count of values from 1 to 99999.\n{_HELP}")
            count = int(pieces[2])
            if high < low:
                raise UserError(
                    f"--lrs {text}: the range ends below its start.\nWrite {pieces[1]}:{pieces[0]}:{pieces[2]}."
                )
            values += log_spaced(low, high, count)
        elif len(pieces) == 1:
            values.append(_number(part, text))
        else:
            raise UserError(f"--lrs {text}: {part!r} is neither a number nor LOW:HIGH:COUNT.\n{_HELP}")
    return values


def parse_range(text: str, flag: str) -> tuple[float, float]:
    """``LOW:HIGH`` of ``--lr-range`` or ``--tune``; ``flag`` is what stands before it, for the message."""
    pieces = text.split(":")
    if len(pieces) != 2:
        raise UserError(f"{flag}{text}: write LOW:HIGH, for instance 1e-4:1.")
    low, high = (_number(piece, text, flag.strip()) for piece in pieces)
    if not low < high:
        raise UserError(f"{flag}{text}: LOW must lie below HIGH.")
    return low, high


def default_lrs(optimizer: OptimizerSpec) -> list[float]:
    """Nine values, two per decade, centred on the optimizer's own default: four decades for every optimizer.

    >>> default_lrs(OptimizerSpec.parse("adam"))[::4]
    [1e-05, 0.001, 0.1]
    """
    return log_spaced(optimizer.default_lr / 100, optimizer.default_lr * 100, 9)


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """``count`` values from ``low`` to ``high``, equally spaced in log10, ends included."""
    if count == 1:
        return [rounded(low)]
    a, b = math.log10(low), math.log10(high)
    return [rounded(10 ** (a + (b - a) * i / (count - 1))) for i in range(count)]


def rounded(lr: float) -> float:
    """``lr`` to 12 significant digits: 0.1 however it was computed."""
    return float(f"{lr:.12g}")


def _owner(text: str, labels: list[str]) -> tuple[str | None, str]:
    # The label may itself hold '=' (in its brackets), so the values are what follows the last one.
    label, equals, values = text.rpartition("=")
    if not equals:
        return None, text
    label = label.strip()
    if label not in labels:
        raise UserError(
            f"--lrs {text}: {label!r} is not among the optimizers to run.{did_you_mean(label, labels)}\n"
            f"They are {', '.join(labels)}."
        )
    return label, values


def _number(text: str, whole: str, flag: str = "--lrs") -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag} {whole}: {text.strip()!r} is not a number.\n{_HELP}") from None
    if not 0 < value < math.inf:
        raise UserError(f"{flag} {whole}: {text.strip()} is not a positive number.\n{_HELP}")
    return rounded(value)
