"""How long steps of a task take: of one run alone, of many in a stack, on one thread or on several."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.task.definition import Task
from momo_cli.training.data import EndlessBatches, generators_restored, move
from momo_cli.training.evaluation import Initial, precision, training_losses
from momo_cli.training.run.clock import Steps, step_times
from momo_cli.training.run.training_run import TrainingRun
from momo_cli.training.stack.loop import Seed, StackedRuns
from momo_cli.training.stack.models import CannotStack
from momo_cli.training.stack.optimizers import group_key

_STEPS = 6
_GPU_STEPS = 24  # of which the first ones are for compiling kernels and capturing the step
_LONG = 0.5  # seconds after which several steps are enough
_SEVERAL = 3
_TOO_LONG = 3  # times the steps on one thread, after which several threads are given up
_UNKNOWN = Initial({}, math.inf)  # nothing is evaluated, and no run diverges


class StepTimes:
    """Times of steps of a task, each measured once, when it is asked for first.

    Args:
        task: A task built for this, on no particular device; its model and data are used up.
        specs: The runs to come, whose optimizers are timed.
        settings: As for training.
        device: Where the runs will be trained.
    """

    def __init__(self, task: Task, specs: Sequence[RunSpec], settings: Settings, device: torch.device) -> None:
        self.device = device
        task.model.to(device).train()
        few = _STEPS if device.type == "cpu" else _GPU_STEPS
        self._settings = dataclasses.replace(settings, steps=few, epochs=None, objective=None, maximize=False)
        self._whole = task
        # So small a learning rate that no run leaves.
        self._specs = [dataclasses.replace(spec, lr=1e-9, seed=0) for spec in mixed(specs)]

    @functools.cached_property
    def task(self) -> Task:
        """The task with its first two batches, again and again."""
        with generators_restored(self._whole.train):
            two = list(itertools.islice(self._whole.train, 2))
        return dataclasses.replace(self._whole, train=two, val=None, metrics=None, steps=None, epochs=None)

    @functools.cached_property
    def gradient(self) -> float:
        """Seconds of a step of one run without its optimizer: less than :attr:`alone`, and soon known.

        Making torch's first optimizer takes it a second, which training in stacks does without. 0.0 where the user's
        code raises: training meets it again, and says so.
        """
        return self._gradient(None) or 0.0

    @functools.cached_property
    def operations(self) -> int:
        """Operations of a forward pass that the backward pass goes through."""
        with precision(self._settings, self.device):
            batch = move(next(iter(self.task.train)), self.device)
            loss = training_losses(self.task, self.task.model, batch).loss
        seen: set[Any] = set()
        waiting = [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [before for before, _ in node.next_functions]
        return len(seen)

    @functools.cached_property
    def alone(self) -> float:
        """Seconds of a step of one run trained alone, the mean over optimizers; 0.0 where the user's code raises."""
        one_of_each = list({group_key(spec): spec for spec in self._specs}.values())[:4]
        times = []
        for spec in one_of_each:
            try:
                times.append(self._least(TrainingRun(self.task, spec, self._settings, self.device, None, _UNKNOWN)))
            except Exception:
                return 0.0
        known = [seconds for seconds in times if seconds is not None]
        return sum(known) / len(known) if known else 0.0

    def knows_alone(self) -> bool:
        """Whether :attr:`alone` has been measured."""
        return "alone" in vars(self)

    def alone_at_least(self) -> float:
        """:attr:`alone` where it is known, else the time without the optimizer."""
        return self.alone if self.knows_alone() else self.gradient

    def stack(self, size: int, limit: float | None = None) -> float | None:
        """Seconds of a step of ``size`` runs together, for each run; None where ``limit`` seconds are too few to tell.

        Raises:
            CannotStack: The runs can't be stacked.
        """
        seeds = {0: Seed(self.task, self._settings, self.device, _UNKNOWN)}
        runs = StackedRuns(seeds, self._specs[:size], self._settings, self.device)
        seconds = self._least(runs, limit)
        return None if seconds is None else seconds / size

    def on_threads(self, threads: int, together: int, on_one: float) -> float:
        """Seconds of a step, for each run, on that many CPU threads; infinite where it is given up.

        Beside another busy process threads that wait for each other can take a hundred times as long as one.

        Args:
            threads: How many.
            together: Runs in a stack; 1 for a run alone, whose gradient is timed.
            on_one: What one thread takes.
        """
        limit = _TOO_LONG * _STEPS * on_one * together
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            if together == 1:
                gradient = self._gradient(limit)
                return on_one * gradient / self.gradient if gradient else math.inf
            return self.stack(together, limit) or math.inf
        except CannotStack:  # training meets it again, and goes on run by run
            return math.inf
        finally:
            torch.set_num_threads(before)

    def _gradient(self, limit: float | None) -> float | None:
        try:
            return self._least(_Gradients(self.task, self._settings, self.device), limit)
        except Exception:
            return 0.0

    def _least(self, trained: Steps, limit: float | None = None) -> float | None:
        """The least time of the later half of the steps: other processes only ever add to it."""

        def enough(times: list[float]) -> bool:
            spent, several = sum(times), len(times) >= _SEVERAL
            return (limit is not None and spent > limit) or (self.device.type == "cpu" and several and spent > _LONG)

        times = step_times(trained, self.device, enough)
        if limit is not None and sum(times) > limit and len(times) < _SEVERAL:
            return None
        return min(times[len(times) // 2 :], default=None)


class _Gradients:
    """Forward and backward passes of one run."""

    def __init__(self, task: Task, settings: Settings, device: torch.device) -> None:
        self.task, self.settings, self.device = task, settings, device
        self._left = settings.steps or 0
        self._batches = EndlessBatches(task.train)
        self._parameters = [p for p in task.model.parameters() if p.requires_grad]

    @property
    def done(self) -> bool:
        return self._left == 0

    def step(self) -> None:
        batch = move(self._batches.next(), self.device)
        with precision(self.settings, self.device):
            loss = training_losses(self.task, self.task.model, batch).loss
        torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self._left -= 1


def mixed(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs in an order in which any beginning holds every optimizer in about its share."""
    columns: dict[Any, list[RunSpec]] = {}
    for spec in specs:
        columns.setdefault(group_key(spec), []).append(spec)
    return [spec for row in itertools.zip_longest(*columns.values()) for spec in row if spec is not None]
