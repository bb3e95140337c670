"""Training runs together: any mix of optimizers, learning rates and seeds of one task, in one stack."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from momo_cli.errors import UserError, first_line
from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.runs import Run
from momo_cli.task.definition import Task
from momo_cli.task.loading import TaskSource
from momo_cli.training.capture import CapturedStep, record_cuda
from momo_cli.training.data import Generators, batch_size, endless, generators_restored, move
from momo_cli.training.evaluation import Evaluation, evaluate, initial_values, objective_name, precision, scalar_loss
from momo_cli.training.history import History, reading_interval
from momo_cli.training.single import Watch, finished
from momo_cli.training.stack import CannotStack, Stack, tolerance
from momo_cli.training.stacked_optimizers import group_key, stacked_optimizer
from momo_cli.training.step import ADAPTIVE_TERM, CAP, CAPPED, LOSS, STEP_SIZE, Group, Step
from momo_cli.training.steps_taken import StepSizes

_LEFT = 8  # compact the stack when an eighth of its rows has left


class _Seed:
    """One seed's task and batches; the generators of each seed are its own, as if it were trained alone."""

    def __init__(self, source: TaskSource, seed: int, settings: Settings, device: torch.device) -> None:
        self.device = device
        self.task: Task = source.build(seed, device)
        self.task.model.to(device).train()
        self.objective = objective_name(self.task, settings)
        self.steps = self.task.count_steps(settings.steps, settings.epochs)
        self.initial, self.initial_loss = initial_values(self.task, self.task.model, self.objective, settings, device)
        self._batches = endless(self.task.train)
        self._generators = Generators()

    def next_batch(self) -> Any:
        """The next batch, drawn with this seed's own generators; they are left changed."""
        self._generators.restore()
        batch = move(next(self._batches), self.device)
        self._generators = Generators()
        return batch


def _next_batches(seeds: Sequence[_Seed]) -> list[Any]:
    """The next batch of each seed.

    What a step draws, for dropout say, goes on where the last step's ended, and never changes the order of the data: more
    runs in a stack draw more.
    """
    of_steps = Generators()
    batches = [seed.next_batch() for seed in seeds]
    of_steps.restore()
    return batches


def _check_seeds(stack: Stack, rows: Sequence[_Row], seeds: Sequence[_Seed], settings: Settings) -> None:
    """Find out whether one seed's loss is every seed's: it may close over what only that seed drew.

    Raises:
        CannotStack: It isn't.
    """
    bound = tolerance(settings, stack.x.dtype)
    with contextlib.ExitStack() as kept, torch.no_grad():
        for seed in seeds:
            kept.enter_context(generators_restored(seed.task.train))
        batches = [move(next(iter(seed.task.train)), seed.device) for seed in seeds]
        stack.objective.eval()
        together = stack.evaluate(batches)
        for seed, batch in zip(seeds, batches):
            row = next(i for i, row in enumerate(rows) if row.seed is seed)
            seed.task.model.eval()
            with precision(settings, seed.device):
                alone = scalar_loss(seed.task, seed.task.model, batch)
            if not bool((together[row] - alone).abs() <= bound * alone.abs() + 1e-6):
                raise CannotStack("its seeds differ in more than their batches and first parameters")


@dataclasses.dataclass
class _Row:
    """One run of the stack: what is known of it so far."""

    spec: RunSpec
    seed: _Seed
    history: History
    taken: StepSizes
    left: bool = False
    given: bool = False

    def fields(self, seconds: float) -> dict[str, Any]:
        """What every ending of the run has in common."""
        return {
            "initial": self.seed.initial,
            "train_loss": self.history.train_loss,
            "steps": len(self.history.losses),
            "seconds": seconds,
            "capped": self.taken.capped,
            "curve": self.history.curve,
            "step_sizes": self.taken.trace,
        }


