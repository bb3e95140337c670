"""What was silently wrong in the field once: each row of that list, and each situation of real training."""

from __future__ import annotations

import io
import json
import math
from collections import Counter

import pytest
import torch
from optim.making import EVERY, made
from optim.plain import Plain
from torch.utils._python_dispatch import TorchDispatchMode

from momo import Momo, MomoAdam, MomoMuonMax, record_loss

pytestmark = pytest.mark.usefixtures("passes")
both = pytest.mark.parametrize("cls", [Momo, MomoAdam])
each = pytest.mark.parametrize("cls", EVERY)


def net_and_batches(steps, dtype=torch.float64):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(dtype)
    return net, torch.randn(steps, 16, 5, dtype=dtype)


def loss_of(net, x):
    return (net(x) - x.sum(1, keepdim=True).sin()).square().mean()


def parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# ---- momentum that changes ----


@each
@pytest.mark.parametrize("cycle", ["one", "cyclic"])
@pytest.mark.parametrize("shift", [10.0, -10.0])
def test_cycled_momentum_keeps_the_identity_of_shifts(cls, cycle, shift, exactly):
    def final(shift):
        net, batches = net_and_batches(40)
        optimizer = made(cls, net.parameters(), lr=0.05, lb=shift)
        if cycle == "one":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=40)
        else:
            scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.05, 30.0 if cls is Momo else 1.0, step_size_up=7)
        momenta, sizes = [], []
        for x in batches:
            optimizer.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            optimizer.step(loss=loss + shift)
            group = optimizer.param_groups[0]
            momenta.append(group["beta"] if cls is Momo else group["betas"][0])
            sizes.append(optimizer.diagnostics()["capped"].item())
            scheduler.step()
        assert len({round(m, 3) for m in momenta}) > 5 and not all(sizes)
        return parameters(net)

    torch.testing.assert_close(final(shift), final(0.0), rtol=1e-9, atol=1e-9)


def test_momentum_is_another_name_of_beta():
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = Momo([p], beta=0.8)
    group = optimizer.param_groups[0]
    group["momentum"] = 0.5
    assert group["beta"] == 0.5
    group["beta"] = 0.7
    assert group["momentum"] == 0.7
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "beta": 0.7})
    restored = Momo([{"params": [p]}, {"params": [torch.ones(1, requires_grad=True)]}])
    restored.load_state_dict(optimizer.state_dict())
    restored.param_groups[0]["momentum"] = 0.6
    with pytest.raises(ValueError, match="same beta, .* got 0.6 and 0.7"):
        restored.step(loss=1.0)


# ---- half precision ----


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40,), (400, 500)])
def test_half_precision_is_single_precision_rounded(cls, dtype, shape):
    """From the same parameters and gradients, each step ends at the rounded result of the plain implementation."""
    torch.manual_seed(0)
    p = torch.randn(shape).to(dtype).requires_grad_()
    x = p.detach().double()
    group = {"params": [x], "lr": 0.1, "weight_decay": 0.01, "beta2": 0.999, "eps": 1e-8}
    plain = Plain([group], cls is MomoAdam)
    optimizer = cls([p], lr=0.1, weight_decay=0.01)
    for k in range(6):
        p.grad = 0.01 * (k + 1) * torch.randn(shape).to(dtype)
        x.copy_(p.detach().double())
        x.grad = p.grad.double()
        optimizer.step(loss=2.0)
        plain.step(2.0)
        unit = torch.finfo(dtype).eps * x.abs()
        assert ((p.detach().double() - x).abs() <= 0.51 * unit + 1e-6).all()
        report = optimizer.diagnostics()
        assert (report["step_size"] <= report["cap"]).all()
    assert all(b.dtype is torch.float32 for b in (optimizer.state[p]["exp_avg"],))


def test_a_small_gradient_in_half_precision():
    p = torch.ones(1, dtype=torch.float16, requires_grad=True)
    p.grad = torch.full_like(p, 1e-3)
    MomoAdam([p], lr=1e-2).step(loss=1.0)
    assert p.item() == pytest.approx(0.99, abs=1e-3)


