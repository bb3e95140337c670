"""The passes on the CPU in C: one call over all tensors where they are.

A step on the CPU is limited by how often torch is called, not by what it computes: for each slice of memory there are
some operations, and each wakes torch's threads. ``passes.c`` makes a pass in one call. It is built when the package is
built; where there was no compiler, torch's operations do the same.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import operator
import os
import struct
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from momo.directions import Elementwise
from momo.directions.protocol import restricted
from momo.method import Scalar
from momo.passes.members import Members, Scratch, refuse_sparse
from momo.passes.torch_ops import TorchPasses

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_PLAIN = {Tensor, torch.nn.Parameter}  # subclasses may compute otherwise, or have no memory
_NUMBERS = 6  # of each tensor: ``struct numbers`` in passes.c
_pack_numbers = struct.Struct(f"{_NUMBERS}d").pack
_dtype = operator.attrgetter("dtype")
_on_cpu = operator.attrgetter("is_cpu")


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library that was built with the package, or why there is none."""
    spec = importlib.util.find_spec("momo.passes._compiled")
    if spec is None or spec.origin is None or not isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
        return "they were not built when momo was installed (that takes a C compiler)"
    try:
        return ctypes.CDLL(spec.origin)
    except OSError as error:
        return f"their library can't be loaded ({error})"


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why parameters like these have no compiled passes; None where they have.

    >>> why_not(torch.device("cpu"), torch.float16)
    'there are none for torch.float16 on cpu'
    """
    if device.type != "cpu" or dtype not in _DTYPES:
        return f"there are none for {dtype} on {device.type}"
    library = _library()
    return library if isinstance(library, str) else None


@functools.cache
def _functions(direction: str, dtype: torch.dtype) -> tuple[Any, Any]:
    library = _library()
    assert isinstance(library, ctypes.CDLL)
    # Tables are bytes objects; ctypes passes where they are.
    table, count, address = ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p
    accumulate = library[f"momo_{direction}_accumulate_{_DTYPES[dtype]}"]
    accumulate.argtypes = [count, *[table] * 5, address, count, address, count, address]
    move = library[f"momo_{direction}_move_{_DTYPES[dtype]}"]
    move.argtypes = [count, *[table] * 4, address, count, count, address]
    return accumulate, move


@functools.cache
def _team() -> tuple[int, int | None]:
    """This process, and the address of GNU OpenMP's ``GOMP_parallel``, if that is what torch computes with."""
    try:
        found = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value if sys.platform == "linux" else None
    except (OSError, AttributeError):
        found = None
    return os.getpid(), found


def _threads() -> tuple[int, int | None]:
    """How many threads to use, and where to find them: see ``passes.c``."""
    # OpenMP's threads are not there in a process made by a fork, and it would wait for them.
    process, team = _team()
    return torch.get_num_threads(), team if os.getpid() == process else None


