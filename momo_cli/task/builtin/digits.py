"""Handwritten digits, 8×8 pixels (scikit-learn's ``load_digits``: 1,797 images, no download)."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from momo_cli.errors import UserError
from momo_cli.task.builtin.batches import Batches
from momo_cli.task.definition import Task

_TRAIN = 1437  # four fifths, the split's order fixed whatever the run's seed


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    table = _table()
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    return (table[:, :-1] / 16)[order], table[:, -1].long()[order]


def _table() -> torch.Tensor:
    """Pixels (0 to 16) and label of each image, [1797, 65]."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise UserError(
            "The built-in digits tasks need scikit-learn, which is not installed.\n"
            "Install it: pip install 'momo-opt[demo]'"
        )
    # Importing sklearn.datasets takes 2 s, longer than the training of many a run, and all it does is read this file.
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt") as lines:
            return torch.tensor([list(map(float, line.split(","))) for line in lines])
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    return torch.cat([torch.tensor(digits.data), torch.tensor(digits.target)[:, None]], dim=1).float()


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
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
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
