"""Going on from a saved state, bit for bit."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from momo import Momo, MomoAdam

pytestmark = pytest.mark.usefixtures("passes")

MOMO = [
    dict(zip(("weight_decay", "bias_correction", "use_fstar", "beta"), v))
    for v in itertools.product((0.0, 0.1), (False, True), (False, True), (0.0, 0.9))
]
ADAM = [
    dict(zip(("weight_decay", "divide", "use_fstar", "betas"), v))
    for v in itertools.product((0.0, 0.1), (False, True), (False, True), ((0.0, 0.9), (0.9, 0.999)))
]
ALL = [(Momo, o) for o in MOMO] + [(MomoAdam, o) for o in ADAM]


def model(dtype=torch.float32):
    torch.manual_seed(0)
    wide = torch.nn.Linear(300, 500)
    return torch.nn.Sequential(torch.nn.Linear(6, 300), wide, torch.nn.Linear(500, 2)).to(dtype)


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2))


def go_on(net, optimizer, steps, start=0):
    dtype = next(net.parameters()).dtype
    for k in range(start, start + steps):
        gen = torch.Generator().manual_seed(k)
        x = torch.randn(5, 6, generator=gen).to(dtype)
        optimizer.zero_grad()
        loss = net(x).float().square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    return [p.detach().clone() for p in net.parameters()]


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("cls, options", ALL)
@pytest.mark.parametrize("saved_at", [0, 1, 7])
def test_a_fresh_optimizer_goes_on_bit_for_bit(cls, options, saved_at):
    net = small()
    optimizer = cls(net.parameters(), lr=0.3, **options)
    go_on(net, optimizer, saved_at)
    weights, saved = through_a_file((net.state_dict(), optimizer.state_dict()))
    expected = go_on(net, optimizer, 8, saved_at)

    other = small()
    other.load_state_dict(weights)
    resumed = cls(other.parameters())
    resumed.load_state_dict(saved)
    assert equal(go_on(other, resumed, 8, saved_at), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_large_tensors_and_other_dtypes_too(cls, dtype):
    net = model(dtype)
    groups = [{"params": net[0].parameters(), "lr": 0.01}, {"params": net[1:].parameters(), "weight_decay": 0.1}]
    optimizer = cls(groups, use_fstar=True)
    go_on(net, optimizer, 3)
    weights, saved = through_a_file((net.state_dict(), optimizer.state_dict()))
    expected = go_on(net, optimizer, 4, 3)
    other = model(dtype)
    other.load_state_dict(weights)
    resumed = cls([{"params": other[0].parameters()}, {"params": other[1:].parameters()}])
    resumed.load_state_dict(saved)
    assert equal(go_on(other, resumed, 4, 3), expected)
    assert resumed.state[other[0].weight]["exp_avg"].dtype is (torch.float32 if dtype is torch.bfloat16 else dtype)
    assert resumed.state[other[0].weight]["gamma"].dtype is torch.float64


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_bit_for_bit(cls, how):
    net = small()
    optimizer = cls(net.parameters(), lr=0.3, use_fstar=True)
    go_on(net, optimizer, 3)
    other, copied = how((net, optimizer))
    assert equal(go_on(other, copied, 4, 3), go_on(net, optimizer, 4, 3))


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_after_missing_gradients_and_an_added_group(cls):
    def build():
        net = small()
        return net, cls(net[0].parameters(), lr=0.1)

    net, optimizer = build()
    go_on(net, optimizer, 2)
    net[0].bias.requires_grad_(False)
    go_on(net, optimizer, 2, 2)
    net[0].bias.requires_grad_(True)
    optimizer.add_param_group({"params": net[1].parameters(), "lr": 0.2})
    go_on(net, optimizer, 2, 4)
    weights, saved = through_a_file((net.state_dict(), optimizer.state_dict()))
    other, resumed = build()
    resumed.add_param_group({"params": other[1].parameters()})
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    assert equal(go_on(other, resumed, 4, 6), go_on(net, optimizer, 4, 6))


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
@pytest.mark.parametrize("steps", [0, 3])
def test_distributed_checkpoint_functions(cls, steps):
    net = small()
    optimizer = cls(net.parameters(), lr=0.3, use_fstar=True)
    go_on(net, optimizer, steps)
    optimizer.zero_grad()
    saved = through_a_file(get_optimizer_state_dict(net, optimizer))
    other = small()
    other.load_state_dict(net.state_dict())
    resumed = cls(other.parameters(), lr=0.3)
    set_optimizer_state_dict(other, resumed, saved)
    assert equal(go_on(other, resumed, 4, steps), go_on(net, optimizer, 4, steps))


@pytest.mark.parametrize("cls", [Momo, MomoAdam])
def test_the_state_is_all_there_and_of_the_stated_size(cls):
    net = small()
    optimizer = cls(net.parameters())
    go_on(net, optimizer, 2)
    kept = {"step", "rho", "gamma", "exp_avg", "loss_average", "loss_rho", "lower_bound", "loss_step"} | (
        {"exp_avg_sq"} if cls is MomoAdam else set()
    )
    for p in net.parameters():
        assert set(optimizer.state[p]) == kept
        assert optimizer.state[p]["exp_avg"].shape == p.shape
        assert optimizer.state[p]["step"] == 2


def test_a_state_of_another_kind_is_refused():
    net = small()
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 6)).sum().backward()
    adam.step()
    for cls in (Momo, MomoAdam):
        with pytest.raises(ValueError, match="isn't the state of a " + cls.__name__):
            cls(net.parameters()).load_state_dict(adam.state_dict())
    momo = Momo(net.parameters())
    momo.step(loss=1.0)
    with pytest.raises(ValueError, match="have no betas"):
        MomoAdam(net.parameters()).load_state_dict(momo.state_dict())


def test_hooks_on_loading_still_work():
    net = small()
    optimizer = Momo(net.parameters())
    go_on(net, optimizer, 2)
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("before"))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.state[net[0].weight]["step"].item()))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", 2]


def test_the_state_of_the_other_method_is_refused():
    def trained(kind):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = kind([p])
        p.grad = torch.ones(3)
        optimizer.step(loss=1.0)
        return optimizer

    for one, other in ((Momo, MomoAdam), (MomoAdam, Momo)):
        with pytest.raises(ValueError, match=f"isn't the state of a {one.__name__}"):
            trained(one).load_state_dict(trained(other).state_dict())
