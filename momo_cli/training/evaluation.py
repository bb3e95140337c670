"""The objective: of the model as it is, before the first step and after the last one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from momo_cli.errors import UserError, did_you_mean
from momo_cli.plan.settings import Settings
from momo_cli.task.definition import Task
from momo_cli.training.data import batch_size, generators_restored, move

_INITIAL_BATCHES = 10


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over ``val``, weighted by batch size; empty without ``val``."""

    val_loss: float | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def of(self, objective: str, train_loss: float | None) -> float | None:
        """The objective's value.

        Raises:
            UserError: There is no such metric.
        """
        if objective == "train_loss":
            return train_loss
        if objective == "val_loss":
            return self.val_loss
        if objective not in self.metrics:
            known = ["train_loss", "val_loss", *self.metrics]
            raise UserError(
                f"--objective {objective}: the task has no such metric.{did_you_mean(objective, known)}\n"
                f"It has {', '.join(known)}."
            )
        return self.metrics[objective]


def objective_name(task: Task, settings: Settings) -> str:
    """The objective asked for, else ``val_loss`` where there is ``val``, else ``train_loss``.

    Raises:
        UserError: It needs ``val`` or ``metrics``, and the task has none.
    """
    name = settings.objective or ("train_loss" if task.val is None else "val_loss")
    if name != "train_loss" and task.val is None:
        raise UserError(
            f"--objective {name} is measured on val, and the task has none.\n"
            "Return val=…, or use --objective train_loss."
        )
    if name not in ("train_loss", "val_loss") and task.metrics is None:
        raise UserError(
            f"--objective {name}: the task has no metrics.\nReturn metrics=…, or use val_loss or train_loss."
        )
    return name


def check_metric(task: Task, name: str, device: torch.device) -> None:
    """Find a metric that isn't there by one batch; where the user's code raises, the runs will tell.

    Raises:
        UserError: ``metrics`` doesn't return ``name``.
    """
    if name in ("train_loss", "val_loss") or task.metrics is None or task.val is None:
        return
    try:
        with unchanged(task), torch.no_grad():
            metrics = task.metrics(task.model.to(device).eval(), move(next(iter(task.val)), device))
    except Exception:
        return
    Evaluation(0.0, dict.fromkeys(checked_metrics(metrics), 0.0)).of(name, 0.0)


@contextlib.contextmanager
def precision(settings: Settings, device: torch.device) -> Iterator[None]:
    """Autocast as ``--amp`` says."""
    if settings.amp == "off":
        yield
    else:
        dtype = torch.bfloat16 if settings.amp == "bf16" else torch.float16
        with torch.autocast(device.type, dtype=dtype):
            yield


class Losses(NamedTuple):
    """A loss and a lower bound of it, or those of each run of a stack.

    Attributes:
        loss: The loss.
        lower_bound: None where the task gives none.
    """

    loss: torch.Tensor
    lower_bound: torch.Tensor | None = None


def losses_of(task: Task, model: Any, batch: Any) -> Losses:
    """The task's loss of one batch and its lower bound if there is one, checked to be one number each.

    Raises:
        UserError: They are something else.
    """
    returned = task.loss(model, batch)
    if isinstance(returned, tuple) and len(returned) == 2:
        loss, bound = _one_number(returned[0], "a loss that is "), returned[1]
        if isinstance(bound, (int, float)):
            return Losses(loss, torch.full_like(loss.detach(), bound))
        return Losses(loss, _one_number(bound, "a bound that is ").detach())
    return Losses(_one_number(returned))


def _one_number(loss: Any, which: str = "") -> torch.Tensor:
    if isinstance(loss, torch.Tensor) and loss.dim() == 0 and loss.is_floating_point():
        return loss
    if not isinstance(loss, torch.Tensor):
        what = f"a {type(loss).__name__}"
    elif loss.dim():
        what = f"a tensor of shape {list(loss.shape)}"
    else:
        what = f"a tensor of {str(loss.dtype).removeprefix('torch.')}"
    raise UserError(
        f"The task's loss(model, batch) returned {which}{what}, not a 0-dim floating-point tensor.\n"
        "Return the mean loss of the batch, or (loss, lower_bound) where a lower bound of it is known."
    )


