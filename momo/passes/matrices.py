"""The passes of a direction that needs whole matrices: averages as for any momentum, products of matrices by torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from momo.directions import Momentum
from momo.method import Scalar
from momo.passes.members import Members, Scratch, on_host
from momo.sharding import full, part_like, shards

if TYPE_CHECKING:
    from momo.passes import Passes

# Elements that go through the iteration together. Many small matrices of one shape take a fraction of the time in one
# batch; on the CPU, large ones are faster one by one.
_BATCH = {"cpu": 1 << 18}
_ELSEWHERE = 1 << 24
_ALONE = {"cpu": 1 << 16}


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """A step that is taken within autocast, as in Lightning's manual optimization, is no other than outside."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class MatrixPasses:
    """See :class:`momo.passes.Passes`.

    ``u`` is computed once in a step and kept for the second pass, in bfloat16. Of a distributed matrix every rank
    gathers the average and computes the whole ``u``: the same operations on the same numbers.

    Args:
        members: matrices, of two or more dimensions; those after the first are taken as one.
        averages: elementwise passes over the same members.
        scratch: as for :func:`momo.passes.choose`.
    """

    def __init__(self, members: Members, averages: Passes, scratch: Scratch) -> None:
        self.members, self._averages, self._scratch = members, averages, scratch
        self._parts = shards(members.whole_params[0])
        self._kept: list[tuple[list[int], Tensor]] = []
        self._batches: list[list[int]] = []
        limit = _BATCH.get(members.device.type, _ELSEWHERE)
        alone = _ALONE.get(members.device.type, limit)
        of_shape: dict[tuple[int, int], list[int]] = {}
        for i, p in enumerate(members.whole_params):
            of_shape.setdefault((p.shape[0], p.shape[1:].numel()), []).append(i)
        for (rows, columns), indices in of_shape.items():
            size = rows * columns
            count = 1 if size > alone else max(1, limit // max(1, size))
            self._batches += [indices[i : i + count] for i in range(0, len(indices), count)]

    def accumulate(self, direction: Any, grads: Sequence[Tensor | None]) -> Tensor:
        dots = self._averages.accumulate(Momentum(direction.weight), grads)
        name = self.members.buffer_names[0]
        norms = [dots.new_zeros(())] * len(self.members)
        self._kept = []
        for batch in self._batches:
            there = [i for i in batch if grads[i] is not None]
            if not there:
                continue
            matrices = [full(self.members.states[i][name]).flatten(1) for i in there]
            d = matrices[0] if len(there) == 1 else torch.stack(matrices)
            with _without_autocast(d.device.type):
                u = direction.direction([d], d)
            self._kept.append((there, u))
            # Nothing cancels in this sum, so rows may be summed in single precision.
            product = torch.mul(d, u, out=self._scratch.get("work", d.numel(), d.dtype, d.device).view(d.shape))
            found = product.sum(-1).to(dots.device).sum(-1, dtype=dots.dtype) / self._parts
            for i, norm in zip(there, found.reshape(-1).unbind()):
                norms[i] = norm
        dots[2] = torch.stack(norms)
        return dots

    def move(self, direction: Any, step: Scalar, keep: Scalar, present: Sequence[bool] | None) -> None:
        params, dtype = self.members.params(), self.members.compute_dtype
        assert isinstance(step, Tensor)  # each shape has a scale
        steps = step.tolist() if on_host(step.device) else step
        for there, u in self._kept:
            xs = [params[i] for i in there]
            wide = xs if xs[0].dtype is dtype else [x.to(dtype) for x in xs]
            if not (isinstance(keep, float) and keep == 1.0):
                torch._foreach_mul_(wide, keep.to(dtype) if isinstance(keep, Tensor) else keep)
            if isinstance(steps, list):
                for x, i, part in zip(wide, there, self._own(there, u)):
                    x.add_(part, alpha=-steps[i])
            else:
                of_each = torch.stack([steps[i] for i in there]).to(dtype)
                torch._foreach_sub_(wide, self._own(there, (u * of_each.view(-1, 1, 1)).contiguous()))
            if wide is not xs:
                torch._foreach_copy_(xs, wide)
        self._kept = []

    def _own(self, indices: list[int], u: Tensor) -> list[Tensor]:
        """This rank's parts of a batch, in the parameters' shapes."""
        params = [self.members.whole_params[i] for i in indices]
        return [part_like(p, matrix.reshape(p.shape)) for p, matrix in zip(params, u.unbind() if u.dim() == 3 else [u])]
