"""The arithmetic that an accelerator uses (scalars stay tensors on the device), here on the CPU; and CUDA where it
is."""

from __future__ import annotations

import pytest
import torch
from optim.making import EVERY, MUONS, made
from torch.utils._python_dispatch import TorchDispatchMode

from momo import Momo, MomoAdam, MomoMuon, MomoMuonMax, bench
from momo.passes import members

SHAPES = [(30, 50), (7, 3), (), (5,), (7, 3)]


def train(cls, steps=8, **options):
    gen = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=gen, dtype=torch.float64).requires_grad_() for s in SHAPES]
    groups = [{"params": params[:2], "lr": 0.02}, {"params": params[2:], "weight_decay": 0.1}]
    optimizer = made(cls, groups, lr=0.3, **options)
    for k in range(steps):
        optimizer.zero_grad()
        loss = sum((p - 1).square().mean() for i, p in enumerate(params) if i != 3 or k > 2)
        loss.backward()
        optimizer.record_loss(loss)
        optimizer.record_loss(loss)
        optimizer.step()
        optimizer.diagnostics()
    return [p.detach() for p in params], optimizer


STAR = [
    (cls, {**options, "use_fstar": use_fstar})
    for cls, options in [
        (Momo, {}), (Momo, {"bias_correction": True}), (MomoAdam, {}), (MomoAdam, {"divide": False}),
    ]
    for use_fstar in (False, True)
]  # fmt: skip


@pytest.mark.parametrize(
    "cls, options", [*STAR, (MomoMuon, {}), (MomoMuonMax, {}), (MomoMuonMax, {"stale_norms": True})]
)
def test_scalars_as_tensors_give_the_same_iterates(cls, options, monkeypatch, exactly):
    expected, numbers = train(cls, fused=False, **options)
    with monkeypatch.context() as patch:
        patch.setattr(members, "_HOST", set())
        found, tensors = train(cls, fused=False, **options)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for name, value in tensors.diagnostics().items():
        torch.testing.assert_close(value, numbers.diagnostics()[name])


class Counter(TorchDispatchMode):
    """Counts calls of operations, and forbids those by which the host reads a device."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::equal"), name
        if not function.is_view:
            self.calls += 1
        return function(*args, **(kwargs or {}))


def steps_on_meta(cls, shapes, missing=(), **options):
    """Three steps on the meta device, which has no values: whoever reads one raises. The calls of the last step."""
    params = [torch.zeros(s, device="meta", requires_grad=True) for s in shapes]
    optimizer = made(cls, params, lr=torch.tensor(0.1, device="meta"), **options)
    for k in range(3):
        for i, p in enumerate(params):
            p.grad = None if k == 2 and i in missing else torch.zeros_like(p)
        with Counter() as counter:
            optimizer.step(loss=torch.zeros((), device="meta"))
            optimizer.diagnostics()
            repr(optimizer)
    return counter.calls


@pytest.mark.parametrize("options", [{}, {"use_fstar": True, "weight_decay": 0.1}])
@pytest.mark.parametrize("cls", EVERY)
def test_steps_read_nothing_from_the_device(cls, options):
    if cls in MUONS:
        options = {name: value for name, value in options.items() if name != "use_fstar"}
    few = steps_on_meta(cls, SHAPES * 2, **options)  # Muon stacks matrices where there are several of a shape
    # Small tensors are gathered, so their number changes nothing; nor does it cost reads to leave some out.
    assert steps_on_meta(cls, SHAPES * 20, **options) == few
    assert steps_on_meta(cls, SHAPES * 20, missing={1, 2, 50}, **options) <= few + 40
    # Each large one adds its own.
    assert steps_on_meta(cls, [(300, 500)] * 3, **options) < steps_on_meta(cls, [(300, 500)] * 4, **options)


@pytest.mark.parametrize("kind", ["compiled", "torch", "without double"])
def test_sums_that_cancel_are_in_double_precision(kind, monkeypatch):
    """<g, x> = 1e4 cancels down to 4e-3. Without double (as on MPS), sums are compensated."""
    if kind == "without double":
        monkeypatch.setattr(members, "_WITHOUT_DOUBLE", {"cpu"})
    torch.manual_seed(0)
    p = (1 + 0.1 * torch.randn(10**6)).requires_grad_()
    optimizer = Momo([p], lr=1.0, fused=None if kind == "compiled" else False)
    gamma = None
    for _ in range(4):
        p.grad = 0.01 + 0.01 * torch.randn(10**6)
        x, gx = p.detach().double().clone(), (p.detach().double() * p.grad.double()).sum()
        optimizer.step(loss=4e-3)
        gamma = gx if gamma is None else 0.9 * gamma + 0.1 * gx
        d = optimizer.state[p]["exp_avg"].double()
        wanted = (4e-3 - gamma + (d * x).sum()) / d.square().sum()
        assert 1e-6 < wanted < 1e-3
        assert optimizer.diagnostics()["step_size"].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_synchronisation_and_cuda_graphs():
    bench.check_triton()
    bench.check_gpu()


def test_the_benchmark_runs(capsys):
    bench.main(["--device", "cpu", "--only", "(16, 16)", "--rounds", "2"])
    assert "geometric mean" in capsys.readouterr().out
