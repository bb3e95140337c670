"""The optimizers against the reference package, `momo-opt` 0.1.0, in float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest
import torch

from momo import Momo, MomoAdam

STEPS = 200


@pytest.fixture(scope="session")
def reference(request):
    """The reference package under another name: it installs under the same one as ours."""
    folder = request.config.cache.mkdir("momo-opt-0.1.0")
    if not (folder / "momo" / "__init__.py").exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "momo-opt==0.1.0"]
        done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, timeout=120)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            message = f"the reference package can't be downloaded: {done.stderr.strip()[-300:]}"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(folder)
    name = "momo_reference"
    spec = importlib.util.spec_from_file_location(
        name, folder / "momo" / "__init__.py", submodule_search_locations=[str(folder / "momo")]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def float64():
    # The reference makes some of its scalars in the default dtype.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train(make, scheduled):
    """A noisy least squares problem with two tensors; answers the weights after each step."""
    gen = torch.Generator().manual_seed(0)
    a = torch.randn(64, 10, generator=gen)
    b = a @ torch.randn(10, 3, generator=gen) + 0.5 * torch.randn(64, 3, generator=gen)
    w = torch.randn(10, 3, generator=gen).requires_grad_()
    bias = torch.zeros(3, requires_grad=True)
    optimizer = make([w, bias])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k / 20) if scheduled else 1.0)
    path = []
    for _ in range(STEPS):
        rows = torch.randint(0, 64, (8,), generator=gen)
        loss = (a[rows] @ w + bias - b[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        schedule.step()
        path.append(torch.cat([w.detach().flatten(), bias.detach()]))
    return torch.stack(path)


def same(ours, theirs):
    scale = theirs.abs().amax(1)
    return ((ours - theirs).abs().amax(1) / scale).max().item() <= 1e-10


def compare(ours, theirs, options, scheduled):
    """With the compiled passes, and for each combination of options once without."""
    expected = train(lambda p: theirs(p, **options), scheduled)
    for fused in (None, False) if scheduled else (None,):
        assert same(train(lambda p: ours(p, **options, fused=fused), scheduled), expected)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("lr", [0.01, 1.0])
@pytest.mark.parametrize("use_fstar", [False, True])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_momo(reference, scheduled, lr, use_fstar, bias_correction, weight_decay, beta):
    options = dict(lr=lr, beta=beta, weight_decay=weight_decay, bias_correction=bias_correction, use_fstar=use_fstar)
    options["lb"] = 0.1 if scheduled else 0.0
    compare(Momo, reference.Momo, options, scheduled)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("lr", [0.01, 1.0])
@pytest.mark.parametrize("use_fstar", [False, True])
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9)])
def test_momo_adam(reference, scheduled, lr, use_fstar, divide, weight_decay, betas):
    options = dict(lr=lr, betas=betas, weight_decay=weight_decay, divide=divide, use_fstar=use_fstar)
    options |= dict(lb=0.1, eps=1e-3) if scheduled else dict(lb=0.0, eps=1e-8)
    compare(MomoAdam, reference.MomoAdam, options, scheduled)