# ---- losses and gradients that aren't finite ----


@each
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_loss_that_is_not_finite_does_not_disable_the_method(cls, bad, exactly):
    def final(spoil, at=7):
        net, batches = net_and_batches(30)
        optimizer = made(cls, net.parameters(), lr=3.0)
        capped = []
        for k, x in enumerate(batches):
            optimizer.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            beta = 0.0 if cls in (Momo, MomoMuonMax) else optimizer.param_groups[0]["betas"][0]
            average = optimizer.diagnostics()["loss_average"] / (1 - beta**k) if k else loss
            optimizer.step(loss=torch.as_tensor(bad).double() if spoil and k == at else average if k == at else loss)
            capped.append(optimizer.diagnostics()["capped"].item())
        assert not all(capped[at + 5 :])
        return parameters(net)

    with pytest.warns(UserWarning, match="the average of the losses before stands for it"):
        spoilt = final(True)
    torch.testing.assert_close(spoilt, final(False), rtol=1e-9, atol=1e-9)


# ---- changing sets of gradients ----


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


@both
def test_a_changing_set_of_gradients_costs_no_more_operations(cls):
    torch.manual_seed(0)
    params = [torch.randn(20, 20).requires_grad_() for _ in range(100)]
    optimizer = cls(params, lr=1e-3)

    def calls(missing):
        for p in params:
            p.grad = None if torch.rand(()) < missing else torch.ones_like(p)
        with Calls() as found:
            optimizer.step(loss=1.0)
        return sum(found.count.values())

    for _ in range(3):
        calls(0.0)
    fixed = calls(0.0)
    assert all(calls(0.2) <= fixed + 60 for _ in range(5))


# ---- options that are changed ----


@both
@pytest.mark.parametrize(
    "name, value",
    [("lr", -1.0), ("lr", math.nan), ("weight_decay", -1.0), ("momentum", 1.5), ("lb", math.nan), ("eps", -1.0)],
)
def test_impossible_options_are_refused_at_the_next_step(cls, name, value):
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = cls([p])
    optimizer.step(loss=1.0)
    shown = name
    if name == "momentum":
        name, value, shown = ("beta", 1.5, "beta") if cls is Momo else ("betas", (1.5, 0.9), r"betas\[0\]")
    if name == "eps" and cls is Momo:
        return
    optimizer.param_groups[0][name] = value
    before = p.detach().clone()
    with pytest.raises(ValueError, match=rf"^{shown} must be"):
        optimizer.step(loss=1.0)
    assert torch.equal(p, before)


# ---- the loss: accumulated, scaled, wrapped ----


@both
def test_a_closure_that_accumulates_is_refused(cls):
    net, batches = net_and_batches(4)
    optimizer = cls(net.parameters())

    def closure(x):
        def evaluate():
            loss = loss_of(net, x) / 4
            loss.backward()
            return loss

        return evaluate

    for x in batches[:3]:
        closure(x)()
    with pytest.raises(RuntimeError, match=r"callbacks=\[momo.integrations.lightning.RecordLoss\(\)\]"):
        optimizer.step(closure(batches[3]))
    # Zero gradients that are there, a closure that resets them, and one that computes none are all right.
    optimizer.zero_grad(set_to_none=False)
    optimizer.step(closure(batches[0]))

    def resets():
        optimizer.zero_grad()
        return closure(batches[1])()

    optimizer.step(resets)
    net.zero_grad()
    loss = closure(batches[2])()
    optimizer.step(lambda: loss)


@each
def test_losses_recorded_while_a_closure_runs_count(cls):
    def final(record):
        net, batches = net_and_batches(6)
        optimizer = made(cls, net.parameters(), lr=2.0)
        for x in batches:

            def closure(x=x):
                loss = loss_of(net, x)
                if record:
                    optimizer.record_loss(loss)
                optimizer.zero_grad()  # as Lightning does, between the forward pass and the backward pass
                loss.backward()
                return loss / 7 if record else loss

            optimizer.step(closure)
        return parameters(net)

    assert torch.equal(final(True), final(False))


