"""Tensors that a task's loss trains nothing of: they get a gradient, and belong to no optimizer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from momo_cli.plan.settings import Settings
from momo_cli.task.definition import Task
from momo_cli.training.data import move
from momo_cli.training.evaluation import losses_of, precision, unchanged


def untrained_tensors(task: Task, settings: Settings, device: torch.device) -> list[str]:
    """Names of the tensors that the loss's function holds (a criterion's own parameters, say), that are not the
    model's, and that get a gradient.

    Batches are read, and the loss is called, only where the function holds such a tensor at all.
    """
    model = task.model.to(device)
    own = {id(parameter) for parameter in model.parameters()}
    held = {id(tensor): name for name, tensor in _held(task.loss) if tensor.requires_grad and id(tensor) not in own}
    if not held:
        return []
    try:
        with unchanged(task), precision(settings, device):
            loss = losses_of(task, model, move(next(iter(task.train)), device)).loss
    except Exception:  # training meets it again, and says whose it is
        return []
    return [held[id(leaf)] for leaf in _leaves(loss) if id(leaf) in held]


def untrained_line(names: list[str]) -> str:
    """What is said of them; empty where there is none."""
    if not names:
        return ""
    verb, them = ("gets a gradient but is", "it") if len(names) == 1 else ("get a gradient but are", "them")
    return (
        f"{', '.join(names)} {verb} no parameter of the model, so no optimizer trains {them}: make {them} part of the "
        "model."
    )


def _held(function: Callable[..., Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that a function closes over, is bound to, or names as globals, with their names."""
    while isinstance(function, functools.partial):
        yield from _named(function.keywords)
        function = function.func
    if inspect.ismethod(function):
        yield from _named(vars(function.__self__) if hasattr(function.__self__, "__dict__") else {})
        function = function.__func__
    if inspect.isfunction(function):
        found = inspect.getclosurevars(function)
        yield from _named({**found.globals, **found.nonlocals})


def _named(values: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in values.items():
        if isinstance(value, torch.nn.Module):
            yield from ((f"{name}.{inner}", parameter) for inner, parameter in value.named_parameters())
        elif isinstance(value, torch.Tensor):
            yield name, value


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The leaf tensors that get a gradient from ``loss.backward()``."""
    leaves, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [below for below, _ in node.next_functions]
    return leaves
