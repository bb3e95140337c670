"""Batches of tensors that lie in memory, in an order drawn anew at each pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch


class Batches:
    """Batches cut from tensors along their first dimension; a DataLoader's order without its cost per sample.

    Args:
        tensors: Tensors of equal first dimension, [samples, …].
        batch_size: Samples in a batch; the last one of a pass may hold fewer.
        shuffle: Draw a new order from torch's global generator at each pass.

    Example:
        >>> batches = Batches((torch.arange(5),), batch_size=2, shuffle=False)
        >>> [x.tolist() for x, in batches], len(batches)
        ([[0, 1], [2, 3], [4]], 3)
    """

    def __init__(self, tensors: tuple[torch.Tensor, ...], batch_size: int, shuffle: bool) -> None:
        self.tensors, self.batch_size, self.shuffle = tensors, batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        samples = len(self.tensors[0])
        order = torch.randperm(samples) if self.shuffle else torch.arange(samples)
        for chosen in torch.split(order.to(self.tensors[0].device), self.batch_size):
            yield tuple(tensor[chosen] for tensor in self.tensors)
