"""Batches on their way to the device: moving, measuring, and going round the training data again and again."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from momo_cli.errors import UserError


def map_tensors(batch: Any, change: Callable[[Any], Any]) -> Any:
    """``batch`` with every tensor in it changed, in tuples, lists and dicts, nested as DataLoaders do.

    >>> map_tensors({"x": torch.zeros(2), "n": 3}, lambda tensor: tensor + 1)
    {'x': tensor([1., 1.]), 'n': 3}
    """
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return type(batch)({key: map_tensors(value, change) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(value, change) for value in batch)
    # Batches of other libraries (graphs, tokenized text) hold tensors of their own and can move them.
    return change(batch) if hasattr(batch, "to") else batch


def move(batch: Any, device: torch.device) -> Any:
    """``batch`` with everything in it on ``device``."""
    return map_tensors(
        batch, lambda item: item.to(device, non_blocking=True) if isinstance(item, torch.Tensor) else item.to(device)
    )


def tensors(batch: Any) -> Iterator[torch.Tensor]:
    """Every tensor in ``batch``."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors(value)


def others(batch: Any) -> list[Any]:
    """Everything in ``batch`` that isn't a tensor.

    >>> others({"x": torch.zeros(2), "n": 3})
    [3]
    """
    if isinstance(batch, torch.Tensor):
        return []
    if isinstance(batch, dict):
        return [item for value in batch.values() for item in others(value)]
    if isinstance(batch, (tuple, list)):
        return [item for value in batch for item in others(value)]
    return [batch]


def batch_size(batch: Any) -> int:
    """Samples in ``batch``: the first dimension of its first tensor that has one.

    >>> batch_size({"x": torch.zeros(8, 3)})
    8
    """
    return next((len(tensor) for tensor in tensors(batch) if tensor.dim()), 1)


class EndlessBatches:
    """The batches of ``train``, pass after pass, and the place in them.

    Args:
        train: The batches.
        keeps_place: Whether :meth:`place` will be asked for.
    """

    def __init__(self, train: Iterable[Any], keeps_place: bool = False) -> None:
        self._train, self._keeps = train, keeps_place
        self._iterator: Iterator[Any] | None = None
        self._taken = 0
        self._start: Any = None
        self._last: Any = None

    def next(self, mark: bool = False) -> Any:
        """The next batch; ``mark`` where :meth:`place` is asked for right after it."""
        while True:
            if self._iterator is None:
                self._start = Generators(self._train).plain() if self._keeps else None
                self._iterator, self._taken = iter(self._train), 0
            before = Generators(self._train).plain() if mark else None
            for batch in self._iterator:
                self._taken += 1
                self._last = (before, digest(batch)) if mark else None
                return batch
            if not self._taken:
                raise UserError(
                    "train gave no batch at its second pass: it must be possible to iterate it again and again."
                )
            self._iterator = None

    def place(self) -> dict[str, Any]:
        """The place behind the marked batch, in plain values."""
        own = Generators(self._train).plain()
        return {"start": self._start, "taken": self._taken, "last": self._last, "now": own}

    def go_to(self, place: dict[str, Any]) -> None:
        """Go to a place in such batches, where the generators stand there, too; those before it are drawn once more.

        Raises:
            ValueError: The batch before it isn't the same again: the order of the data depends on something else than
                the generators, as on the number of passes.
        """
        self._start, self._taken = place["start"], 0
        before, last = place["last"]
        Generators.of(self._start, self._train).restore()
        self._iterator = iter(self._train)
        for _ in range(place["taken"] - 1):
            next(self._iterator, None)
        Generators.of(before, self._train).restore()
        if digest(next(self._iterator, None)) != last:
            raise ValueError("the data come in another order")
        self._taken = place["taken"]
        Generators.of(place["now"], self._train).restore()


def digest(batch: Any) -> str:
    """A digest of everything in ``batch``."""
    found = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(others(batch))).encode())
    for tensor in tensors(batch):
        found.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        dense = tensor.detach().cpu().to_dense() if tensor.layout != torch.strided else tensor.detach().cpu()
        found.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


class Generators:
    """The states of the global random number generators (Python's, NumPy's, torch's on each device), kept aside.

    Args:
        loaders: Loaders whose own generators, and those of their samplers and datasets, belong to them, too.
    """

    def __init__(self, *loaders: Any) -> None:
        numpy = sys.modules.get("numpy")
        self._python, self._numpy = random.getstate(), numpy.random.get_state() if numpy else None
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._own = [generator for loader in loaders for generator in _own_generators(loader)]
        self._states = [_state(generator) for generator in self._own]

    def moved_in_python(self) -> bool:
        """Whether Python's or NumPy's generator has been drawn from since."""
        now = Generators()
        return self._python != now._python or repr(self._numpy) != repr(now._numpy)

    def restore(self) -> None:
        """Set the generators to these states."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        for generator, state in zip(self._own, self._states):
            _state(generator, state)

    def plain(self) -> list[Any]:
        """The states as plain values and tensors, which a file can hold."""
        return [_plain(state) for state in (self._python, self._numpy, self._torch, self._cuda, self._states)]

    @classmethod
    def of(cls, plain: list[Any], *loaders: Any) -> Generators:
        """The states that :meth:`plain` returned, for the same loaders made anew."""
        self = cls(*loaders)
        self._python, self._numpy, self._torch, self._cuda, self._states = plain
        return self


def _plain(state: Any) -> Any:
    """``state`` with lists for NumPy's arrays and numbers for its scalars."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, (tuple, list)):
        return type(state)(map(_plain, state))
    return state.tolist() if hasattr(state, "tolist") and not isinstance(state, torch.Tensor) else state


@contextlib.contextmanager
def generators_restored(*loaders: Any) -> Iterator[None]:
    """Leave every random number generator as it was found, those of the loaders and of their datasets too.

    Measuring before training must not change the order of the data that training sees.
    """
    before = Generators(*loaders)
    try:
        yield
    finally:
        before.restore()


def _own_generators(loader: Any) -> list[Any]:
    """The generators that a loader, its samplers and its datasets keep as attributes."""
    places, found = [loader], []
    for place in places:
        for name, value in getattr(place, "__dict__", {}).items():
            if _state(value) is not None:
                found.append(value)
            elif name in ("sampler", "batch_sampler", "dataset") and not any(value is other for other in places):
                places.append(value)
    return [g for i, g in enumerate(found) if not any(g is h for h in found[:i])]


def _state(generator: Any, new: Any = None) -> Any:
    """The state of a generator of torch, NumPy or Python, after setting it to ``new``; None for anything else."""
    numpy = sys.modules.get("numpy")
    if isinstance(generator, torch.Generator):
        return generator.get_state() if new is None else generator.set_state(new)
    if isinstance(generator, random.Random):
        return generator.getstate() if new is None else generator.setstate(new)
    if numpy is not None and isinstance(generator, numpy.random.RandomState):
        return generator.get_state() if new is None else generator.set_state(new)
    if numpy is not None and isinstance(generator, numpy.random.Generator):
        if new is not None:
            generator.bit_generator.state = new
        return generator.bit_generator.state
    return None
