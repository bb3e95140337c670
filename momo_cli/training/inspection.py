"""What ``momo check`` looks at: a task's model, batches, first losses, time and memory of a step."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from momo_cli.plan.grid import RunSpec
from momo_cli.plan.optimizers import OptimizerSpec
from momo_cli.plan.settings import Settings
from momo_cli.task.definition import known_length
from momo_cli.task.loading import TaskSource
from momo_cli.training.data import batch_size, generators_restored, move
from momo_cli.training.evaluation import evaluate, initial_of, objective_name, train_loss_before
from momo_cli.training.run.clock import step_times
from momo_cli.training.run.training_run import TrainingRun
from momo_cli.training.stack.checks import check_stack
from momo_cli.training.stack.models import CannotStack
from momo_cli.training.untrained import untrained_line, untrained_tensors

_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was seen of a task.

    Attributes:
        parameters: Numbers in the model's parameters; ``trainable`` those that get a gradient.
        shapes: Shapes and dtypes of the first batch, as text.
        batches: Batches in ``train`` and ``val``; None where they have no length.
        steps: Training steps of a run.
        objective: Name of the objective; ``initial`` its value before the first step.
        losses: Loss of each of a few steps of Momo.
        step_seconds: Median time of a step of one run.
        memory: Bytes: on CUDA the peak allocated, else those of parameters, gradients and the optimizer's state.
        device: Where it ran.
        alone: Why runs can't be trained together; empty where they can.
        untrained: A line on tensors that get a gradient and that no optimizer trains; empty where there is none.
    """

    parameters: int
    trainable: int
    shapes: str
    batches: tuple[int | None, int | None]
    batch_size: int
    steps: int
    objective: str
    initial: float | None
    train_loss: float
    losses: list[float]
    step_seconds: float
    memory: int
    device: str
    alone: str
    untrained: str


def inspect_task(source: TaskSource, settings: Settings, device: torch.device, seed: int = 0) -> Inspection:
    """Build the task, take a few steps of Momo at its default LR, and say what was seen.

    Raises:
        UserError: The task is wrong.
        Exception: Whatever the user's loss, metrics or data raise.
    """
    task = source.build(seed, device)
    model = task.model.to(device)
    objective = objective_name(task, settings)
    with generators_restored(task.train, task.val):
        first = move(next(iter(task.train)), device)
        train_loss = train_loss_before(task, settings, device)
        before = evaluate(task, settings, device)
    alone = ""
    try:
        check_stack(task, first, settings)
    except CannotStack as reason:
        alone = str(reason)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before.of(objective, train_loss)
    initial = initial_of(task, before, train_loss)
    momo = RunSpec(OptimizerSpec.parse("momo"), 1.0, seed)
    few = dataclasses.replace(settings, steps=_STEPS, epochs=None, schedule="constant", warmup=0.0)
    run = TrainingRun(task, momo, few, device, initial=initial)
    times = step_times(run, device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    lengths = tuple(known_length(b) for b in (task.train, task.val))
    return Inspection(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trainable),
        shapes=describe_batch(first),
        batches=lengths,  # type: ignore[arg-type]
        batch_size=batch_size(first),
        steps=task.count_steps(settings.steps, settings.epochs),
        objective=objective,
        initial=initial.of.get(objective),
        train_loss=train_loss,
        losses=run.record.history.losses,
        step_seconds=sorted(times)[len(times) // 2],
        memory=torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 3 * sum(p.nbytes for p in trainable),
        device=str(device),
        alone=alone,
        untrained=untrained_line(untrained_tensors(task, settings, device)),
    )


def describe_batch(batch: Any) -> str:
    """The structure of a batch with the shapes and dtypes of its tensors.

    >>> describe_batch((torch.zeros(4, 2), {"y": torch.zeros(4, dtype=torch.int64)}))
    '(float32[4, 2], {y: int64[4]})'
    """
    if isinstance(batch, torch.Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {describe_batch(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(map(describe_batch, batch)) + ")"
    return type(batch).__name__
