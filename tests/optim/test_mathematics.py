"""The step as the minimiser of the stated problem, the identities, and the scalar mathematics for stacked runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momo import Momo, MomoAdam
from momo.method import Memory, Sums, average, truncated_step, weight_of_new

both_passes = pytest.mark.usefixtures("passes")


def problem(seed, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    a = torch.randn(40, 8, generator=gen, dtype=dtype)
    b = torch.randn(40, 3, generator=gen, dtype=dtype)
    w = torch.randn(8, 3, generator=gen, dtype=dtype).requires_grad_()
    c = torch.randn(3, generator=gen, dtype=dtype).requires_grad_()

    def loss():
        rows = torch.randint(0, 40, (6,), generator=gen)
        return (a[rows] @ w + c - b[rows]).square().mean()

    return [w, c], loss


def train(make, steps=30, seed=0, shift=0.0, before=None):
    params, draw = problem(seed)
    optimizer = make(params)
    for k in range(steps):
        optimizer.zero_grad()
        loss = draw() + shift
        loss.backward()
        if before is not None:
            before(k, optimizer)
        optimizer.step(loss=loss) if isinstance(optimizer, (Momo, MomoAdam)) else optimizer.step()
    return torch.cat([p.detach().flatten() for p in params])


def model_of(optimizer, x):
    """The averaged linear model at x, from the state alone."""
    value = next(iter(optimizer.state.values()))["loss_average"].clone()
    for p, at in zip((p for g in optimizer.param_groups for p in g["params"]), x):
        state = optimizer.state[p]
        value += (state["exp_avg"] * at).sum() - state["gamma"]
    return value


# ---- the minimiser ----


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lrs", [(0.01, 0.3), (2.0, 0.5), (0.0, 1.0), (50.0, 9.0)])
@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_the_step_minimises_the_stated_problem(cls, lrs, seed):
    params, draw = problem(seed)
    groups = [
        {"params": [params[0]], "lr": lrs[0], "weight_decay": 0.2},
        {"params": [params[1]], "lr": lrs[1], "weight_decay": 0.0},
    ]
    optimizer = cls(groups, lb=0.05)
    for k in range(4):
        optimizer.zero_grad()
        loss = draw()
        loss.backward()
        before = [p.detach().clone() for p in params]
        optimizer.step(loss=loss)
        rho = 1.0 if cls is Momo else 1 - 0.9 ** (k + 1)

        def objective(y):
            value = torch.maximum(model_of(optimizer, y), torch.tensor(rho * 0.05, dtype=torch.float64))
            for group, x, z in zip(optimizer.param_groups, before, y):
                if group["lr"] == 0:
                    continue
                metric = torch.ones_like(x)
                if cls is MomoAdam:
                    v = optimizer.state[group["params"][0]]["exp_avg_sq"]
                    metric = (v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8
                value = value + rho / (2 * group["lr"]) * (metric * (z - x).square()).sum()
                value = value + rho * group["weight_decay"] / 2 * (metric * z.square()).sum()
            return value

        found = [p.detach() for p in params]
        best = objective(found)
        gen = torch.Generator().manual_seed(seed)
        # The objective is strictly convex where it can move: if no direction descends, this is the minimiser.
        for size in (1e-1, 1e-3, 1e-5):
            for _ in range(40):
                other = [
                    p + size * torch.randn(p.shape, generator=gen, dtype=p.dtype) * (g["lr"] > 0)
                    for p, g in zip(found, optimizer.param_groups)
                ]
                assert objective(other) >= best - 1e-12
            towards = [p + size * (b - p) for p, b in zip(found, before)]
            assert objective(towards) >= best - 1e-12


# ---- the identities ----


@both_passes
@pytest.mark.parametrize("lb", [-1e30, -math.inf])
def test_never_adaptive_is_the_baseline(lb):
    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    close(
        train(lambda p: Momo(p, lr=0.1, beta=0.8, lb=lb)),
        train(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.8)),
    )
    close(train(lambda p: MomoAdam(p, lr=0.05, lb=lb)), train(lambda p: torch.optim.Adam(p, lr=0.05)))
    close(
        train(lambda p: MomoAdam(p, lr=0.05, weight_decay=0.3, divide=False, lb=lb)),
        train(lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3)),
    )


@both_passes
def test_late_and_missing_gradients_are_the_baseline_too():
    def drop(k, optimizer):
        params = [p for g in optimizer.param_groups for p in g["params"]]
        if k < 5 or k in (9, 10):
            params[1].grad = None
        if k == 12:
            params[0].grad = None

    for ours, theirs in (
        (lambda p: Momo(p, lr=0.1, lb=-1e30), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9)),
        (lambda p: MomoAdam(p, lr=0.05, lb=-1e30), lambda p: torch.optim.Adam(p, lr=0.05)),
    ):
        torch.testing.assert_close(train(ours, before=drop), train(theirs, before=drop), rtol=1e-12, atol=1e-12)


@both_passes
@pytest.mark.parametrize("lr", [0.01, 10.0])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_without_momentum_it_is_the_capped_polyak_step(lr, bias_correction):
    params, draw = problem(1)
    optimizer = Momo(params, lr=lr, beta=0.0, lb=0.1, bias_correction=bias_correction)
    for _ in range(20):
        optimizer.zero_grad()
        loss = draw()
        loss.backward()
        before = [p.detach().clone() for p in params]
        square = sum(p.grad.square().sum() for p in params)
        step = min(lr, (max(loss.item() - 0.1, 0) / square).item())
        optimizer.step(loss=loss)
        assert optimizer.diagnostics()["step_size"].item() == pytest.approx(step, rel=1e-9)
        for p, b in zip(params, before):
            torch.testing.assert_close(p.detach(), b - step * p.grad, rtol=1e-9, atol=1e-9)


@both_passes
@pytest.mark.parametrize("cls", [Momo, MomoAdam])
@pytest.mark.parametrize("use_fstar", [False, True])
def test_shifting_the_loss_changes_nothing(cls, use_fstar):
    # With an estimated lower bound this holds only while it is never reset: the reset halves a value.
    options = dict(lr=1.0, weight_decay=0.1, use_fstar=use_fstar)
    steps = 30 if not use_fstar else 1
    a = train(lambda p: cls(p, lb=0.0, **options), steps)
    b = train(lambda p: cls(p, lb=-7.5, **options), steps, shift=-7.5)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@both_passes
@pytest.mark.parametrize("cls", [Momo, MomoAdam])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_after_an_uncapped_step_the_model_is_at_the_lower_bound(cls, weight_decay):
    params, draw = problem(2)
    optimizer = cls(
        [{"params": params[:1], "lr": 60.0, "weight_decay": weight_decay}, {"params": params[1:], "lr": 20.0}], lb=0.01
    )
    seen = 0
    for k in range(20):
        optimizer.zero_grad()
        loss = draw()
        loss.backward()
        optimizer.step(loss=loss)
        report = optimizer.diagnostics()
        if not report["capped"] and report["step_size"].sum() > 0:
            seen += 1
            rho = 1.0 if cls is Momo else 1 - 0.9 ** (k + 1)
            value = model_of(optimizer, [p.detach() for p in params])
            assert value.item() == pytest.approx(rho * 0.01, abs=1e-10)
    assert seen > 3


@both_passes
@pytest.mark.parametrize("cls", [Momo, MomoAdam])
@pytest.mark.parametrize("use_fstar", [False, True])
def test_splitting_a_group_changes_nothing(cls, use_fstar):
    options = dict(lr=0.5, weight_decay=0.1, use_fstar=use_fstar)
    one = train(lambda p: cls(p, **options))
    two = train(lambda p: cls([{"params": [q]} for q in p], **options))
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


# ---- the scalar mathematics ----

numbers = st.floats(-3, 3)
positive = st.floats(0, 3)
runs = st.lists(st.tuples(*[numbers] * 5, st.floats(0, 1), positive, st.floats(0, 1)), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    runs=runs, beta=st.floats(0, 0.99), from_zero=st.booleans(), use_fstar=st.booleans(), rho=st.sampled_from([0, 1])
)
def test_numbers_tensors_and_stacked_runs_agree(runs, beta, from_zero, use_fstar, rho):
    def flat(before, loss, gamma, dx, bound, decay, descent, own_rho):
        memory = Memory(before * rho, own_rho * rho, bound)
        c = 1 + decay
        sums = Sums(loss, gamma, dx, dx / c, descent, descent / c)
        step = truncated_step(memory, sums, beta=beta, from_zero=from_zero, lb=-1.0, use_fstar=use_fstar)
        return *step[:3], *step.memory

    columns = [torch.tensor(c, dtype=torch.float64) for c in zip(*runs)]
    together = flat(*columns)
    for i, run in enumerate(runs):
        for all_runs, number, tensor in zip(together, flat(*run), flat(*(c[i] for c in columns))):
            expected = pytest.approx(float(number), rel=1e-9, abs=1e-12, nan_ok=True)
            if isinstance(all_runs, torch.Tensor) and all_runs.dim():
                assert float(all_runs[i]) == expected
            assert float(tensor) == expected


def test_nothing_to_gain_is_no_step_and_nan_is_passed_on():
    def t(lb=0.0, memory=Memory(1.0, 1.0, 0.0), **changed):
        sums = dict(loss=1.0, gamma=0.0, dx=0.0, decayed_dx=0.0, descent=1.0, decayed_descent=1.0) | changed
        options = dict(beta=0.5, from_zero=False, lb=lb)
        number = truncated_step(memory, Sums(**sums), **options).multiplier
        tensors = (kind(*map(torch.tensor, values)) for kind, values in ((Memory, memory), (Sums, sums.values())))
        assert number == pytest.approx(truncated_step(*tensors, **options).multiplier.item(), nan_ok=True)
        return number

    assert t() == 1
    assert t(decayed_descent=0.0) == 0
    assert math.isnan(t(gamma=math.nan)) and math.isnan(t(decayed_descent=math.nan))
    assert t(lb=-math.inf) == 1
    first = Memory(0.0, 0.0, 0.0)
    assert t(memory=first, loss=math.inf) == 1 and math.isnan(t(memory=first, loss=math.nan))
    for bad in (math.nan, math.inf, -math.inf):  # the average of the losses so far, 0.25 / 0.5, stands for it
        before = Memory(0.25, 0.5, 0.0)
        assert t(memory=before, loss=bad, gamma=-0.1) == pytest.approx(t(memory=before, loss=0.5, gamma=-0.1))
        # A first loss that wasn't finite is forgotten as soon as another one comes.
        assert t(memory=Memory(bad, 0.5, 0.0), loss=0.5) == pytest.approx(t(memory=before, loss=0.5))


def test_the_sum_of_weights_where_the_momentum_changes():
    betas = [0.9, 0.5, 0.0, 0.95, 0.85]
    for from_zero in (True, False):
        rho, weights = 0.0, []
        for beta in betas:
            new = weight_of_new(beta, rho, from_zero)
            weights = [(1 - new) * w for w in weights] + [new]
            rho = average(rho, 1.0, new)
            assert rho == pytest.approx(sum(weights)) and (from_zero or rho == 1)
    torch.testing.assert_close(
        weight_of_new(0.9, torch.tensor([0.0, 1.0]), False), torch.tensor([1.0, 0.1]).double(), rtol=1e-6, atol=0
    )


def test_a_copy_goes_its_own_way():
    params, draw = problem(0)
    optimizer = Momo(params, lr=0.1)
    draw().backward()
    optimizer.step(loss=1.0)
    other = copy.deepcopy(optimizer)
    other.param_groups[0]["params"][0].grad = torch.ones(8, 3, dtype=torch.float64)
    before = params[0].detach().clone()
    other.step(loss=2.0)
    assert torch.equal(params[0], before)
    assert optimizer.state[params[0]]["loss_step"] == 1
    assert other.state[other.param_groups[0]["params"][0]]["loss_step"] == 2
