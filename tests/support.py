"""Where the checkout is, a small task, and reports of made-up sweeps, for the tests of the command."""

import math
import random
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import optuna

from momo_cli import figures
from momo_cli.plan.optimizers import is_momo
from momo_cli.report import Report
from momo_cli.runs import Run

ROOT = Path(__file__).resolve().parent.parent


def only_torch_passes(patch) -> None:
    """Let optimizers made from now on use torch's operations, as where the compiled passes were not built."""
    patch.setattr("momo.passes.compiled.why_not", lambda device, dtype: "a test asked for torch's operations")


TASK = """
import torch

def build(seed, width=8, samples=96):
    data = torch.Generator().manual_seed(1)
    x = 0.3 * torch.randn(samples, 4, generator=data)
    y = x.sum(1, keepdim=True).sin() + 1
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)
    loss = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    return model, loss, train
"""


def wait_for_trials(count: int, seconds: float = 90, url: str = "sqlite:///momo.db") -> None:
    """Wait until the storage holds ``count`` runs that ended, while another process writes it."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            if not url.startswith("sqlite") or Path(url.removeprefix("sqlite:///")).exists():
                storage = optuna.storages.RDBStorage(url)
                studies = [
                    optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)
                ]
                if sum("status" in trial.user_attrs for study in studies for trial in study.trials) >= count:
                    return
        except Exception:  # its tables are being made
            pass
        time.sleep(0.2)
    raise TimeoutError(f"no {count} trials within {seconds} s")


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started, and those that these have."""
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    own = [int(word) for word in out.split()]
    return own + [grandchild for child in own for grandchild in children(child)]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has asked for yet (Z) doesn't."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def left_running(pids: Iterable[int], seconds: float = 3.0) -> list[int]:
    """Those that still run after ``seconds``: on a busy machine a process that is killed takes its time to end."""
    end = time.monotonic() + seconds
    running = [pid for pid in pids if alive(pid)]
    while running and time.monotonic() < end:
        time.sleep(0.05)
        running = [pid for pid in running if alive(pid)]
    return running


DEFAULTS = {"momo": 1.0, "momo-adam": 1e-2, "sgd-m": 1.0, "adam": 1e-3}


def a_report(
    optimizers=("momo", "sgd-m"), lrs=9, seeds=3, task="digits-mlp", command="momo sweep digits-mlp", failing=False
) -> Report:
    """Momo's methods good over three decades, the others over one; the others diverge at large learning rates."""
    rng, runs = random.Random(1), []
    defaults = {name: DEFAULTS.get(name.split("(")[0], 1e-3) for name in optimizers}
    for name in optimizers:
        momo = is_momo(name)
        for i in range(lrs):
            x = (i - (lrs - 1) / 2) / 2
            lr = float(f"{defaults[name] * 10**x:.6g}")
            for seed in range(seeds):
                start = 2.3 + 0.02 * seed
                value = 0.09 + 0.7 * max(0, abs(x - 0.2) - (1.5 if momo else 0.6)) ** 2 + 0.01 * rng.random()
                run = Run(name, lr, seed, "ok", value, start, value, value, {"accuracy": 0.9}, steps=200, seconds=1.0)
                run.curve = [[t, value + (start - value) * math.exp(-t / 40)] for t in range(10, 201, 10)]
                if momo:
                    run.capped = 0.4
                    sizes = [(t, 0.3 + 0.2 * math.sin(t)) for t in range(0, 200, 2)]
                    run.step_sizes = [[t, min(lr, size), lr, size] for t, size in sizes]
                if x > 1.2 and not momo and rng.random() < 0.8:
                    run.status, run.objective, run.train_loss, run.val_loss = "diverged", None, None, None
                if failing and i == 2 and seed == 0:
                    run.status, run.objective, run.error = "failed", None, "Traceback\nValueError: bad shape"
                runs.append(run)
    return Report(
        task,
        "a-key",
        "val_loss",
        runs,
        figures.analyze(runs),
        None,
        {"epochs": 5},
        ["A note."],
        command,
        defaults,
    )
