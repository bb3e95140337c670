"""Where the checkout is, and a small task, for the tests of the command."""

import subprocess
import time
from pathlib import Path

import optuna

ROOT = Path(__file__).resolve().parent.parent

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


def wait_for_trials(count: int, seconds: float = 90) -> None:
    """Wait until ``momo.db`` in the current folder holds ``count`` runs that ended, while another process writes it."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            if Path("momo.db").exists():
                storage = optuna.storages.RDBStorage("sqlite:///momo.db")
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
    """The processes that ``pid`` has started."""
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in out.split()]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has asked for yet (Z) doesn't."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
