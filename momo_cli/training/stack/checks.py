"""Whether runs can share a stack: trial passes, compared with the model alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from momo_cli.errors import first_line
from momo_cli.plan.settings import Settings
from momo_cli.task.definition import Task
from momo_cli.training.data import generators_restored, map_tensors, move
from momo_cli.training.evaluation import buffers_restored, precision, scalar_loss, training_losses
from momo_cli.training.stack.models import CannotStack, Stack
from momo_cli.user_code import OURS


def check_stack(task: Task, batch: Any, settings: Settings) -> None:
    """Find out by a trial step whether the task's model can be vectorized, and gives then what it gives alone.

    Args:
        task: On the device; its parameters and buffers are as before afterwards.
        batch: One of its batches, on the device.

    Raises:
        CannotStack: It can't, and why.
        UserError: The task's loss is wrong.
    """
    model = task.model
    saved = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    try:
        model.train()
        if _is_random(task, batch, settings):
            model.eval()  # with dropout two passes differ anyway: compare without it
            _compare_or_in_double(task, batch, settings)
            model.train()
            stack = Stack([task] * 2, [0, 0], settings)
            stack.gradients([batch])
        else:
            _compare_or_in_double(task, batch, settings)
    except (CannotStack, *OURS):
        raise
    except BaseException as error:
        reason = first_line(error)
        raise CannotStack(reason if len(reason) < 150 else reason[:147] + "…") from error
    finally:
        model.train()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(saved[name])


class _OtherValues(CannotStack):
    """A trial step of a stack gave other values than the model alone."""


def _compare_or_in_double(task: Task, batch: Any, settings: Settings) -> None:
    """Compare; where values differ, once more in double precision, which tells rounding that a deep model has amplified
    from a wrong result."""
    try:
        _compare(task, batch, settings)
    except _OtherValues:
        doubled = map_tensors(batch, lambda item: item.double() if _is_floating(item) else item)
        try:
            with _in_double(task.model):
                _compare(task, doubled, dataclasses.replace(settings, amp="off"))
        except (CannotStack, RuntimeError):  # or the task's own code is written for one precision
            raise _OtherValues("a trial step gave other values than the model alone") from None


@contextlib.contextmanager
def _in_double(model: torch.nn.Module) -> Iterator[None]:
    """The same model, whose parameters the loss may hold itself, in double precision for a while."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        model.double()
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, own in buffers:
            module._buffers.update(own)


def _is_floating(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.is_floating_point()


def _compare(task: Task, batch: Any, settings: Settings) -> None:
    stack = Stack([task] * 2, [0, 0], settings)
    with torch.no_grad():
        # Rows that differ, so that a loss that doesn't look at the replaced parameters is found out.
        stack.x[1].mul_(1 + 0.05 * torch.rand_like(stack.x[1]))
    rows = stack.x.clone()
    fixed = {name: buffer.clone() for name, buffer in stack.fixed.items()}
    losses = stack.gradients([batch]).loss
    bound = tolerance(settings, rows.dtype)
    for row in range(2):
        with torch.no_grad():
            stack.x.copy_(rows)
        after, stack.fixed = stack.fixed, fixed
        model = stack.load_into_model(row)
        stack.fixed = after
        trainable = [p for p in model.parameters() if p.requires_grad]
        with precision(settings, stack.device):
            loss = training_losses(task, model, batch).loss
        alone = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trainable)])
        pairs = [(stack.g[row], alone), (losses[row], loss.detach())]
        pairs += [(after[name][row], buffer) for name, buffer in stack.objective.named_buffers()]
        for together, separate in pairs:
            difference = (together.double() - separate.double()).norm()
            if not difference <= bound * separate.double().norm() + 1e-6 * bound:
                raise _OtherValues("a trial step gave other values than the model alone")


def tolerance(settings: Settings, dtype: torch.dtype) -> float:
    """How far, relatively, a pass of a stack may be from the model's own: rounding, in the precision of the pass."""
    if settings.amp != "off":
        return 5e-2
    return 1e-8 if dtype == torch.float64 else 1e-3


def _is_random(task: Task, batch: Any, settings: Settings) -> bool:
    losses = []
    for _ in range(2):
        # A buffer that the loss depends on and that the model changes makes two losses differ without any chance.
        with buffers_restored(task.model), torch.no_grad(), precision(settings, next(task.model.parameters()).device):
            losses.append(scalar_loss(task, task.model, batch))
    return bool(losses[0] != losses[1])


def check_seeds(stack: Stack, tasks: Sequence[Task], settings: Settings) -> None:
    """Find out whether one seed's loss is every seed's: it may close over what only that seed drew.

    Args:
        stack: The rows.
        tasks: The task of each seed, in the order in which the stack is given batches.
        settings: For the precision.

    Raises:
        CannotStack: It isn't.
    """
    bound = tolerance(settings, stack.x.dtype)
    with contextlib.ExitStack() as kept, torch.no_grad():
        for task in tasks:
            kept.enter_context(generators_restored(task.train))
        batches = [move(next(iter(task.train)), stack.device) for task in tasks]
        stack.objective.eval()
        together = stack.evaluate(batches)
        for seed, (task, batch) in enumerate(zip(tasks, batches)):
            row = stack.seed_of.tolist().index(seed)
            task.model.eval()
            with precision(settings, stack.device):
                alone = scalar_loss(task, task.model, batch)
            if not bool((together[row] - alone).abs() <= bound * alone.abs() + 1e-6):
                raise CannotStack("its seeds differ in more than their batches and first parameters")
