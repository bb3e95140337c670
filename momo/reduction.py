"""The one seam between ranks: the local sums of a step become global ones.

Without ranks that is the identity. With them it is one all-reduce of a few numbers, after which every rank computes the
same step from the same numbers, so that ranks which hold the same parameters keep holding the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from momo.sharding import mesh_ranks

_SAME = 1e-6  # how much sums over the same parameters and gradients may differ, relative


class Reduction:
    """Sums over the ranks of a process group.

    Args:
        process_group: the group; None for the default group where there is one of more than one rank; False for none.
        name: of the optimizer, for errors.
    """

    def __init__(self, process_group: Any, name: str) -> None:
        self.process_group, self._name = process_group, name
        self._checked = False

    def group(self) -> Any:
        """The process group to sum over, or None."""
        given = self.process_group
        if given is False or not (dist.is_available() and dist.is_initialized()):
            return None
        group = given or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def weight(self, params: list[Tensor], shards: int) -> float:
        """What each rank's sums over parameters in so many parts count, so that every part counts once in all.

        Raises:
            ValueError: the ranks that hold the parts aren't in the group.
        """
        group = self.group()
        size = dist.get_world_size(group) if group is not None else 1
        if shards > 1:
            ranks = set(dist.get_process_group_ranks(group)) if group is not None else {0}
            if size % shards or not all(ranks.issuperset(mesh_ranks(p)) for p in params):
                raise ValueError(
                    f"{self._name}'s parameters are in {shards} parts on ranks that aren't all in its process group, "
                    "so sums over them can't be made. Leave process_group=None."
                )
        return shards / size

    def __call__(self, sums: Tensor, check: Callable[[], tuple[float, Tensor | float]]) -> Tensor:
        """The sums over all ranks.

        Args:
            sums: this rank's, weighted by :meth:`weight`; what every rank has counts ``1 / ranks`` on each.
            check: returns the size of the parameters that every rank holds all of, and a sum over them that is
                positive. They are compared once, and asked for no more.

        Raises:
            RuntimeError: the ranks hold different parameters or gradients.
        """
        group = self.group()
        if group is None:
            return sums
        if not self._checked:
            self._compare(check(), sums.device, group)
            self._checked = True
        dist.all_reduce(sums, group=group)
        return sums

    def _compare(self, check: tuple[float, Tensor | float], device: torch.device, group: Any) -> None:
        own = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in check])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, own, group=group)
        sizes, values = torch.stack(every).unbind(1)
        differ = bool((sizes != sizes[0]).any()) or bool(((values - values[0]).abs() > _SAME * values[0].abs()).any())
        if differ:
            raise RuntimeError(
                f"{self._name}: the ranks of the process group hold different parameters or gradients, so there is no "
                "one step for them. It works with DistributedDataParallel, fully_shard and tensor parallel DTensors. "
                "ZeroRedundancyOptimizer, DeepSpeed ZeRO, FSDP1 and pipeline stages give each rank other parameters, "
                "which isn't supported; if each rank trains a model of its own, pass process_group=False."
            )
