"""The passes over memory: from a model's tensors to the flat slices that the directions work on, and back.

A step needs the global sums before it may move a parameter, so it makes two passes. Each pass works on slices that stay
in the processor's cache while several operations go over them. Small tensors are gathered into one slice, because
calling an operation costs more than doing it; large ones are cut up. Nothing the size of the model is allocated.

On the CPU a compiled function (:mod:`momo.native`) makes a pass over all tensors where they are, if it can be had.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from momo import kernels
from momo.step_size import Scalar

if TYPE_CHECKING:
    from momo.native import Library

_WHOLE = 1 << 17  # elements from which on a tensor isn't gathered with others
_GATHERED = {"cpu": 1 << 19}  # elements gathered at once
_SLICE = {"cpu": 1 << 19}  # elements of a slice of a large tensor
_ELSEWHERE = 1 << 21
_PLAIN = {Tensor, torch.nn.Parameter}  # what has memory of its own and no other idea of how to compute
_dtype = operator.attrgetter("dtype")
_on_cpu = operator.attrgetter("is_cpu")


def scalar_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the sums: double, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_host(device: torch.device) -> bool:
    """Whether scalars are Python numbers: reading them from this device costs nothing."""
    return device.type == "cpu"


class Scratch:
    """Working memory of one device that all passes share."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A flat tensor with this size, with whatever was left in it."""
        key = name, dtype, device
        kept = self._kept.get(key)
        if kept is None or kept.numel() < size:
            kept = self._kept[key] = torch.empty(size, dtype=dtype, device=device)
        return kept if kept.numel() == size else kept[:size]


