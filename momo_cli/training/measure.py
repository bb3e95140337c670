"""How many runs to train at once, and on how many threads: found by timing a few steps, not by rule."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.task.definition import Task
from momo_cli.training.data import move
from momo_cli.training.stack import CannotStack, check_stack
from momo_cli.training.stacked_optimizers import can_stack, group_key
from momo_cli.training.timing import gradient_seconds, on_threads, separate_seconds, stack_seconds

_SIZES = (8, 32, 64, 128, 256)
_WORTH = 1.1  # how much faster than separately a stack must be


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        together: Runs to train at once; 1 for one after another.
        seconds: Expected time of one step of one run, at that.
        line: What was chosen and why, for the user; empty where there was nothing to choose.
    """

    together: int
    seconds: float
    line: str = ""


def stackable(specs: Sequence[RunSpec], settings: Settings) -> bool:
    """Whether these optimizers and settings allow a stack at all."""
    return settings.amp != "fp16" and all(can_stack(spec) for spec in {group_key(s): s for s in specs}.values())


def why_not_together(task: Task, settings: Settings, device: torch.device) -> str:
    """A line for the user where a trial step says that the task can't be trained together; empty where it can.

    Raises:
        UserError: The task's loss is wrong.
    """
    task.model.to(device)
    try:
        batch = move(next(iter(task.train)), device)
    except Exception:  # training meets it again, and says whose it is
        return ""
    try:
        check_stack(task, batch, settings)
    except CannotStack as reason:
        return f"Runs are trained one after another: this task can't be trained together ({reason})."
    return ""


def choose(
    task: Task,
    specs: Sequence[RunSpec],
    settings: Settings,
    device: torch.device,
    floor: float,
    budget: float = math.inf,
) -> Measured:
    """Time stacks of growing size until they gain no more.

    Args:
        task: A task built for this, on no particular device; its model is used up.
        specs: The runs to come; stacks of them are timed with their own optimizers.
        settings: As for training.
        device: Where the runs will be trained.
        floor: From :func:`gradient_seconds`. Where a stack is faster than that, nothing else is timed.
        budget: Seconds that timing stacks may take, about.
    """
    separate = functools.cache(lambda: separate_seconds(task, specs, settings, device))
    most = len(specs)
    if most < 2 or not stackable(specs, settings):
        return Measured(1, separate())
    refusal = why_not_together(task, settings, device)
    if refusal:
        return Measured(1, separate(), refusal)
    best = Measured(1, math.inf)
    sizes = [size for size in _SIZES if size < most] + [min(most, _SIZES[-1])]
    mixed = _spread(specs)
    end = time.perf_counter() + budget
    for size in sizes:
        try:
            seconds = stack_seconds(task, mixed[:size], settings, device, end - time.perf_counter())
        except (CannotStack, torch.OutOfMemoryError):
            break
        if seconds is None or seconds / size > best.seconds:
            break
        best = Measured(size, seconds / size)
        if best.seconds > 1.5 * floor and best.seconds > 1.5 * separate():
            break
    if best.seconds * _WORTH <= floor:
        gain = f"at least {floor / best.seconds:.1f}"
    elif best.seconds * _WORTH <= separate():
        gain = f"{separate() / best.seconds:.1f}"
    else:
        return Measured(1, separate(), "Runs are trained one after another: training them together is no faster here.")
    return dataclasses.replace(
        best, line=f"Up to {best.together} runs are trained together: {gain}× faster than one after another."
    )


def on_several_threads(
    task: Task,
    specs: Sequence[RunSpec],
    settings: Settings,
    device: torch.device,
    floor: float,
    chosen: Measured,
    threads: int,
) -> float:
    """Expected time of one step of one run as ``chosen``, on so many CPU threads; infinite where that is given up."""
    if chosen.together == 1:
        gradient = on_threads(threads, lambda limit: gradient_seconds(task, settings, device, limit), floor)
        return math.inf if not gradient else chosen.seconds * gradient / floor
    size = min(chosen.together, len(specs))
    first = _spread(specs)[:size]
    try:
        seconds = on_threads(
            threads, lambda limit: stack_seconds(task, first, settings, device, limit), size * chosen.seconds
        )
    except CannotStack:  # training meets it again, and goes on run by run
        seconds = None
    return math.inf if seconds is None else seconds / size


def _spread(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs in an order in which any beginning holds every optimizer in about its share."""
    columns: dict[Any, list[RunSpec]] = {}
    for spec in specs:
        columns.setdefault(group_key(spec), []).append(spec)
    return [spec for row in itertools.zip_longest(*columns.values()) for spec in row if spec is not None]
