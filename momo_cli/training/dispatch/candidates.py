"""The candidates, ways to share the runs out, and the choice among them: what the flags allow, timed, the least."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Sequence

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.processes import can_copy, preload_compiler
from momo_cli.task.definition import Builds, Task
from momo_cli.training import cpu
from momo_cli.training.checkpoints import NOWHERE, Checkpoints
from momo_cli.training.data import move
from momo_cli.training.dispatch.timing import StepTimes
from momo_cli.training.stack.checks import check_stack
from momo_cli.training.stack.models import CannotStack
from momo_cli.training.stack.optimizers import can_stack, group_key, is_vectorized

_SIZES = (8, 32, 64, 128, 256)
_WORTH_STACKING = 1.1  # how much faster than alone a stack must be
_WORTH_THREADS = 1.1  # how much faster than on one thread several must be
_COMPUTING = 2e-4  # seconds of a step on a CPU for each operation, above which no stack was faster
_NEW_PROCESS, _COPIED = 4.0, 1.0  # seconds until a process has torch and has built a task
_LITTLE, _SHARE = 1.0, 0.1  # seconds, or this share of the work, that timing may take
_TRIFLE = 1.0  # seconds of work below which nothing is worth timing


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the command line allows.

    Attributes:
        devices: Where to train; several get a process each.
        together: ``--together``: ``auto``, or the most runs at once (1 for ``off``).
        jobs: ``--jobs``: processes, None for what the machine can feed.
        timeout: ``--timeout``: seconds of a run, of a stack's time its share; None for no end.
        checkpoints: Those of runs under way.
    """

    devices: Sequence[torch.device]
    together: int | str = "auto"
    jobs: int | None = None
    timeout: float | None = None
    checkpoints: Checkpoints = NOWHERE


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to train all runs.

    Attributes:
        together: The most runs in one stack; 1 for one after another.
        processes: Processes that train; 1 for this one alone.
        threads: CPU threads of each.
        step: Expected seconds of a step of one run.
        seconds: Expected seconds of all runs, worse for what must be worth its trouble; 0.0 where nothing was timed.
    """

    together: int = 1
    processes: int = 1
    threads: int = 1
    step: float = 0.0
    seconds: float = 0.0


class Work:
    """The runs to come, as far as the choice depends on them.

    Args:
        source: Builds their task.
        specs: The runs.
        settings: As for training.
        resources: What the command line allows.
        batch: How many runs come at a time, where batches wait for one another; None where all come at once.
    """

    def __init__(
        self,
        source: Builds,
        specs: Sequence[RunSpec],
        settings: Settings,
        resources: Resources,
        batch: int | None = None,
    ) -> None:
        if batch is not None:  # more will come, of the kind that came
            specs = [specs[i % len(specs)] for i in range(batch)]
        self.source, self.specs, self.settings, self.resources = source, specs, settings, resources
        self.device = resources.devices[0]
        self._batch = batch

    @functools.cached_property
    def task(self) -> Task:
        """The task that is timed."""
        return self.source.build(self.specs[0].seed, self.device)

    @functools.cached_property
    def times(self) -> StepTimes:
        """How long its steps take."""
        return StepTimes(self.task, self.specs, self.settings, self.device)

    @property
    def steps(self) -> int:
        """Steps of all runs."""
        return self.task.count_steps(self.settings.steps, self.settings.epochs) * len(self.specs)

    def allowed(self) -> list[Candidate]:
        """Every candidate that the flags, the optimizers and the machine allow; the plainest first."""
        runs, flags, on_cpu = len(self.specs), self.resources, self.device.type == "cpu"
        sizes = [1]
        if flags.together != 1 and stackable(self.specs, self.settings):
            auto = [1, *(size for size in _SIZES if size < runs), min(runs, _SIZES[-1])]
            sizes = [flags.together] if isinstance(flags.together, int) else auto
        most = min(runs, flags.jobs or (cpu.cores() if on_cpu else len(flags.devices)))
        processes = [most] if flags.jobs is not None else [1] if self._batch is not None else [1, most]
        # With --together the same command gives the same bits again, so nothing that changes them is chosen by a clock.
        free = flags.together == "auto" and on_cpu and not cpu.threads_are_given()
        return [
            Candidate(size, count, threads)
            for size in dict.fromkeys(sizes)
            for count in dict.fromkeys(processes)
            for threads in dict.fromkeys([1, cpu.cores()] if free and count == 1 else [1])
        ]

    def computes(self) -> bool:
        """Whether steps of one run keep the device busy, so that a stack, which saves launches, would gain nothing."""
        return self.device.type == "cpu" and self.times.gradient > _COMPUTING * self.times.operations

    @functools.cached_property
    def vectorized(self) -> bool:
        """Whether a stack steps every optimizer without making it."""
        return all(map(is_vectorized, {group_key(spec): spec for spec in self.specs}.values()))

    def needs_compiler(self, candidate: Candidate) -> bool:
        """Whether it makes one of torch's optimizers: the first takes seconds, in which torch loads its compiler."""
        return candidate.together == 1 or not self.vectorized

    def spares_compiler(self) -> bool:
        """Whether a stack, even of one run, spares this process torch's compiler."""
        return self.vectorized and "torch._dynamo" not in sys.modules

    def why_no_stack(self) -> str:
        """A line for the user where a trial step says that the task can't be trained together; empty where it can.

        Raises:
            UserError: The task's loss is wrong.
        """
        try:
            batch = move(next(iter(self.times.task.train)), self.device)
        except Exception:  # training meets it again, and says whose it is
            return ""
        try:
            check_stack(self.task, batch, self.settings)
        except CannotStack as reason:
            return f"Runs are trained one after another: this task can't be trained together ({reason})."
        return ""


