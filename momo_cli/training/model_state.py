"""What a model keeps from step to step, in plain values and tensors."""

from __future__ import annotations

from typing import Any

import torch


def numbers_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    """What each module keeps in plain Python values."""
    return [
        {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str))} for module in model.modules()
    ]


def model_state(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters, buffers (also those that ``state_dict`` leaves out), and plain Python values of the modules."""
    tensors = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return {"tensors": tensors, "numbers": numbers_of(model)}


def load_model_state(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Put what :func:`model_state` returned into the same model, built anew."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            tensor.copy_(state["tensors"][name])
    load_numbers(model, state["numbers"])


def load_numbers(model: torch.nn.Module, numbers: list[dict[str, Any]]) -> None:
    """Put what :func:`numbers_of` returned into the same model, built anew."""
    for module, own in zip(model.modules(), numbers, strict=True):
        vars(module).update(own)
