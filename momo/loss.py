"""The loss of a step, however it comes: given to it, returned by a closure, or recorded before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from momo.method import Scalar
from momo.passes.members import on_host, scalar_device
from momo.sharding import full

HOW = (
    "Pass the loss whose gradient is in .grad: optimizer.step(loss=loss), or optimizer.step(closure) with a closure "
    "that returns the loss, or optimizer.record_loss(loss) before a bare optimizer.step()."
)


class Losses(NamedTuple):
    """The loss of a step or of a part of it, and a lower bound of it if one was given."""

    loss: Scalar
    lower_bound: Scalar | None = None


def loss_value(loss: Any, optimizer: str, what: str = "loss") -> Scalar:
    """The loss, or its lower bound, as a number; as a 0-dimensional tensor in double precision if it is on a device.

    Raises:
        ValueError: it isn't one real number.
        TypeError: it is neither a tensor nor a number.
    """
    if isinstance(loss, Tensor):
        loss = full(loss.detach())
        if loss.numel() != 1:
            raise ValueError(
                f"{optimizer} needs one number as the {what}, and got a tensor of shape {tuple(loss.shape)}. "
                "Pass what backward() was called on, for example loss.mean()."
            )
        if loss.is_complex():
            raise ValueError(f"{optimizer} needs a real {what}, and got a tensor of dtype {loss.dtype}.")
        where = scalar_device(loss.device)
        return float(loss) if on_host(where) else loss.reshape(()).to(where, torch.float64, copy=True)
    try:
        if isinstance(loss, (bool, str, bytes)):
            raise TypeError
        return float(loss)
    except TypeError:
        kind = type(loss).__name__
        raise TypeError(f"{optimizer} needs the {what} as a tensor or a number, and got {kind}. {HOW}") from None


class RecordedLosses:
    """The losses recorded for the next step.

    They belong to the gradients of that step. A ``GradScaler`` that finds these to be infinite skips the step without a
    word to the optimizer; but before, it asks for ``_step_supports_amp_scaling``. So when a scaler has asked and no
    step has come by the time that the next loss is recorded, the losses before belong to a skipped step.
    """

    def __init__(self) -> None:
        self._values: list[Losses] = []
        self._reduction = "mean"
        self._asked = False
        self.kept = False  # through a zero_grad()
        self.dropped_by_zero_grad = False

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, value: Losses, reduction: str) -> None:
        """One more loss.

        Raises:
            ValueError: the reduction is unknown, or not the one of the losses before, or they have no lower bound and
                this one has, or the other way round.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", and is {reduction!r}.')
        if self._asked:
            self.drop()
        if self._values and reduction != self._reduction:
            raise ValueError(
                f'losses of one step were recorded with reduction="{self._reduction}" and "{reduction}": use one.'
            )
        if self._values and (value.lower_bound is None) != (self._values[0].lower_bound is None):
            raise ValueError(
                "some losses of one step were recorded with a lower_bound and some without: give it to all."
            )
        self._values.append(value)
        self._reduction = reduction
        self.dropped_by_zero_grad = False

    def scaler_asks(self) -> None:
        """A ``GradScaler`` is about to take or to skip the step."""
        self._asked = bool(self._values)

    def zero_grad(self, drop: bool) -> None:
        """The gradients are reset: these losses' own, or older ones, if the backward pass of these is still to come."""
        if drop or self._asked:
            self.drop()
            self.dropped_by_zero_grad = True
        else:
            self.kept = True

    def drop(self) -> None:
        """Forget all."""
        self._values.clear()
        self._asked = self.kept = False

    def take(self) -> Losses:
        """Their mean or sum; they are used up."""
        count = len(self._values) if self._reduction == "mean" else 1
        losses = sum((value.loss for value in self._values), start=0.0) / count
        bounds = [value.lower_bound for value in self._values if value.lower_bound is not None]
        self.drop()
        return Losses(losses, sum(bounds, start=0.0) / count if bounds else None)


class GradientVersions:
    """Which gradients are new: autograd makes a tensor, or raises the version of the one that it adds to."""

    def __init__(self) -> None:
        self._zeroed = self._spent = WeakTensorKeyDictionary()
        self.zero_grad_calls = 0

    def zero_grad(self, remaining: Iterable[Tensor | None]) -> None:
        """``zero_grad()`` has made these gradients zero, and has taken the others away."""
        self.zero_grad_calls += 1
        self.spend(remaining)
        self._zeroed = self._spent

    def spend(self, grads: Iterable[Tensor | None]) -> None:
        """A step takes these gradients, or is skipped because of them."""
        self._spent = WeakTensorKeyDictionary({g: g._version for g in grads if g is not None})

    def new(self, grads: Iterable[Tensor | None]) -> bool:
        """Whether a backward pass has come since the last ``zero_grad()`` or step with a recorded loss."""
        return any(g is not None and self._version(self._spent, g) != g._version for g in grads)

    @staticmethod
    def _version(known: WeakTensorKeyDictionary, g: Tensor) -> Any:
        return known.get(g)  # type: ignore[no-untyped-call]

    def not_zeroed(self, grads: Iterable[Tensor | None]) -> list[tuple[Tensor, int]]:
        """The gradients that the last ``zero_grad()`` has not made zero, each with its version."""
        return [(g, g._version) for g in grads if g is not None and self._version(self._zeroed, g) != g._version]


def warn_if_not_finite(loss: Scalar, optimizer: str) -> bool:
    """Whether a warning was given, which costs nothing where the loss is a number."""
    if isinstance(loss, Tensor) or math.isfinite(loss):
        return False
    warnings.warn(
        f"{optimizer} got the loss {loss}; the average of the losses before stands for it. (Said once.)", stacklevel=7
    )
    return True