def train_together(
    source: TaskSource, specs: Sequence[RunSpec], settings: Settings, device: torch.device, watch: Watch | None = None
) -> Iterator[tuple[RunSpec, Run]]:
    """Train ``specs`` in one stack, and give each run as it ends.

    A run's ``seconds`` are its share of the stack's time: each step's time over the runs that took it.

    Args:
        source: Builds the task, once for each seed.
        specs: The runs; their optimizers must not need a closure.
        settings: As for a single run.
        device: Where the stack lies.
        watch: Told of each run's progress; True stops that run as pruned.

    Raises:
        CannotStack: The stack can't be trained; the runs not given yet must be trained alone.
        UserError: The task or the settings are wrong in a way that no run can mend.
    """
    try:
        yield from _train(source, specs, settings, device, watch)
    except (CannotStack, UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Alone, each run meets the same error or none; then it is reported as its own.
        raise CannotStack(first_line(error)) from error


def _train(
    source: TaskSource, specs: Sequence[RunSpec], settings: Settings, device: torch.device, watch: Watch | None
) -> Iterator[tuple[RunSpec, Run]]:
    clock = time.perf_counter()
    seeds = {seed: _Seed(source, seed, settings, device) for seed in dict.fromkeys(spec.seed for spec in specs)}
    order = list(seeds)
    steps = seeds[order[0]].steps
    if any(seed.steps != steps for seed in seeds.values()):
        raise CannotStack("its seeds take different numbers of steps")
    # Runs that one optimizer object updates lie in neighbouring rows.
    keys = list(dict.fromkeys(map(group_key, specs)))
    specs = sorted(specs, key=lambda spec: keys.index(group_key(spec)))
    rows = [
        _Row(spec, seeds[spec.seed], History(steps, seeds[spec.seed].initial_loss), StepSizes(steps)) for spec in specs
    ]
    stack = Stack([row.seed.task for row in rows], [order.index(row.spec.seed) for row in rows], settings)
    groups = _grouped(rows, stack)
    take_step = _stepping(stack, groups, settings)
    if len(order) > 1:
        _check_seeds(stack, rows, list(seeds.values()), settings)
    seconds = (time.perf_counter() - clock) / len(rows)
    spent = dict.fromkeys(map(id, rows), seconds)
    read_every = reading_interval(device)
    unread: list[torch.Tensor] = []
    stack.objective.train()

    for step in range(steps):
        clock = time.perf_counter()
        unread.append(take_step(_next_batches(list(seeds.values())), settings.lr_factor(step, steps)))
        if len(unread) == read_every or step + 1 == steps:
            reports = torch.stack(unread).tolist() if len(unread) > 1 else [unread[0].tolist()]
            unread.clear()
            for i, row in enumerate(rows):
                if not row.left:
                    _advance(
                        row, step + 2 - len(reports), [[figure[i] for figure in report] for report in reports], watch
                    )
        seconds = (time.perf_counter() - clock) / len(rows)
        for row in rows:
            spent[id(row)] += seconds
        leaving = [row for row in rows if row.left and not row.given]
        for row in leaving:
            row.given = True
            status = "diverged" if row.history.diverged else "pruned"
            yield row.spec, row.spec.result(status=status, **row.fields(spent[id(row)]))
        gone = sum(row.left for row in rows)
        if gone == len(rows):
            return
        if leaving and not unread and gone * _LEFT >= len(rows):
            rows, groups = _compacted(rows, groups, stack)
            take_step = _stepping(stack, groups, settings)

    if any(row.left for row in rows):
        rows, groups = _compacted(rows, groups, stack)
    clock = time.perf_counter()
    for group in groups:
        finish = getattr(group.optimizer, "finish", None)
        if finish is not None:
            finish()
    evaluations = _evaluate(stack, rows, seeds, settings, device)
    seconds = (time.perf_counter() - clock) / len(rows)
    for row, after in zip(rows, evaluations):
        value = after.of(row.seed.objective, row.history.train_loss)
        fields = row.fields(spent[id(row)] + seconds)
        yield (
            row.spec,
            finished(row.spec, row.seed.objective, value, val_loss=after.val_loss, metrics=after.metrics, **fields),
        )


def _grouped(rows: list[_Row], stack: Stack) -> list[Group]:
    groups: list[Group] = []
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or group_key(rows[end].spec) != group_key(rows[start].spec):
            optimizer = stacked_optimizer([row.spec for row in rows[start:end]], stack.x[start:end], stack.shapes)
            groups.append(Group(optimizer, start, end))
            start = end
    return groups


def _stepping(stack: Stack, groups: list[Group], settings: Settings) -> Callable[[Sequence[Any], float], torch.Tensor]:
    step = Step(stack, groups, settings)
    return CapturedStep(step, record_cuda(stack.device)) if stack.device.type == "cuda" else step


def _compacted(rows: list[_Row], groups: list[Group], stack: Stack) -> tuple[list[_Row], list[Group]]:
    """The rows that are still there, moved together in the stack and in their optimizers."""
    staying = torch.tensor([i for i, row in enumerate(rows) if not row.left], device=stack.device)
    stack.keep(staying)
    kept: list[Group] = []
    end = 0
    for group in groups:
        local = [i for i, row in enumerate(rows[group.start : group.end]) if not row.left]
        if not local:
            continue
        start, end = end, end + len(local)
        group.optimizer.keep(torch.tensor(local, device=stack.device), stack.x[start:end])
        kept.append(Group(group.optimizer, start, end))
    return [row for row in rows if not row.left], kept


def _advance(row: _Row, step: int, reports: Sequence[Sequence[float]], watch: Watch | None) -> None:
    """Take what came of the row's steps from ``step`` (from 1) on: its column of each step's report."""
    points = len(row.history.curve)
    for taken, report in enumerate(reports, start=step):
        if len(report) > 1 and not math.isnan(report[CAP]):
            row.taken.add(taken, {"capped": report[CAPPED], "step_size": report[STEP_SIZE], "cap": report[CAP],
                                 "adaptive_term": report[ADAPTIVE_TERM]})  # fmt: skip
        row.left = row.history.add(report[LOSS])
        if row.left:
            return
    if watch is not None and len(row.history.curve) > points:
        at, loss = row.history.curve[-1]
        row.left = watch(row.spec, int(at), row.history.steps, loss)


def _evaluate(
    stack: Stack, rows: list[_Row], seeds: dict[int, _Seed], settings: Settings, device: torch.device
) -> list[Evaluation]:
    """Each row's means over its own ``val``, all at once where that works."""
    if rows[0].seed.task.val is None:
        return [Evaluation()] * len(rows)
    stack.objective.eval()
    try:
        return _evaluate_stacked(stack, seeds, device)
    except UserError:
        raise
    except Exception:  # metrics that read numbers out of tensors, say: the plain way, run by run
        evaluations = []
        for i, row in enumerate(rows):
            model = stack.load_into_model(i)
            task = dataclasses.replace(row.seed.task, model=model)
            evaluations.append(evaluate(task, model, settings, device))
        return evaluations


def _evaluate_stacked(stack: Stack, seeds: dict[int, _Seed], device: torch.device) -> list[Evaluation]:
    has_metrics = stack.objective.task.metrics is not None
    loss_sum, sums, samples = 0.0, {}, 0
    for batches in zip(*(seed.task.val for seed in seeds.values()), strict=True):  # type: ignore[arg-type]
        batches = tuple(move(batch, device) for batch in batches)
        size = batch_size(batches[0])
        loss_sum = loss_sum + size * stack.evaluate(batches).double()
        for name, values in (stack.evaluate(batches, metrics=True) if has_metrics else {}).items():
            sums[name] = sums.get(name, 0.0) + size * values.double()
        samples += size
    losses = (loss_sum / samples).tolist()  # type: ignore[union-attr]
    metrics = {name: (values / samples).tolist() for name, values in sums.items()}
    return [Evaluation(loss, {name: values[i] for name, values in metrics.items()}) for i, loss in enumerate(losses)]
