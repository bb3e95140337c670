"""These tests train many tiny models, for which a second thread costs more than it does."""

import os

import pytest
import torch

from momo import native


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The library is compiled here, not found in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["compiled", "torch"], scope="module")
def passes(request, own_cache):
    """Run a module's tests with the compiled passes, and again with torch's operations."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setenv("MOMO_NATIVE", "0")
        else:
            patch.delenv("MOMO_NATIVE", raising=False)
            if native.library() is None:
                message = native.status()
                pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        yield request.param
