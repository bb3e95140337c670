"""The passes by torch's operations: on any device, for any strides.

Each pass works on slices that stay in the processor's cache while several operations go over them. Small tensors are
gathered into one slice, because calling an operation costs more than doing it; large ones are cut up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from momo.directions import Elementwise
from momo.directions.protocol import restricted
from momo.method import Scalar
from momo.passes.members import Members, Scratch, has_double, refuse_sparse, scalar_device
from momo.passes.sums import dot, segment_dots, widened

_WHOLE = 1 << 17  # elements from which on a tensor isn't gathered with others
_SLICE = {"cpu": 1 << 18}  # elements that are worked on at once
_ELSEWHERE = 1 << 21
_KNOWN = 4  # pieces of working memory whose views are kept


class TorchPasses:
    """See :class:`momo.passes.Passes`.

    Args:
        members, scratch: as for :func:`momo.passes.choose`.
        gather: whether the buffers of small tensors may be put together, in memory of their own.
    """

    def __init__(self, members: Members, scratch: Scratch, gather: bool = True) -> None:
        self.members = members
        limit = _SLICE.get(members.device.type, _ELSEWHERE)
        self._pieces: list[_Gathered | _Whole] = []
        gathered: list[int] = []
        size = 0
        for i, p in enumerate(members.params()):
            if not gather or p.numel() >= _WHOLE or not has_double(members.device):
                self._pieces.append(_Whole(i, members, scratch, limit))
                continue
            if gathered and size + p.numel() > limit:
                self._pieces.append(_Gathered(gathered, members, scratch))
                gathered, size = [], 0
            gathered.append(i)
            size += p.numel()
        if gathered:
            self._pieces.append(_Gathered(gathered, members, scratch))
        order = [i for piece in self._pieces for i in piece.indices]
        self._back = None if order == sorted(order) else torch.tensor(order).argsort().to(members.device)

    def accumulate(self, direction: Elementwise, grads: Sequence[Tensor | None]) -> Tensor:
        refuse_sparse(grads)
        found = [piece.accumulate(direction, grads) for piece in self._pieces]
        together = torch.cat(found, dim=1) if len(found) > 1 else found[0]
        return together if self._back is None else together[:, self._back.to(together.device)]

    def move(self, direction: Elementwise, step: Scalar, keep: Scalar, present: Sequence[bool] | None) -> None:
        for piece in self._pieces:
            piece.move(direction, step, keep, present)


class _Piece:
    """What gathered and whole tensors have in common."""

    def __init__(self, indices: list[int], members: Members, scratch: Scratch) -> None:
        self.indices, self.members, self._scratch = indices, members, scratch
        self.dtype, self.device = members.compute_dtype, members.device

    def work(self, name: str, size: int) -> Tensor:
        return self._scratch.get(name, size, self.dtype, self.device)

    def double(self, name: str, size: int) -> Tensor:
        return self._scratch.get(name, size, torch.float64, self.device)

    def _subtract(self, x: Tensor, u: Tensor, step: Scalar, keep: Scalar) -> None:
        """``x <- keep * x - step * u``."""
        if not (isinstance(keep, float) and keep == 1.0):
            x.mul_(keep)
        x.sub_(torch.mul(u, step, out=self.work("work", u.numel())))


class _Gathered(_Piece):
    """Small tensors that are copied into one slice. Their buffers live in flat tensors, the state holds views of
    them."""

    def __init__(self, indices: list[int], members: Members, scratch: Scratch) -> None:
        super().__init__(indices, members, scratch)
        params = members.params()
        self._shapes = [params[i].shape for i in indices]
        self._sizes = [shape.numel() for shape in self._shapes]
        self.size = sum(self._sizes)
        self._index = torch.tensor(indices).to(self.device, non_blocking=True)
        self._lengths = torch.tensor(self._sizes).to(self.device, non_blocking=True)
        self._known_views: dict[int, list[Tensor]] = {}
        self._buffers = []
        for name in members.buffer_names:
            flat = torch.empty(self.size, dtype=self.dtype, device=self.device)
            views, old = self._make_views(flat), members.buffers(name)
            for i, shape in zip(indices, self._shapes):
                _check_shape(old[i], shape)
            torch._foreach_copy_(views, [old[i] for i in indices])
            for i, view in zip(indices, views):
                members.replace(i, name, view)
            self._buffers.append(flat)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Views of the slice in the shapes of the parameters: made once for memory that is used again."""
        known = self._known_views.get(flat.data_ptr())
        if known is None:
            if len(self._known_views) > _KNOWN:
                self._known_views.clear()
            known = self._known_views[flat.data_ptr()] = self._make_views(flat)
        return known

    def _make_views(self, flat: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(torch.split(flat, self._sizes), self._shapes)]

    def _spread(self, per_parameter: Tensor) -> Tensor:
        """An element for each element of the parameters from one for each parameter."""
        chosen = per_parameter[self._index].to(self.dtype)
        return torch.repeat_interleave(chosen, self._lengths, output_size=self.size)

    def _gather(self, name: str, tensors: Sequence[Tensor | None]) -> Tensor:
        flat = self.work(name, self.size)
        chosen = [tensors[i] for i in self.indices]
        into = [view for view, t in zip(self._views(flat), chosen) if t is not None]
        found = [t for t in chosen if t is not None]
        if len(found) < len(chosen):
            flat.zero_()
        if found:
            torch._foreach_copy_(into, found)
        return flat

    def accumulate(self, direction: Elementwise, grads: Sequence[Tensor | None]) -> Tensor:
        direction = restricted(direction, self._spread)
        params = self.members.params()
        for i, shape in zip(self.indices, self._shapes):
            _check_shape(params[i], shape)
        g = self._gather("gradient", [g if g is None else _with_memory(g) for g in grads])
        x = self.double("parameter", self.size).copy_(self._gather("value", params))
        product = self.double("product", self.size)
        gx = segment_dots(g, x, self._lengths, product)
        u = direction.accumulate(g, self._buffers, self.work("work", self.size))
        dx = segment_dots(self._buffers[0], x, self._lengths, product)
        du = segment_dots(u, x.copy_(self._buffers[0]), self._lengths, product)
        return torch.stack([gx, dx, du])

    def move(self, direction: Elementwise, step: Scalar, keep: Scalar, present: Sequence[bool] | None) -> None:
        direction = restricted(direction, self._spread)
        params = self.members.params()
        u = direction.direction(self._buffers, self.work("work", self.size))
        x = self._gather("value", params)
        self._subtract(x, u, self._spread(step) if isinstance(step, Tensor) else step, keep)
        moved = [(params[i], view) for i, view in zip(self.indices, self._views(x)) if present is None or present[i]]
        if moved:
            torch._foreach_copy_([p for p, _ in moved], [view for _, view in moved])


