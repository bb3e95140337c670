"""Training runs together: any mix of optimizers, learning rates and seeds of one task, in one stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from momo_cli.errors import UserError, first_line
from momo_cli.plan.grid import RunSpec
from momo_cli.plan.settings import Settings
from momo_cli.process_state import ProcessState, of_torch, restored
from momo_cli.processes import Ended
from momo_cli.runs import Run
from momo_cli.task.definition import Builds, Task
from momo_cli.training.checkpoints import NOT_KEPT, Keeper
from momo_cli.training.data import EndlessBatches, Generators, batch_size, move
from momo_cli.training.evaluation import Evaluation, Initial, evaluate, measure_initial, objective_name
from momo_cli.training.model_state import load_numbers, numbers_of
from momo_cli.training.run.record import Reader, RunRecord, Stopwatch, Watch
from momo_cli.training.stack.checks import check_seeds
from momo_cli.training.stack.graph import CapturedStep, record_cuda
from momo_cli.training.stack.models import CannotStack, Stack
from momo_cli.training.stack.optimizers import Layout, group_key, stacked_optimizer
from momo_cli.training.stack.step import Group, Step

_LEFT = 8  # compact the stack when an eighth of its rows has left


class Seed:
    """One seed's task and batches; the generators of each seed are its own, as if it were trained alone.

    Args:
        task: The seed's task, built just now.
        settings: As for a single run, and so are ``device``, ``initial`` and ``keeps_state``.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        device: torch.device,
        initial: Initial | None = None,
        keeps_state: bool = False,
    ) -> None:
        self.task, self.device = task, device
        task.model.to(device).train()
        self.objective = objective_name(task, settings)
        self.steps = task.count_steps(settings.steps, settings.epochs)
        self.initial = initial or measure_initial(task, self.objective, settings, device)
        self._batches = EndlessBatches(task.train, keeps_state)
        self._generators = Generators()

    def next_batch(self, mark: bool) -> Any:
        """The next batch, drawn with this seed's own generators; the global ones are left changed."""
        self._generators.restore()
        batch = move(self._batches.next(mark), self.device)
        self._generators = Generators()
        return batch

    def state(self) -> dict[str, Any]:
        """Its place in the data, after a marked batch; the global generators are left changed."""
        self._generators.restore()
        return {"initial": tuple(self.initial), "batches": self._batches.place()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned; errors as for :meth:`EndlessBatches.go_to`."""
        self._batches.go_to(state["batches"])
        self._generators = Generators()


class StackedRuns:
    """Runs that train together: everything that their next step depends on.

    A run's ``seconds`` are its share of the stack's time: each step's time over the runs that took it.

    Args:
        seeds: Each seed of the runs.
        specs: The runs; their optimizers must not need a closure.
        settings: As for a single run.
        device: Where the stack lies.
        watch: Told of each run's progress; True stops that run.
        stopwatch: Runs since the tasks are being built.

    Attributes:
        records: Of the runs that are in the stack.

    Raises:
        CannotStack: The stack can't be trained.
    """

    def __init__(
        self,
        seeds: dict[int, Seed],
        specs: Sequence[RunSpec],
        settings: Settings,
        device: torch.device,
        watch: Watch | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.seeds, self.settings, self.device = seeds, settings, device
        self._stopwatch = stopwatch or Stopwatch()
        order = list(seeds)
        self.steps = seeds[order[0]].steps
        if any(seed.steps != self.steps for seed in seeds.values()):
            raise CannotStack("its seeds take different numbers of steps")
        # Runs that one optimizer object updates lie in neighbouring rows.
        keys = list(dict.fromkeys(map(group_key, specs)))
        specs = sorted(specs, key=lambda spec: keys.index(group_key(spec)))
        self.records = [
            RunRecord(spec, self.steps, seeds[spec.seed].objective, seeds[spec.seed].initial) for spec in specs
        ]
        rows = [seeds[spec.seed].task for spec in specs]
        self.stack = Stack(rows, [order.index(spec.seed) for spec in specs], settings)
        self._groups = _grouped(specs, self.stack, settings)
        self._take_step = prepare_step(self.stack, self._groups, settings)
        if len(order) > 1:
            check_seeds(self.stack, [seed.task for seed in seeds.values()], settings)
        self._reader = Reader(self.records, device, watch)
        self.stack.objective.train()
        self._stopwatch.share(self.records)

    @property
    def done(self) -> bool:
        """Whether the last step is taken, or every run has stopped."""
        return self._reader.taken == self.steps or not any(record.stopped is None for record in self.records)

    def step(self, mark: bool = False) -> list[tuple[RunSpec, Run]]:
        """Take one step; returns the runs that stopped in it.

        Args:
            mark: Whether :meth:`state` is asked for right after it.

        Raises:
            CannotStack: The stack can't be trained any further.
        """
        self._stopwatch.start()
        going = [record for record in self.records if record.stopped is None]
        factors = [group.schedule.factor(self._reader.taken, self.steps) for group in self._groups]
        self._reader.add(self._take_step(_next_batches(list(self.seeds.values()), mark), factors))
        self._stopwatch.share(self.records)
        stopped = [record for record in going if record.stopped is not None]
        gone = len(self.records) - len(going) + len(stopped)
        if stopped and self._reader.all_read and not self.done and gone * _LEFT >= len(self.records):
            self._compact()
        return [(record.spec, record.result()) for record in stopped]

    def state(self) -> dict[str, Any] | None:
        """Everything that the next step depends on; None after the last, or where reports of steps are unread."""
        if self.done or not self._reader.all_read:
            return None
        generators = Generators()
        state = {
            "taken": self._reader.taken,
            "x": self.stack.x,
            "fixed": self.stack.fixed,
            "numbers": numbers_of(self.stack.objective),
            "groups": [(group.start, group.end) for group in self._groups],
            "optimizers": [group.optimizer.checkpoint() for group in self._groups],
            "records": [record.state() for record in self.records],
            "seeds": {seed: self.seeds[seed].state() for seed in self.seeds},
            "generators": generators.plain(),
        }
        generators.restore()
        return state

    def load_state(self, state: dict[str, Any]) -> list[tuple[RunSpec, Run]]:
        """Go on from what :meth:`state` returned, of which these runs are ``state["rows"]``.

        Returns:
            Those that had stopped.

        Raises:
            ValueError: The data come in another order.
        """
        rows = list(state["rows"])
        with torch.no_grad():
            self.stack.x.copy_(state["x"][rows])
        self.stack.fixed = {name: buffer[rows].to(self.device) for name, buffer in state["fixed"].items()}
        load_numbers(self.stack.objective, state["numbers"])
        of_groups = ([row - start for row in rows if start <= row < end] for start, end in state["groups"])
        kept = [(own, rows) for own, rows in zip(state["optimizers"], of_groups) if rows]
        for group, (own, rows_of_group) in zip(self._groups, kept, strict=True):
            group.optimizer.load_checkpoint(own, rows_of_group)
        for record, row in zip(self.records, rows, strict=True):
            record.load_state(state["records"][row])
        self._reader.taken = state["taken"]
        for number, seed in self.seeds.items():
            seed.load_state(state["seeds"][number])
        Generators.of(state["generators"]).restore()
        return [(record.spec, record.result()) for record in self.records if record.stopped is not None]

    def finish(self) -> list[tuple[RunSpec, Run]]:
        """Evaluate the runs that took all steps, and return them."""
        self._stopwatch.start()
        if any(record.stopped is not None for record in self.records):
            self._compact()
        if not self.records:
            return []
        for group in self._groups:
            finish = getattr(group.optimizer, "finish", None)
            if finish is not None:
                finish()
        evaluations = self._evaluate()
        self._stopwatch.share(self.records)
        return [(record.spec, record.result(after)) for record, after in zip(self.records, evaluations)]

    def _compact(self) -> None:
        """Move the rows that are still there together, in the stack and in their optimizers."""
        stays = [record.stopped is None for record in self.records]
        self.records = self._reader.records = [record for record in self.records if record.stopped is None]
        if not self.records:
            return
        self.stack.keep(_where(stays, self.device))
        groups, end = [], 0
        for group in self._groups:
            of_group = stays[group.start : group.end]
            start, end = end, end + sum(of_group)
            if end > start:
                group.optimizer.keep(_where(of_group, self.device), self.stack.x[start:end])
                groups.append(group._replace(start=start, end=end))
        self._groups = groups
        self._take_step = prepare_step(self.stack, groups, self.settings)

    def _evaluate(self) -> list[Evaluation]:
        """Each run's means over its own ``val``, all at once where that works."""
        tasks = [self.seeds[record.spec.seed].task for record in self.records]
        if tasks[0].val is None:
            return [Evaluation()] * len(tasks)
        self.stack.objective.eval()
        try:
            return _evaluate_stacked(self.stack, self.seeds, self.device)
        except UserError:
            raise
        except Exception:  # metrics that read numbers out of tensors, say: the plain way, run by run
            evaluations = []
            for i, task in enumerate(tasks):
                model = self.stack.load_into_model(i)
                evaluations.append(evaluate(dataclasses.replace(task, model=model), self.settings, self.device))
            return evaluations


def train_stack(
    source: Builds,
    specs: Sequence[RunSpec],
    settings: Settings,
    device: torch.device,
    watch: Watch | None = None,
    initials: dict[int, Initial] | None = None,
    keeper: Keeper = NOT_KEPT,
) -> Iterator[tuple[RunSpec, Run]]:
    """Train ``specs`` in one stack, and yield each run as it ends.

    Args:
        source: Builds the task, once for each seed.
        specs: As for :class:`StackedRuns`, and so are ``settings``, ``device`` and ``watch``.
        initials: ℓ0 of each seed where it is known; is added to.
        keeper: Keeps their checkpoints, and knows the one that they go on from.

    Raises:
        CannotStack: The stack can't be trained; the runs not yielded yet must be trained alone.
        UserError: The task or the settings are wrong in a way that no run can mend.
    """
    initials = {} if initials is None else initials
    stopwatch = Stopwatch()
    stopped: list[tuple[RunSpec, Run]] = []

    def make(state: dict[str, Any] | None) -> tuple[StackedRuns, ProcessState]:
        known = initials if state is None else {s: Initial(*kept["initial"]) for s, kept in state["seeds"].items()}
        seeds = _seeds(source, [spec.seed for spec in specs], settings, device, known, keeper.keeps)
        before = of_torch()
        runs = StackedRuns(seeds, specs, settings, device, watch, stopwatch)
        if state is not None:
            stopped.extend(runs.load_state(state))
        return runs, before

    try:
        with restored():
            runs, before = keeper.begin(make)
            initials.update((seed, runs.seeds[seed].initial) for seed in runs.seeds)
            yield from stopped
            first = True
            while not runs.done:
                due = keeper.before_step()
                ended = runs.step(mark=due)
                if ended or first:
                    _check_unchanged(before)
                first = False
                yield from ended
                if due and (state := runs.state()) is not None:
                    keeper.save([record.spec for record in runs.records], state, stacked=True)
            _check_unchanged(before)
            yield from runs.finish()
    except (CannotStack, KeyboardInterrupt, GeneratorExit, Ended, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if isinstance(error, UserError) and len({spec.seed for spec in specs}) == 1:
            raise
        # Alone, each run meets the same error or none; then it is reported as its own.
        raise CannotStack(first_line(error)) from error


def _seeds(
    source: Builds,
    numbers: Sequence[int],
    settings: Settings,
    device: torch.device,
    initials: dict[int, Initial],
    keep_state: bool,
) -> dict[int, Seed]:
    """The seeds, each built as if it were alone; torch is left in the state in which each of them leaves it."""
    seeds: dict[int, Seed] = {}
    states: list[ProcessState] = []
    for seed in dict.fromkeys(numbers):
        with restored(of_torch):
            before = of_torch()
            task = source.build(seed, device)
            states.append(of_torch().changed_since(before))
            seeds[seed] = Seed(task, settings, device, initials.get(seed), keep_state)
    if any(state != states[0] for state in states):
        raise CannotStack("its seeds leave torch in different states")
    states[0].restore()
    return seeds


def _check_unchanged(before: ProcessState) -> None:
    changed = of_torch().changed_since(before).names()
    if changed:
        raise CannotStack(f"while it trains, the task changes torch's {' and '.join(changed)}")


def prepare_step(
    stack: Stack, groups: list[Group], settings: Settings
) -> Callable[[Sequence[Any], Sequence[float]], torch.Tensor]:
    """The step of a stack: captured on a GPU."""
    step = Step(stack, groups, settings)
    return CapturedStep(step, record_cuda(stack.device)) if stack.device.type == "cuda" else step


def _next_batches(seeds: Sequence[Seed], mark: bool) -> list[Any]:
    """The next batch of each seed.

    A step's own draws, for dropout say, go on where the last step's ended, and never change the order of the data: more
    runs in a stack draw more.
    """
    of_steps = Generators()
    batches = [seed.next_batch(mark) for seed in seeds]
    of_steps.restore()
    return batches


def _grouped(specs: Sequence[RunSpec], stack: Stack, settings: Settings) -> list[Group]:
    groups: list[Group] = []
    start = 0
    for end in range(1, len(specs) + 1):
        if end == len(specs) or group_key(specs[end]) != group_key(specs[start]):
            specs[start].optimizer.check_matrices(stack.objective.model)
            layout = Layout(stack.shapes, stack.matrices)
            optimizer = stacked_optimizer(specs[start:end], stack.x[start:end], layout)
            groups.append(Group(optimizer, start, end, settings.schedule_of(specs[start].optimizer)))
            start = end
    return groups


def _where(chosen: list[bool], device: torch.device) -> torch.Tensor:
    return torch.tensor([i for i, one in enumerate(chosen) if one], device=device)


def _evaluate_stacked(stack: Stack, seeds: dict[int, Seed], device: torch.device) -> list[Evaluation]:
    has_metrics = stack.objective.task.metrics is not None
    loss_sum = torch.zeros(len(stack), dtype=torch.float64, device=device)
    sums: dict[str, Any] = {}
    samples = 0
    for batches in zip(*(seed.task.val or () for seed in seeds.values()), strict=True):
        batches = tuple(move(batch, device) for batch in batches)
        size = batch_size(batches[0])
        loss_sum += size * stack.evaluate(batches).double()
        for name, values in (stack.evaluate(batches, metrics=True) if has_metrics else {}).items():
            sums[name] = sums.get(name, 0.0) + size * values.double()
        samples += size
    losses = (loss_sum / samples).tolist()
    metrics = {name: (values / samples).tolist() for name, values in sums.items()}
    return [Evaluation(loss, {name: values[i] for name, values in metrics.items()}) for i, loss in enumerate(losses)]