class CompiledPasses:
    """See :class:`momo.passes.Passes`.

    The memory belongs to others, and may be replaced between steps, so every step asks the tensors anew. What doesn't
    fit into a table (a gradient whose strides are not its parameter's, say) is left to torch's operations.
    """

    def __init__(self, members: Members, scratch: Scratch) -> None:
        self.members, self._scratch = members, scratch
        count = len(members)
        self._pack = struct.Struct(f"{count}N").pack
        self._pack_sizes = struct.Struct(f"{count}q").pack
        self._dots = torch.zeros(3, count, dtype=torch.float64)
        self._numbers: Tensor | None = None  # of each tensor, where they differ
        self._params: list[Tensor] = []  # that the tables are of
        self._tables: list[bytes] = []  # the addresses of the parameters and of the buffers
        self._sizes: list[int] = []
        self._size_table = b""
        self._single: list[int] = []  # the tensors with one element
        self._regular = False  # whether all tensors are contiguous and in the tables
        self._unlisted: set[int] = set()  # those that aren't
        self._others: dict[int, TorchPasses] = {}
        for name in members.buffer_names:
            for i, (p, buffer) in enumerate(zip(members.params(), members.buffers(name))):
                if not _alike(buffer, p) and _is_dense(p):
                    members.replace(i, name, torch.empty_like(p, memory_format=torch.preserve_format).copy_(buffer))

    def _are_regular(self, tensors: Sequence[Any]) -> bool:
        return (
            set(map(type, tensors)) <= _PLAIN
            and all(map(_on_cpu, tensors))
            and set(map(_dtype, tensors)) == {self.members.dtype}
            and self._have_sizes(tensors)
            and not any(tensors[i].is_neg() for i in self._single)
        )

    def _have_sizes(self, tensors: Sequence[Tensor]) -> bool:
        return all(map(Tensor.is_contiguous, tensors)) and list(map(Tensor.numel, tensors)) == self._sizes

    def _are_in_tables(self, kept: list[list[Tensor]]) -> bool:
        """Whether the tables, which are regular, are these tensors'.

        What is the same object at the same address is what it was, but for its shape and strides.
        """
        look = self._have_sizes if kept[0] is self._params else self._are_regular
        return look(kept[0]) and self._tables == [self._pack(*map(Tensor.data_ptr, tensors)) for tensors in kept]

    def _look(self, kept: list[list[Tensor]]) -> None:
        """Make the tables of the tensors as they are now."""
        self._params = kept[0]
        self._sizes = list(map(Tensor.numel, kept[0]))
        self._single = [k for k, size in enumerate(self._sizes) if size == 1]
        self._unlisted = {
            k
            for k, (p, *buffers) in enumerate(zip(*kept))
            if not _is_dense(p) or p.dtype is not self.members.dtype or not all(_alike(t, p) for t in (p, *buffers))
        }
        self._regular = not self._unlisted and self._are_regular(kept[0])
        self._tables = [self._pack(*(_address(t) for t in tensors)) for tensors in kept]
        self._size_table = self._without(self._unlisted)

    def _without(self, places: set[int]) -> bytes:
        return self._pack_sizes(*(0 if k in places else size for k, size in enumerate(self._sizes)))

    def _four(self) -> list[bytes | None]:
        tables: list[bytes | None] = [*self._tables]
        return [*tables, None] if len(tables) == 2 else tables

    def _other(self, index: int) -> TorchPasses:
        if index not in self._others:
            self._others[index] = TorchPasses(self.members.subset([index]), self._scratch, gather=False)
        return self._others[index]

    def _table_of(self, *numbers: Scalar) -> tuple[bytes | int, int]:
        """The numbers of all tensors, or of each, and the stride from tensor to tensor."""
        if not any(isinstance(v, Tensor) for v in numbers):
            return _pack_numbers(*numbers, *[0.0] * (_NUMBERS - len(numbers))), 0
        if self._numbers is None:
            self._numbers = torch.zeros(len(self.members), _NUMBERS, dtype=torch.float64)
        for column, v in zip(self._numbers.unbind(1), numbers):
            column.copy_(v) if isinstance(v, Tensor) else column.fill_(v)
        return self._numbers.data_ptr(), 1

    def accumulate(self, direction: Elementwise, grads: Sequence[Tensor | None]) -> Tensor:
        kept = [self.members.params(), *(self.members.buffers(name) for name in self.members.buffer_names)]
        if not (self._regular and self._are_in_tables(kept)):
            self._look(kept)
        sizes, odd = self._size_table, set(self._unlisted)
        regular = self._regular and self._are_regular(grads)
        addresses = list(map(Tensor.data_ptr, grads)) if regular else []  # type: ignore[arg-type]
        if not regular or 0 in addresses:
            addresses = [0 if g is None else _address(g) for g in grads]
            absent = {k for k, g in enumerate(grads) if g is None}
            odd |= {k for k, (g, p) in enumerate(zip(grads, kept[0])) if g is not None and not _alike(g, p)}
            odd -= absent | {k for k in odd if self._sizes[k] == 0}
            refuse_sparse([grads[k] for k in odd])
            sizes = self._without(self._unlisted | odd | absent)
        accumulate, _ = _functions(direction.name, self.members.dtype)
        if accumulate(
            len(grads), sizes, self._pack(*addresses), *self._four(), *self._table_of(0.0, 0.0, *direction.numbers),
            self._dots.data_ptr(), *_threads(),
        ):  # fmt: skip
            raise MemoryError("there is no memory for a table of the parameters' chunks.")
        for k in odd:
            self._dots[:, k : k + 1] = self._other(k).accumulate(self._only(direction, k), [grads[k]])
        return self._dots

    def move(self, direction: Elementwise, step: Scalar, keep: Scalar, present: Sequence[bool] | None) -> None:
        left = (
            self._unlisted if present is None else {k for k, there in enumerate(present) if not there} | self._unlisted
        )
        sizes = self._without(left) if left else self._size_table
        _, move = _functions(direction.name, self.members.dtype)
        table = self._table_of(step, keep, *direction.numbers)
        if move(len(self._sizes), sizes, *self._four(), *table, *_threads()):
            raise MemoryError("there is no memory for a table of the parameters' chunks.")
        # What autograd has kept for a backward pass is no longer what it was.
        params = self.members.params()
        _increment_versions([p for k, p in enumerate(params) if k not in left] if left else params)
        for k in self._unlisted:
            if present is None or present[k]:
                own_step = step[k : k + 1] if isinstance(step, Tensor) else step
                self._other(k).move(self._only(direction, k), own_step, keep, None)

    @staticmethod
    def _only(direction: Elementwise, index: int) -> Elementwise:
        return restricted(direction, lambda v: v[index : index + 1])


def _is_dense(t: Tensor) -> bool:
    """Whether a tensor's elements fill its memory, in whatever order."""
    return t.is_contiguous() or t.permute(sorted(range(t.dim()), key=t.stride, reverse=True)).is_contiguous()


def _alike(t: Tensor, p: Tensor) -> bool:
    """Whether a tensor's memory can be gone over together with a parameter's."""
    return (
        type(t) in _PLAIN
        and t.is_cpu
        and t.layout is torch.strided
        and t.dtype is p.dtype
        and t.shape == p.shape
        and (t.stride() == p.stride() or (t.is_contiguous() and p.is_contiguous()))
        and not t.is_neg()
        and t.data_ptr() != 0
    )


def _address(t: Tensor) -> int:
    return t.data_ptr() if type(t) in _PLAIN and t.is_cpu and t.layout is torch.strided else 0


def _increment_versions(tensors: list[Tensor]) -> None:
    try:
        increment_version(tensors)
    except TypeError:  # older versions of torch take one tensor
        for t in tensors:
            increment_version(t)
