"""These tests train many tiny models, for which a second thread costs more than it does."""

import os

import pytest
import torch
from support import only_torch_passes

from momo.passes.compiled import why_not


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def compiled_passes():
    """A test that needs them; CI always has a compiler."""
    reason = why_not(torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture
def exactly(monkeypatch):
    """Muon's iteration in the parameters' own precision, so that rounding to bfloat16 doesn't hide a wrong number."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


@pytest.fixture(params=["compiled", "torch"], scope="module")
def passes(request):
    """Run a module's tests with the compiled passes, and again with torch's operations."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            only_torch_passes(patch)
        else:
            request.getfixturevalue("compiled_passes")
        yield request.param
