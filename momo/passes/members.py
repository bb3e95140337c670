"""The tensors that a pass goes over, and the memory that it works in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from momo.sharding import is_distributed, like, local

_WITHOUT_DOUBLE = {"mps"}
_HOST = {"cpu"}


class Members:
    """Parameters that are alike in device and dtype, with their buffers; of distributed ones, this rank's parts.

    Args:
        params: the parameters.
        states: of the optimizer, one for each parameter; they hold the buffers.
        buffer_names: the direction's.
    """

    def __init__(self, params: list[Tensor], states: list[dict[str, Any]], buffer_names: tuple[str, ...]) -> None:
        self.whole_params, self.states, self.buffer_names = params, states, buffer_names
        self.device, self.dtype = params[0].device, params[0].dtype
        self.compute_dtype = compute_dtype(self.dtype)
        self.distributed = any(map(is_distributed, params))

    def __len__(self) -> int:
        return len(self.states)

    def params(self) -> list[Tensor]:
        """The memory of the parameters as it is now: it belongs to others, who may replace it between steps."""
        return [local(p) for p in self.whole_params] if self.distributed else self.whole_params

    def buffers(self, name: str) -> list[Tensor]:
        """The memory of one of the direction's buffers, for each parameter."""
        found = [state[name] for state in self.states]
        return [local(t) for t in found] if self.distributed else found

    def replace(self, index: int, name: str, part: Tensor) -> None:
        """Let a buffer lie in other memory."""
        self.states[index][name] = like(self.whole_params[index], part)

    def subset(self, indices: Sequence[int]) -> Members:
        """Some of them."""
        return Members([self.whole_params[i] for i in indices], [self.states[i] for i in indices], self.buffer_names)


def refuse_sparse(grads: Sequence[Tensor | None]) -> None:
    """Gradients have to have memory for each element.

    Raises:
        RuntimeError: one is sparse.
    """
    if any(g is not None and g.layout is not torch.strided for g in grads):
        raise RuntimeError(
            "sparse gradients aren't supported: use dense ones (sparse=False), or torch.optim.SparseAdam for these "
            "parameters."
        )


class Scratch:
    """Working memory of one device that all passes share."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A flat tensor with this size, with whatever was left in it."""
        key = name, dtype, device
        kept = self._kept.get(key)
        if kept is None or kept.numel() < size:
            kept = self._kept[key] = torch.empty(size, dtype=dtype, device=device)
        return kept if kept.numel() == size else kept[:size]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a direction is computed and kept in: single precision for half of it."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def has_double(device: torch.device) -> bool:
    """Whether the device computes in double precision."""
    return device.type not in _WITHOUT_DOUBLE


def scalar_device(device: torch.device) -> torch.device:
    """Where a device's sums are kept, in double precision."""
    return device if has_double(device) else torch.device("cpu")


def on_host(device: torch.device) -> bool:
    """Whether scalars are Python numbers: reading them from this device costs nothing."""
    return device.type in _HOST
