"""MomoMuon and MomoMuonMax: against torch's Muon, a plain second implementation, the identities, and what is refused."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from optim.making import MUONS, made
from torch import nn

from momo import MomoAdam, MomoMuon, MomoMuonMax

pytestmark = pytest.mark.usefixtures("passes")
each = pytest.mark.parametrize("cls", MUONS)

# Tall, wide, and square ones, of which there are several of a shape; one too large for a batch; kernels of convolutions.
SHAPES = [
    (24, 8),
    (8, 24),
    (8, 24),
    (16, 16),
    (16, 16),
    (16, 16),
    (300, 500),
    (6, 4, 3, 3),
    (6, 4, 3, 3),
    (5,),
    (),
    (7,),
]
BF16 = 2.0**-8


def tensors(seed=0, dtype=torch.float64, shapes=SHAPES):
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=gen, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def set_gradients(params, k, missing=()):
    for i, (p, g) in enumerate(zip(params, tensors(100 + k, shapes=[p.shape for p in params]))):
        p.grad = None if i in missing else (0.1 * g.detach()).to(p.dtype)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2)]
    return nn.Sequential(*layers).to(dtype)


def loss_of(net, x):
    return (net(x) - x[:, :2].sin()).square().mean()


def batches(steps, dtype=torch.float64):
    return torch.randn(steps, 16, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def train(net, optimizer, start=0, stop=30, report=lambda optimizer: None):
    dtype = next(net.parameters()).dtype
    for x in batches(stop, dtype)[start:]:
        optimizer.zero_grad()
        loss = loss_of(net, x)
        loss.backward()
        optimizer.step(loss=loss)
        report(optimizer)
    return [p.detach().clone() for p in net.parameters()]


# ---- the baseline ----


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("groups", [1, 3])
def test_never_adaptive_is_muon_and_adamw(dtype, adjust_lr_fn, groups):
    """On the same gradients, a step of a matrix differs by what another order of sums rounds otherwise in bfloat16."""
    steps, lrs = 6, [0.02, 0.05, 0.01][:groups]
    ours, theirs = tensors(dtype=dtype), tensors(dtype=dtype)
    mine, baselines = [], []
    for i, lr in enumerate(lrs):
        a, b = ours[i::groups], theirs[i::groups]
        options = {"lr": lr, "weight_decay": 0.1 * i}
        mine += [{"params": [p for p in a if p.dim() > 1], "matrices": True, **options}]
        mine += [{"params": [p for p in a if p.dim() < 2], **options}]
        flat = [p.detach().flatten(1).requires_grad_() for p in b if p.dim() > 1]  # torch's takes two dimensions only
        views = [(p, view) for p, view in zip((p for p in b if p.dim() > 1), flat)]
        others = [p for p in b if p.dim() < 2]
        baselines.append((views, torch.optim.Muon(flat, nesterov=False, adjust_lr_fn=adjust_lr_fn, **options)))
        baselines.append(([], torch.optim.AdamW(others, betas=(0.95, 0.95), **options)))
    optimizer = MomoMuon(mine, lb=-math.inf, adjust_lr_fn=adjust_lr_fn)
    for k in range(steps):
        set_gradients(ours, k, {1} if k == 3 else ())
        set_gradients(theirs, k, {1} if k == 3 else ())
        optimizer.step(loss=1.0)
        for views, baseline in baselines:
            for p, view in views:
                view.grad = None if p.grad is None else p.grad.flatten(1)
            baseline.step()
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if a.dim() < 2:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            continue
        scale = (
            0.2 * max(a.shape[0], a[0].numel()) ** 0.5
            if adjust_lr_fn == "match_rms_adamw"
            else max(1, a.shape[0] / a[0].numel()) ** 0.5
        )
        moved = lrs[i % groups] * scale * steps
        assert (a - b).abs().max() <= BF16 * moved
        assert (a - b).norm() <= 2e-3 * moved * a.numel() ** 0.5 / max(a.shape[0], a[0].numel()) ** 0.5


def test_half_precision_is_single_precision_rounded():
    for dtype in (torch.bfloat16, torch.float16):
        halves = tensors(dtype=dtype)
        for cls in MUONS:
            params = [p.detach().clone().requires_grad_() for p in halves]
            optimizer = made(cls, params, lr=0.02, weight_decay=0.1)
            singles = [p.detach().float().requires_grad_() for p in params]
            exact = made(cls, singles, lr=0.02, weight_decay=0.1)
            for k in range(3):
                set_gradients(params, k)
                for s, p in zip(singles, params):
                    s.data.copy_(p.data)
                    s.grad = p.grad.float()
                optimizer.step(loss=3.0)
                exact.step(loss=3.0)
                for s, p in zip(singles, params):
                    unit = torch.finfo(dtype).eps * s.detach().abs()
                    assert ((p.detach().float() - s).abs() <= 0.51 * unit + 1e-4).all()
                assert (optimizer.diagnostics()["step_size"] <= optimizer.diagnostics()["cap"]).all()
            assert all(optimizer.state[p]["exp_avg"].dtype is torch.float32 for p in params)


# ---- a plain second implementation ----


def sign_of(d):
    """The iteration, from its description: X <- a X + (b X X' + c (X X')^2) X, from X = d over its norm."""
    x = d.detach().bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T.clone() if tall else x.clone()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.T if tall else x).float()


@pytest.mark.parametrize("stale", [False, True])
def test_a_step_of_muonmax_is_the_papers(stale, exactly):
    """What the paper's own code computes for one group: hybrid norm, Adam's norm for the others, truncated at zero."""
    beta, lr, wd, eps = 0.95, 0.02, 0.05, 1e-8
    ours = network(torch.float32)
    plain = copy.deepcopy(ours)
    chosen, scale = {"2.weight", "4.weight"}, 0.2 * 12**0.5  # one scale for all matrices, as there
    matrices = [p for name, p in ours.named_parameters() if name in chosen]
    others = [p for name, p in ours.named_parameters() if name not in chosen]
    groups = [{"params": matrices, "matrices": True}, {"params": others}]
    optimizer = MomoMuonMax(groups, lr=lr, weight_decay=wd, stale_norms=stale, adjust_lr_fn="match_rms_adamw")
    memory, average, capped = {}, None, []
    for x in batches(40, torch.float32):
        for net in (ours, plain):
            net.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            if net is ours:
                optimizer.step(loss=loss)
        with torch.no_grad():
            at, squares, nuclear = 0.0, 0.0, 0.0
            offset = loss.item()
            for name, p in plain.named_parameters():
                m = memory.setdefault(name, {"d": p.grad.clone(), "v": p.grad.square()})
                m["d"] = beta * m["d"] + (1 - beta) * p.grad
                m["v"] = beta * m["v"] + (1 - beta) * p.grad.square()
                offset -= (p.grad.double() * p.double()).sum().item()
                at += (m["d"].double() * p.double()).sum().item()
                if name in chosen:
                    m["o"] = sign_of(m["d"])
                    now = (m["d"] * m["o"]).sum().item()
                    nuclear += m.get("n", now) if stale else now
                    m["n"] = now
                else:
                    squares += (m["d"].square() / (m["v"].sqrt() + eps)).sum().item()
            average = offset if average is None else beta * average + (1 - beta) * offset
            zeta = (average + at) / (scale * nuclear**2 + squares)
            assert zeta > 0
            tau = min(lr, zeta)
            capped.append(tau == lr)
            for name, p in plain.named_parameters():
                m = memory[name]
                u = nuclear * scale * m["o"] if name in chosen else m["d"] / (m["v"].sqrt() + eps)
                p.mul_(1 - lr * wd).sub_(tau * u)
        for a, b in zip(ours.parameters(), plain.parameters()):
            assert (a - b).norm() <= 1e-5 * b.norm()
        assert optimizer.diagnostics()["adaptive_term"][0].item() == pytest.approx(zeta, rel=1e-4)
    assert 3 < sum(capped) < 37


# ---- the identities ----


@each
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_after_an_uncapped_step_the_model_is_at_the_lower_bound(cls, weight_decay, exactly):
    """Identity 4, for several groups: decay is decoupled, so the step without it leads there."""
    net = network()
    groups = [
        {"params": [p], "lr": 3.0 * (i + 1), "weight_decay": weight_decay / 9} for i, p in enumerate(net.parameters())
    ]
    optimizer = made(cls, groups, lb=0.01)
    seen = 0
    for k, x in enumerate(batches(20)):
        optimizer.zero_grad()
        loss = loss_of(net, x)
        loss.backward()
        before = {p: p.detach().clone() for p in net.parameters()}
        optimizer.step(loss=loss)
        report = optimizer.diagnostics()
        if report["capped"] or not report["step_size"].sum() > 0:
            continue
        seen += 1
        rho = 1.0 if cls is MomoMuonMax else 1 - 0.95 ** (k + 1)
        value = next(iter(optimizer.state.values()))["loss_average"].clone()
        for group in optimizer.param_groups:
            for p in group["params"]:
                state, decayed = optimizer.state[p], group["lr"] * group["weight_decay"] * before[p]
                value += (state["exp_avg"] * (p.detach() + decayed)).sum() - state["gamma"]
        assert value.item() == pytest.approx(rho * 0.01, abs=1e-10)
    assert seen > 3


@each
def test_splitting_a_group_and_shifting_the_loss_change_nothing(cls, exactly):
    def run(split, shift=0.0):
        net = network()
        params = [{"params": [p]} for p in net.parameters()] if split else net.parameters()
        optimizer = made(cls, params, lr=1.0, weight_decay=0.1, lb=shift)
        for x in batches(30):
            optimizer.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            optimizer.step(loss=loss + shift)
        return [p.detach() for p in net.parameters()]

    for other in (run(True), run(False, -7.5)):
        for a, b in zip(run(False), other):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@each
def test_a_group_at_rest_and_zero_gradients(cls):
    net = network(torch.float32)
    optimizer = made(cls, [{"params": net[:4].parameters()}, {"params": net[4:].parameters(), "lr": 0.0}], lr=0.5)
    rest = [p.detach().clone() for p in net[4:].parameters()]
    train(net, optimizer, stop=5)
    assert all(torch.equal(p, b) for p, b in zip(net[4:].parameters(), rest))
    alone = copy.deepcopy(net)
    frozen = made(cls, alone[:4].parameters(), lr=0.5)
    assert len(frozen.matrices) == 2  # those of the last layers add nothing to a norm
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    fresh = made(cls, net.parameters(), lr=0.5)
    before = [p.detach().clone() for p in net.parameters()]
    fresh.step(loss=1.0)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))
    assert all(v.isfinite().all() for v in fresh.diagnostics().values())


# ---- the state ----


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved_at", [0, 1, 7])
def test_a_fresh_optimizer_goes_on_bit_for_bit(cls, dtype, saved_at):
    options = {"stale_norms": True} if cls is MomoMuonMax else {"adam_lr": 0.3}
    net = network(dtype)
    optimizer = cls.for_model(net, lr=0.5, **options)
    train(net, optimizer, 0, saved_at)
    file = io.BytesIO()
    torch.save((net.state_dict(), optimizer.state_dict()), file)
    expected = train(net, optimizer, saved_at, saved_at + 8)
    file.seek(0)
    weights, saved = torch.load(file, weights_only=True)
    other = network(dtype)
    other.load_state_dict(weights)
    resumed = cls.for_model(other)
    resumed.load_state_dict(saved)
    assert all(map(torch.equal, train(other, resumed, saved_at, saved_at + 8), expected))
    twin, copied = copy.deepcopy((net, optimizer))
    ended = (train(n, o, 20, 24) for n, o in ((twin, copied), (net, optimizer)))
    assert all(map(torch.equal, *ended))


def test_the_state_of_another_method_is_refused():
    net = network()
    trained = {}
    for cls in (MomoAdam, *MUONS):
        trained[cls] = made(cls, net.parameters())
        train(net, trained[cls], stop=2)
    for cls in trained:
        for other in trained:
            if cls is not other:
                with pytest.raises(ValueError, match=f"isn't the state of a {cls.__name__}"):
                    made(cls, network().parameters()).load_state_dict(trained[other].state_dict())


# ---- which are matrices, and what is refused ----


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.positions = nn.Embedding(9, 4), nn.Parameter(torch.zeros(7, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm, self.recurrent = nn.LayerNorm((7, 4)), nn.LSTM(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 9)
        self.head.weight = self.table.weight


def test_which_parameters_are_matrices():
    names = [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
    ]
    net = Tied()
    optimizer = MomoMuon.for_model(net, lr=0.04)
    assert optimizer.param_groups[0]["param_names"] == names and str(names) in repr(optimizer)
    assert [id(p) for p in optimizer.matrices] == [id(dict(net.named_parameters())[name]) for name in names]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        p.requires_grad for p in net.parameters()
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.04, 0.02]
    assert [group["lr"] for group in MomoMuonMax.for_model(net, lr=0.04).param_groups] == [0.04, 0.04]
    copied = copy.deepcopy(MomoMuon.for_model(net, adam_lr=0.3))
    copied.add_param_group({"params": [("more", torch.zeros(3, requires_grad=True))]})
    assert [group["lr"] for group in copied.param_groups] == [0.02, 0.3, 0.3]
    assert "shapes: [(3, 2)]" in repr(MomoMuon([{"params": [torch.zeros(3, 2, requires_grad=True)], "matrices": True}]))


@each
def test_what_cannot_be_right_is_refused(cls):
    net = network()
    with pytest.raises(ValueError, match=rf"{cls.__name__}.for_model\(model\)"):
        cls(net.parameters())
    with pytest.raises(ValueError, match="finds no hidden weight"):
        cls.for_model(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"holds a tensor of shape \(12,\)"):
        cls([{"params": net[0].parameters(), "matrices": True}])
    for options, words in (
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            cls.for_model(net, **options)
    optimizer = cls.for_model(net)
    optimizer.param_groups[1]["betas"] = (0.5, 0.95)
    train_one = lambda: train(net, optimizer, stop=1)
    with pytest.raises(ValueError, match=r"same betas\[0\]"):
        train_one()
    half = network(torch.bfloat16)
    with pytest.raises(RuntimeError, match="fused=True needs compiled passes"):
        train(half, cls.for_model(half, fused=True), stop=1)


@each
def test_a_changing_set_of_gradients_and_a_skipped_step(cls):
    """Left out of a step, a matrix stands still and adds nothing; GradScaler's skipped step changes nothing."""
    params = tensors(dtype=torch.float32)
    optimizer = made(cls, params, lr=0.02, lb=-1e9)
    for k in range(12):
        missing = {i for i in range(len(params)) if (i + k) % 3 == 0}
        set_gradients(params, k, missing)
        before = [p.detach().clone() for p in params]
        optimizer.step(loss=40.0)
        for i, (p, b) in enumerate(zip(params, before)):
            assert torch.equal(p, b) == (i in missing)
            assert p.isfinite().all()
    set_gradients(params, 0)
    params[0].grad[0, 0] = math.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    optimizer.record_loss(1.0)
    scaler.step(optimizer)
    scaler.update()
    assert all(map(torch.equal, params, before))
    assert str(optimizer.state_dict()) == str(state)


@each
def test_matrices_of_every_dtype_and_size_in_one_group(cls):
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    params = [
        p for dtype in dtypes for p in tensors(dtype=dtype, shapes=[(0, 5), (5, 0), (1, 1), (3, 1), (2, 3, 1, 1), (3,)])
    ]
    optimizer = made(cls, params, lr=torch.tensor(0.1), weight_decay=0.1)
    before = [p.detach().clone() for p in params]
    for k in range(3):
        set_gradients(params, k)
        optimizer.step(loss=9.0)
    for p, b in zip(params, before):
        assert p.isfinite().all() and (p.numel() == 0 or not torch.equal(p, b))