def scalar_loss(task: Task, model: Any, batch: Any) -> torch.Tensor:
    """The loss alone of :func:`losses_of`."""
    return losses_of(task, model, batch).loss


def training_losses(task: Task, model: Any, batch: Any) -> Losses:
    """As :func:`losses_of`, for a step of training.

    Raises:
        UserError: The loss has no gradient, too.
    """
    losses = losses_of(task, model, batch)
    if not losses.loss.requires_grad:
        raise UserError(
            "The task's loss(model, batch) returned a tensor without a gradient: it is detached, or doesn't depend on "
            "the model's parameters.\nReturn the loss itself, without detach(), item() or no_grad()."
        )
    return losses


def evaluate(task: Task, settings: Settings, device: torch.device) -> Evaluation:
    """``loss`` and ``metrics`` over ``val``, in eval mode and without gradients."""
    if task.val is None:
        return Evaluation()
    model = task.model
    sums: dict[str, Any] = {}
    samples, loss_sum = 0, torch.zeros((), dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    was_training = model.training
    model.eval()
    with torch.no_grad(), precision(settings, device):
        for batch in task.val:
            batch = move(batch, device)
            size = batch_size(batch)
            loss_sum += size * scalar_loss(task, model, batch).to(loss_sum)
            for name, value in (checked_metrics(task.metrics(model, batch)) if task.metrics else {}).items():
                sums[name] = sums.get(name, 0.0) + size * value
            samples += size
    model.train(was_training)
    return Evaluation(float(loss_sum) / samples, {name: float(value) / samples for name, value in sums.items()})


def checked_metrics(metrics: Any) -> dict[str, Any]:
    """``metrics(model, batch)`` as returned, if it is a dict.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(metrics, dict):
        raise UserError(
            f"The task's metrics(model, batch) returned a {type(metrics).__name__}, not a dict {{name: number}}."
        )
    return metrics


class Initial(NamedTuple):
    """What was measured before the first step, the same for all runs of a seed.

    Attributes:
        of: ℓ0 of each objective that was measured, by its name.
        loss: What divergence is measured against, whatever the objective: ``val_loss`` where there is ``val``, else
            ``train_loss``.
    """

    of: dict[str, float]
    loss: float


def measure_initial(task: Task, objective: str, settings: Settings, device: torch.device) -> Initial:
    """Measure the model as it is; ``task.initial`` stands for ℓ0 where the task says it.

    No generator, buffer or mode is other afterwards, so that training goes as if nothing had been measured.
    """
    with generators_restored(task.train, task.val):
        before = evaluate(task, settings, device)
        train_loss = train_loss_before(task, settings, device) if objective == "train_loss" else None
    before.of(objective, train_loss)
    return initial_of(task, before, train_loss)


def initial_of(task: Task, before: Evaluation, train_loss: float | None) -> Initial:
    """What was measured of the model as it is; ``train_loss`` is known where there is no ``val``."""
    measured = {"train_loss": train_loss, "val_loss": before.val_loss, **before.metrics}
    known = {name: value for name, value in measured.items() if value is not None}
    loss = known["train_loss" if before.val_loss is None else "val_loss"]
    return Initial(known if task.initial is None else dict.fromkeys(known, task.initial), loss)


def train_loss_before(task: Task, settings: Settings, device: torch.device) -> float:
    """Mean training loss over the first 10 batches, of the model as it is."""
    model = task.model
    with buffers_restored(model), torch.no_grad(), precision(settings, device):
        model.train()
        losses = [
            scalar_loss(task, model, move(batch, device)).float()
            for batch in itertools.islice(task.train, _INITIAL_BATCHES)
        ]
    if not losses:
        raise UserError("train gave no batch: it must be possible to iterate it again and again.")
    return float(torch.stack(losses).mean())


@contextlib.contextmanager
def unchanged(task: Task) -> Iterator[None]:
    """Leave the task as it was found: its parameters, buffers, mode, and every generator that its data draw from."""
    model = task.model
    saved = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        with generators_restored(task.train, task.val):
            yield
    finally:
        model.train()
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)


@contextlib.contextmanager
def buffers_restored(model: torch.nn.Module) -> Iterator[None]:
    """Leave the model's buffers (BatchNorm's running statistics) as they were found."""
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(saved[name])
