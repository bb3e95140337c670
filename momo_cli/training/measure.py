"""How many runs to train at once: found by timing a few steps, not by rule."""

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
from momo_cli.training.evaluation import precision, scalar_loss
from momo_cli.training.single import train_run
from momo_cli.training.stack import CannotStack, check_stack
from momo_cli.training.stacked_optimizers import can_stack, group_key
from momo_cli.training.together import train_together

_STEPS = 5
_SIZES = (8, 32, 64, 128, 256)
_WORTH = 1.1  # how much faster than separately a stack must be


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        together: Runs to train at once; 1 for one after another.
        seconds: Expected time of one step of one run, at that.
        line: What was chosen and why, for the user; empty where there was nothing to choose.
        threads: CPU threads for a stack in this process alone, and the time that a step of one run then takes.
    """

    together: int
    seconds: float
    line: str = ""
    threads: tuple[int, float] = (1, math.inf)


class _Same:
    """Gives the same task again and again, with a few batches and nothing to evaluate: for timing alone."""

    def __init__(self, task: Task) -> None:
        batches = list(itertools.islice(task.train, 2))
        self.task = dataclasses.replace(task, train=batches, val=None, metrics=None, steps=None, epochs=None)

    def build(self, seed: int, device: Any) -> Task:
        return self.task


def stackable(specs: Sequence[RunSpec], settings: Settings) -> bool:
    """Whether these optimizers and settings allow a stack at all."""
    return settings.amp != "fp16" and all(can_stack(spec) for spec in {group_key(s): s for s in specs}.values())


def separate_seconds(task: Task, specs: Sequence[RunSpec], settings: Settings, device: torch.device) -> float:
    """Time of one step of one run trained alone, the mean over the optimizers."""
    one_of_each = list({group_key(spec): spec for spec in specs}.values())[:4]
    times = [_time(train_run, task, [spec], settings, device) for spec in one_of_each]
    known = [t for t in times if t is not None]
    return sum(known) / len(known) if known else 0.0


def gradient_seconds(task: Task, settings: Settings, device: torch.device) -> float:
    """Time of a step of one run without its optimizer: less than :func:`separate_seconds`, and soon known.

    Making torch's first optimizer takes it a second, which training in stacks does without. 0.0 where the user's code raises.
    """
    model = task.model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    taken = []
    try:
        for batch in _Same(task).task.train * _STEPS:
            start = time.perf_counter()
            with precision(settings, device):
                loss = scalar_loss(task, model, move(batch, device))
            torch.autograd.grad(loss, parameters, allow_unused=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
    except Exception:  # training meets it again, and says so
        return 0.0
    return sorted(taken)[len(taken) // 2]


def stack_seconds(
    task: Task, specs: Sequence[RunSpec], settings: Settings, device: torch.device, limit: float = math.inf
) -> float | None:
    """Time of one step of ``specs`` together, or None where the user's code raises or it takes longer than ``limit`` in all."""
    return _time(_stacked, task, specs, settings, device, limit)


def choose(
    task: Task, specs: Sequence[RunSpec], settings: Settings, device: torch.device, floor: float, cores: int
) -> Measured:
    """Time stacks of growing size until they gain no more.

    Args:
        task: A task built for this, on no particular device; its model is used up.
        specs: The runs to come; stacks of them are timed with their own optimizers.
        settings: As for training.
        device: Where the runs will be trained.
        floor: From :func:`gradient_seconds`. Where a stack is faster than that, nothing else is timed.
        cores: CPU threads that this process may use.
    """
    separate = functools.cache(lambda: separate_seconds(task, specs, settings, device))
    most = len(specs)
    if most < 2 or not stackable(specs, settings):
        return Measured(1, separate())
    try:
        task.model.to(device)
        check_stack(task, move(next(iter(task.train)), device), settings)
    except CannotStack as reason:
        return Measured(1, separate(), f"Runs are trained one after another: this task can't be trained together ({reason}).")
    best = Measured(1, math.inf)
    sizes = [size for size in _SIZES if size < most] + [min(most, _SIZES[-1])]
    mixed = _spread(specs)
    for size in sizes:
        try:
            seconds = stack_seconds(task, mixed[:size], settings, device)
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
    if cores > 1 and device.type == "cpu" and torch.get_num_threads() == 1:
        torch.set_num_threads(cores)
        seconds = stack_seconds(task, mixed[: best.together], settings, device, 2 * _STEPS * best.together * best.seconds)
        torch.set_num_threads(1)
        if seconds is not None:
            best = dataclasses.replace(best, threads=(cores, seconds / best.together))
    return dataclasses.replace(best, line=f"Up to {best.together} runs are trained together: {gain}× faster than one after another.")


def _stacked(source: Any, specs: Sequence[RunSpec], settings: Settings, device: torch.device, watch: Any) -> None:
    for _ in train_together(source, specs, settings, device, watch):
        pass


def _time(
    train: Any, task: Task, specs: Sequence[RunSpec], settings: Settings, device: torch.device, limit: float = math.inf
) -> float | None:
    """Median time of a step, the first aside; None where the user's code raises or it takes longer than ``limit`` seconds."""
    short = dataclasses.replace(settings, steps=_STEPS, epochs=None, objective=None, maximize=False)
    specs = [dataclasses.replace(spec, lr=1e-9, seed=0) for spec in specs]  # so small that no run leaves
    ends: list[float] = []

    def watch(spec: RunSpec, step: int, steps: int, loss: float) -> bool:
        if spec is specs[0]:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ends.append(time.perf_counter())
        return ends[-1] - ends[0] > limit

    train(_Same(task), specs[0] if train is train_run else specs, short, device, watch)
    taken = sorted(b - a for a, b in zip(ends, ends[1:]))
    return taken[len(taken) // 2] if taken else None


def _spread(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs in an order in which any beginning holds every optimizer in about its share."""
    columns: dict[Any, list[RunSpec]] = {}
    for spec in specs:
        columns.setdefault(group_key(spec), []).append(spec)
    return [spec for row in itertools.zip_longest(*columns.values()) for spec in row if spec is not None]
