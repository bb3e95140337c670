"""The passes over memory: from a model's many tensors to sums, and from a step size to moved parameters.

A step needs the global sums before it may move a parameter, so it makes two passes. How they are made is a matter of
speed alone: by torch's operations anywhere, or by compiled code where it is. Nothing of the size of the model is
allocated.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from momo.directions import Elementwise
from momo.method import Scalar
from momo.passes.members import Members, Scratch

if TYPE_CHECKING:
    from momo.block import Block
    from momo.passes.triton_ops import TritonStep

_TRITON = {"cuda"}  # AMD's GPUs are called so, too


class Passes(Protocol):
    """The two passes over some parameters, see :class:`momo.passes.members.Members`."""

    def accumulate(self, direction: Elementwise, grads: Sequence[Tensor | None]) -> Tensor:
        """First pass: the gradients go into the buffers. A parameter without a gradient is left as it is.

        Returns:
            The rows ``<g, x>``, ``<d, x>`` and ``<d, u>`` with an element for each parameter, in double precision. The
            memory is used again in the next step.
        """
        ...

    def move(self, direction: Elementwise, step: Scalar, keep: Scalar, present: Sequence[bool] | None) -> None:
        """Second pass: ``x <- keep * x - step * u``.

        Args:
            direction: the one of the first pass.
            step: a number, or a tensor with an element for each parameter.
            keep: a number, or a 0-dimensional tensor.
            present: which parameters have a gradient in this step; None for all of them.
        """
        ...


def choose(members: Members, scratch: Scratch, fused: bool | None) -> Passes:
    """The passes for these parameters.

    Args:
        members: the parameters.
        scratch: working memory.
        fused: None: the compiled ones on the CPU, where there are some; True: the compiled ones, of which those on a
            GPU are of a step as a whole (:func:`whole_step`); False: torch's operations.

    Raises:
        RuntimeError: ``fused=True``, and there are no compiled passes for these parameters.
    """
    from momo.passes.compiled import CompiledPasses, why_not
    from momo.passes.torch_ops import TorchPasses

    if fused is not False:
        reason = why_not(members.device, members.dtype)
        if reason is None:
            return CompiledPasses(members, scratch)
        if fused and _without_triton(members.device):
            raise RuntimeError(
                f"fused=True needs compiled passes, and {reason}. Use fused=None for torch's operations."
            )
    return TorchPasses(members, scratch)


def _without_triton(device: torch.device) -> str | None:
    if device.type not in _TRITON:
        return f"there is no Triton for {device.type}"
    return None if importlib.util.find_spec("triton") else "Triton isn't installed"


def whole_step(blocks: Sequence[Block]) -> TritonStep | str:
    """A step of these blocks in a few launches, or why there is none."""
    device = blocks[0].device
    reason = _without_triton(device)
    if reason is not None:
        return reason
    if any(block.members.device != device for block in blocks):
        return "the parameters are on several devices"
    if any(block.members.distributed for block in blocks):
        return "the parameters are distributed"
    if not all(block.elementwise for block in blocks):
        return "torch's operations make the products of matrices"
    from momo.passes.triton_ops import TritonStep

    return TritonStep(blocks)
