"""A small character-level transformer on English text that ships inside Python: its own language reference."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from momo_cli.errors import UserError
from momo_cli.task.builtin.batches import Batches
from momo_cli.task.definition import Task

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
_CHARACTERS = 400_000


def text() -> str:
    """The reference's topics, one after another, in the characters of ``ALPHABET``."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "The built-in task charlm needs Python's module pydoc_data, which this installation lacks.\n"
            "Use another task, for instance digits-mlp."
        ) from None
    joined = "\n".join(topics[name] for name in sorted(topics))
    return "".join(c for c in joined if c in ALPHABET)[:_CHARACTERS]


def unigram_entropy() -> float:
    """Entropy of the text's single characters in nats: what a model that knows only their frequencies reaches."""
    counts = torch.bincount(_encoded(), minlength=len(ALPHABET)).double()
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log()).sum())


def _encoded() -> torch.Tensor:
    index = {c: i for i, c in enumerate(ALPHABET)}
    return torch.tensor([index[c] for c in text()])


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, both after layer normalization and with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: scaled_dot_product_attention has no batching rule on the CPU, so runs could not share it.
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2) + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + cast(torch.Tensor, self.down(F.gelu(self.up(self.norm2(x)))))


class CharTransformer(nn.Module):
    """[batch, length] character codes → [batch, length, characters] logits; input and output embeddings are tied."""

    def __init__(self, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)
        nn.init.normal_(self.characters.weight, std=0.02)
        self.head.weight = self.characters.weight
        self.register_buffer("mask", torch.full((length, length), -1e9).triu(1), persistent=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        x = self.characters(codes) + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        return cast(torch.Tensor, self.head(self.norm(x)))


def _loss(model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
    (codes,) = batch
    logits = model(codes[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())


def build(
    seed: int, width: int = 64, depth: int = 2, heads: int = 4, length: int = 64, batch_size: int = 16, steps: int = 200
) -> Task:
    """Predict the next character; the loss is in nats per character."""
    windows = _encoded()
    windows = windows[: len(windows) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    val, train = windows[order[:128]], windows[order[128:]]
    return Task(
        model=CharTransformer(width, depth, heads, length),
        loss=_loss,
        train=Batches((train,), batch_size, shuffle=True),
        val=Batches((val,), batch_size=64, shuffle=False),
        steps=steps,
    )
