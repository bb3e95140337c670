"""The paper's image tasks (Schaipp et al., ICML 2024, Section 5.1) on the user's CIFAR files: ``--set data=FOLDER``.

The folder is the unpacked Python version of CIFAR-10 or CIFAR-100 (``cifar-10-batches-py``, ``cifar-100-python``), or
the one that holds it.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from momo_cli.errors import UserError
from momo_cli.task.builtin.batches import Batches
from momo_cli.task.definition import Task

_PARTS = {
    10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], b"labels"),
    100: ("cifar-100-python", ["train"], ["test"], b"fine_labels"),
}
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class _PlainUnpickler(pickle.Unpickler):
    """Reads arrays and plain values; anything else in the file is refused rather than run."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _load(data: str | None, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    name, train, test, labels = _PARTS[classes]
    if data is None:
        raise UserError(
            f"This task needs CIFAR-{classes}: --set data=FOLDER, the unpacked {name} or the folder that holds it."
        )
    folder = Path(str(data))
    folder = folder / name if (folder / name).is_dir() else folder
    missing = [part for part in (*train, *test) if not (folder / part).is_file()]
    if missing:
        raise UserError(
            f"--set data={data}: there is no file {missing[0]!r} in {folder}.\n"
            f"Unpack the Python version of CIFAR-{classes} there."
        )

    def read(parts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = [], []
        for part in parts:
            try:
                batch = _PlainUnpickler(io.BytesIO((folder / part).read_bytes()), encoding="bytes").load()
                images.append(torch.tensor(batch[b"data"]).reshape(-1, 3, 32, 32))
                targets.append(torch.tensor(batch[labels]))
            except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError, RuntimeError) as error:
                raise UserError(
                    f"{folder / part} is not a file of CIFAR-{classes}'s Python version: {error}."
                ) from None
        scaled = torch.cat(images).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        return (scaled - mean) / std, torch.cat(targets).long()

    return *read(train), *read(test)


class Augmented(Batches):
    """Batches of images, each shifted by up to 4 pixels and mirrored at random."""

    def __iter__(self) -> Any:
        for images, targets in super().__iter__():
            padded = F.pad(images, (4, 4, 4, 4))
            dx, dy = torch.randint(0, 9, (2, len(images))).tolist()
            shifted = torch.stack([image[:, y : y + 32, x : x + 32] for image, x, y in zip(padded, dx, dy)])
            mirrored = torch.rand(len(images)) < 0.5
            yield torch.where(mirrored.view(-1, 1, 1, 1), shifted.flip(-1), shifted), targets


def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _metrics(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"accuracy": (model(batch[0]).argmax(-1) == batch[1]).float().mean()}


def _task(model: nn.Module, data: str | None, classes: int, epochs: float, batch_size: int) -> Task:
    x, y, x_val, y_val = _load(data, classes)
    return Task(
        model=model,
        loss=_loss,
        train=Augmented((x, y), batch_size, shuffle=True),
        val=Batches((x_val, y_val), 500, shuffle=False),
        metrics=_metrics,
        epochs=epochs,
    )


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - channels_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(y + short)


def _resnet(depth: int, classes: int) -> nn.Module:
    """He et al. 2016, Section 4.2: three stages of (depth - 2) / 6 blocks, shortcuts without parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for channels in (16, 32, 64):
        for block in range((depth - 2) // 6):
            layers.append(_Residual(before, channels, 2 if block == 0 and channels > 16 else 1))
            before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class _ViT(nn.Module):
    """A small vision transformer on patches of 4 × 4 pixels."""

    def __init__(self, classes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        from momo_cli.task.builtin.charlm import Block

        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        self.register_buffer("mask", torch.zeros(64, 64), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        return cast(torch.Tensor, self.head(self.norm(x).mean(1)))


def resnet20(seed: int, data: str | None = None, epochs: float = 50, batch_size: int = 128) -> Task:
    """ResNet-20 on CIFAR-10."""
    return _task(_resnet(20, 10), data, 10, epochs, batch_size)


def resnet110(seed: int, data: str | None = None, epochs: float = 100, batch_size: int = 128) -> Task:
    """ResNet-110 on CIFAR-100."""
    return _task(_resnet(110, 100), data, 100, epochs, batch_size)


def vit(
    seed: int,
    data: str | None = None,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    epochs: float = 200,
    batch_size: int = 512,
) -> Task:
    """A small vision transformer on CIFAR-10."""
    return _task(_ViT(10, width, depth, heads), data, 10, epochs, batch_size)
