"""Worker processes: the same results, a dead one replaced, none left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from support import TASK, children, left_running, wait_for_trials

GRID = ("sweep", "mymodule", "--lrs", "0.01,0.03,0.1,0.3", "-o", "momo,adam")


def runs_of(momo, *arguments):
    code, out, err = momo(*arguments, "--json", "-")
    assert code == 0, err
    return json.loads(out)["runs"], err


def test_jobs_and_stacks_change_nothing(momo):
    plain, _ = runs_of(momo, *GRID, "--together", "off", "--jobs", "1")
    for how in (("--jobs", "2", "--together", "off"), ("--jobs", "2", "--together", "3"), ("--together", "8")):
        others, _ = runs_of(momo, *GRID, "--fresh", *how)
        for a, b in zip(plain, others, strict=True):
            assert (a["optimizer"], a["lr"], a["status"]) == (b["optimizer"], b["lr"], b["status"])
            assert a["objective"] == pytest.approx(b["objective"], rel=1e-4)


def test_a_worker_that_dies_costs_only_the_run_it_dies_of(momo, folder):
    (folder / "mymodule.py").write_text(
        TASK.replace("    return model", "    import os\n    if seed == 1: os._exit(7)\n    return model")
    )
    code, out, err = momo(*GRID, "--seeds", "3", "--jobs", "2", "--together", "4", "--json", "-")
    assert code == 2 or code == 0, err
    runs = json.loads(out)["runs"]
    assert {(r["seed"], r["status"]) for r in runs} == {(0, "ok"), (1, "failed"), (2, "ok")}
    assert "worker process died" in err and "exit code 7" in err


LOADING = """
import multiprocessing, os, torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __init__(self, parent):
        self.parent = parent
    def __len__(self):
        return 48
    def __getitem__(self, i):
        assert os.getpid() != self.parent, "not in a loader's worker"
        assert METHOD == "spawn" or multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0]
        return torch.tensor([i / 48.0]), torch.tensor([1.0])

def build(seed):
    how = dict(shuffle=True, num_workers=2, multiprocessing_context=CONTEXT)
    train = DataLoader(Numbers(os.getpid()), batch_size=16, **how)
    loss = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    return torch.nn.Linear(1, 1), loss, train
"""


@pytest.mark.parametrize("method", [None, "spawn"])
def test_the_users_loader_starts_its_workers_as_anywhere(momo, folder, method):
    """As in a fresh interpreter, or as the user says; the ``Dataset`` stands in the task's own file."""
    (folder / "my-loading.py").write_text(LOADING.replace("CONTEXT", repr(method)).replace("METHOD", repr(method)))
    grid = ("sweep", "my-loading.py", "--lrs", "0.01,0.1", "-o", "sgd", "--steps", "4", "--together", "off")
    runs, _ = runs_of(momo, *grid, "--jobs", "2")
    assert [run["status"] for run in runs] == ["ok", "ok"]
    here, _ = runs_of(momo, *grid, "--jobs", "1", "--fresh")
    assert [run["objective"] for run in here] == [run["objective"] for run in runs]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_all_workers_and_stores_what_finished(momo_process, momo, folder):
    (folder / "mymodule.py").write_text(
        TASK + "\nimport time\n_build = build\ndef build(seed):\n    time.sleep(0.3)\n    return _build(seed)\n"
    )
    process = momo_process(
        "sweep", "mymodule", "--lrs", "1e-3:1:40", "--together", "off", "--jobs", "2", start_new_session=True
    )
    wait_for_trials(3)
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert len(workers) >= 2 and not left_running(workers)
    stored = int(re.search(r"(\d+) of 80 runs are stored", err)[1])
    assert 0 < stored < 80
    _, out, _ = momo("list")
    assert re.search(rf"mymodule:build +{stored} ", out)


@pytest.fixture
def temporary():
    """A folder with a short name: those of sockets in it are limited."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


PRINTING = """\
    print(f"{os.getppid()} in {os.getcwd()}, compiler: {'torch._dynamo' in sys.modules}")
    return model"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each worker is a new process")
def test_workers_are_copies_and_go_on_without_their_original(momo_process, folder, temporary):
    """They find what a new process would, the original's end costs no run, and nothing of it is left."""
    (folder / "mymodule.py").write_text(
        TASK.replace("    return model", PRINTING).replace("import torch", "import os, sys, time, torch")
        + "\n_build = build\ndef build(seed):\n    time.sleep(0.2)\n    return _build(seed)\n"
    )
    process = momo_process(
        *("sweep", "mymodule", "--lrs", "1e-3:0.1:40", "--together", "off", "--jobs", "2", "--json", "-"),
        env={"TMPDIR": str(temporary)},
    )
    wait_for_trials(3)
    (original,) = (pid for pid in children(process.pid) if children(pid))
    assert "momo_cli.training.dispatch.preloaded" in Path(f"/proc/{original}/cmdline").read_text()
    workers = children(original)
    os.kill(original, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert {run["status"] for run in json.loads(out)["runs"]} == {"ok"}
    assert f"{original} in {folder}, compiler: True" in err.splitlines()
    assert not left_running(workers) and not list(temporary.glob("pymp*"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each worker is a new process")
def test_copies_that_train_stacks_do_without_torchs_compiler(momo_process, folder):
    """It takes seconds to load, and only the optimizers that runs alone make need it."""
    (folder / "mymodule.py").write_text(
        TASK.replace("    return model", PRINTING).replace("import torch", "import os, sys, torch")
    )
    grid = ("--lrs", "1e-3:0.1:8", "--together", "4", "--jobs", "2")
    process = momo_process("sweep", "mymodule", *grid, "--json", "-")
    _, err = process.communicate(timeout=120)
    builds = [line for line in err.splitlines() if ", compiler: " in line]
    assert process.returncode == 0 and len(builds) >= 3, err
    assert all(line.endswith("compiler: False") for line in builds), err
