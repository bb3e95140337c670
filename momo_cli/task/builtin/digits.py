"""Handwritten digits, 8×8 pixels (scikit-learn's ``load_digits``: 1,797 images, no download)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from momo_cli.errors import UserError
from momo_cli.task.builtin.batches import Batches
from momo_cli.task.definition import Task

_TRAIN = 1437  # four fifths, the split's order fixed whatever the run's seed


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "The built-in digits tasks need scikit-learn, which is not installed.\nInstall it: pip install 'momo-opt[demo]'"
        ) from None
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    return images[order], torch.tensor(digits.target)[order]


def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _metrics(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"accuracy": (model(batch[0]).argmax(-1) == batch[1]).float().mean()}


def _task(model: nn.Module, shape: tuple[int, ...], epochs: int, batch_size: int) -> Task:
    images, labels = _data()
    images = images.reshape(-1, *shape)
    return Task(
        model=model,
        loss=_loss,
        train=Batches((images[:_TRAIN], labels[:_TRAIN]), batch_size, shuffle=True),
        val=Batches((images[_TRAIN:], labels[_TRAIN:]), batch_size=360, shuffle=False),
        metrics=_metrics,
        epochs=epochs,
    )


def mlp(seed: int, width: int = 64, depth: int = 2, epochs: int = 15, batch_size: int = 64) -> Task:
    """A multilayer perceptron with ``depth`` hidden layers of ``width`` units."""
    sizes = [64] + [width] * depth
    hidden = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
    return _task(nn.Sequential(*hidden, nn.Linear(width, 10)), (64,), epochs, batch_size)


def cnn(seed: int, channels: int = 16, epochs: int = 8, batch_size: int = 64) -> Task:
    """Two convolutions with batch normalization, pooling and a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * channels, 10),
    )
    return _task(model, (1, 8, 8), epochs, batch_size)
