"""DTensors: this rank's part of a distributed parameter, and how many parts there are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_distributed(t: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor (without importing what nobody has imported)."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """The memory of a tensor on this rank."""
    if not is_distributed(t):
        return t
    part = t.to_local()
    return part.wait() if hasattr(part, "wait") else part


def like(p: Tensor, part: Tensor) -> Tensor:
    """This rank's part as a tensor that is distributed as ``p`` is."""
    if not is_distributed(p):
        return part
    return type(p).from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def part_like(p: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of what every rank has all of, as ``p`` is distributed."""
    if not is_distributed(p):
        return whole
    every = [sys.modules["torch.distributed.tensor"].Replicate()] * p.device_mesh.ndim
    return local(type(p).from_local(whole, p.device_mesh, every, run_check=False).redistribute(placements=p.placements))


def local_gradient(p: Tensor, g: Tensor) -> Tensor:
    """This rank's part of the gradient of its part of ``p``: brought to ``p``'s placements, with partial sums
    summed."""
    if is_distributed(p) and is_distributed(g):
        return local(g if g.placements == p.placements else g.redistribute(p.device_mesh, p.placements))
    if is_distributed(p) or is_distributed(g):
        raise RuntimeError(
            "of a parameter and its gradient, one is a DTensor and the other isn't. Distribute the model before "
            "backward()."
        )
    return g


def shards(p: Tensor) -> int:
    """How many different parts a parameter has: 1 where each rank holds all of it."""
    if not is_distributed(p):
        return 1
    count = 1
    for dim, placement in enumerate(p.placements):
        if placement.is_partial():
            raise ValueError(
                "a parameter that is a partial sum over ranks has no value of its own: redistribute it first."
            )
        if not placement.is_replicate():
            count *= p.device_mesh.size(dim)
    return count


def full(t: Tensor) -> Tensor:
    """The value of a tensor that ranks may hold in parts or as partial sums."""
    return t.full_tensor() if is_distributed(t) else t


def mesh_ranks(p: Tensor) -> list[int]:
    """The ranks that hold a distributed parameter."""
    ranks: Any = p.device_mesh.mesh if is_distributed(p) else torch.zeros(0)
    return [int(rank) for rank in ranks.flatten().tolist()]
