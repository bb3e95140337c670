# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"
"""A whole step on a GPU by a few kernels in Triton, however many tensors there are.

For each block of parameters ``accumulate`` goes over all chunks of all tensors and leaves double sums of each chunk,
``reduce`` adds these up for each tensor in their order, and ``move`` goes over the chunks again; in between,
``find_step`` is one program for all blocks. Nothing is read by the host. The directions' formulas mirror
:mod:`momo.directions`.

Python numbers reach kernels as the bits of a double: Triton would round them to single precision.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from momo.directions import AdamFromFirst
from momo.method import Memory, Scalar, Step
from momo.passes.compiled import _PLAIN, _increment_versions

if TYPE_CHECKING:
    from momo.block import Block

CHUNK = 16384  # elements that a program goes over
_LANES = 1024  # of them at once
_COLUMNS = 8  # of a block: see ``_reduce``
_BITS = ("lr", "weight_decay", "beta", "log_beta2", "beta2", "eps", "loss", "lb")
_TYPES = {
    torch.float32: tl.float32, torch.float64: tl.float64, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16,
}  # fmt: skip


@triton.jit
def _double(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _weight(rho, beta, FROM_ZERO: tl.constexpr):
    weight = 1 - beta
    if not FROM_ZERO:
        weight = tl.where(rho == 0, 1.0, weight)
    return weight


@triton.jit
def _lerp(old, new, weight, rest, near):
    """torch.lerp, exact at both ends."""
    return tl.where(near, old + weight * (new - old), new - (new - old) * rest)


@triton.jit
def _root(steps, log_beta2, FROM_FIRST: tl.constexpr):
    root = steps * 0.0 + 1.0
    if not FROM_FIRST:
        root = tl.sqrt(1 - tl.exp(steps * log_beta2))
    return root


@triton.jit
def _adam(d, v, root, eps, D: tl.constexpr):
    if D == tl.float32:  # noqa: SIM300
        u = tl.div_rn(d, tl.div_rn(tl.sqrt_rn(v), tl.zeros_like(v) + root) + eps)
    else:
        u = d / (tl.sqrt(v) / root + eps)
    return u


@triton.jit(do_not_specialize=["count", *_BITS])
def _accumulate(
    table, chunks, count, rhos, steps, partial, beta, beta2, log_beta2, eps,
    ADAM: tl.constexpr, FROM_FIRST: tl.constexpr, FROM_ZERO: tl.constexpr, X: tl.constexpr, D: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + chunk)
    size = tl.load(table + tensor)
    start = (chunk - tl.load(table + count + tensor)) * CHUNK
    address = tl.load(table + 2 * count + tensor)
    gx = tl.zeros([LANES], tl.float64)
    dx = tl.zeros([LANES], tl.float64)
    du = tl.zeros([LANES], tl.float64)
    if address != 0:
        gs = address.to(tl.pointer_type(X))
        xs = tl.load(table + 3 * count + tensor).to(tl.pointer_type(X))
        ds = tl.load(table + 4 * count + tensor).to(tl.pointer_type(D))
        vs = tl.load(table + 5 * count + tensor).to(tl.pointer_type(D))
        wide = _weight(tl.load(rhos + tensor), _double(beta), FROM_ZERO)
        near = wide < 0.5
        weight = wide.to(D)
        rest = (1 - wide).to(D)
        now = tl.load(steps + tensor).to(tl.float64) + 1
        new_square = 1 - _double(beta2)
        if FROM_FIRST:
            new_square = tl.where(now == 1, 1.0, new_square)
        root = _root(now, _double(log_beta2), FROM_FIRST).to(D)
        for at in range(0, CHUNK, LANES):
            place = start + at + tl.arange(0, LANES)
            there = place < size
            g = tl.load(gs + place, mask=there, other=0.0).to(D)
            x = tl.load(xs + place, mask=there, other=0.0).to(tl.float64)
            d = _lerp(tl.load(ds + place, mask=there, other=0.0), g, weight, rest, near)
            tl.store(ds + place, d, mask=there)
            u = d
            if ADAM:
                v = tl.load(vs + place, mask=there, other=0.0) * (1 - new_square).to(D) + g * g * new_square.to(D)
                tl.store(vs + place, v, mask=there)
                u = _adam(d, v, root, _double(eps).to(D), D)
            gx += tl.where(there, g.to(tl.float64) * x, 0.0)
            dx += tl.where(there, d.to(tl.float64) * x, 0.0)
            du += tl.where(there, d.to(tl.float64) * u.to(tl.float64), 0.0)
    tl.store(partial + 3 * chunk, tl.sum(gx))
    tl.store(partial + 3 * chunk + 1, tl.sum(dx))
    tl.store(partial + 3 * chunk + 2, tl.sum(du))


@triton.jit(do_not_specialize=["count", "block", "first", *_BITS])
def _reduce(
    table, count, partial, rhos, steps, gammas, sums, blocks, block, first, total, lr_on_device, lr, weight_decay, beta,
    FROM_ZERO: tl.constexpr, DECOUPLED: tl.constexpr, DIVIDE: tl.constexpr, LR_ON_DEVICE: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The scalars of each tensor take in this step; ``sums`` are rows of all blocks' tensors: gamma, dx, du / rho.

    A block's columns are lr, its ``c`` in the model, what divides its step, what its parameters keep, its first tensor,
    how many they are, and (from ``find_step``) its step times rho.
    """
    tensor = tl.program_id(0).to(tl.int64)
    size = tl.load(table + tensor)
    begin = tl.load(table + count + tensor)
    end = begin + (size + CHUNK - 1) // CHUNK
    gx = tl.zeros([LANES], tl.float64)
    dx = tl.zeros([LANES], tl.float64)
    du = tl.zeros([LANES], tl.float64)
    for at in range(begin, end, LANES):
        place = at + tl.arange(0, LANES)
        gx += tl.load(partial + 3 * place, mask=place < end, other=0.0)
        dx += tl.load(partial + 3 * place + 1, mask=place < end, other=0.0)
        du += tl.load(partial + 3 * place + 2, mask=place < end, other=0.0)
    present = tl.load(table + 2 * count + tensor) != 0
    rho = tl.load(rhos + tensor)
    weight = _weight(rho, _double(beta), FROM_ZERO)
    rho = tl.where(present, (1 - weight) * rho + weight, rho)
    before = tl.load(gammas + tensor)
    gamma = tl.where(present, _lerp(before, tl.sum(gx), weight, 1 - weight, weight < 0.5), before)
    tl.store(rhos + tensor, rho)
    tl.store(gammas + tensor, gamma)
    tl.store(steps + tensor, tl.load(steps + tensor) + tl.where(present, 1.0, 0.0))
    tl.store(sums + first + tensor, tl.where(present, gamma, 0.0))
    tl.store(sums + total + first + tensor, tl.sum(dx))
    tl.store(sums + 2 * total + first + tensor, tl.where(present, tl.sum(du) / rho, 0.0))
    if tensor == 0:
        rate = tl.load(lr_on_device).to(tl.float64) if LR_ON_DEVICE else _double(lr)
        decay = 1 + rate * _double(weight_decay)
        own = blocks + block * 8
        tl.store(own, rate)
        tl.store(own + 1, rate * 0.0 + 1.0 if DECOUPLED else decay)
        tl.store(own + 2, decay if DIVIDE else rate * 0.0 + 1.0)
        tl.store(own + 3, 1 / decay if DIVIDE else 2 - decay)
        tl.store(own + 4, tl.cast(first, tl.float64))
        tl.store(own + 5, tl.cast(count, tl.float64))


