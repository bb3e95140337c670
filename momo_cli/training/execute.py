"""Who trains what, where: how many runs at once and in how many processes is measured; each run is given as it ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.task.definition import Task
from momo_cli.task.loading import TaskSource
from momo_cli.training import cpu
from momo_cli.training.measure import Measured, choose, on_several_threads, stackable, why_not_together
from momo_cli.training.single import Watch
from momo_cli.training.timing import gradient_seconds
from momo_cli.training.unit import train_unit
from momo_cli.training.workers import Workers

_WORKER_START = 4.0  # seconds until a new process has imported torch and built a task
_WORTH_THREADS = 0.9  # of the time on one thread, that several must take to be used
_LITTLE, _SHARE = 1.0, 0.1  # seconds, or this share of the work, that measuring may take
_TRIFLE = 1.0  # seconds of work below which nothing is worth measuring


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the command line allows.

    Attributes:
        devices: Where to train; several get a process each.
        together: ``--together``: ``auto``, or the most runs at once (1 for ``off``).
        jobs: ``--jobs``: processes, None for what the machine can feed.
    """

    devices: Sequence[torch.device]
    together: int | str = "auto"
    jobs: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the runs are trained: at most ``together`` at once in each of ``jobs`` processes (0: in this one, on ``threads``)."""

    together: int
    jobs: int
    lines: tuple[str, ...] = ()
    threads: int = 1


class Executor:
    """Trains runs as the resources allow; use as a context manager: its processes end with it.

    Args:
        source: The task.
        settings: As for a single run.
        resources: Devices, processes, runs at once.
        watch: Told of each run's progress; True stops that run as pruned.
        say: Takes lines for the user: what was chosen, and what went otherwise.
        probe: A task built already, to be used up for measuring.
        batch: How many runs :meth:`train` will be given at a time; by default as many as at first. Batches that wait for
            one another are trained in this process unless ``--jobs`` says otherwise.
    """

    def __init__(
        self,
        source: TaskSource,
        settings: Settings,
        resources: Resources,
        watch: Watch,
        say: Callable[[str], None],
        probe: Task | None = None,
        batch: int | None = None,
    ) -> None:
        self.source, self.settings, self.resources = source, settings, resources
        self.watch, self.say, self._probe, self._batch = watch, say, probe, batch
        self.plan: Plan | None = None
        self._workers: Workers | None = None

    def __enter__(self) -> Executor:
        cpu.prepare(self.resources.devices[0])
        return self

    def __exit__(self, *exception: object) -> None:
        if self._workers is not None:
            self._workers.__exit__(*exception)

    def train(
        self, specs: Sequence[RunSpec], claim: Callable[[Sequence[RunSpec], int], list[RunSpec]] | None = None
    ) -> Iterator[tuple[RunSpec, Run]]:
        """Train every run and give each as it ends. The first call chooses how, for all.

        Args:
            specs: The runs.
            claim: ``claim(candidates, most)`` returns those of the candidates that are this process's to train.

        Raises:
            UserError: The task or the settings are wrong in a way that no run can mend.
        """
        if self.plan is None:
            self.plan = make_plan(specs, self.source, self.settings, self.resources, self._probe, self._batch)
            self._probe = None
            for line in self.plan.lines:
                self.say(line)
        plan = self.plan
        if claim is not None:
            size = plan.together * max(1, plan.jobs)
            left = list(specs)
            while left and (ours := claim(left, size)):
                left = [spec for spec in left if spec not in ours]
                yield from self.train(ours)
            return
        if plan.jobs == 0:
            if plan.threads > 1:
                torch.set_num_threads(plan.threads)
            yield from train_unit(
                self.source, specs, self.settings, self.resources.devices[0], plan.together, self.watch, self.say
            )
            return
        if self._workers is None:
            devices = [str(self.resources.devices[i % len(self.resources.devices)]) for i in range(plan.jobs)]
            self._workers = Workers(self.source, self.settings, devices)
        size = min(plan.together, math.ceil(len(specs) / plan.jobs))
        units = [specs[i : i + size] for i in range(0, len(specs), size)]
        yield from self._workers.train(units, plan.together, self.watch, self.say)


def make_plan(
    specs: Sequence[RunSpec],
    source: TaskSource,
    settings: Settings,
    resources: Resources,
    probe: Task | None,
    batch: int | None = None,
) -> Plan:
    """Choose by timing a few steps, where the command line leaves the choice."""
    device = resources.devices[0]
    most_jobs = len(resources.devices) if device.type != "cpu" else cpu.cores()
    most_jobs = min(resources.jobs or (most_jobs if batch is None else 1), batch or len(specs))
    if batch is not None:  # as many as will come, of the kind that came
        specs = [specs[i % len(specs)] for i in range(batch)]
    given = resources.together if isinstance(resources.together, int) else None
    said: tuple[str, ...] = ()
    if given is not None and given > 1:
        if not stackable(specs, settings):
            given = 1
        else:
            probe = probe or source.build(specs[0].seed, device)
            refusal = why_not_together(probe, settings, device)
            if refusal:
                given, said = 1, (refusal,)
    if given is not None and (resources.jobs is not None or most_jobs == 1):
        return Plan(given, _processes(most_jobs), said)
    task = probe or source.build(specs[0].seed, device)
    steps = task.count_steps(settings.steps, settings.epochs) * len(specs)
    floor = gradient_seconds(task, settings, device)
    if floor * steps < _TRIFLE:
        return Plan(given or 1, _processes(most_jobs) if resources.jobs else 0, said)
    if given is None:
        chosen = choose(task, specs, settings, device, floor, max(_LITTLE, _SHARE * floor * steps))
    else:
        chosen = Measured(given, floor)
    lines = said + ((chosen.line,) if chosen.line else ())
    threads, seconds = 1, chosen.seconds
    on_cpu = device.type == "cpu"
    # With --together the same command gives the same bits again, so nothing that changes them is chosen by a clock.
    may_stay = resources.jobs is None or most_jobs == 1
    if given is None and on_cpu and may_stay and cpu.cores() > 1 and not cpu.threads_are_given():
        several = on_several_threads(task, specs, settings, device, floor, chosen, cpu.cores())
        if several < _WORTH_THREADS * seconds:
            threads, seconds = cpu.cores(), several
    if resources.jobs is None and most_jobs > 1:
        if on_cpu and chosen.seconds * steps / most_jobs + _WORKER_START > seconds * steps:
            most_jobs = 1
        else:
            lines += (f"{most_jobs} processes.",)
    return Plan(chosen.together, _processes(most_jobs), lines, threads)


def _processes(jobs: int) -> int:
    """Worker processes for ``jobs``; one job is done here, without any."""
    return jobs if jobs > 1 else 0
