"""Which of a model's parameters are matrices to Muon."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NOT_MATRICES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def matrices_of(model: nn.Module) -> dict[str, Tensor]:
    """The hidden weights of a model: what Muon is made for.

    They are the parameters that need a gradient, whose own name begins with or ends in ``weight``, and that have two or
    more dimensions; but none of an embedding or a normalization, also where another module shares it (a tied output
    layer), and none of the last module in the order of ``model.named_modules()`` that has such a weight: the output
    layer. Where the output layer is not the model's last module, make the groups by hand.

    Returns:
        The parameters by name.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 2))
        >>> list(matrices_of(model))
        ['1.weight', '2.weight']
    """
    excluded: set[int] = set()
    found: dict[str, Tensor] = {}
    last: list[Tensor] = []
    for prefix, module in model.named_modules():
        own = {
            f"{prefix}.{name}" if prefix else name: p
            for name, p in module.named_parameters(recurse=False)
            if p.dim() > 1 and (name.startswith("weight") or name.endswith("weight"))
        }
        if isinstance(module, _NOT_MATRICES):
            excluded.update(map(id, own.values()))
        elif own:
            last = list(own.values())
            found.update(own)
    excluded.update(map(id, last))
    every = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    return {every[id(p)]: p for p in found.values() if id(p) in every and id(p) not in excluded}


def groups_of(model: nn.Module, optimizer: str) -> list[dict[str, Any]]:
    """A model's parameter groups for Muon: its matrices, and all others.

    Raises:
        ValueError: it has no matrix.
    """
    matrices = matrices_of(model)
    if not matrices:
        raise ValueError(
            f"{optimizer} finds no hidden weight of two or more dimensions in {type(model).__name__}: embeddings and "
            "the output layer don't count. Make the groups by hand, with matrices=True, or use MomoAdam."
        )
    others = [(name, p) for name, p in model.named_parameters() if p.requires_grad and name not in matrices]
    groups: list[dict[str, Any]] = [{"params": list(matrices.items()), "matrices": True}]
    return [*groups, {"params": others}] if others else groups