@each
@pytest.mark.parametrize("reduction, factor", [("mean", 1.0), ("sum", 0.25)])
def test_accumulated_losses(cls, reduction, factor, exactly):
    def final(accumulated):
        net, batches = net_and_batches(24)
        optimizer = made(cls, net.parameters(), lr=2.0)
        for parts in batches.split(4):
            optimizer.zero_grad()
            if not accumulated:
                loss = torch.stack([loss_of(net, x) for x in parts]).mean()
                loss.backward()
                optimizer.step(loss=loss)
                continue
            for x in parts:
                loss = loss_of(net, x)
                (loss / 4).backward()
                record_loss(optimizer, factor * loss, reduction=reduction)
            optimizer.step()
        return parameters(net)

    torch.testing.assert_close(final(True), final(False), rtol=1e-10, atol=1e-10)


@both
def test_an_optimizer_for_each_parameter_in_the_backward_pass_is_refused(cls):
    apply = pytest.importorskip("torch.distributed.optim")._apply_optimizer_in_backward
    net, batches = net_and_batches(1)
    apply(cls, net.parameters(), {"lr": 0.1})
    with pytest.raises(RuntimeError, match="can't be an optimizer_in_backward"):
        loss_of(net, batches[0]).backward()


def test_recording_through_wrappers():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    p = torch.ones(1, requires_grad=True)
    p.grad = torch.ones(1)
    optimizer = Momo([p])
    record_loss(Wrapper(Wrapper(optimizer)), 1.0)
    optimizer.step()
    with pytest.raises(TypeError, match="needs an optimizer of momo"):
        record_loss(Wrapper(torch.optim.SGD([p], lr=1.0)), 1.0)
    record_loss(optimizer, 1.0)
    with pytest.raises(ValueError, match="use one"):
        record_loss(optimizer, 1.0, reduction="sum")
    with pytest.raises(ValueError, match="reduction must be"):
        record_loss(optimizer, 1.0, reduction="max")


@each
@pytest.mark.parametrize("reset", ["model", "model, to zero", "optimizer"])
def test_a_skipped_step_of_a_scaler_leaves_nothing(cls, reset, exactly):
    """The recorded loss of a skipped step is dropped, however the gradients are reset."""

    def final(scaled):
        net, batches = net_and_batches(12, torch.float32)
        optimizer = made(cls, net.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
        for k, x in enumerate(batches):
            if not scaled and k == 5:
                continue
            optimizer.zero_grad() if reset == "optimizer" else net.zero_grad(set_to_none=reset == "model")
            loss = loss_of(net, x)
            scaler.scale(loss).backward()
            if k == 5:
                next(net.parameters()).grad.fill_(math.inf)
            optimizer.record_loss(loss)
            before = parameters(net)
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before, parameters(net)) == (k == 5)
        return parameters(net)

    torch.testing.assert_close(final(True), final(False), rtol=1e-5, atol=1e-6)


# ---- the state ----


@each
def test_groups_hold_plain_options_and_the_state_is_plain_too(cls):
    net, batches = net_and_batches(3)
    optimizer = made(cls, [{"params": [p]} for p in net.parameters()], lr=0.1)
    for x in batches:
        optimizer.zero_grad()
        loss = loss_of(net, x)
        loss.backward()
        optimizer.step(loss=loss)
    for group in optimizer.param_groups:
        json.dumps({k: v for k, v in group.items() if k != "params"})
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert {"loss_average", "loss_rho", "lower_bound", "loss_step"} <= set(saved["state"][0])
    assert all(state["loss_step"] == 3 for state in saved["state"].values())
    assert "momentum" not in repr(optimizer) and "lr: 0.1" in repr(optimizer)
