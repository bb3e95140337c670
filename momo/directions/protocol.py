"""What a direction has to offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from momo.method import Scalar

D = TypeVar("D", bound="Elementwise")


class Direction(Protocol):
    """A direction :math:`u` with :math:`\\langle d, u\\rangle > 0`, for tensors as a whole.

    An instance holds the numbers of one step; what lasts is in the buffers, which have their parameter's shape.

    Attributes:
        name: how the compiled passes call it.
        buffers: names of the buffers in a parameter's state; the averaged gradient ``d`` comes first.
        scalars: what else the state of a parameter holds: the dtypes of 0-dimensional tensors by name.
        scales: whether ``u`` scales with ``d``. Then the largest step is ``lr / rho``, else it is ``lr``.
        elementwise: whether it fits :class:`Elementwise`. What doesn't is a matrix direction like Muon's, whose ``u``
            the passes compute once in a step and keep.
        shares_norm: whether ``u`` is still to be multiplied by the sum of ``<d, u>`` over all such tensors.
    """

    name: ClassVar[str]
    buffers: ClassVar[tuple[str, ...]]
    scalars: ClassVar[dict[str, torch.dtype]]
    scales: ClassVar[bool]
    elementwise: ClassVar[bool]
    shares_norm: ClassVar[bool]

    @classmethod
    def of(cls, options: Mapping[str, Any], weight: Scalar, steps: Scalar, present: Scalar = 1.0) -> Direction:
        """The numbers of a step.

        Args:
            options: of the parameter group.
            weight: of the new gradient in the average. This one and the next two may be tensors with an element for
                each parameter.
            steps: the number of gradients that the parameter has had, this one included.
            present: one, or zero for a parameter that has no gradient in this step.
        """
        ...

    def accumulate(self, g: Tensor, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        """Take a gradient into the buffers, and return ``u``, which may be written to ``work``."""
        ...

    def direction(self, buffers: Sequence[Tensor], work: Tensor) -> Tensor:
        """``u`` again, from the buffers alone."""
        ...


class Elementwise(Direction, Protocol):
    """A direction whose tensors may be cut up and put together: no element looks at another one."""

    @property
    def numbers(self) -> tuple[Scalar, ...]:
        """The numbers of the step, in the order of the constructor and of ``struct numbers`` in ``passes.c``."""
        ...


def restricted(direction: D, pick: Callable[[Tensor], Tensor]) -> D:
    """The same direction with ``pick(number)`` for each number that is a tensor with an element for each parameter."""
    return type(direction)(*(pick(v) if isinstance(v, Tensor) else v for v in direction.numbers))
