"""User code that changes the process: the runs of one seed do, in each way there is, and all others come out as ever."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
import torch  # noqa: F401  # forks have it then
from support import left_running, wait_for_trials

TASK = """
import os, signal, sys, torch

KEPT, WAYS = [], {WAYS}

def build(seed, bad=-1, place="build"):
    generator = torch.Generator().manual_seed(1)
    x = 0.3 * torch.randn(96, 4, generator=generator)
    y = x.sum(1, keepdim=True).sin() + 1
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    calls = [0]

    def act(at):
        calls[0] += 1
        if at == place and seed % 2 and (at == "build" or calls[0] > 24):
            exec(WAYS[bad if bad >= 0 else seed // 2 % len(WAYS)], globals())

    def loss(model, batch):
        act("loss")
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    class Data:
        def __len__(self):
            return 6
        def __iter__(self):
            for i in torch.randperm(6).tolist():
                act("data")
                yield x[16 * i : 16 * i + 16], y[16 * i : 16 * i + 16]

    act("build")
    return model, loss, Data()
"""

WAYS = {
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "default device": "torch.set_default_device('meta')",
    "grad mode": "torch.set_grad_enabled(False)",
    "threads": "torch.set_num_threads(3)",
    "determinism": "torch.use_deterministic_algorithms(True); torch.backends.cudnn.benchmark = True",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "denormals": "torch.set_flush_denormal(True)",
    "seeds": "import random, numpy; random.seed(0); numpy.random.seed(0); torch.manual_seed(0)",
    "folder": "os.chdir('/')",
    "environment": "os.environ.clear(); os.environ.update(CUDA_VISIBLE_DEVICES='9', OMP_NUM_THREADS='7')",
    "signals": "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]",
    "logging": "import logging; logging.basicConfig(level=1); logging.disable(50)",
    "warnings": "import warnings; warnings.simplefilter('error')",
    "streams": "import io; sys.stdout = sys.stderr = io.StringIO()",
    "no streams": "sys.stdout = sys.stderr = None",
    "closed streams": "sys.stdout.close(); sys.stderr.close()",
    "printing": "print('printed'); os.system('echo printed'); os.write(1, b'printed')",
    "sys.path": "sys.path.clear(); sys.excepthook = None; sys.setrecursionlimit(300)",
    "atexit": "import atexit, time; atexit.register(time.sleep, 1000)",
    "a thread": "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()",
    "a process": "import subprocess; KEPT.append(subprocess.Popen(['sleep', '1000']))",
    "memory": "KEPT.append(torch.zeros(10_000_000))",
    "an error": "raise ValueError('mine')",
    "an exit": "sys.exit(3)",
    "an error of its own kind": "class Own(BaseException): pass\nraise Own('mine')",
}
FAILING = {"an error", "an exit", "an error of its own kind"}


@pytest.fixture
def sweep(folder, momo_process):
    """``momo sweep`` as a process of its own; returns its runs by optimizer, rate and seed."""
    (folder / "bad.py").write_text(TASK.replace("{WAYS}", repr(list(WAYS.values()))))

    def command(*arguments):
        # No fork of this process, whose threads (torch's for backward passes, say) a fork would wait for and not have.
        out, err = folder / "out", folder / "err"
        words = ["sweep", "bad.py", "--steps", "12", "--fresh", "--json", "-", *arguments]
        with out.open("w") as stdout, err.open("w") as stderr:
            process = momo_process(*words, start_new_session=True, stdout=stdout, stderr=stderr)
            code = process.wait(timeout=200)
        said, wrong = out.read_text(), err.read_text()
        assert code == 0, wrong[-2000:]
        listed = subprocess.run(
            ["ps", "-o", "pid=", "-g", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        assert not left_running(map(int, listed))
        assert "momo_cli" not in wrong
        assert "printed" not in said
        return {(run["optimizer"], run["lr"], run["seed"]): run for run in json.loads(said)["runs"]}

    return command


def numbers_of(runs):
    """Of the even seeds, which behave."""
    names = ("status", "objective", "initial", "train_loss", "steps")
    return {key: [run[name] for name in names] for key, run in runs.items() if key[2] % 2 == 0}


@pytest.mark.parametrize(
    "jobs, place", [("1", "build"), ("1", "loss"), ("1", "data"), ("2", "build")], ids=lambda value: value
)
def test_every_way_in_one_sweep_leaves_the_others_as_they_are_to_the_bit(sweep, jobs, place):
    """Seed 2i + 1 behaves in the i-th way; the even ones behave."""
    grid = ("--together", "off", "--jobs", jobs, "--lrs", "1", "-o", "momo", "--seeds", str(2 * len(WAYS)))
    runs = sweep(*grid, "--set", f"place={place}")
    assert numbers_of(runs) == numbers_of(sweep(*grid, "--set", "place=nowhere"))
    for i, way in enumerate(WAYS):
        if way in FAILING:
            assert runs["momo", 1.0, 2 * i + 1]["status"] == "failed", way


@pytest.mark.parametrize(
    "way, place",
    [
        ("default dtype", "build"),
        ("grad mode", "data"),
        ("autocast", "loss"),
        ("streams", "loss"),
        ("an error of its own kind", "data"),
        ("a process", "build"),
    ],
)
def test_in_a_stack_they_are_the_same_to_rounding(sweep, way, place):
    how = ("--together", "12", "--jobs", "1", "--seeds", "3", "--lrs", "0.1,1", "-o", "momo,sgd-m")
    clean = numbers_of(sweep(*how, "--set", "place=nowhere"))
    runs = numbers_of(sweep(*how, "--set", f"bad={list(WAYS).index(way)}", "--set", f"place={place}"))
    for key, (status, *values) in clean.items():
        assert runs[key][0] == status and runs[key][1:] == pytest.approx(values, rel=1e-4), key


def test_ctrl_c_still_works_where_user_code_ignores_it(momo_process, folder):
    (folder / "bad.py").write_text(
        TASK.replace("{WAYS}", repr([WAYS["signals"]])).replace("return torch.nn", "time.sleep(0.05); return torch.nn")
        .replace("import os,", "import time, os,")
    )  # fmt: skip
    arguments = ("--lrs", "1e-3:1:9", "-o", "momo", "--seeds", "2", "--steps", "12", "--set", "bad=0")
    process = momo_process("sweep", "bad.py", *arguments, "--together", "off", "--jobs", "1")
    wait_for_trials(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in err and "Traceback" not in err
