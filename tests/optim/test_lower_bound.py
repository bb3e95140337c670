"""A lower bound of each step's own loss."""

from __future__ import annotations

import io
import math

import pytest
import torch
from optim.making import EVERY, made

import momo

pytestmark = pytest.mark.usefixtures("passes")
each = pytest.mark.parametrize("cls", EVERY)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


def train(optimizer, net, take, start=0, stop=25):
    for k, x in enumerate(torch.randn(stop, 16, 5, generator=torch.Generator().manual_seed(1)).double()[start:]):
        optimizer.zero_grad()
        loss = (net(x) - x[:, :2].sin()).square().mean() + 0.2
        loss.backward()
        take(optimizer, loss, start + k)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def bound(k):
    return 0.2 * math.cos(k)


def with_bound(optimizer, loss, k):
    optimizer.step(loss=loss, lower_bound=bound(k))


@each
def test_a_constant_one_is_the_option_to_the_bit(cls):
    nets = network(), network()
    options = dict(lr=2.0, weight_decay=0.1)
    option, given = made(cls, nets[0].parameters(), lb=0.17, **options), made(cls, nets[1].parameters(), **options)
    expected = train(option, nets[0], lambda o, loss, k: o.step(loss=loss))
    assert torch.equal(train(given, nets[1], lambda o, loss, k: o.step(loss=loss, lower_bound=0.17)), expected)
    assert given.diagnostics()["lower_bound"].item() == 0.17


@each
def test_shifting_losses_and_their_bounds_by_what_differs_from_step_to_step(cls, exactly):
    """The model's bound is the same average as the loss's: what is added to both at each step changes nothing."""
    nets = network(), network()
    shift = lambda k: 5 * math.sin(3 * k)
    runs = [made(cls, net.parameters(), lr=20.0) for net in nets]
    expected = train(runs[0], nets[0], with_bound)
    moved = train(runs[1], nets[1], lambda o, loss, k: o.step(loss=loss + shift(k), lower_bound=bound(k) + shift(k)))
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)
    assert not runs[0].diagnostics()["capped"]


@each
def test_the_average_is_kept_and_every_way_to_give_it_is_the_same(cls):
    def closure(optimizer, loss, k):
        optimizer.step(lambda: loss, lower_bound=torch.tensor(bound(k), dtype=torch.float64))

    def recorded(optimizer, loss, k):
        for share in (0.5, 1.5):
            momo.record_loss(optimizer, share * loss, lower_bound=share * bound(k))
        optimizer.step()

    ends = []
    for way in (with_bound, closure, recorded):
        net = network()
        optimizer = made(cls, net.parameters(), lr=2.0)
        ends.append(train(optimizer, net, way))
    assert all(torch.equal(end, ends[0]) for end in ends)
    average, beta = 0.0, 0.9 if cls in EVERY[:2] else 0.95
    first = cls in (momo.Momo, momo.MomoMuonMax)
    for k in range(25):
        average = bound(k) if first and k == 0 else beta * average + (1 - beta) * bound(k)
    rho = 1.0 if first else 1 - beta**25
    assert optimizer.diagnostics()["lower_bound"].item() == pytest.approx(average / rho, rel=1e-10)


@each
def test_it_goes_on_bit_for_bit_and_is_not_forgotten(cls):
    net = network()
    optimizer = made(cls, net.parameters(), lr=2.0)
    train(optimizer, net, with_bound, stop=7)
    file = io.BytesIO()
    torch.save((net.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, saved = torch.load(file, weights_only=True)
    other = network()
    other.load_state_dict(weights)
    resumed = made(cls, other.parameters())
    resumed.load_state_dict(saved)
    before = [p.detach().clone() for p in other.parameters()]
    with pytest.raises(ValueError, match="each step before has one, and this step got none"):
        train(resumed, other, lambda o, loss, k: o.step(loss=loss), 7)
    assert all(map(torch.equal, before, other.parameters()))
    assert torch.equal(train(resumed, other, with_bound, 7), train(optimizer, net, with_bound, 7))


@each
def test_one_that_is_not_finite_is_replaced_by_the_average_so_far(cls):
    ends = []
    for bad in (math.nan, math.inf, None):
        net = network()
        optimizer = made(cls, net.parameters(), lr=2.0)

        def take(o, loss, k):
            so_far = o.diagnostics()["lower_bound"] if k else None
            o.step(loss=loss, lower_bound=(so_far if bad is None else bad) if k == 5 else bound(k))

        ends.append(train(optimizer, net, take))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-9, atol=1e-9)


@each
def test_what_cannot_be_right_is_refused(cls):
    net = network()
    optimizer = made(cls, net.parameters())
    train(optimizer, net, lambda o, loss, k: o.step(loss=loss), stop=1)
    for call, error, words in (
        (lambda o, loss, k: o.step(loss=loss, lower_bound=0.1), ValueError, "each step before has none"),
        (lambda o, loss, k: o.step(loss=loss, lower_bound=torch.ones(2)), ValueError, "one number as the lower_bound"),
        (lambda o, loss, k: o.step(loss=loss, lower_bound="0"), TypeError, "the lower_bound as a tensor or a number"),
        (lambda o, loss, k: (o.record_loss(loss), o.step(lower_bound=0.1)), ValueError, "give it to record_loss"),
        (lambda o, loss, k: (o.record_loss(loss), o.record_loss(loss, lower_bound=0)), ValueError, "give it to all"),
    ):
        with pytest.raises(error, match=words):
            train(optimizer, net, call, stop=1)
    if cls in EVERY[:2]:
        starred = cls(network().parameters(), use_fstar=True)
        with pytest.raises(ValueError, match="two sources of one bound"):
            starred.step(loss=1.0, lower_bound=0.1)
