"""The compiled passes: equal to torch's operations, on the right memory, and never in the way."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, only_torch_passes

from momo import Momo, MomoAdam
from momo.passes import compiled

both = pytest.mark.parametrize("cls", [Momo, MomoAdam])
CHUNK = 16384
SIZES = [(), (1,), (2,), (15,), (17,), (3, 5), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (2, CHUNK), (4 * CHUNK + 3,), (0,)]


@pytest.fixture(autouse=True)
def needs_the_library(compiled_passes):
    pass


def with_passes(compiled_ones, act):
    with pytest.MonkeyPatch.context() as patch:
        if not compiled_ones:
            only_torch_passes(patch)
        return act()


def train(cls, shapes, steps=3, dtype=torch.float32, seed=0, change=None, **options):
    gen = torch.Generator().manual_seed(seed)
    params = [torch.randn(s, generator=gen, dtype=dtype).requires_grad_() for s in shapes]
    optimizer = cls(params, **{"lr": 1e-2, **options})
    for k in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=gen, dtype=dtype)
        if change is not None:
            change(k, params)
        optimizer.step(loss=1.0)
    return params, optimizer


def uses_compiled(optimizer):
    return [isinstance(block._passes, compiled.CompiledPasses) for block in optimizer._blocks]


def assert_same(one, other, **tolerance):
    (params, optimizer), (expected, theirs) = one, other
    for p, q in zip(params, expected):
        torch.testing.assert_close(p.detach(), q.detach(), equal_nan=True, **tolerance)
        for name, value in optimizer.state[p].items():
            close = dict(tolerance, rtol=1e-4, atol=1e-4) if name == "gamma" and tolerance else tolerance
            torch.testing.assert_close(value, theirs.state[q][name], equal_nan=True, **close)


# ---- equal to torch's operations ----


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=5),
    cls=st.sampled_from([Momo, MomoAdam]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    options=st.fixed_dictionaries(
        dict(weight_decay=st.sampled_from([0.0, 0.3]), lr=st.sampled_from([0.0, 1e-3, 1.0]), use_fstar=st.booleans())
    ),
    beta=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    seed=st.integers(0, 9),
)
def test_the_same_as_with_torch(shapes, cls, dtype, options, beta, seed):
    options |= {"beta": beta} if cls is Momo else {"betas": (beta, 0.99)}
    one, other = (with_passes(c, lambda: train(cls, shapes, dtype=dtype, seed=seed, **options)) for c in (True, False))
    assert all(uses_compiled(one[1])) and not any(uses_compiled(other[1]))
    tolerance = dict(rtol=1e-10, atol=1e-10) if dtype is torch.float64 else dict(rtol=1e-4, atol=1e-5)
    assert_same(one, other, **tolerance)


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 16, CHUNK + 1])
def test_what_is_not_finite_stays_so(cls, bad, where):
    def spoil(k, params):
        if k == 1:
            params[0].grad[where] = bad

    def final(value):
        params, optimizer = with_passes(value, lambda: train(cls, [(CHUNK + 2,), (3,)], change=spoil))
        return [t.isnan() for p in params for t in (p.detach(), *optimizer.state[p].values())]

    assert any(t.any() for t in final(True))
    assert all(torch.equal(a, b) for a, b in zip(final(True), final(False)))


@pytest.fixture
def some_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_and_whose_they_are_change_nothing(cls, dtype, some_threads, monkeypatch):
    shapes = [(700, 701), (5,), *[(100, 100)] * 20, (CHUNK + 1,)]
    found = []
    for team in (compiled._team(), (os.getpid(), None)):
        monkeypatch.setattr(compiled, "_team", lambda team=team: team)
        for threads in (1, 2, 4, 64):
            some_threads(threads)
            found.append(train(cls, shapes, dtype=dtype, weight_decay=0.1))
    for other in found[1:]:
        assert_same(found[0], other, rtol=0, atol=0)


@both
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_made_by_a_fork_takes_steps_too(cls, some_threads):
    some_threads(2)
    params, optimizer = train(cls, [(700, 701)])
    child = os.fork()
    if child == 0:
        optimizer.step(loss=1.0)
        os._exit(7)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended[0] == child and os.waitstatus_to_exitcode(ended[1]) == 7


@both
def test_where_a_tensor_lies_changes_nothing(cls):
    def move(k, params):
        if k == 1:
            for p in params:
                p.data = torch.empty(p.numel() + 3)[3:].copy_(p.data.view(-1)).view(p.shape)

    assert_same(train(cls, [(1000,), (33, 7)], change=move), train(cls, [(1000,), (33, 7)]), rtol=0, atol=0)


@both
def test_half_precision_and_other_devices_have_no_tables(cls):
    for dtype in (torch.float16, torch.bfloat16):
        p = torch.ones(4, dtype=dtype, requires_grad=True)
        p.grad = torch.ones_like(p)
        optimizer = cls([p], lr=0.1)
        optimizer.step(loss=1.0)
        assert not any(uses_compiled(optimizer)) and (p < 1).all()


# ---- on the right memory ----


def replaced(k, params):
    for p in params:
        p.data = p.data.clone()


def swapped(k, params):
    for p, q in zip(params[::2], params[1::2]):
        p.data, q.data = q.data, p.data
        p.grad, q.grad = q.grad, p.grad


def into_one_storage(k, params):
    flat = torch.cat([p.data.flatten() for p in params])
    for p, part in zip(params, flat.split([p.numel() for p in params])):
        p.data = part.view(p.shape)


def transposed(k, params):
    for p in params:
        p.data = p.data.t().contiguous().t() if p.dim() > 1 else p.data


def shared(k, params):
    for p in params:
        p.share_memory_()


@both
@pytest.mark.parametrize("change", [replaced, into_one_storage, transposed, shared])
@pytest.mark.parametrize("switch", [True, False])
def test_parameters_whose_memory_is_replaced(cls, change, switch):
    shapes = [(400, 500), (400, 500), (3, 5), (3, 5), (7,), (7,)]
    one, other = (with_passes(switch, lambda: train(cls, shapes, steps=4, change=c)) for c in (change, None))
    assert_same(one, other, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize("shape", [(400, 500), (3, 5)])
def test_a_row_that_is_bound_to_one_run_after_the_other(cls, switch, shape):
    # As when many runs are kept in one tensor: the parameter is a view of a different row each time.
    rows = torch.randn(3, *shape)
    expected = rows.clone()
    p = torch.nn.Parameter(rows[0])
    optimizer = cls([p], lr=0.1, lb=-1e30)
    averaged = torch.zeros(shape)
    squares = torch.zeros(shape)
    for k in range(6):
        p.data = rows[k % 3]
        p.grad = torch.randn(shape)
        with_passes(switch, lambda: optimizer.step(loss=1.0))
        averaged = 0.9 * averaged + 0.1 * p.grad if k or cls is MomoAdam else p.grad.clone()
        squares = 0.999 * squares + 0.001 * p.grad.square()
        u, cap = averaged, 0.1
        if cls is MomoAdam:
            u, cap = averaged / ((squares / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8), 0.1 / (1 - 0.9 ** (k + 1))
        expected[k % 3] -= cap * u
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


@both
def test_two_parameters_that_swap_their_memory(cls):
    a, b = torch.randn(1000), torch.randn(1000)
    p, q = torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())
    optimizer = cls([p, q], lr=0.1, weight_decay=0.5)
    p.grad, q.grad = torch.zeros(1000), torch.zeros(1000)
    optimizer.step(loss=1.0)
    p.data, q.data = q.data, p.data
    optimizer.step(loss=1.0)
    torch.testing.assert_close(p.detach(), b / 1.05**2)
    torch.testing.assert_close(q.detach(), a / 1.05**2)


@both
def test_a_smaller_tensor_at_the_same_place_is_not_overrun(cls):
    memory = torch.ones(1000)
    p = torch.nn.Parameter(memory[:800])
    p.grad = torch.ones(800)
    optimizer = cls([p], lr=0.1)
    optimizer.step(loss=1.0)
    p.grad = None
    p.data = memory[:400]
    p.grad = torch.ones(400)
    before = memory.clone()
    with pytest.raises(RuntimeError, match="isn't the one of its state"):
        optimizer.step(loss=1.0)
    assert torch.equal(memory, before)


@both
def test_a_model_converted_between_steps(cls):
    net = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 1))
    plain = copy.deepcopy(net)

    def go(net, convert):
        torch.manual_seed(0)
        optimizer = cls(net.parameters(), lr=0.01)
        for k in range(6):
            if k == 3 and convert:
                net.double()
            optimizer.zero_grad()
            x = torch.randn(8, 30).to(next(net.parameters()).dtype)
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
        return [p.detach().float() for p in net.parameters()]

    torch.testing.assert_close(go(net, True), go(plain, False), rtol=1e-3, atol=1e-4)
    assert net[0].weight.dtype is torch.float64


@both
def test_a_state_whose_tensors_are_replaced_or_moved(cls):
    params, optimizer = train(cls, [(40, 50), (3,)])
    for state in optimizer.state.values():
        state["exp_avg"] = torch.zeros_like(state["exp_avg"])
    params[0].grad = torch.ones(40, 50)
    optimizer.step(loss=1.0)
    torch.testing.assert_close(optimizer.state[params[0]]["exp_avg"], torch.full((40, 50), 0.1))
    optimizer.state[params[0]]["exp_avg"].share_memory_()
    optimizer.step(loss=1.0)
    torch.testing.assert_close(optimizer.state[params[0]]["exp_avg"], torch.full((40, 50), 0.19))


@both
def test_loading_and_copying_have_tables_of_their_own(cls):
    params, optimizer = train(cls, [(40, 50), (3,)])
    saved = copy.deepcopy(optimizer.state_dict())
    weights = [p.detach().clone() for p in params]

    def next_step(params, optimizer):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step(loss=1.0)
        return [p.detach().clone() for p in params]

    copied = pickle.loads(pickle.dumps((params, optimizer)))
    expected = next_step(params, optimizer)
    assert all(map(torch.equal, next_step(*copied), expected))
    with torch.no_grad():
        for p, w in zip(params, weights):
            p.copy_(w)
    optimizer.load_state_dict(saved)
    assert all(map(torch.equal, next_step(params, optimizer), expected))


@both
def test_gradients_that_do_not_fit_into_a_table(cls):
    torch.manual_seed(0)
    g = [torch.randn(6, 4), torch.randn(1), torch.randn(5)]
    kinds = {
        "strided": lambda: [torch.randn(6, 8)[:, ::2].copy_(g[0]), g[1], torch.randn(15)[::3].copy_(g[2])],
        "transposed": lambda: [g[0].t().contiguous().t(), g[1], g[2]],
        "negated": lambda: [g[0], torch.complex(torch.zeros(1), -g[1]).conj().imag, g[2]],
        "plain": lambda: g,
    }

    def go(kind):
        params = [torch.ones_like(v).requires_grad_() for v in g]
        optimizer = cls(params, lr=0.1, weight_decay=0.1)
        for k in range(3):
            for p, v in zip(params, kinds[kind]() if k == 1 else g):
                p.grad = v
            optimizer.step(loss=1.0)
        return params, optimizer

    assert all(uses_compiled(go("strided")[1]))
    assert kinds["negated"]()[1].is_neg()
    for kind in kinds:
        assert_same(go(kind), with_passes(False, lambda: go("plain")), rtol=1e-5, atol=1e-6)


@both
def test_a_gradient_without_memory(cls):
    p = torch.ones(5, requires_grad=True)
    p.grad = torch._efficientzerotensor(5)
    optimizer = cls([p], lr=0.1)
    optimizer.step(loss=1.0)
    assert torch.equal(p.detach(), torch.ones(5))


@both
def test_autograd_notices_a_step(cls):
    p = torch.ones(5, requires_grad=True)
    p.grad = torch.ones(5)
    kept = p.square().sum()
    cls([p], lr=0.1).step(loss=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


# ---- built with the package ----


def test_fused_asks_for_them_or_refuses(monkeypatch):
    p = torch.ones(3, dtype=torch.float16, requires_grad=True)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="none for torch.float16 on cpu"):
        Momo([p], fused=True).step(loss=1.0)
    with pytest.raises(ValueError, match="fused must be None, True or False"):
        Momo([p], fused="yes")
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones_like(p)
    for fused in (True, None, False):
        optimizer = Momo([p], fused=fused)
        optimizer.step(loss=1.0)
        assert uses_compiled(optimizer) == [fused is not False]
    monkeypatch.setattr(compiled, "_library", lambda: "they were not built when momo was installed")
    with pytest.raises(RuntimeError, match="not built when momo was installed"):
        Momo([p], fused=True).step(loss=1.0)
    Momo([p]).step(loss=1.0)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="GNU's dispatch, on x86-64")
def test_a_library_has_the_loops_for_old_and_new_processors():
    path = compiled._library()._name
    symbols = subprocess.run(["nm", path], capture_output=True, text=True).stdout.split("\n")
    for loop in ("momentum_chunk_accumulate_float32", "adam_chunk_move_float64"):
        kinds = {line.split()[-1] for line in symbols if loop in line}
        assert {f"{loop}.avx512f", f"{loop}.avx2", f"{loop}.default"} <= kinds


def test_without_a_compiler_the_installation_goes_on(tmp_path):
    """The package is built with a compiler that fails, and works by torch's operations."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for package in ("momo", "momo_cli"):
        for source in (ROOT / package).rglob("*"):
            if source.suffix in (".py", ".c", ".typed"):
                target = tmp_path / source.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    build = "from setuptools import setup; setup(script_args=['-q', 'build'])"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, env=os.environ | {"CC": "false"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = (tmp_path / "build").glob("lib*")
    assert not list(built.rglob("*.so"))
    script = (
        "import torch, momo; p = torch.ones(5, requires_grad=True); p.grad = torch.ones(5); "
        "momo.MomoAdam([p]).step(loss=1.0); assert (p < 1).all(); from momo.passes.compiled import why_not; "
        "print(momo.__file__, why_not(torch.device('cpu'), torch.float32))"
    )
    env = os.environ | {"PYTHONPATH": str(built)}
    done = subprocess.run([sys.executable, "-c", script], cwd=built, env=env, capture_output=True, text=True)
    assert str(built) in done.stdout and "takes a C compiler" in done.stdout, done.stderr


def test_the_library_needs_no_python():
    library = ctypes.CDLL(compiled._library()._name)
    assert library.momo_adam_accumulate_float64 and Path(library._name).name.startswith("_compiled")
