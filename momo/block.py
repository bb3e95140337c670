"""The parameters of one group that are alike: what they add to the sums of a step, and their move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from momo import passes
from momo.directions import Elementwise
from momo.method import Scalar, average, terms_of, weight_of_new, where
from momo.passes.matrices import MatrixPasses
from momo.passes.members import Members, Scratch, on_host, scalar_device
from momo.sharding import local_gradient

# Of each parameter: the number of gradients it has had, the sum of the weights in its averages, its average of <g, x>.
SCALARS = {"step": torch.float32, "rho": torch.float64, "gamma": torch.float64}


def bring(value: Scalar, device: torch.device) -> Scalar:
    """A scalar to a device: a number if that is the CPU, where it costs nothing to read."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if on_host(device) else value.to(device, non_blocking=True)


def _set(vector: Tensor, value: Scalar) -> None:
    vector.copy_(value) if isinstance(value, Tensor) else vector.fill_(value)


class Block:
    """Parameters of one group with one device, dtype and number of shards.

    Each may have had another number of gradients, so what belongs to each of them is in vectors with an element for
    each parameter, and the state holds views of these.

    Args:
        group: their parameter group.
        positions: of the parameters among all of the optimizer.
        members: the parameters with their buffers.
        direction: the group's.
        decoupled: whether the decay is no part of the model: then ``c`` is one in the step size.
        counted: what this rank's sums over them count, see :meth:`momo.reduction.Reduction.weight`.
        parts: in how many they are on the ranks; one where this rank has all.
        scratch, fused: see :func:`momo.passes.choose`.
    """

    def __init__(
        self,
        group: dict[str, Any],
        positions: list[int],
        members: Members,
        direction: Any,
        *,
        decoupled: bool,
        counted: float,
        parts: int,
        scratch: Scratch,
        fused: bool | None,
    ) -> None:
        self.group, self.positions, self.members = group, positions, members
        self.counted, self.parts, self.sharded = counted, parts, parts > 1
        self.shares_norm: bool = direction.shares_norm
        self.elementwise: bool = direction.elementwise
        self._kind, self._decoupled = direction, decoupled
        self._passes: passes.Passes = passes.choose(members, scratch, fused)
        self.device = scalar_device(members.device)
        self._steps, self._rho, self._gamma = (self._one_tensor(name) for name in SCALARS)
        self._scaled_by, self._scales = "", torch.empty(0)  # of matrices: the option, and what it makes of each shape
        if not self.elementwise:
            self._passes = MatrixPasses(members, self._passes, scratch)
        self._norms = self._one_tensor("norm") if self.shares_norm else None  # of the step before
        self._first = {vector: vector[0] for vector in (self._steps, self._rho)}
        # On the CPU, parameters that have had the same gradients are computed with numbers rather than vectors.
        self._alike = on_host(self.device) and all(bool((v == v[0]).all()) for v in (self._steps, self._rho))
        self._direction: Elementwise
        self._dots = self.gx = torch.empty(0)  # see Passes.accumulate; the first row: <g, x> of each parameter
        self._present: list[bool] | None = None
        self._mask: Scalar = 1.0
        self._weight: Scalar = 1.0
        self._cap: Scalar = 0.0
        self._decay: Scalar = 1.0

    def _one_tensor(self, name: str) -> Tensor:
        together = torch.stack([state[name] for state in self.members.states])
        for state, view in zip(self.members.states, together.unbind(0)):
            state[name] = view
        return together

    def _value(self, vector: Tensor) -> Scalar:
        return self._first[vector].item() if self._alike else vector.double()

    def accumulate(self, grads: Sequence[Tensor | None], beta: float, from_zero: bool, lr: Scalar) -> list[Scalar]:
        """First pass: take in the gradients.

        Args:
            grads: of all parameters of the optimizer.
            beta: the momentum.
            from_zero: whether averages start from zero.
            lr: the learning rate of the group.

        Returns:
            The terms of :class:`momo.method.Sums` but the loss; gamma is zero if these are shards. Where the direction
            shares a norm, two more: what is to be multiplied by the norm to be the descent, and what adds to the norm.
        """
        own = [grads[i] for i in self.positions]
        self._look_for_missing(own)
        if self.members.distributed:
            own = [g if g is None else local_gradient(p, g) for p, g in zip(self.members.whole_params, own)]
        self._weight = weight_of_new(beta, self._value(self._rho), from_zero) * self._mask
        rho = average(self._value(self._rho), 1.0, self._weight)
        _set(self._rho, rho)
        self._steps += self._mask
        self._direction = self._kind.of(self.group, self._weight, self._value(self._steps), self._mask)
        dots = self._passes.accumulate(self._direction, own)
        if isinstance(self._mask, Tensor):
            dots = dots.masked_fill(self._mask == 0, 0.0)
        if dots is not self._dots:
            self._dots, self.gx = dots, dots[0]
        self._decay = 1 + lr * self.group["weight_decay"]
        self._cap = lr / rho if self._direction.scales else lr
        if not self.elementwise:
            self._cap = self._cap * self._scales_of_shapes()
        gamma = 0.0 if self.sharded else self.update_gamma(self.gx)
        norm = [] if self._norms is None else [where(lr == 0, 0.0, self._norm(self._norms))]
        dx, descent = self._sums_with_cap()
        c = 1.0 if self._decoupled else self._decay
        if norm:
            return [gamma, *terms_of(dx, 0.0, c), descent, *norm]
        return [gamma, *terms_of(dx, descent, c)]

    def _scales_of_shapes(self) -> Tensor:
        if self._scaled_by != self.group["adjust_lr_fn"]:
            self._scaled_by = self.group["adjust_lr_fn"]
            scales = [self._kind.scale(self.group, p.shape) for p in self.members.whole_params]
            self._scales = torch.tensor(scales, dtype=torch.float64).to(self.device, non_blocking=True)
        return self._scales

    def _norm(self, before: Tensor) -> Scalar:
        """The sum of ``<d, u>``: of this step, or with ``stale_norms`` of the step before where there was one."""
        own = self._dots[2]
        fresh = own * self.parts
        if self.group["stale_norms"]:
            own.copy_(torch.where(self._steps <= 1, own, before / self.parts * self._mask))
        before.copy_(torch.where(self._mask > 0, fresh, before) if isinstance(self._mask, Tensor) else fresh)
        return bring(own.sum(), self.device)

    def _sums_with_cap(self) -> tuple[Scalar, Scalar]:
        """The sums of ``<d, x>`` and of ``cap <d, u>``."""
        if isinstance(self._cap, Tensor) and self._cap.dim():
            _, dx, du = self._dots.unbind()
            return bring(dx.sum(), self.device), bring(torch.dot(self._cap, du), self.device)
        totals = self._dots.sum(1)
        _, dx, du = totals.tolist() if on_host(self.device) else totals.unbind()
        return dx, self._cap * du

    def _look_for_missing(self, own: Sequence[Tensor | None]) -> None:
        present = [g is not None for g in own]
        if all(present):
            self._present, self._mask = None, 1.0
        else:
            self._present = present
            self._mask = torch.tensor(present, dtype=torch.float64).to(self.device, non_blocking=True)
            self._alike = False

    @property
    def positive(self) -> Tensor:
        """A sum over the parameters that is positive."""
        return self._dots[2].sum()

    def update_gamma(self, gx: Tensor) -> Scalar:
        """Take ``<g, x>`` of each parameter, over all of its shards, into the averages; return their sum."""
        self._gamma.lerp_(gx, self._weight)
        counted = self._gamma if self._present is None else self._gamma * self._mask
        return bring(counted.sum(), self.device)

    def move(self, multiplier: Scalar, norm: Scalar) -> None:
        """Second pass, with the multiplier of the largest step, and the norm that directions share."""
        step = multiplier * self._cap * (norm if self.shares_norm else 1.0)
        keep: Scalar
        if self._decoupled or not self.group.get("divide", True):
            keep = 2 - self._decay
        else:
            step, keep = step / self._decay, 1 / self._decay
        self._passes.move(self._direction, step, keep, self._present)


