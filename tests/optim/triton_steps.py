"""Steps under Triton's interpreter on the CPU: started by test_triton.py in a process of its own, as the interpreter is
chosen where kernels are defined. Returns, or fails."""

from __future__ import annotations

import sys

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from momo import Momo, MomoAdam, bench, passes
from momo.method import Memory, Sums, truncated_step
from momo.passes import members, triton_ops

triton_ops.CHUNK, triton_ops._LANES = 2048, 1024  # so that small tensors have several chunks: the interpreter is slow
SHAPES = [(), (3, 5), (1,), (0,), (triton_ops.CHUNK - 1,), (2, triton_ops.CHUNK), (triton_ops.CHUNK + 7,), (5,)]
CASES = [
    (cls, {"use_fstar": star, **options})
    for cls, options in [
        (Momo, {}), (Momo, {"bias_correction": True, "weight_decay": 0.1, "lb": 0.1}),
        (MomoAdam, {"weight_decay": 0.1}), (MomoAdam, {"divide": False, "weight_decay": 0.1}),
    ]
    for star in (False, True)
]  # fmt: skip


def train(cls, options, fused, dtype=torch.float32, steps=5, lr=0.05, missing=True, bad=None, shapes=SHAPES):
    gen = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=gen).to(dtype).requires_grad_() for s in shapes]
    groups = [{"params": params[:3], "lr": 0.02}, {"params": params[3:]}]
    rate = torch.tensor(lr) if lr == 0.03 else lr
    optimizer = cls(groups, lr=rate, fused=fused, **options)
    told = []
    for k in range(steps):
        for i, p in enumerate(params):
            absent = missing and (k + i) % 4 == 3
            p.grad = None if absent else torch.randn(p.shape, generator=gen).to(dtype)
        if bad is not None and k == 2:
            params[4].grad[7] = bad
        loss = float("nan") if k == 3 else 300.0 + 50 * (k % 2)
        optimizer.step(loss=torch.tensor(loss) if k % 2 else loss)
        told.append(optimizer.diagnostics())
    return params, optimizer, told


def compare(one, other, **tolerance):
    for p, q in zip(one[0], other[0]):
        torch.testing.assert_close(p, q, equal_nan=True, **tolerance)
        mine, theirs = one[1].state[p], other[1].state[q]
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], equal_nan=True, **tolerance)
    if tolerance.get("rtol") != 0 and one[0][0].dtype is not torch.float64:
        tolerance = {"rtol": 1e-3, "atol": 1e-3}  # sums of 1e5 cancel in what the step is made of
    moved = [bool(mine["step_size"].gt(0).all()) for mine in one[2]]
    assert moved[0] and sum(moved) >= len(moved) - 3, one[2]
    for mine, theirs in zip(one[2], other[2]):
        torch.testing.assert_close(mine, theirs, equal_nan=True, **tolerance)


def random_steps():
    """The step that the kernel finds, on random numbers, against momo.method."""
    gen = torch.Generator().manual_seed(1)
    special = [0.0, -1.0, float("inf"), float("-inf"), float("nan")]
    seen = set()
    for trial in range(400):
        n = torch.randn(16, generator=gen, dtype=torch.float64)
        star, from_zero = bool(trial % 2), bool(trial // 2 % 2)
        memory = torch.stack([n[0].abs(), n[1].abs(), n[2], torch.tensor(3.0, dtype=torch.float64)])
        if trial % 5 == 0:
            memory.zero_()
        sums = n[3:9].reshape(3, 2).clone()
        sums[2].abs_()
        loss, beta, lb = n[9].item(), 0.9, n[10].item() / 2
        if trial % 3 == 0:
            value = special[trial // 3 % 5]
            place = trial // 15 % 4
            if place == 0:
                loss = value
            elif place == 1:
                memory[0] = value
            else:
                sums[place - 1] = value
        blocks = torch.zeros(2, 8, dtype=torch.float64)
        blocks[:, 0], blocks[:, 1], blocks[:, 2] = n[11:13].abs(), 1 + n[13:15].abs(), 1.0
        blocks[1, 4], blocks[:, 5] = 1.0, 1.0
        dx, full = sums[1], blocks[:, 0] * sums[2]
        c = blocks[:, 1]
        average, rho, low = memory[:3].tolist()
        expected = truncated_step(
            Memory(average, rho, low if rho > 0 else lb),
            Sums(loss, *(v.sum().item() for v in (sums[0], dx, dx / c, full, full / c))),
            beta=beta, from_zero=from_zero, lb=lb, use_fstar=star,
        )  # fmt: skip
        result = torch.zeros(6, dtype=torch.float64)
        triton_ops._launch(
            triton_ops._find_step, 1, memory, sums, 2, blocks, 2, result, *triton_ops._either(loss, sums),
            triton_ops._bits(beta), triton_ops._bits(lb),
            FROM_ZERO=from_zero, USE_FSTAR=star, LOSS_ON_DEVICE=False, LANES=16,
        )  # fmt: skip
        wanted = [expected.multiplier, expected.adaptive, float(expected.capped), *expected.memory]
        torch.testing.assert_close(
            result, torch.tensor(wanted, dtype=torch.float64), equal_nan=True, rtol=1e-12, atol=1e-12
        )
        seen.add((star, wanted[0] == 0, wanted[0] == 1, wanted[0] != wanted[0]))
    assert len(seen) == 8, seen


def round_as_gpus_do():
    """The interpreter cuts bfloat16 off where the compilers round to the nearest."""
    convert = interpreter._convert_float

    def rounded(data, old, new, mode):
        if (old, new) != (tl.float32, tl.bfloat16):
            return convert(data, old, new, mode)
        return torch.tensor(data).bfloat16().view(torch.int16).numpy().view("uint16")

    interpreter._convert_float = rounded


def main():
    round_as_gpus_do()
    members._HOST.clear()
    passes._TRITON.add("cpu")
    launched = []
    launch = triton_ops._launch
    triton_ops._launch = lambda kernel, *args, **constants: (
        launched.append(kernel),
        launch(kernel, *args, **constants),
    )
    random_steps()
    bench.check_triton("cpu")
    for cls, options in CASES:
        for dtype, tolerance in [(torch.float32, {}), (torch.float64, {"rtol": 1e-9, "atol": 1e-9})]:
            launched.clear()
            mine = train(cls, options, True, dtype)
            assert len(launched) == 5 * 7, len(launched)
            compare(mine, train(cls, options, False, dtype), **tolerance)
    for cls in (Momo, MomoAdam):
        for dtype in (torch.float16, torch.bfloat16):
            rounding = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps}
            compare(train(cls, {}, True, dtype, lr=0.03), train(cls, {}, False, dtype, lr=0.03), **rounding)
        for bad in (float("inf"), float("nan")):
            compare(train(cls, {}, True, bad=bad), train(cls, {}, False, bad=bad))
        again = [train(cls, {}, True) for _ in range(2)]
        compare(*again, rtol=0, atol=0)
        optimizer = again[0][1]
        p = optimizer.param_groups[0]["params"][1]
        p.grad = torch.zeros(p.shape[::-1]).T
        with pytest.raises(RuntimeError, match="contiguous"):
            optimizer.step(loss=1.0)


if __name__ == "__main__":
    sys.exit(main())
