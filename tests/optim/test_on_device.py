"""The arithmetic that an accelerator uses (scalars stay tensors on the device), here on the CPU; and CUDA where it is."""

from __future__ import annotations

import pytest
import torch

from momo import Momo, MomoAdam, bench, passes

SHAPES = [(300, 500), (7, 3), (), (5,), (7, 3)]


def train(cls, steps=8, **options):
    gen = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=gen, dtype=torch.float64).requires_grad_() for s in SHAPES]
    groups = [{"params": params[:2], "lr": 0.02}, {"params": params[2:], "weight_decay": 0.1}]
    optimizer = cls(groups, lr=0.3, **options)
    for k in range(steps):
        optimizer.zero_grad()
        loss = sum((p - 1).square().mean() for i, p in enumerate(params) if i != 3 or k > 2)
        loss.backward()
        optimizer.record_loss(loss)
        optimizer.record_loss(loss)
        optimizer.step()
        optimizer.diagnostics()
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize("use_fstar", [False, True])
@pytest.mark.parametrize(
    "cls, options", [(Momo, {}), (Momo, {"bias_correction": True}), (MomoAdam, {}), (MomoAdam, {"divide": False})]
)
def test_scalars_as_tensors_give_the_same_iterates(cls, options, use_fstar, monkeypatch):
    expected, numbers = train(cls, use_fstar=use_fstar, **options)
    monkeypatch.setattr(passes, "on_host", lambda device: False)
    read = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda t: read.append(t) or item(t))
    found, tensors = train(cls, use_fstar=use_fstar, **options)
    monkeypatch.undo()
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for name, value in tensors.diagnostics().items():
        torch.testing.assert_close(value, numbers.diagnostics()[name])
    assert tensors.param_groups[0]["lower_bound"] == pytest.approx(numbers.param_groups[0]["lower_bound"].item())


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_steps_read_nothing_from_the_device(cls, monkeypatch):
    monkeypatch.setattr(passes, "on_host", lambda device: False)
    params = [torch.randn(s).requires_grad_() for s in SHAPES]
    optimizer = cls(params, use_fstar=True, weight_decay=0.1)
    for p in params:
        p.grad = torch.randn_like(p)

    def refused(*_):
        raise AssertionError("a step read a value from the device")

    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refused)
    for _ in range(3):
        optimizer.step(loss=1.0)
        optimizer.diagnostics()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_synchronisation_and_cuda_graphs():
    bench.check_gpu()


def test_the_benchmark_runs(capsys):
    bench.main(["--device", "cpu", "--only", "(16, 16)", "--rounds", "2"])
    assert "geometric mean" in capsys.readouterr().out
