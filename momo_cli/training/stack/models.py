"""The stack: K copies of one model, parameters and gradients in one ``[K, N]`` buffer each, and a vectorized pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.func import functional_call, vmap

from momo.matrices import matrices_of
from momo_cli.plan.settings import Settings
from momo_cli.task.definition import Task
from momo_cli.training.data import map_tensors, others, tensors
from momo_cli.training.evaluation import Losses, checked_metrics, losses_of, precision


class CannotStack(Exception):
    """The runs can't be trained together; the message says why, in one line."""


class _Objective(torch.nn.Module):
    """The task's loss or metrics as a module around the model, so that its parameters can be replaced throughout."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.model: torch.nn.Module = task.model

    def forward(self, batch: Any, metrics: bool) -> Any:
        if metrics:
            assert self.task.metrics is not None
            found = checked_metrics(self.task.metrics(self.model, batch))
            return {name: torch.as_tensor(value) for name, value in found.items()}
        loss, bound = losses_of(self.task, self.model, batch)
        return loss if bound is None else (loss, bound)


class Stack:
    """K models of one structure.

    Args:
        tasks: The task of each row, already on the device; rows of one seed may share an object.
        seed_of: For each row, the index of its seed among the batches given to :meth:`gradients`.
        settings: For the precision.

    Attributes:
        x: Parameters, ``[K, N]``; every step changes them in place.
        g: Gradients, ``[K, N]``.
        matrices: For each parameter, in the order in which they lie in a row, whether it is a matrix to Muon.

    Raises:
        CannotStack: The models' parameters don't fit in one buffer.
    """

    def __init__(self, tasks: Sequence[Task], seed_of: Sequence[int], settings: Settings) -> None:
        self.objective = _Objective(tasks[0])
        self.settings = settings
        named = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        if not named:
            raise CannotStack("the model has no trainable parameter")
        if len({(p.dtype, p.device) for p in named.values()}) > 1:
            raise CannotStack("its parameters have several dtypes or devices")
        self.names = list(named)
        self.shapes = [p.shape for p in named.values()]
        hidden = {id(p) for p in matrices_of(tasks[0].model).values()}
        self.matrices = [id(p) in hidden for p in named.values()]
        first = next(iter(named.values()))
        self.device = first.device
        self.x = torch.empty(len(tasks), sum(p.numel() for p in named.values()), dtype=first.dtype, device=first.device)
        self.g = torch.empty_like(self.x)
        self.fixed: dict[str, torch.Tensor] = {}
        modules = {id(task): _Objective(task) for task in tasks}
        own = [dict(modules[id(task)].named_parameters()) | dict(modules[id(task)].named_buffers()) for task in tasks]
        try:
            for row, tensors_of in zip(self.x, own):
                row.copy_(torch.cat([tensors_of[name].detach().reshape(-1) for name in self.names]))
            for name in own[0]:
                if name not in named:
                    self.fixed[name] = torch.stack([tensors_of[name].detach() for tensors_of in own])
        except (KeyError, RuntimeError) as error:
            raise CannotStack(f"its parameters differ between seeds ({error})") from None
        self.seed_of = torch.tensor(list(seed_of), device=self.device)
        self.seeds = max(seed_of) + 1
        self._bind()

    def __len__(self) -> int:
        return len(self.x)

    def _bind(self) -> None:
        self.leaves = {name: part.detach().requires_grad_() for name, part in zip(self.names, self._parts(self.x))}
        self._g_parts = self._parts(self.g)

    def _parts(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Views of each parameter's part of ``buffer``, ``[K, *shape]``."""
        parts = torch.split(buffer, [shape.numel() for shape in self.shapes], dim=1)
        return [part.view(len(buffer), *shape) for part, shape in zip(parts, self.shapes)]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone."""
        self.x = self.x[rows]
        self.g = torch.empty_like(self.x)
        self.fixed = {name: buffer[rows] for name, buffer in self.fixed.items()}
        self.seed_of = self.seed_of[rows]
        self._bind()

    def gradients(self, batches: Sequence[Any]) -> Losses:
        """One forward and backward pass for all rows, gradients into ``g``; returns the losses and bounds, ``[K]``.

        Args:
            batches: One for each seed.

        Raises:
            CannotStack: A trainable parameter has no gradient in this step.
        """
        losses, bounds = self._losses(batches)
        # The runs are independent, so the gradient of the sum holds each run's own in its row.
        found = torch.autograd.grad(losses.sum(), list(self.leaves.values()), allow_unused=True)
        if any(grad is None for grad in found):
            missing = self.names[[grad is None for grad in found].index(True)].removeprefix("model.")
            raise CannotStack(f"its parameter {missing} gets no gradient")
        torch._foreach_copy_(self._g_parts, list(found))
        return Losses(losses.detach(), bounds)

    def _losses(self, batches: Sequence[Any]) -> Losses:
        returned = self._call(batches, self.leaves)
        return Losses(*returned) if isinstance(returned, tuple) else Losses(returned)

    def evaluate(self, batches: Sequence[Any], metrics: bool = False) -> Any:
        """Losses ``[K]``, or metrics ``{name: [K]}``, without gradients."""
        with torch.no_grad():
            return self._call(batches, self.leaves, metrics) if metrics else self._losses(batches).loss

    def _call(self, batches: Sequence[Any], parameters: dict[str, torch.Tensor], metrics: bool = False) -> Any:
        shared = self.seeds == 1
        inputs = [] if shared else self._by_row(batches)

        def one(values: dict[str, torch.Tensor], fixed: dict[str, torch.Tensor], inputs: list[torch.Tensor]) -> Any:
            batch = batches[0] if shared else _replaced(batches[0], iter(inputs))
            return functional_call(self.objective, {**values, **fixed}, (batch, metrics))

        with precision(self.settings, self.device):
            return vmap(one, in_dims=(0, 0, 0), randomness="different")(parameters, self.fixed, inputs)

    def _by_row(self, batches: Sequence[Any]) -> list[torch.Tensor]:
        """Each tensor of the batches, ``[K, …]``: every row gets its own seed's."""
        if any(others(batch) != others(batches[0]) for batch in batches[1:]):
            raise CannotStack("batches of different seeds differ in more than their tensors")
        columns = list(zip(*(tensors(batch) for batch in batches)))
        if any(tensor.shape != column[0].shape for column in columns for tensor in column):
            raise CannotStack("batches of different seeds differ in shape")
        return [torch.stack(column).index_select(0, self.seed_of) for column in columns]

    def load_into_model(self, row: int) -> torch.nn.Module:
        """The model itself with this row's parameters and buffers, for what can't be vectorized."""
        values = {name: leaf[row] for name, leaf in self.leaves.items()} | {
            name: b[row] for name, b in self.fixed.items()
        }
        with torch.no_grad():
            for name, tensor in [*self.objective.named_parameters(), *self.objective.named_buffers()]:
                tensor.copy_(values[name])
        return self.objective.model


def _replaced(batch: Any, values: Iterator[torch.Tensor]) -> Any:
    """``batch`` with its tensors replaced, in the order of :func:`momo_cli.training.data.tensors`."""
    return map_tensors(batch, lambda item: next(values) if isinstance(item, torch.Tensor) else item)
