"""The record of a run: what its steps reported, whether it goes on, and the result that it comes to.

A run has one record whether it trains alone or as a row of a stack; the :class:`Reader` fills it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.runs import Run
from momo_cli.training.evaluation import Evaluation, Initial
from momo_cli.training.run.history import History
from momo_cli.training.run.step_sizes import StepSizes

LOSS, CAPPED, STEP_SIZE, CAP, ADAPTIVE_TERM = range(5)
"""Figures in a step's report, in order."""

Watch = Callable[[RunSpec, int, int, float], bool]
"""``watch(spec, step, steps, loss)``: told of a run's progress; True stops the run as pruned."""


class RunRecord:
    """What is known of one run so far.

    Args:
        spec: The run.
        steps: Steps that it is to take.
        objective: Name of its objective.
        initial: What was measured before its first step.

    Attributes:
        history: Its losses.
        step_sizes: Its step sizes, for Momo's methods.
        seconds: Time spent on it.
        stopped: Why it stopped before its last step; None where it goes on or has taken all.
    """

    def __init__(self, spec: RunSpec, steps: int, objective: str, initial: Initial) -> None:
        self.spec, self.objective, self.initial = spec, objective, initial
        self.history, self.step_sizes = History(steps, initial.loss), StepSizes(steps)
        self.seconds = 0.0
        self.stopped: Literal["diverged", "pruned"] | None = None

    def add(self, reports: Sequence[Sequence[float]], watch: Watch | None) -> None:
        """Take the figures of the next steps, and tell ``watch`` where the curve has a new point."""
        history = self.history
        points = len(history.curve)
        for report in reports:
            if len(report) > 1 and not math.isnan(report[CAP]):
                self.step_sizes.add(len(history.losses) + 1, report[CAPPED], *report[STEP_SIZE:])
            if history.add(report[LOSS]):
                self.stopped = "diverged"
                return
        if watch is not None and len(history.curve) > points:
            step, loss = history.curve[-1]
            if watch(self.spec, int(step), history.steps, loss):
                self.stopped = "pruned"

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`load_state` needs, in plain values and tensors."""
        return {
            "history": dict(vars(self.history)),
            "step_sizes": dict(vars(self.step_sizes)),
            "seconds": self.seconds,
            "stopped": self.stopped,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        vars(self.history).update(state["history"])
        vars(self.step_sizes).update(state["step_sizes"])
        self.seconds, self.stopped = state["seconds"], state["stopped"]

    def result(self, after: Evaluation | None = None) -> Run:
        """The run as it ended.

        Args:
            after: Its evaluation after its last step; None for one that has stopped.

        Raises:
            UserError: The task has no such objective.
        """
        value = None if after is None else after.of(self.objective, self.history.train_loss)
        finite = after is not None and all(math.isfinite(v) for v in (value, after.val_loss) if v is not None)
        ended = self.stopped or ("ok" if finite else "diverged")
        return self.spec.result(
            status=ended,
            objective=value if ended == "ok" else None,
            initial=self.initial.of.get(self.objective),
            initials=self.initial.of,
            train_loss=self.history.train_loss,
            val_loss=None if after is None else after.val_loss,
            metrics={} if after is None else after.metrics,
            steps=len(self.history.losses),
            seconds=self.seconds,
            capped=self.step_sizes.capped,
            curve=self.history.curve,
            step_sizes=self.step_sizes.trace,
        )


class Reader:
    """Reads the reports of steps into the records of the runs that took them.

    On a GPU reading waits for the device. There several steps are read at a time, and a run stops a few steps later.

    Args:
        records: Of the runs, in the order of the reports' columns.
        device: Where they are trained.
        watch: Told of each run's progress at about every 20th of it; True stops that run.

    Attributes:
        taken: Steps taken so far.
        all_read: Whether the reports of all of them have been read.
    """

    def __init__(self, records: Sequence[RunRecord], device: torch.device, watch: Watch | None) -> None:
        self.records, self.watch, self.taken = records, watch, 0
        self._every = reading_interval(device)
        self._unread: list[torch.Tensor] = []

    @property
    def all_read(self) -> bool:
        return not self._unread

    def add(self, report: torch.Tensor) -> None:
        """Take the report of a step, ``[figures, runs]``."""
        self._unread.append(report)
        self.taken += 1
        if len(self._unread) < self._every and self.taken < self.records[0].history.steps:
            return
        reports = [report.tolist()] if len(self._unread) == 1 else torch.stack(self._unread).tolist()
        self._unread.clear()
        for i, record in enumerate(self.records):
            if record.stopped is None:
                record.add([[figure[i] for figure in report] for report in reports], self.watch)


def reading_interval(device: torch.device) -> int:
    """Steps after which reports are read."""
    return 1 if device.type == "cpu" else 10


class Stopwatch:
    """Adds the time that passes to the runs that it passes for, in equal shares."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew: what passed since the last share is nobody's."""
        self._since = time.perf_counter()

    @property
    def passed(self) -> float:
        """Seconds since the start, or since the last share."""
        return time.perf_counter() - self._since

    def share(self, records: Sequence[RunRecord]) -> None:
        """Add what has passed to these records."""
        passed = self.passed
        for record in records:
            record.seconds += passed / len(records)
        self.start()
