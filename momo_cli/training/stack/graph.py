"""A stack's step as a CUDA graph: steps of small models are mostly launches of kernels; a graph is launched at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from momo_cli.errors import first_line
from momo_cli.training.data import Generators, map_tensors, tensors
from momo_cli.training.model_state import numbers_of
from momo_cli.training.stack.models import CannotStack
from momo_cli.training.stack.step import Step

_WARM = 2  # steps of each shape of batch before it is captured: libraries make their handles and choose their kernels
_MOST = 4  # shapes of batch that are captured; further ones are stepped as they come

Record = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""``record(step)`` captures ``step()`` and returns what repeats it, and the tensor where its result will lie then."""


class CapturedStep:
    """A :class:`Step` that is captured once for each shape of batch, and repeated from then on.

    A graph repeats the kernels of one step on the same memory, so everything that changes from step to step lies in
    tensors: the batches, the schedules' factors, and the optimizers' step counts. A model's doings in Python (drawing a
    number, counting its calls) would be repeated, too. So the first step that is repeated is also taken plainly, and
    where the two differ, where a number in one of the model's modules changes, or where a step can't be captured, all
    steps are taken plainly.

    Args:
        step: The step.
        record: See :data:`Record`.
    """

    def __init__(self, step: Step, record: Record) -> None:
        self.step, self._record = step, record
        self._factors = torch.ones(len(step.groups), dtype=torch.float64, device=step.stack.device)
        self._seen: Counter[Any] = Counter()
        self._captured: dict[Any, tuple[list[torch.Tensor], Callable[[], None], torch.Tensor]] = {}
        self.gave_up: str | None = None if step.state() is not None else "an optimizer steps run by run"

    def __call__(self, batches: Sequence[Any], factors: Sequence[float]) -> torch.Tensor:
        """As :meth:`Step.__call__`."""
        if self.gave_up is not None:
            return self.step(batches, factors)
        key = tuple(map(_shape, batches))
        if key not in self._captured:
            self._seen[key] += 1
            if self._seen[key] <= _WARM or len(self._captured) == _MOST:
                return self.step(batches, factors)
            return self._capture(key, batches, factors)
        inputs, repeat, report = self._captured[key]
        for static, tensor in zip(inputs, _all_tensors(batches)):
            static.copy_(tensor, non_blocking=True)
        self._factors.copy_(torch.tensor(factors, dtype=torch.float64))
        repeat()
        return report.clone()

    def _capture(self, key: Any, batches: Sequence[Any], factors: Sequence[float]) -> torch.Tensor:
        """Take this step plainly, and capture it for the steps to come."""
        self._factors.copy_(torch.tensor(factors, dtype=torch.float64))
        self.step.count_on_device()
        state = self.step.state()
        assert state is not None
        before, generators = [tensor.clone() for tensor in state], Generators()
        try:
            try:
                static = [map_tensors(batch, _cloned) for batch in batches]
                repeat, report = self._record(lambda: self.step(static, self._factors.unbind()))
                if generators.moved_in_python():
                    raise RuntimeError("the model draws numbers in Python")
                generators.restore()
                repeat()
                repeated = [tensor.clone() for tensor in (*state, report)]
            finally:
                for tensor, value in zip(state, before):
                    tensor.copy_(value)
                generators.restore()
        except CannotStack:
            raise
        except Exception as error:  # what can't be captured can still be trained
            self.gave_up = first_line(error)
            return self.step(batches, factors)
        numbers = numbers_of(self.step.stack.objective)
        plain = self.step(static, self._factors.unbind())
        if numbers_of(self.step.stack.objective) != numbers:
            self.gave_up = "a number in the model changes from step to step"
        elif not all(_same(a, b) for a, b in zip(repeated, (*state, plain))):
            self.gave_up = "a repeated step gave other values"
        else:
            self._captured[key] = (_all_tensors(static), repeat, report)
        return plain


def record_cuda(device: torch.device) -> Record:
    """How a step is captured on ``device``; all its graphs share memory, as none is needed when the next one runs."""
    pool = torch.cuda.graph_pool_handle()

    def record(step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, a DataLoader's that pins memory, say, may call what a capture forbids.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            report = step()
        return graph.replay, report

    return record


def _all_tensors(batches: Sequence[Any]) -> list[torch.Tensor]:
    return [tensor for batch in batches for tensor in tensors(batch)]


def _shape(batch: Any) -> Any:
    """What batches of one captured step have in common: the structure, each tensor's shape, and everything else."""
    if isinstance(batch, torch.Tensor):
        return tuple(batch.shape), batch.dtype
    if isinstance(batch, dict):
        return tuple((key, _shape(value)) for key, value in batch.items())
    if isinstance(batch, (tuple, list)):
        return tuple(map(_shape, batch))
    return type(batch), repr(batch)


def _cloned(item: Any) -> torch.Tensor:
    if not isinstance(item, torch.Tensor):
        raise TypeError(f"a batch holds a {type(item).__name__}, whose tensors can't be replaced")
    return item.clone()


def _same(repeated: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether two results are equal in every row, but for the order in which a GPU adds."""
    a, b = (
        torch.nan_to_num(tensor.double().reshape(len(tensor) if tensor.dim() else 1, -1))
        for tensor in (repeated, plain)
    )
    return bool(((a - b).norm(dim=1) <= 1e-3 * b.norm(dim=1) + 1e-12).all())