def make_blocks(
    groups: list[dict[str, Any]],
    wanted: set[int],
    state: Callable[[Tensor, Any], dict[str, Any]],
    directions: list[Any],
    *,
    decoupled: bool,
    shards: Callable[[Tensor], int],
    counted: Callable[[list[Tensor], int], float],
    scratch: Scratch,
    fused: bool | None,
) -> list[Block]:
    """Sort parameters into blocks.

    Args:
        groups: parameter groups.
        wanted: positions of the parameters to take.
        state: the state of a parameter with a direction.
        directions: of each group.
        decoupled: see :class:`Block`.
        shards: see :func:`momo.sharding.shards`.
        counted: see :meth:`momo.reduction.Reduction.weight`.
        scratch, fused: see :func:`momo.passes.choose`.
    """
    sorted_: dict[Any, tuple[list[int], list[Tensor]]] = {}
    position = 0
    for index, group in enumerate(groups):
        for p in group["params"]:
            if position in wanted:
                positions, params = sorted_.setdefault((index, p.device, p.dtype, shards(p)), ([], []))
                positions.append(position)
                params.append(p)
            position += 1
    return [
        Block(
            groups[index], positions, Members(params, [state(p, kind) for p in params], kind.buffers), kind,
            decoupled=decoupled, counted=counted(params, parts), parts=parts, scratch=scratch, fused=fused,
        )
        for (index, _, _, parts), (positions, params) in sorted_.items()
        for kind in (directions[index],)
    ]  # fmt: skip
