"""What happens in real training, and one clear error for each thing that can't be done."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from momo import Momo, MomoAdam

pytestmark = pytest.mark.usefixtures("passes")
both = pytest.mark.parametrize("cls", [Momo, MomoAdam])


def leaf(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    p = torch.randn(shape, dtype=dtype).requires_grad_()
    p.grad = torch.randn(shape).to(dtype)
    return p


# ---- the loss ----


@both
def test_all_ways_to_pass_the_loss_are_the_same_step(cls):
    def final(pass_it):
        p = torch.tensor([1.0, 2.0], requires_grad=True)
        optimizer = cls([p], lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            pass_it(p, optimizer)
        return p.detach()

    def closure(p, optimizer):
        def evaluate():
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(evaluate) > 0

    def with_loss(kind):
        def pass_it(p, optimizer):
            loss = p.square().sum()
            loss.backward()
            given = kind(loss)
            assert optimizer.step(loss=given) is given

        return pass_it

    def recorded(p, optimizer):
        loss = p.square().sum()
        loss.backward()
        optimizer.record_loss(loss)
        assert optimizer.step() is None

    def recorded_in_parts(p, optimizer):
        for share in (0.5, 1.5):
            (p.square().sum() * share / 2).backward()
            optimizer.record_loss(p.square().sum() * share)
        optimizer.step()

    expected = final(closure)
    for way in (
        with_loss(lambda x: x),
        with_loss(lambda x: x.item()),
        with_loss(lambda x: x.detach().reshape(1)),
        recorded,
    ):
        assert torch.equal(final(way), expected)
    torch.testing.assert_close(final(recorded_in_parts), expected)


@both
def test_a_loss_given_wrongly(cls):
    p = leaf(3)
    optimizer = cls([p])
    before = p.detach().clone()
    for call, error, words in (
        (lambda: optimizer.step(), RuntimeError, "record_loss"),
        (lambda: optimizer.step(None), RuntimeError, "needs the loss"),
        (lambda: optimizer.step(lambda: 1.0, loss=1.0), ValueError, "both a closure and a loss"),
        (lambda: optimizer.step(lambda: None), ValueError, "returned None"),
        (lambda: optimizer.step(torch.tensor(1.0)), TypeError, "by name"),
        (lambda: optimizer.step(loss=torch.ones(3)), ValueError, r"shape \(3,\)"),
        (lambda: optimizer.step(loss=torch.tensor(1j)), ValueError, "real loss"),
        (lambda: optimizer.step(loss="1.0"), TypeError, "got str"),
        (lambda: optimizer.record_loss(torch.ones(2)), ValueError, "one number"),
    ):
        with pytest.raises(error, match=words):
            call()
    optimizer.record_loss(1.0)
    with pytest.raises(ValueError, match="dropped now"):
        optimizer.step(loss=1.0)
    with pytest.raises(RuntimeError, match="needs the loss"):
        optimizer.step()
    optimizer.record_loss(1.0)
    optimizer.zero_grad(set_to_none=False)
    with pytest.raises(RuntimeError, match="after zero_grad"):
        optimizer.step()
    assert torch.equal(p, before)


@both
def test_a_bare_first_step_at_learning_rate_zero_is_still_an_error(cls):
    optimizer = cls([leaf(3)], lr=0.0)
    with pytest.raises(RuntimeError, match="needs the loss"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="needs the loss"):
        optimizer.step(closure=None)


@both
def test_grad_scaler(cls):
    p = leaf(3)
    plain = p.detach().clone().requires_grad_()
    plain.grad = p.grad.clone()
    expected = cls([plain], lr=0.1)
    expected.step(loss=2.0)

    optimizer = cls([p], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    before = p.detach().clone()
    good = p.grad.clone()
    p.grad = torch.full_like(p, math.inf)
    optimizer.record_loss(99.0)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p, before) and not optimizer.state
    optimizer.zero_grad()
    p.grad = good * scaler.get_scale()
    optimizer.record_loss(2.0)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(p, plain)
    p.grad = good * scaler.get_scale()
    scaler.step(optimizer, loss=1.0)


# ---- learning rates ----


@both
def test_warm_up_from_zero_and_schedulers(cls):
    p = leaf(4)
    optimizer = cls([p], lr=1.0, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, k / 4))
    before = p.detach().clone()
    optimizer.step(loss=1.0)
    assert torch.equal(p, before)
    assert optimizer.diagnostics()["step_size"].item() == 0
    for _ in range(6):
        schedule.step()
        optimizer.step(loss=1.0)
    assert p.isfinite().all() and not torch.equal(p, before)


@both
def test_a_learning_rate_as_a_tensor(cls):
    a, b = leaf(4), leaf(4)
    one, other = cls([a], lr=torch.tensor(0.25), weight_decay=0.1), cls([b], lr=0.25, weight_decay=0.1)
    for _ in range(3):
        one.step(loss=1.0)
        other.step(loss=1.0)
        one.param_groups[0]["lr"].mul_(0.5)
        other.param_groups[0]["lr"] *= 0.5
    assert torch.equal(a, b)


@both
@pytest.mark.parametrize("use_fstar", [False, True])
def test_zero_gradients_and_a_group_at_rest(cls, use_fstar):
    p, q = leaf(4), leaf(2)
    p.grad.zero_()
    optimizer = cls([{"params": [p]}, {"params": [q], "lr": 0.0}], lr=1.0, use_fstar=use_fstar)
    before = p.detach().clone(), q.detach().clone()
    for _ in range(3):
        optimizer.step(loss=1.0)
        assert torch.equal(p, before[0]) and torch.equal(q, before[1])
        assert all(v.isfinite().all() for v in optimizer.diagnostics().values())
    p.grad.fill_(1.0)
    optimizer.step(loss=1.0)
    assert p.isfinite().all() and not torch.equal(p, before[0])


@both
def test_no_gradient_at_all(cls):
    p = leaf(3)
    p.grad = None
    optimizer = cls([p])
    optimizer.step(loss=3.0)
    assert not optimizer.state
    assert optimizer.diagnostics()["step_size"].item() == 0


@both
def test_a_loss_that_is_nan_is_not_hidden(cls):
    p = leaf(3)
    optimizer = cls([p])
    optimizer.step(loss=math.nan)
    assert p.isnan().all()


# ---- parameters ----


@both
def test_parameters_of_several_dtypes_and_kinds(cls):
    params = [
        leaf(3),
        leaf(2, 2, dtype=torch.float64),
        leaf(5, dtype=torch.bfloat16),
        leaf(dtype=torch.float16),
        leaf(0),
    ]
    optimizer = cls(params, lr=1e-2, weight_decay=0.1)
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        optimizer.step(loss=1.0)
    for p, b in zip(params, before):
        assert p.isfinite().all() and (p.numel() == 0 or not torch.equal(p, b))
        assert optimizer.state[p]["exp_avg"].dtype is (torch.float64 if p.dtype is torch.float64 else torch.float32)


@both
def test_named_parameters(cls):
    net = torch.nn.Linear(2, 2)
    optimizer = cls(net.named_parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


@both
def test_channels_last(cls):
    torch.manual_seed(0)
    a = torch.nn.Conv2d(64, 256, 3)
    b = torch.nn.Conv2d(64, 256, 3)
    b.load_state_dict(a.state_dict())
    b.to(memory_format=torch.channels_last)
    x = torch.randn(1, 64, 5, 5)
    for net in (a, b):
        optimizer = cls(net.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-3, atol=1e-3)
    assert b.weight.is_contiguous(memory_format=torch.channels_last)


@both
def test_parameters_whose_data_is_replaced(cls):
    a, b = leaf(400, 500), leaf(400, 500)
    one, other = cls([a], lr=0.1), cls([b], lr=0.1)
    for _ in range(3):
        one.step(loss=1.0)
        other.step(loss=1.0)
        b.data = b.data.clone()
    assert torch.equal(a, b)


@both
def test_cleared_state_starts_anew(cls):
    p = leaf(3)
    optimizer = cls([p])
    optimizer.step(loss=1.0)
    optimizer.state.clear()
    optimizer.step(loss=1.0)
    assert optimizer.state[p]["step"] == 1


@both
def test_hooks_run_around_a_step(cls):
    optimizer = cls([leaf(3)])
    seen = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(kwargs["loss"]))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    optimizer.step(loss=2.0)
    assert seen == [2.0, "after"]


@both
def test_what_cannot_be_optimised(cls):
    with pytest.raises(ValueError, match="real floating-point"):
        cls([leaf(3, dtype=torch.complex64)])
    with pytest.raises(ValueError, match="maximize"):
        cls([{"params": [leaf(3)], "maximize": True}])
    with pytest.raises(TypeError, match="maximize"):
        cls([leaf(3)], maximize=True)
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = cls(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step(loss=1.0)
    assert not optimizer.state


@pytest.mark.parametrize(
    "name, values",
    {
        "lr": (-1.0, math.nan, math.inf, torch.tensor([1.0, 2.0]), torch.tensor(-1.0)),
        "weight_decay": (-0.1, math.nan),
        "lb": (math.nan, math.inf, "0"),
        "beta": (-0.1, 1.0, math.nan),
        "betas": ((0.9, 1.0), (1.0, 0.9), (0.9,), 0.9, (math.nan, 0.9)),
        "eps": (-1e-8, math.nan),
    }.items(),
)
def test_options_out_of_range(name, values):
    for cls in (Momo, MomoAdam):
        if (name == "beta" and cls is MomoAdam) or (name in ("betas", "eps") and cls is Momo):
            continue
        for value in values:
            with pytest.raises(ValueError, match=name):
                cls([leaf(3)], **{name: value})
            optimizer = cls([leaf(3)])
            with pytest.raises(ValueError, match=name):
                optimizer.add_param_group({"params": [leaf(2)], name: value})
            assert len(optimizer.param_groups) == 1


def test_options_that_must_not_differ_between_groups():
    for options in ({"beta": 0.5}, {"lb": 1.0}, {"use_fstar": True}, {"bias_correction": True}):
        with pytest.raises(ValueError, match="all parameter groups"):
            Momo([{"params": [leaf(3)]}, {"params": [leaf(3)], **options}])
    with pytest.raises(ValueError, match=r"same betas\[0\]"):
        MomoAdam([{"params": [leaf(3)]}, {"params": [leaf(3)], "betas": (0.5, 0.999)}])
    optimizer = MomoAdam([{"params": [leaf(3)]}, {"params": [leaf(3)], "betas": (0.9, 0.99)}])
    optimizer.param_groups[1]["betas"] = (0.8, 0.99)
    with pytest.raises(ValueError, match=r"same betas\[0\]"):
        optimizer.step(loss=1.0)


# ---- what is seen, and what it costs ----


@both
def test_diagnostics(cls):
    p, q = leaf(3), leaf(2)
    optimizer = cls([{"params": [p], "lr": 0.5}, {"params": [q], "lr": 2.0}], lb=-1.0)
    with pytest.raises(RuntimeError, match="none has been taken"):
        optimizer.diagnostics()
    optimizer.step(loss=0.5)
    report = optimizer.diagnostics()
    assert all(isinstance(v, torch.Tensor) for v in report.values())
    rho = 1.0 if cls is Momo else 0.1
    torch.testing.assert_close(report["cap"], torch.tensor([0.5, 2.0], dtype=torch.float64) / rho)
    torch.testing.assert_close(report["step_size"], torch.minimum(report["cap"], report["adaptive_term"]))
    assert report["capped"].item() == bool((report["adaptive_term"] >= report["cap"]).all())
    assert report["loss_average"].item() == pytest.approx(0.5 * rho)
    assert report["lower_bound"].item() == -1.0


@both
@pytest.mark.parametrize("shapes", [[(64, 64)] * 300, [(1500, 1500)] * 3, [(7, 5, 3)] * 50])
def test_memory(cls, shapes):
    params = [torch.randn(s).requires_grad_() for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    size = sum(p.numel() * 4 for p in params)
    optimizer = cls(params, weight_decay=0.1)
    for _ in range(2):
        optimizer.step(loss=1.0)
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for s in optimizer.state.values()
        for t in s.values()
    }
    assert sum(kept.values()) <= (1 if cls is Momo else 2) * size + 128 * len(params)
    scratch = sum(t.untyped_storage().nbytes() for t in optimizer._scratch._kept.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
            optimizer.step(loss=1.0)
    allocated = sum(
        e.nbytes() for e in traced.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0
    )
    assert scratch + allocated <= max(0.05 * size, 16 * 2**20)
