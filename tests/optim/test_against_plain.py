"""The optimizers against the plain implementation, over shapes, groups, options and patterns of missing gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim.plain import Plain

from momo import Momo, MomoAdam

pytestmark = pytest.mark.usefixtures("passes")

shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4)
rates = st.sampled_from([0.0, 1e-3, 0.1, 3.0])
decays = st.sampled_from([0.0, 0.01, 1.0])


def run(groups, adam, options, seed, missing, dtype=torch.float64, steps=12, strided=False):
    """Train copies of the same parameters by both; answer both lists."""
    gen = torch.Generator().manual_seed(seed)
    ours, theirs, flat = [], [], []
    for settings_, group_shapes in groups:
        params = []
        for shape in group_shapes:
            p = torch.randn(shape, generator=gen, dtype=torch.float64).to(dtype)
            if strided and p.dim() > 1:
                p = p.transpose(0, -1).contiguous().transpose(0, -1)
            params.append(p)
        ours.append({"params": [p.clone().requires_grad_() for p in params], **settings_})
        theirs.append({"params": [p.double() for p in params], **settings_})
        flat += zip(ours[-1]["params"], theirs[-1]["params"])
    beta = options.pop("beta")
    plain = Plain(theirs, adam, beta=beta, **options)
    if adam:
        ours = [{k: v for k, v in g.items() if k != "beta2"} | {"betas": (beta, g["beta2"])} for g in ours]
        optimizer = MomoAdam(ours, betas=(beta, 0.999), **{k: v for k, v in options.items() if k != "bias_correction"})
    else:
        ours = [{k: v for k, v in g.items() if k not in ("beta2", "eps")} for g in ours]
        optimizer = Momo(ours, beta=beta, **{k: v for k, v in options.items() if k != "divide"})
    for k in range(steps):
        loss = 3 * torch.rand((), generator=gen, dtype=torch.float64)
        for i, (a, b) in enumerate(flat):
            if (k, i) in missing:
                a.grad = b.grad = None
            else:
                g = torch.randn(a.shape, generator=gen, dtype=torch.float64).to(dtype)
                a.grad, b.grad = g, g.double()
        optimizer.step(loss=loss)
        plain.step(loss)
    return [a for a, _ in flat], [b for _, b in flat], optimizer, plain


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    groups=st.lists(
        st.tuples(
            st.fixed_dictionaries(
                dict(
                    lr=rates,
                    weight_decay=decays,
                    beta2=st.sampled_from([0.9, 0.999]),
                    eps=st.sampled_from([1e-8, 1e-2]),
                )
            ),
            shapes,
        ),
        min_size=1,
        max_size=3,
    ),
    adam=st.booleans(),
    options=st.fixed_dictionaries(
        dict(
            beta=st.sampled_from([0.0, 0.5, 0.9]),
            lb=st.sampled_from([0.0, -1.0, 0.5, -1e30]),
            bias_correction=st.booleans(),
            use_fstar=st.booleans(),
            divide=st.booleans(),
        )
    ),
    seed=st.integers(0, 99),
    missing=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 5)), max_size=12),
    strided=st.booleans(),
)
def test_any_shapes_groups_and_options(groups, adam, options, seed, missing, strided):
    if not adam:
        options["divide"] = True
    ours, theirs, optimizer, plain = run(groups, adam, options, seed, missing, strided=strided)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.detach(), b, rtol=1e-9, atol=1e-9)
    report = optimizer.diagnostics()
    assert report["loss_average"].item() == pytest.approx(plain.f_avg, rel=1e-12)
    assert report["lower_bound"].item() == pytest.approx(plain.fstar, rel=1e-8, abs=1e-8)


LARGE = [(300, 500), (7,), (1100, 600), (3, 5), (), (128, 128)]


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 0.02), (torch.float16, 0.003)]
)
def test_large_tensors_and_other_dtypes(adam, strided, weight_decay, dtype, tolerance, passes):
    if dtype.itemsize < 4 and passes == "torch":
        pytest.skip("half precision has no compiled passes: it is tested once")
    # In half precision small squares of gradients vanish, for torch's Adam too: it needs a larger eps.
    eps = 1e-1 if dtype is torch.float16 else 1e-8
    group = dict(lr=1e-3, weight_decay=weight_decay, beta2=0.999, eps=eps)
    options = dict(beta=0.9, lb=-1.0)
    ours, theirs, *_ = run([(group, LARGE)], adam, options, 0, {(2, 1), (3, 0)}, dtype, steps=5, strided=strided)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.detach().double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("adam", [False, True])
def test_gradients_with_other_strides_than_their_parameters(adam):
    group = dict(lr=1e-2, weight_decay=0.1, beta2=0.999, eps=1e-8)
    p = torch.randn(400, 700, dtype=torch.float64)
    ours, theirs = p.clone().requires_grad_(), p.clone()
    optimizer = MomoAdam([ours], lr=1e-2, weight_decay=0.1) if adam else Momo([ours], lr=1e-2, weight_decay=0.1)
    plain = Plain([{"params": [theirs], **group}], adam)
    for k in range(4):
        g = torch.randn(700, 400, dtype=torch.float64).t() if k % 2 else torch.randn(400, 700, dtype=torch.float64)
        ours.grad = theirs.grad = g
        optimizer.step(loss=1.0)
        plain.step(1.0)
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-10, atol=1e-10)