def choose(work: Work) -> tuple[Candidate, list[str]]:
    """The candidate of the least expected time, and lines on it for the user.

    Raises:
        UserError: The task's loss is wrong.
    """
    allowed = work.allowed()
    lines: list[str] = []
    if allowed[0].together > 1:
        allowed, lines = _without_refused(allowed, work)
    may_stack = allowed[0].together < allowed[-1].together
    # One run, too, goes into a stack where that saves making an optimizer.
    one = work.device.type == "cpu" and work.resources.together == "auto" and stackable(work.specs, work.settings)
    if len(allowed) == 1 and not (one and work.spares_compiler()):
        return allowed[0], lines
    if work.times.gradient * work.steps < _TRIFLE:
        stack = (may_stack or one) and work.spares_compiler() and not work.why_no_stack()
        return (dataclasses.replace(allowed[0], together=max(2, allowed[-1].together)) if stack else allowed[0]), lines
    if may_stack and work.computes():
        allowed = [candidate for candidate in allowed if candidate.together == 1]
    elif may_stack:
        allowed, lines = _without_refused(allowed, work)
        may_stack = not lines
    if all(map(work.needs_compiler, allowed)):
        preload_compiler()
    best = min(_timed(allowed, work), key=lambda candidate: candidate.seconds)
    if may_stack and best.together == 1:
        lines.append("Runs are trained one after another: training them together is no faster here.")
    elif may_stack:
        gain = work.times.alone_at_least() / best.step
        least = "" if work.times.knows_alone() else "at least "
        lines.append(
            f"Up to {best.together} runs are trained together: {least}{gain:.1f}× faster than one after another."
        )
    if best.processes > 1 and work.resources.jobs is None:
        lines.append(f"{best.processes} processes.")
    return best, lines


def _without_refused(allowed: list[Candidate], work: Work) -> tuple[list[Candidate], list[str]]:
    """The candidates without stacks, and why, where a trial step shows that the task can't be trained together."""
    refusal = work.why_no_stack()
    if not refusal:
        return allowed, []
    return list(dict.fromkeys(dataclasses.replace(candidate, together=1) for candidate in allowed)), [refusal]


def stackable(specs: Sequence[RunSpec], settings: Settings) -> bool:
    """Whether these optimizers and settings allow a stack at all."""
    return settings.amp != "fp16" and all(can_stack(spec) for spec in {group_key(s): s for s in specs}.values())


def _timed(allowed: Sequence[Candidate], work: Work) -> list[Candidate]:
    """The candidates that were worth timing, with their expected seconds."""
    times = work.times
    of_size = _time_sizes(list(dict.fromkeys(candidate.together for candidate in allowed)), work)
    best = min(of_size, key=of_size.__getitem__)
    a_process = _COPIED if work.device.type == "cpu" and can_copy() else _NEW_PROCESS
    timed: list[Candidate] = []
    for candidate in sorted(allowed, key=lambda candidate: candidate.threads):
        if candidate.together not in of_size:
            continue
        step, worth = of_size[candidate.together], 1.0
        if candidate.threads > 1:
            worth = _WORTH_THREADS
            hoped = worth * step * work.steps / candidate.threads
            if candidate.together != best or hoped > min(other.seconds for other in timed):
                continue
            step = times.on_threads(candidate.threads, best, step)
        start = 0.0 if candidate.processes == 1 else a_process
        seconds = worth * step * work.steps / candidate.processes + start
        timed.append(dataclasses.replace(candidate, step=step, seconds=seconds))
    return timed


def _time_sizes(sizes: Sequence[int], work: Work) -> dict[int, float]:
    """Seconds of a step of one run: in stacks of growing size, until they gain no more, or else alone."""
    floor = work.times.gradient
    if len(sizes) == 1:
        return {sizes[0]: floor}
    found: dict[int, float] = {}
    left = max(_LITTLE, _SHARE * floor * work.steps)
    for size in sizes[1:]:
        begin = time.perf_counter()
        try:
            step = work.times.stack(size, left)
        except (CannotStack, torch.OutOfMemoryError):
            break
        left -= time.perf_counter() - begin
        if step is None or step > min(found.values(), default=math.inf):
            break
        found[size] = step
        # The first comparison spares the second, for which torch's first optimizer may have to be made.
        if step > 2 * floor and step > 1.5 * work.times.alone:
            break
    # A run alone takes longer than its gradient: a stack that is faster than that needs no comparison with optimizers.
    least = min(found.values(), default=math.inf) * _WORTH_STACKING
    return found if least <= floor or least <= work.times.alone else {1: work.times.alone}
