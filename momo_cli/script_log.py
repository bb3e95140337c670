"""``momo_cli.log``: how a training script tells momo its losses. Imports nothing that takes time."""

from __future__ import annotations

import json
import os
from typing import SupportsFloat

LOG_VARIABLE = "MOMO_LOG"
"""The environment variable that names the file of the run's reports, one JSON object a line."""

_opened: dict[str, int] = {}


def log(
    *,
    step: SupportsFloat | None = None,
    loss: SupportsFloat | None = None,
    val_loss: SupportsFloat | None = None,
    **values: SupportsFloat,
) -> None:
    """Report numbers of a training script that ``momo`` runs; does nothing in a script run by hand.

    Any number of processes of one run may call it; of a number that several report, the lowest ``RANK`` counts.

    Args:
        step: The training step (or epoch) that the numbers belong to; without it, reports are counted.
        loss: The training loss at ``step``.
        val_loss: The validation loss; the last one reported counts.
        values: Further numbers by name, for ``--objective NAME``; the last one of each name counts.

    Raises:
        TypeError: A value is no number.

    Example:
        >>> import momo_cli
        >>> for step in range(3):
        ...     momo_cli.log(step=step, loss=1 / (step + 1))
        >>> momo_cli.log(val_loss=0.5, accuracy=0.9)
    """
    path = os.environ.get(LOG_VARIABLE)
    if path is None:
        return
    given = {"step": step, "loss": loss, "val_loss": val_loss, **values}
    record: dict[str, object] = {name: _number(name, value) for name, value in given.items() if value is not None}
    if "RANK" in os.environ:
        record = {"rank": os.environ["RANK"], **record}
    if path not in _opened:
        _opened[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    # One write to a file opened for appending: lines of several processes don't mix.
    os.write(_opened[path], f"{json.dumps(record)}\n".encode())


def _number(name: str, value: SupportsFloat) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"momo_cli.log({name}={value!r}): it must be a number") from None
