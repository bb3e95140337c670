"""What a task is, in the three forms in which a function may return it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from momo_cli.errors import UserError, did_you_mean

_FORMS = "return momo_cli.Task(model=…, loss=…, train=…), (model, loss, train[, val]) or a dict with those keys."


@dataclasses.dataclass
class Task:
    """A model, its loss and its data: one training problem.

    Attributes:
        model: A ``torch.nn.Module``, freshly initialized.
        loss: ``loss(model, batch)`` returns the batch's mean loss, a 0-dim tensor; or ``(loss, lower_bound)`` where a
            lower bound of this very loss is known, a 0-dim tensor or a number, which Momo's methods use for ``lb``.
        train: Batches that can be iterated again and again: a DataLoader, a list of tensors, tuples or dicts.
        val: Batches for evaluation, or None.
        metrics: ``metrics(model, batch)`` returns ``{name: number}``, averaged over ``val`` by batch size.
        steps: Training steps of a run unless the command line says otherwise.
        epochs: The same in passes over ``train``; one epoch where neither is given.
        initial: ℓ0, the objective before the first step, if it is known; else it is measured.

    Example:
        >>> import torch, momo_cli
        >>> def build(seed):
        ...     x = torch.randn(64, 3)
        ...     y = x.sum(1, keepdim=True)
        ...     return momo_cli.Task(
        ...         model=torch.nn.Linear(3, 1),
        ...         loss=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1]),
        ...         train=list(zip(x.split(16), y.split(16))),
        ...         steps=100,
        ...     )
        >>> len(build(seed=0).train)
        4
    """

    model: Any
    loss: Callable[[Any, Any], Any]
    train: Iterable[Any]
    val: Iterable[Any] | None = None
    metrics: Callable[[Any, Any], Mapping[str, Any]] | None = None
    steps: int | None = None
    epochs: float | None = None
    initial: float | None = None

    @classmethod
    def from_returned(cls, returned: Any, where: str) -> Task:
        """The task in whichever form the function returned it.

        Args:
            returned: A ``Task``, a tuple ``(model, loss, train[, val])`` or a dict of the fields.
            where: The function's name, for error messages.

        Raises:
            UserError: It is none of these, or a field is not what it must be.
        """
        if isinstance(returned, cls):
            task = returned
        elif isinstance(returned, dict):
            fields = [field.name for field in dataclasses.fields(cls)]
            for key in returned:
                if key not in fields:
                    raise UserError(
                        f"{where} returned a dict with the unknown key {key!r}.{did_you_mean(str(key), fields)}\n"
                        f"Its keys may be {', '.join(fields)}."
                    )
            missing = [name for name in ("model", "loss", "train") if name not in returned]
            if missing:
                raise UserError(f"{where} returned a dict without {', '.join(map(repr, missing))}.\nInstead {_FORMS}")
            task = cls(**returned)
        elif isinstance(returned, tuple):
            if len(returned) not in (3, 4):
                raise UserError(f"{where} returned a tuple of {len(returned)}.\nInstead {_FORMS}")
            task = cls(*returned)
        else:
            raise UserError(f"{where} returned {_described(returned)}, which is not a task.\nInstead {_FORMS}")
        task._check(where)
        return task

    def _check(self, where: str) -> None:
        import torch

        if not isinstance(self.model, torch.nn.Module):
            raise UserError(f"{where} returned a model that is {_described(self.model)}, not a torch.nn.Module.")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError(f"{where} returned a model without a trainable parameter: there is nothing to train.")
        for name, required in (("loss", True), ("metrics", False)):
            value = getattr(self, name)
            if not callable(value) and (required or value is not None):
                raise UserError(
                    f"{where} returned a {name} that is {_described(value)}, not a function {name}(model, batch)."
                )
        if isinstance(self.loss, torch.nn.Module):
            raise UserError(
                f"{where} returned the module {type(self.loss).__name__} as loss; loss takes (model, batch).\n"
                "Wrap it: loss=lambda model, batch: criterion(model(batch[0]), batch[1])."
            )
        for name in ("train", "val"):
            batches = getattr(self, name)
            if batches is None and name == "val":
                continue
            if not hasattr(batches, "__iter__") or isinstance(batches, (str, bytes, torch.Tensor)):
                raise UserError(
                    f"{where} returned {name} = {_described(batches)}, not batches.\n"
                    "Give a DataLoader or a list of batches (tensors, tuples or dicts)."
                )
            if hasattr(batches, "__next__"):
                raise UserError(
                    f"{where} returned {name} as an iterator, which can be read only once.\n"
                    "Give something that can be iterated again: a list or a DataLoader."
                )
            if known_length(batches) == 0:
                raise UserError(
                    f"{where} returned {name} without a single batch (is drop_last on, or the data too small?)."
                )
        if self.steps is not None and self.epochs is not None:
            raise UserError(f"{where} returned both steps={self.steps} and epochs={self.epochs}: give one.")
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise UserError(f"{where} returned {name}={value!r}; it must be positive.")

    def count_steps(self, steps: int | None, epochs: float | None) -> int:
        """Training steps of a run: the command line's, else the task's own, else one epoch."""
        if steps is None and epochs is None:
            steps, epochs = self.steps, self.epochs
        if steps is not None:
            return int(steps)
        length = known_length(self.train)
        if length is None:
            length = sum(1 for _ in self.train)
        return max(1, round((1 if epochs is None else epochs) * length))


class Builds(Protocol):
    """Builds the task of each seed."""

    def build(self, seed: int, device: Any) -> Task:
        """Seed every generator with ``seed`` and build the task for ``device``."""

    def load(self) -> object:
        """Import the task, once for all builds."""


def known_length(batches: Any) -> int | None:
    """How many batches there are; None where only going through them tells (a DataLoader over an IterableDataset)."""
    try:
        return len(batches)
    except TypeError:
        return None


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
