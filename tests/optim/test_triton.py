"""A GPU's step by Triton: the kernels under its interpreter, compiled for real processors, and launches counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from optim.test_on_device import Counter
from support import ROOT

from momo import Momo, MomoAdam, bench, passes
from momo.passes import members

pytest.importorskip("triton", reason="Triton isn't installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_for

from momo.passes import triton_ops

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}


def test_steps_are_those_of_torchs_operations():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "tests")}
    script = ROOT / "tests" / "optim" / "triton_steps.py"
    run = subprocess.run([sys.executable, script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def sources(cls, dtype, **options):
    """The kernels of a step as they would be compiled, with what the step passes to each."""
    found = {}

    def keep(kernel, programs, *args, **constants):
        names = kernel.arg_names
        values = dict(zip(names, args))
        kinds = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
        signature = {n: kinds[v.dtype] if isinstance(v, torch.Tensor) else "i64" for n, v in values.items()}
        signature.update(dict.fromkeys(constants, "constexpr"))
        assert set(signature) == set(names)
        signature = {n: signature[n] for n in names}
        found[kernel.fn.__name__] = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "_HOST", set())
        patch.setattr(passes, "_TRITON", {"cpu"})
        patch.setattr(triton_ops, "_launch", keep)
        p = torch.zeros(5, dtype=dtype, requires_grad=True)
        p.grad = torch.zeros_like(p)
        cls([p], fused=True, **options).step(loss=torch.tensor(1.0))
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cls, dtype, options", [
    (Momo, torch.float32, {}), (MomoAdam, torch.float32, {"use_fstar": True}), (MomoAdam, torch.bfloat16, {}),
    (Momo, torch.float16, {"bias_correction": True}), (MomoAdam, torch.float64, {"divide": False}),
])  # fmt: skip
def test_kernels_compile(target, cls, dtype, options, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = sources(cls, dtype, **options)
    assert set(found) == {"_accumulate", "_reduce", "_find_step", "_move"}
    for source in found.values():
        compiled = compile_for(source, target=TARGETS[target])
        assert compiled.asm["cubin" if target == "sm_90" else "hsaco"]


class Launches(Counter):
    """Calls of operations that a GPU would see: memory that is only allocated, and a profiler's marks, are none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = self.calls
        returned = super().__torch_dispatch__(function, types, args, kwargs)
        if function._schema.name == "aten::empty" or function.namespace == "profiler":
            self.calls = before
        return returned


@pytest.mark.parametrize("shapes", [bench.resnet50(), bench.gpt124m()], ids=["ResNet-50", "GPT-124M"])
@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_a_step_is_at_most_12_launches(cls, shapes, monkeypatch):
    """However many tensors there are. The memory is never touched: kernels are counted, not run."""
    kernels = []
    monkeypatch.setattr(members, "_HOST", set())
    monkeypatch.setattr(passes, "_TRITON", {"cpu"})
    monkeypatch.setattr(triton_ops, "_launch", lambda kernel, *args, **constants: kernels.append(kernel))
    monkeypatch.setattr("momo.passes.torch_ops._WHOLE", 0)
    params = [torch.empty(s, requires_grad=True) for s in shapes]
    rate = torch.tensor(0.1)
    optimizer = cls(params, lr=rate, fused=True, weight_decay=0.1, use_fstar=True)
    for _ in range(3):
        for p in params:
            p.grad = torch.empty_like(p)
        kernels.clear()
        with Launches() as counter:
            optimizer.step(loss=torch.empty(()))
    assert len(kernels) == 4
    assert counter.calls + len(kernels) <= 12, counter.calls