class _Whole(_Piece):
    """A large tensor, cut into slices."""

    def __init__(self, index: int, members: Members, scratch: Scratch, limit: int) -> None:
        super().__init__([index], members, scratch)
        self.index, self._limit = index, limit

    def _pick(self, per_parameter: Tensor) -> Tensor:
        return per_parameter[self.index].to(self.dtype)

    def _cut(self, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The parameter, its buffers and more tensors of its shape, slice by slice."""
        members = self.members
        kept = [members.params()[self.index], *(members.buffers(name)[self.index] for name in members.buffer_names)]
        for t in kept[1:]:
            _check_shape(kept[0], t.shape)
        return _slices([*kept, *more], self._limit)

    def _load(self, name: str, part: Tensor) -> Tensor:
        """A slice as a flat tensor to compute with: itself, or a copy in working memory."""
        if part.dtype is self.dtype and part.is_contiguous():
            return part.view(-1)
        copy = self.work(name, part.numel())
        copy.view(part.shape).copy_(part)
        return copy

    def accumulate(self, direction: Elementwise, grads: Sequence[Tensor | None]) -> Tensor:
        g = grads[self.index]
        if g is None:
            return torch.zeros(3, 1, dtype=torch.float64, device=scalar_device(self.device))
        direction = restricted(direction, self._pick)
        first, second = functools.partial(self.double, "first"), functools.partial(self.double, "second")
        sums = []
        for x, *buffers, part in self._cut(_with_memory(g)):
            part, x = self._load("gradient", part), self._load("value", x)
            loaded = [self._load(f"buffer{i}", b) for i, b in enumerate(buffers)]
            wide = widened(x, first)
            gx = dot(widened(part, second), wide)
            u = direction.accumulate(part, loaded, self.work("work", part.numel()))
            for kept, new in zip(buffers, loaded):
                _store(kept, new)
            d = widened(loaded[0], second)
            sums += [gx, dot(d, wide), dot(d, d if u is loaded[0] else widened(u, first))]
        return torch.stack(sums).reshape(-1, 3).sum(0).unsqueeze(1)

    def move(self, direction: Elementwise, step: Scalar, keep: Scalar, present: Sequence[bool] | None) -> None:
        if present is not None and not present[self.index]:
            return
        direction = restricted(direction, self._pick)
        step = self._pick(step) if isinstance(step, Tensor) else step
        for x, *buffers in self._cut():
            loaded = [self._load(f"buffer{i}", b) for i, b in enumerate(buffers)]
            new = self._load("value", x)
            self._subtract(new, direction.direction(loaded, self.work("work", new.numel())), step, keep)
            _store(x, new)


def _check_shape(t: Tensor, shape: torch.Size) -> None:
    if t.shape != shape:
        raise RuntimeError(
            f"a parameter's shape isn't the one of its state: {tuple(t.shape)} and {tuple(shape)}. "
            "Make a new optimizer for it."
        )


def _with_memory(g: Tensor) -> Tensor:
    """The gradient as operations that write in place take it: autograd also knows zeros without memory, and lazy
    signs."""
    return g.clone() if g._is_zerotensor() else g.resolve_neg()


def _store(part: Tensor, computed: Tensor) -> None:
    """Bring a slice back that was copied to be computed with."""
    if computed.data_ptr() != part.data_ptr():
        part.copy_(computed.view(part.shape))


def _slices(tensors: Sequence[Tensor], limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of equal shape and any strides into parts of at most ``limit`` elements."""
    shape = tensors[0].shape
    if all(t.is_contiguous() for t in tensors):
        yield from zip(*(torch.split(t.view(-1), limit) for t in tensors))
    elif shape.numel() <= limit:
        yield tuple(tensors)
    else:
        dim = max(range(len(shape)), key=shape.__getitem__)
        for part in zip(*(t.chunk(2, dim) for t in tensors)):
            yield from _slices(part, limit)