class Gathered:
    """Small tensors that are copied into one slice. Their buffers live in flat tensors, the state holds views of them."""

    def __init__(self, indices: Sequence[int], block: Block) -> None:
        # Tensors of equal shape lie next to each other: one call gathers them all, and one sums each of them.
        by_shape: dict[torch.Size, list[int]] = {}
        for i in indices:
            by_shape.setdefault(block.params[i].shape, []).append(i)
        self.block = block
        self.runs: list[tuple[torch.Size, list[int], int, int]] = []
        self.indices: list[int] = []
        end = 0
        for shape, members in by_shape.items():
            start, end = end, end + shape.numel() * len(members)
            self.runs.append((shape, members, start, end))
            self.indices += members
        self.size = end
        self.params = [block.params[i] for i in self.indices]
        self.buffers = []
        self.buffer_views = []
        for name in block.buffer_names:
            flat = torch.empty(end, dtype=block.dtype, device=block.device)
            views = self._views(flat)
            torch._foreach_copy_(views, [block.states[i][name] for i in self.indices])
            for i, view in zip(self.indices, views):
                block.states[i][name] = view
            self.buffers.append(flat)
            self.buffer_views.append(views)
        self._work_views: list[Tensor] = []

    def _views(self, flat: Tensor) -> list[Tensor]:
        views = []
        for shape, members, start, end in self.runs:
            views += flat[start:end].view(len(members), *shape).unbind(0)
        return views

    def _gather(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        flat = self.block.get(name, self.size)
        for shape, members, start, end in self.runs:
            chosen = [tensors[i] for i in members]
            if not shape:
                torch.stack(chosen, out=flat[start:end])
            else:
                torch.cat(chosen, out=flat[start:end].view(len(members) * shape[0], *shape[1:]))
        return flat

    def _loaded(self) -> Sequence[Tensor]:
        if self.block.dtype is self.block.compute_dtype:
            return self.buffers
        return [self.block.get(f"buffer{i}", self.size).copy_(b) for i, b in enumerate(self.buffers)]

    def update(self, direction: Any, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """First pass. Answers ``<g, x>`` for each tensor, and ``<d, x>`` and ``<d, u>`` for all of them together."""
        g = self._gather("gradient", grads)
        x = self._gather("parameter", self.block.params)
        buffers = self._loaded()
        u = direction.accumulate(g, buffers, self.block.get("work", self.size))
        if buffers is not self.buffers:
            for kept, new in zip(self.buffers, buffers):
                kept.copy_(new)
        dx = torch.dot(buffers[0], x)
        du = torch.dot(buffers[0], u)
        torch.mul(g, x, out=g)
        gx = [g[start:end].view(len(members), -1).sum(1) for _, members, start, end in self.runs]
        return gx[0] if len(gx) == 1 else torch.cat(gx), dx, du

    def move(self, direction: Any, step: Scalar, keep: Scalar) -> None:
        """Second pass."""
        work = self.block.get("work", self.size)
        u = direction.direction(self._loaded(), work)
        if self.block.dtype is self.block.compute_dtype and all(map(Tensor.is_contiguous, self.params)):
            if u is self.buffers[0]:
                views = self.buffer_views[0]
            else:
                if not self._work_views or self._work_views[0].data_ptr() != work.data_ptr():
                    self._work_views = self._views(work)
                views = self._work_views
            kernels.subtract_(self.params, views, step, keep)
        else:
            x = self._gather("parameter", self.block.params)
            kernels.subtract_([x], [u], step, keep)
            torch._foreach_copy_(self.params, self._views(x))


class Whole:
    """A large tensor, cut into slices."""

    def __init__(self, index: int, block: Block) -> None:
        self.block = block
        self.indices = [index]
        self.param = block.params[index]
        self.state = block.states[index]
        self.size = min(self.param.numel(), block.slice)
        self.contiguous = False
        self._known: list[Any] = []
        self._slices: list[Sequence[Tensor]] = []

    def _cut(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The slices of several tensors of equal shape: a list for each slice."""
        flat = _flattened(tensors)
        if flat is None:
            return list(_halves(tensors, self.size))
        return list(zip(*(t.split(self.size) for t in flat)))

    def update(self, direction: Any, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """First pass, as for gathered tensors."""
        block = self.block
        g = grads[self.indices[0]]
        # Two kinds of tensors that autograd knows and the fused operations don't: zeros without memory, and a sign that is
        # still to be applied.
        g = g.clone() if g._is_zerotensor() else g.resolve_neg()
        tensors = [self.param, *(self.state[name] for name in block.buffer_names)]
        # The memory of a parameter may be replaced at any time, even by a smaller piece of the same.
        known = [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]
        if known != self._known:
            if any(t.shape != self.param.shape for t in tensors):
                shapes = " and ".join(str(tuple(t.shape)) for t in tensors[:2])
                raise RuntimeError(
                    f"a parameter's shape isn't the one of its state: {shapes}. Make a new optimizer for it."
                )
            self.contiguous = all(t.is_contiguous() for t in tensors)
            self._slices = self._cut(tensors) if self.contiguous else []
            self._known = known
        if self.contiguous and g.is_contiguous():
            slices = [(*kept, part) for kept, part in zip(self._slices, g.view(-1).split(self.size))]
        else:
            slices = self._cut([*tensors, g])
        sums = []
        for x, *buffers, part in slices:
            part, x = block.load("gradient", part), block.load("parameter", x)
            loaded = [block.load(f"buffer{i}", b) for i, b in enumerate(buffers)]
            gx = torch.dot(part, x)
            u = direction.accumulate(part, loaded, block.get("work", part.numel()))
            for kept, new in zip(buffers, loaded):
                block.store(kept, new)
            sums.append((gx, torch.dot(loaded[0], x), torch.dot(loaded[0], u)))
        gx, dx, du = (block.total(s) for s in zip(*sums))
        return gx.reshape(1), dx, du

    def move(self, direction: Any, step: Scalar, keep: Scalar) -> None:
        """Second pass, for what the direction has no operation on whole tensors for."""
        block = self.block
        for x, *buffers in self._cut([self.param, *(self.state[name] for name in block.buffer_names)]):
            loaded = [block.load(f"buffer{i}", b) for i, b in enumerate(buffers)]
            new = block.load("parameter", x)
            kernels.subtract_([new], [direction.direction(loaded, block.get("work", new.numel()))], step, keep)
            block.store(x, new)


class Listed:
    """Tensors of any size that the compiled passes go over where they are, by tables of their addresses.

    The memory belongs to others, and may be replaced between steps, so every step asks the tensors anew. What doesn't fit
    into a table (a gradient whose strides are not its parameter's, say) is done as large tensors are without compiled passes.
    """

    def __init__(self, indices: list[int], block: Block, library: Library) -> None:
        self.block = block
        self.indices = indices
        self.params = [block.params[i] for i in indices]
        self.states = [block.states[i] for i in indices]
        for p, state in zip(self.params, self.states):
            for name in block.buffer_names:
                if not _alike(state[name], p):
                    state[name] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(state[name])
        self._threads = library.threads
        self._accumulate = library.accumulate[block.dtype]
        self._subtract = library.subtract[block.dtype]
        self._pack = struct.Struct(f"{len(indices)}N").pack
        self._pack_sizes = struct.Struct(f"{len(indices)}q").pack
        self._gx = torch.empty(len(indices), dtype=torch.float64)
        self._totals = torch.empty(2, dtype=torch.float64)
        self._tables: list[bytes] = []  # the addresses of the parameters and of the buffers
        self._sizes: list[int] = []
        self._size_table = b""  # zero for what isn't listed
        self._single: list[int] = []  # the tensors with one element
        self._regular = False  # whether all tensors are contiguous and listed
        self._unlisted: set[int] = set()
        self._wholes: dict[int, Whole] = {}

    def _are_regular(self, tensors: list[Tensor]) -> bool:
        return (
            all(map(Tensor.is_contiguous, tensors))
            and all(map(_on_cpu, tensors))
            and set(map(type, tensors)) <= _PLAIN
            and set(map(_dtype, tensors)) == {self.block.dtype}
            and list(map(Tensor.numel, tensors)) == self._sizes
            and not any(tensors[i].is_neg() for i in self._single)
        )

    def _look(self, kept: list[list[Tensor]]) -> None:
        """Make the tables of what a step finds as the step before left it."""
        self._sizes = list(map(Tensor.numel, self.params))
        self._single = [k for k, size in enumerate(self._sizes) if size == 1]
        self._unlisted = set()
        for k, (p, *buffers) in enumerate(zip(*kept)):
            if not _is_dense(p) or p.dtype is not self.block.dtype or not all(_alike(t, p) for t in (p, *buffers)):
                self._unlisted.add(k)
        self._regular = not self._unlisted and self._are_regular(self.params)
        self._tables = [self._pack(*(_address(t) for t in tensors)) for tensors in kept]
        self._size_table = self._without(self._unlisted)

    def _without(self, places: set[int]) -> bytes:
        return self._pack_sizes(*(0 if k in places else size for k, size in enumerate(self._sizes)))

    @torch._disable_dynamo
    def update(self, direction: Any, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """First pass, as for gathered tensors."""
        g = [grads[i] for i in self.indices]
        kept = [self.params, *([s[name] for s in self.states] for name in self.block.buffer_names)]
        if (
            not self._regular
            or not self._are_regular(self.params)
            or self._tables != [self._pack(*map(Tensor.data_ptr, tensors)) for tensors in kept]
        ):
            self._look(kept)
        odd, sizes = self._unlisted, self._size_table
        if self._regular and self._are_regular(g):
            addresses = list(map(Tensor.data_ptr, g))
        else:
            addresses = list(map(_address, g))
            odd = odd | {k for k, (t, p) in enumerate(zip(g, self.params)) if not _alike(t, p)}
            sizes = self._without(odd)
        if 0 in addresses:
            odd = odd | {k for k, address in enumerate(addresses) if address == 0}
            sizes = self._without(odd)
        numbers = struct.pack("6d", *direction.numbers, 0.0, 0.0)
        if self._accumulate(
            len(g), sizes, self._pack(*addresses), *self._three(self._tables), numbers,
            self._gx.data_ptr(), self._totals.data_ptr(), *self._threads(),
        ):  # fmt: skip
            raise MemoryError("there is no memory for a table of the parameters' chunks.")
        gx, dx, du = self._gx, self._totals[0], self._totals[1]
        self._wholes = {k: self._wholes.get(k) or Whole(self.indices[k], self.block) for k in odd}
        for k in sorted(odd):
            gx[k], more_dx, more_du = self._wholes[k].update(direction, grads)
            dx, du = dx + more_dx, du + more_du
        return gx, dx, du

    @torch._disable_dynamo
    def move(self, direction: Any, step: float, keep: float) -> None:
        """Second pass."""
        numbers = struct.pack("6d", *direction.numbers, step, keep)
        count = len(self.params)
        if self._subtract(count, self._size_table, *self._three(self._tables), numbers, *self._threads()):
            raise MemoryError("there is no memory for a table of the parameters' chunks.")
        # What autograd has kept for a backward pass is no longer what it was.
        moved = self.params if not self._unlisted else [p for k, p in enumerate(self.params) if k not in self._unlisted]
        _increment_versions(moved)
        for k in sorted(self._unlisted):
            self._wholes[k].move(direction, step, keep)

    @staticmethod
    def _three(tables: list[bytes]) -> list[bytes | None]:
        return [*tables, None] if len(tables) == 2 else [*tables]


class Block:
    """The parameters that are alike in everything: group, device, dtype, and the number of gradients they have had."""

    def __init__(
        self,
        group: dict[str, Any],
        positions: list[int],
        params: list[Tensor],
        states: list[dict[str, Any]],
        buffer_names: tuple[str, ...],
        scratch: Scratch,
    ) -> None:
        self.group = group
        self.positions = positions  # of the parameters among all of the optimizer
        self.params = params
        self.states = states
        self.buffer_names = buffer_names
        self.device = params[0].device
        self.dtype = params[0].dtype
        self.compute_dtype = torch.float32 if self.dtype.itemsize < 4 else self.dtype
        self.scratch = scratch
        self.slice = _SLICE.get(self.device.type, _ELSEWHERE)
        self.host = on_host(self.device)
        self.first = False  # whether the next gradient is the first one; the optimizer sets it

        library = _library(self.device, self.dtype)
        listed: list[int] = []
        gathered: list[int] = []
        size = 0
        self.wholes: list[Whole] = []
        self.gathered: list[Gathered] = []
        for i, p in enumerate(params):
            if library is not None and p.numel() > 0 and _is_dense(p) and _alike(p, p):
                listed.append(i)
                continue
            if p.numel() >= _WHOLE:
                self.wholes.append(Whole(i, self))
                continue
            if gathered and size + p.numel() > _GATHERED.get(self.device.type, _ELSEWHERE):
                self.gathered.append(Gathered(gathered, self))
                gathered, size = [], 0
            gathered.append(i)
            size += p.numel()
        if gathered:
            self.gathered.append(Gathered(gathered, self))
        self.listed = [Listed(listed, self, library)] if listed and library is not None else []
        self.pieces: list[Listed | Gathered | Whole] = [*self.listed, *self.gathered, *self.wholes]
        # The scalars of the state, too, are views of one tensor, in the order of the pieces.
        order = [i for piece in self.pieces for i in piece.indices]
        self.steps = self._one_tensor("step", order)
        self.gamma = self._one_tensor("gamma", order)

    def _one_tensor(self, name: str, order: list[int]) -> Tensor:
        together = torch.stack([self.states[i][name] for i in order])
        for i, view in zip(order, together.unbind(0)):
            self.states[i][name] = view
        return together

    def own_steps(self) -> Scalar:
        """The number of gradients that these parameters have had."""
        return self.steps[0].item() if self.host else self.steps[0].to(scalar_dtype(self.device))

    def bring(self, scalar: Scalar) -> Scalar:
        """A scalar to where these parameters are."""
        if not isinstance(scalar, Tensor):
            return scalar
        return scalar.item() if self.host else scalar.to(self.device, non_blocking=True)

    def get(self, name: str, size: int) -> Tensor:
        """Working memory."""
        return self.scratch.get(name, size, self.compute_dtype, self.device)

    def load(self, name: str, part: Tensor) -> Tensor:
        """A slice as a flat tensor to compute with: itself, or a copy in working memory."""
        if part.dtype is self.compute_dtype and part.dim() == 1 and part.is_contiguous():
            return part
        copy = self.get(name, part.numel())
        copy.view(part.shape).copy_(part)
        return copy

    @staticmethod
    def store(part: Tensor, computed: Tensor) -> None:
        """Bring a slice that was copied by ``load`` back."""
        if computed is not part:
            part.copy_(computed.view(part.shape))

    @staticmethod
    def total(parts: Sequence[Tensor]) -> Tensor:
        """The sum of 0-dimensional tensors, in double precision."""
        if len(parts) == 1:
            return parts[0].to(scalar_dtype(parts[0].device))
        return torch.stack(list(parts)).to(scalar_dtype(parts[0].device)).sum()

    def update(self, direction: Any, grads: Sequence[Tensor]) -> tuple[Scalar, Scalar, Scalar]:
        """First pass: take in the gradients; answer gamma, ``<d, x>`` and ``<d, u>``."""
        gxs, dxs, dus = zip(*(piece.update(direction, grads) for piece in self.pieces))
        gx = gxs[0] if len(gxs) == 1 else torch.cat([v.to(self.gamma.dtype) for v in gxs])
        self.gamma.lerp_(gx.to(self.gamma.dtype), direction.weight)
        gamma, dx, du = self.gamma.sum(), self.total(dxs), self.total(dus)
        return (gamma.item(), dx.item(), du.item()) if self.host else (gamma, dx, du)

    def move(self, direction: Any, step: Scalar, keep: Scalar) -> None:
        """Second pass: ``x <- keep * x - step * u``."""
        for piece in (*self.listed, *self.gathered):
            piece.move(direction, step, keep)
        if not self.wholes:
            return
        buffers = [[w.state[name] for w in self.wholes] for name in self.buffer_names]
        fits = self.dtype is self.compute_dtype and all(w.contiguous for w in self.wholes)
        if not fits or not direction.move([w.param for w in self.wholes], buffers, step, keep):
            for piece in self.wholes:
                piece.move(direction, step, keep)


@torch._disable_dynamo
def _library(device: torch.device, dtype: torch.dtype) -> Library | None:
    if not on_host(device):
        return None
    # Who only imports the package, or trains on another device, doesn't pay for finding a compiler.
    from momo import native

    return native.library() if dtype in native.DTYPES else None


def _is_dense(t: Tensor) -> bool:
    """Whether a tensor's elements fill its memory, in whatever order."""
    return t.is_contiguous() or _flattened([t]) is not None


def _alike(t: Tensor, p: Tensor) -> bool:
    """Whether a tensor's memory can be gone over together with a parameter's."""
    return (
        type(t) in _PLAIN
        and t.is_cpu
        and t.dtype is p.dtype
        and t.shape == p.shape
        and (t.stride() == p.stride() or (t.is_contiguous() and p.is_contiguous()))
        and not t.is_neg()
        and t.data_ptr() != 0
    )


def _address(t: Tensor) -> int:
    return t.data_ptr() if type(t) in _PLAIN and t.is_cpu else 0


def _increment_versions(tensors: list[Tensor]) -> None:
    try:
        increment_version(tensors)
    except TypeError:  # older versions of torch take one tensor
        for t in tensors:
            increment_version(t)


def _flattened(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """Flat views of tensors of equal shape, in the same order of elements; None if their strides don't allow it."""
    if not all(t.is_contiguous() for t in tensors):
        first = tensors[0]
        order = sorted(range(first.dim()), key=first.stride, reverse=True)
        tensors = [t.permute(order) for t in tensors]
        if not all(t.is_contiguous() for t in tensors):
            return None
    return [t.view(-1) for t in tensors]


def _halves(tensors: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """Cut tensors of any strides into parts of at most ``size`` elements."""
    shape = tensors[0].shape
    if shape.numel() <= size:
        yield tensors
        return
    dim = max(range(len(shape)), key=shape.__getitem__)
    for part in zip(*(t.chunk(2, dim) for t in tensors)):
        yield from _halves(part, size)
