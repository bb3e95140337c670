"""The fused operations do what their names say, and nothing else."""

from __future__ import annotations

import pytest
import torch

from momo import kernels


@pytest.mark.parametrize("root", [1e-3**0.5, 0.3, 1.0])
@pytest.mark.parametrize("keep", [1.0, 0.9])
@pytest.mark.parametrize("step", [0.0, 1e-30, 1e-3, 2.0])
def test_adam_subtract_leaves_the_averages_as_they_are(root, keep, step):
    torch.manual_seed(0)
    x = torch.randn(5000)
    v = torch.rand(5000) * 10.0 ** torch.randint(-20, 4, (5000,))
    v[:100] = 0
    d = torch.randn(5000) * v.sqrt() * 5
    before = x.double(), d.clone(), v.clone()
    kernels.adam_subtract_([x], [d], [v], step, keep, 1e-8, root)
    assert torch.equal(d, before[1]) and torch.equal(v, before[2])
    expected = keep * before[0] - step * d.double() / (v.double().sqrt() / root + 1e-8)
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("root", [1e-3**0.5, 0.3, 1.0])
def test_adam_accumulate(root):
    torch.manual_seed(0)
    g, d, v, out = torch.randn(5000), torch.randn(5000), torch.rand(5000), torch.full((5000,), 7.0)
    d1, v1 = 0.9 * d.double() + 0.1 * g.double(), 0.999 * v.double() + 0.001 * g.double() ** 2
    kernels.adam_accumulate(g, d, v, out, 0.9, 0.999, 1e-8, root)
    torch.testing.assert_close(d.double(), d1, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v.double(), v1, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.double(), d1 / (v1.sqrt() / root + 1e-8), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0.0, 1e-30, 1e-3, torch.tensor(1e-3)])
@pytest.mark.parametrize("keep", [1.0, 0.9, torch.tensor(0.9)])
@pytest.mark.parametrize("fused", [True, False])
def test_subtract(step, keep, fused, monkeypatch):
    monkeypatch.setattr(kernels, "_HAS_FUSED_SGD", fused)
    torch.manual_seed(0)
    if isinstance(keep, torch.Tensor) and not isinstance(step, torch.Tensor):
        step = torch.tensor(step)
    xs, us = ([torch.randn(3, 4), torch.randn(7)] for _ in range(2))
    expected = [float(keep) * x - float(step) * u for x, u in zip(xs, us)]
    kernels.subtract_(xs, us, step, keep)
    torch.testing.assert_close(xs, expected)