@triton.jit
def _finite(value):
    return tl.abs(value) < float("inf")


@triton.jit
def _at_least(value, bound):
    """The larger one; NaN in ``value`` stays NaN."""
    return tl.where(value < bound, bound, value)


@triton.jit(do_not_specialize=["count", "total", *_BITS])
def _find_step(
    memory, sums, total, blocks, count, result, loss_on_device, loss, beta, lb,
    FROM_ZERO: tl.constexpr, USE_FSTAR: tl.constexpr, LOSS_ON_DEVICE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """:func:`momo.method.truncated_step` a second time, for a launch instead of dozens; a test holds it to that one.

    ``result``: the multiplier, the same before it was cut off, whether it was, and the memory.
    """
    gamma = tl.sum(tl.zeros([LANES], tl.float64))
    at_x, decayed_dx, descent, decayed_descent = gamma, gamma, gamma, gamma
    for block in range(count):
        own = blocks + block * 8
        lr, c = tl.load(own), tl.load(own + 1)
        first, length = tl.load(own + 4).to(tl.int64), tl.load(own + 5).to(tl.int64)
        gammas = tl.zeros([LANES], tl.float64)
        dxs = tl.zeros([LANES], tl.float64)
        dus = tl.zeros([LANES], tl.float64)
        for at in range(0, length, LANES):
            place = at + tl.arange(0, LANES)
            there = place < length
            gammas += tl.load(sums + first + place, mask=there, other=0.0)
            dxs += tl.load(sums + total + first + place, mask=there, other=0.0)
            dus += tl.load(sums + 2 * total + first + place, mask=there, other=0.0)
        dx, full = tl.sum(dxs), lr * tl.sum(dus)
        gamma += tl.sum(gammas)
        at_x += dx
        decayed_dx += dx / c
        descent += full
        decayed_descent += full / c

    average, old_rho, old_bound = tl.load(memory), tl.load(memory + 1), tl.load(memory + 2)
    low = _double(lb)
    started = old_rho > 0
    old_bound = tl.where(started, old_bound, low)
    value = tl.load(loss_on_device).to(tl.float64) if LOSS_ON_DEVICE else _double(loss)
    weight = _weight(old_rho, _double(beta), FROM_ZERO)
    rho = (1 - weight) * old_rho + weight
    value = tl.where(_finite(value), value, tl.where(started, average / tl.where(started, old_rho, 1.0), value))
    average = tl.where(_finite(average), average, old_rho * value)
    average = (1 - weight) * average + weight * value

    offset = average - gamma
    at_decayed = offset + decayed_dx
    bound = low
    if USE_FSTAR:
        bound = tl.where(at_decayed < rho * old_bound, _at_least(at_decayed / (2 * rho), low), old_bound)
    nothing = decayed_descent <= 0
    adaptive = (at_decayed - rho * bound) / tl.where(nothing, 1.0, decayed_descent)
    adaptive = tl.where(nothing, 0.0, _at_least(adaptive, 0.0))
    multiplier = tl.where(adaptive > 1, 1.0, adaptive)
    if USE_FSTAR:
        bound = _at_least((offset + at_x - multiplier * descent / 2) / rho, low)

    for block in range(count):
        own = blocks + block * 8
        tl.store(own + 6, multiplier * tl.load(own) / tl.load(own + 2))
    tl.store(memory, average)
    tl.store(memory + 1, rho)
    tl.store(memory + 2, bound)
    tl.store(memory + 3, tl.load(memory + 3) + 1)
    tl.store(result, multiplier)
    tl.store(result + 1, adaptive)
    tl.store(result + 2, tl.where(adaptive >= 1, 1.0, 0.0))
    tl.store(result + 3, average)
    tl.store(result + 4, rho)
    tl.store(result + 5, bound)


@triton.jit(do_not_specialize=["count", "block", *_BITS])
def _move(
    table, chunks, count, rhos, steps, blocks, block, log_beta2, eps,
    ADAM: tl.constexpr, FROM_FIRST: tl.constexpr, X: tl.constexpr, D: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + chunk)
    size = tl.load(table + tensor)
    start = (chunk - tl.load(table + count + tensor)) * CHUNK
    if tl.load(table + 2 * count + tensor) != 0:
        xs = tl.load(table + 3 * count + tensor).to(tl.pointer_type(X))
        ds = tl.load(table + 4 * count + tensor).to(tl.pointer_type(D))
        vs = tl.load(table + 5 * count + tensor).to(tl.pointer_type(D))
        step = (tl.load(blocks + block * 8 + 6) / tl.load(rhos + tensor)).to(D)
        keep = tl.load(blocks + block * 8 + 3).to(D)
        root = _root(tl.load(steps + tensor).to(tl.float64), _double(log_beta2), FROM_FIRST).to(D)
        for at in range(0, CHUNK, LANES):
            place = start + at + tl.arange(0, LANES)
            there = place < size
            x = tl.load(xs + place, mask=there, other=0.0).to(D)
            u = tl.load(ds + place, mask=there, other=0.0)
            if ADAM:
                u = _adam(u, tl.load(vs + place, mask=there, other=0.0), root, _double(eps).to(D), D)
            tl.store(xs + place, (keep * x - step * u).to(X), mask=there)


def _bits(value: float) -> int:
    found: int = struct.unpack("q", struct.pack("d", value))[0]
    return found


def _launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    if programs:
        kernel[(programs,)](*args, **constants)


class TritonStep:
    """The step of some blocks. Tensors' addresses are on the device, and are sent anew where they have changed."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        device = self._device = blocks[0].device
        self._tables = [_Table(block) for block in blocks]
        counts = [len(block.members) for block in blocks]
        self._first = [0, *itertools.accumulate(counts)]
        self._sums = torch.zeros(3, self._first[-1], dtype=torch.float64, device=device)
        self._of_blocks = torch.zeros(len(blocks), _COLUMNS, dtype=torch.float64, device=device)

    def why_not(self, grads: Sequence[Tensor | None]) -> str | None:
        """Why these gradients need torch's operations; None where they don't."""
        reasons = (table.look([grads[i] for i in table.block.positions]) for table in self._tables)
        return next((reason for reason in reasons if reason), None)

    def take(
        self, memory: Tensor, loss: Scalar, lrs: dict[int, Scalar], beta: float, from_zero: bool, lb: float, star: bool
    ) -> Step:
        """The step, after :meth:`why_not` returned None. ``memory`` is updated, the rest as in ``truncated_step``."""
        on_device = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        total, own_sums, of_blocks = self._first[-1], self._sums, self._of_blocks
        result = torch.empty(6, dtype=torch.float64, device=self._device)
        with on_device:
            for index, (table, first) in enumerate(zip(self._tables, self._first)):
                block, group = table.block, table.block.group
                lr = lrs[id(group)]
                _launch(
                    _accumulate, table.chunk_count, table.on_device, table.chunks, table.count, block._rho,
                    block._steps, table.partial, _bits(beta), *table.numbers(), FROM_ZERO=from_zero, **table.constants,
                )  # fmt: skip
                _launch(
                    _reduce, table.count, table.on_device, table.count, table.partial, block._rho, block._steps,
                    block._gamma, own_sums, of_blocks, index, first, total, *_either(lr, own_sums),
                    _bits(group["weight_decay"]), _bits(beta), FROM_ZERO=from_zero, DECOUPLED=block._decoupled,
                    DIVIDE=not block._decoupled and group.get("divide", True), LR_ON_DEVICE=isinstance(lr, Tensor),
                    CHUNK=CHUNK, LANES=_LANES,
                )  # fmt: skip
            _launch(
                _find_step, 1, memory, own_sums, total, of_blocks, len(self._tables), result,
                *_either(loss, own_sums), _bits(beta), _bits(lb), FROM_ZERO=from_zero, USE_FSTAR=star,
                LOSS_ON_DEVICE=isinstance(loss, Tensor), LANES=_LANES,
            )  # fmt: skip
            for index, table in enumerate(self._tables):
                block = table.block
                _launch(
                    _move, table.chunk_count, table.on_device, table.chunks, table.count, block._rho, block._steps,
                    of_blocks, index, *table.numbers()[1:], **table.constants,
                )  # fmt: skip
                _increment_versions(table.moved)
        multiplier, adaptive, capped, *kept = result.unbind()
        return Step(multiplier, adaptive, capped, Memory(*kept))


def _either(value: Scalar, unused: Tensor) -> tuple[Tensor, int]:
    """A scalar where it lies on the device, or its bits."""
    return (value, 0) if isinstance(value, Tensor) else (unused, _bits(value))


class _Table:
    """Of a block's tensors: sizes, first chunks, and the addresses of gradients, parameters and buffers."""

    def __init__(self, block: Block) -> None:
        self.block, members = block, block.members
        self.count = len(members)
        self._sizes = [p.numel() for p in members.params()]
        chunks = [-(-size // CHUNK) for size in self._sizes]
        self._first = [0, *itertools.accumulate(chunks)]
        self.chunk_count = self._first.pop()
        which = torch.repeat_interleave(torch.arange(self.count), torch.tensor(chunks))
        self.chunks = which.to(members.device, non_blocking=True)
        self.partial = torch.zeros(3 * self.chunk_count, dtype=torch.float64, device=members.device)
        self._pinned = members.device.type == "cuda"
        self._spare: Tensor | None = None
        self._addresses: list[list[int]] = []
        self._captured: list[Tensor] = []  # what CUDA graphs read again when they are replayed
        self.on_device = torch.empty(0)
        self.moved: list[Tensor] = []
        self.constants: dict[str, Any] = dict(
            ADAM=block._kind.name == "adam", FROM_FIRST=block._kind is AdamFromFirst, X=_TYPES[members.dtype],
            D=_TYPES[members.compute_dtype], CHUNK=CHUNK, LANES=_LANES,
        )  # fmt: skip

    def _page(self) -> Tensor:
        return torch.empty(6, self.count, dtype=torch.int64, pin_memory=self._pinned)

    def numbers(self) -> tuple[int, int, int]:
        """Of Adam: the second beta, its logarithm, and eps."""
        if not self.constants["ADAM"]:
            return 0, 0, 0
        group = self.block.group
        beta2 = group["betas"][1]
        return _bits(beta2), _bits(math.log(beta2) if beta2 > 0 else -math.inf), _bits(group["eps"])

    def look(self, grads: Sequence[Tensor | None]) -> str | None:
        """Have the table of the tensors as they are now, or return why there is none."""
        members = self.block.members
        kept = [members.params(), *(members.buffers(name) for name in members.buffer_names)]
        for tensors, dtype in zip((grads, *kept), (members.dtype, members.dtype, *[members.compute_dtype] * 2)):
            for t, size in zip(tensors, self._sizes):
                if t is None:
                    continue
                if type(t) not in _PLAIN or t.layout is not torch.strided or t.is_neg() or t._is_zerotensor():
                    return "a tensor is no plain one in memory"
                if not t.is_contiguous() or t.dtype is not dtype or t.numel() != size or t.device != members.device:
                    return (
                        "a parameter, its gradient and its state aren't contiguous tensors of equal size on one device"
                    )
        # An empty gradient has no address, and is there.
        addresses = [
            [0 if g is None else g.data_ptr() or 1 for g in grads],
            *([t.data_ptr() for t in ts] for ts in kept),
        ]
        self.moved = [p for p, g in zip(kept[0], grads) if g is not None]
        if addresses != self._addresses:
            self._addresses = addresses
            self._send()
        if self._pinned and torch.cuda.is_current_stream_capturing():
            self._captured.append(self.on_device)
        return None

    def _send(self) -> None:
        """A new table each time: a copy from, or a kernel that reads the one before may not have run yet."""
        rows = [self._sizes, self._first, *self._addresses]
        capturing = self._pinned and torch.cuda.is_current_stream_capturing()
        # Memory can't be pinned while a graph is captured, so a page is at hand, which then belongs to that graph.
        page, self._spare = self._spare if capturing and self._spare is not None else self._page(), None
        if not capturing:
            self._spare = self._page()
        page.copy_(torch.tensor([*rows, *[rows[-1]] * (6 - len(rows))]))
        self.on_device = page.to(self.block.members.device, non_blocking=True, copy=True)
        if capturing:
            self._captured.append(page)
