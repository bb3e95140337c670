"""What ``momo check`` looks at: a task's model, batches, first losses, time and memory of a step."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import torch

from momo_cli.plan.settings import Settings
from momo_cli.task.definition import known_length
from momo_cli.task.loading import TaskSource
from momo_cli.training.data import batch_size, endless, generators_restored, move
from momo_cli.training.evaluation import evaluate, objective_name, precision, scalar_loss, train_loss_before
from momo_cli.training.stack import CannotStack, check_stack
from momo_cli.training.stepping import Stepper

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


def inspect_task(source: TaskSource, settings: Settings, device: torch.device, seed: int = 0) -> Inspection:
    """Build the task, take a few steps of Momo at its default LR, and say what was seen.

    Raises:
        UserError: The task is wrong.
        Exception: Whatever the user's loss, metrics or data raise.
    """
    from momo import Momo

    task = source.build(seed, device)
    model = task.model.to(device)
    objective = objective_name(task, settings)
    with generators_restored(task.train, task.val):
        first = move(next(iter(task.train)), device)
        train_loss = train_loss_before(task, model, settings, device)
        before = evaluate(task, model, settings, device)
    alone = ""
    try:
        check_stack(task, first, settings)
    except CannotStack as reason:
        alone = str(reason)
    model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    stepper = Stepper(
        Momo(trainable), settings.clip, torch.amp.GradScaler(device.type) if settings.amp == "fp16" else None
    )
    losses, times = [], []
    for batch in itertools.islice(endless(task.train), _STEPS):
        batch = move(batch, device)

        def compute_loss() -> torch.Tensor:
            with precision(settings, device):
                return scalar_loss(task, model, batch)

        start = time.perf_counter()
        losses.append(stepper.step(compute_loss).item())
        times.append(time.perf_counter() - start)
    lengths = tuple(known_length(b) for b in (task.train, task.val))
    return Inspection(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trainable),
        shapes=describe_batch(first),
        batches=lengths,  # type: ignore[arg-type]
        batch_size=batch_size(first),
        steps=task.count_steps(settings.steps, settings.epochs),
        objective=objective,
        initial=before.of(objective, train_loss),
        train_loss=train_loss,
        losses=losses,
        step_seconds=sorted(times)[len(times) // 2],
        memory=torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 3 * sum(p.nbytes for p in trainable),
        device=str(device),
        alone=alone,
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
