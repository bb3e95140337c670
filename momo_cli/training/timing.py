"""How long a step takes: of one run alone, of many in a stack, on one thread or on several."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.task.definition import Task
from momo_cli.training.data import move
from momo_cli.training.evaluation import precision, scalar_loss
from momo_cli.training.single import train_run
from momo_cli.training.stacked_optimizers import group_key
from momo_cli.training.together import train_together

_STEPS = 6
_GPU_STEPS = 24  # of which the first ones are for compiling kernels and capturing the step
_LONG = 0.5  # seconds after which three steps are enough
_TOO_LONG = 3  # times the steps on one thread, after which several threads are given up


class _Enough(BaseException):
    """Ends the training that is timed; no ``except Exception`` on the way takes it for the user's."""


class _Clock:
    """A few batches, again and again, and the times at which training asked for them."""

    def __init__(self, batches: list[Any], device: torch.device, limit: float | None) -> None:
        self.batches, self.device, self.limit = batches, device, limit
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if torch.is_grad_enabled():  # else the loss before the first step is being measured
                self._tick()
            yield batch

    def _tick(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.asked.append(time.perf_counter())
        taken = self.asked[-1] - self.asked[0]
        if (self.limit is not None and taken > self.limit) or (
            self.device.type == "cpu" and len(self.asked) > 3 and taken > _LONG
        ):
            raise _Enough

    @property
    def seconds(self) -> float | None:
        """The least time of the later half of the steps: other processes only ever add to it. None before the second step."""
        taken = [b - a for a, b in zip(self.asked, self.asked[1:])]
        return min(taken[len(taken) // 2 :], default=None)


class _Same:
    """Gives the same task again and again, with a few batches and nothing to evaluate."""

    def __init__(self, task: Task, clock: _Clock) -> None:
        self.task = dataclasses.replace(task, train=clock, val=None, metrics=None, steps=None, epochs=None)

    def build(self, seed: int, device: Any) -> Task:
        """The task, whatever the seed."""
        return self.task


def separate_seconds(task: Task, specs: Sequence[RunSpec], settings: Settings, device: torch.device) -> float:
    """Time of one step of one run trained alone, the mean over the optimizers; 0.0 where the user's code raises at once."""
    one_of_each = list({group_key(spec): spec for spec in specs}.values())[:4]

    def alone(source: Any, specs: Sequence[RunSpec], *how: Any) -> None:
        train_run(source, specs[0], *how)

    times = [_timed(alone, task, [spec], settings, device) for spec in one_of_each]
    known = [t for t in times if t is not None]
    return sum(known) / len(known) if known else 0.0


def stack_seconds(
    task: Task, specs: Sequence[RunSpec], settings: Settings, device: torch.device, limit: float | None = None
) -> float | None:
    """Time of one step of ``specs`` together, or None where it takes longer than ``limit`` seconds in all.

    Raises:
        CannotStack: As :func:`momo_cli.training.together.train_together`.
    """

    def together(*what: Any) -> None:
        for _ in train_together(*what):
            pass

    return _timed(together, task, specs, settings, device, limit)


def gradient_seconds(task: Task, settings: Settings, device: torch.device, limit: float | None = None) -> float:
    """Time of a step of one run without its optimizer: less than :func:`separate_seconds`, and soon known.

    Making torch's first optimizer takes it a second, which training in stacks does without. 0.0 where the user's code
    raises, infinite where it takes longer than ``limit`` seconds in all.
    """
    model = task.model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        clock = _Clock(list(itertools.islice(task.train, 2)), device, limit)
        if not clock.batches:  # training says so
            return 0.0
        for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(clock)), 2 * _STEPS):
            with precision(settings, device):
                loss = scalar_loss(task, model, move(batch, device))
            torch.autograd.grad(loss, parameters, allow_unused=True)
    except _Enough:
        if limit is not None and len(clock.asked) <= 3:
            return float("inf")
    except Exception:  # training meets it again, and says so
        return 0.0
    return clock.seconds or 0.0


def on_threads(threads: int, seconds: Callable[[float], float | None], on_one: float) -> float | None:
    """What ``seconds(limit)`` measures on that many CPU threads; None where it is given up.

    Beside another busy process threads that wait for each other can take a hundred times as long as one.

    Args:
        threads: How many.
        seconds: Measures a step, for at most the seconds that it is given.
        on_one: What it measures on one thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return seconds(_TOO_LONG * _STEPS * on_one)
    finally:
        torch.set_num_threads(before)


def _timed(
    train: Callable[..., Any],
    task: Task,
    specs: Sequence[RunSpec],
    settings: Settings,
    device: torch.device,
    limit: float | None = None,
) -> float | None:
    """Time of a step of ``train``; None where it takes longer than ``limit`` seconds, or asks for less than two batches."""
    steps = _STEPS if device.type == "cpu" else _GPU_STEPS
    short = dataclasses.replace(settings, steps=steps, epochs=None, objective=None, maximize=False)
    specs = [dataclasses.replace(spec, lr=1e-9, seed=0) for spec in specs]  # so small that no run leaves
    clock = _Clock(list(itertools.islice(task.train, 2)), device, limit)
    try:
        train(_Same(task, clock), specs, short, device)
    except _Enough:
        if len(clock.asked) <= 3:
            return None
    return clock.seconds
