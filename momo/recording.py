"""Recording the loss through whatever wraps an optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def record_loss(
    optimizer: Any, loss: Tensor | float, reduction: str = "mean", lower_bound: Tensor | float | None = None
) -> None:
    """Record the loss for the optimizer's next step, also where a framework has wrapped it.

    Args:
        optimizer: one of this package, or what wraps it and has it as its ``.optimizer`` (Accelerate's and Lightning's
            do).
        loss: the loss whose gradient is in ``.grad``, or will be when the step comes: see
            :meth:`momo.Momo.record_loss`.
        reduction: ``"mean"`` for the losses of micro-batches, ``"sum"`` for parts that were divided already.
        lower_bound: a lower bound of this very loss where one is known: see :meth:`momo.Momo.step`.

    Raises:
        TypeError: there is no optimizer of this package in it.

    Example:
        >>> import torch, momo
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer = momo.Momo([weight])
        >>> loss = weight.square().sum()
        >>> loss.backward()
        >>> momo.record_loss(optimizer, loss)
        >>> optimizer.step()
    """
    found = optimizer
    while not hasattr(found, "record_loss"):
        found = getattr(found, "optimizer", None)
        if found is None:
            raise TypeError(
                f"record_loss needs an optimizer of momo, or what wraps one, and got {type(optimizer).__name__}."
            )
    found.record_loss(loss, reduction, lower_bound)
