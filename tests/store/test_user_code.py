"""User code that leaves, or raises what is no ``Exception``: its run is marked, and the others go on."""

from __future__ import annotations

import json

import pytest

TASK = """
import sys, torch
class Own(BaseException): pass
def build(seed):
    model, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
    steps = [0]
    def leave():
        WAY
    def loss(model, batch):
        steps[0] += 1
        if seed == 1 and steps[0] > AFTER:
            leave()
        return (model(batch) - 1).square().mean()
    if seed == 1 and AFTER < 0:
        leave()
    return model, loss, [x] * 8
"""


@pytest.mark.parametrize("way", ["sys.exit(0)", "raise Own('mine')", "raise SystemExit('bye')"])
@pytest.mark.parametrize("after", [-1, 6])
def test_the_run_alone_fails(momo, folder, way, after):
    (folder / "leaving.py").write_text(TASK.replace("WAY", way).replace("AFTER", str(after)))
    grid = ("sweep", "leaving.py", "--lrs", "0.01,0.1", "-o", "sgd", "--seeds", "2")
    code, out, err = momo(*grid, "--json", "-")
    assert code == 0, err
    runs = json.loads(out)["runs"]
    assert [run["status"] for run in runs if run["seed"] == 0] == ["ok", "ok"]
    failed = [run for run in runs if run["seed"] == 1]
    assert all(run["status"] == "failed" and "in leave" in run["error"] for run in failed) and len(failed) == 2


def test_leaving_from_the_module_or_the_first_build_is_an_error(momo, folder):
    for text in ("import sys\nsys.exit(0)", "import sys\ndef build(seed):\n    sys.exit(0)"):
        (folder / "gone.py").write_text(text)
        code, out, err = momo("sweep", "gone.py", "--lrs", "0.1")
        assert code == 2 and "SystemExit" in err and out == ""
