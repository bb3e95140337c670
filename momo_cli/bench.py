"""The time of a whole grid of runs, five ways: ``python -m momo_cli.bench``.

(a) the script that a user would write with Optuna's ``GridSampler`` and a plain loop; (b) ``momo sweep``, one run after
another in one process; (c) together in one process; (d) together, in a process for each core or GPU; (e) as ``momo``
itself chooses. Each is a whole command, from starting Python to the last run in a SQLite file; they take turns, round
by round, and the ratio is to (a) of the same round. The memory is that of the largest single process.

``--stack`` prints instead how long a step of K runs in one stack takes, for K = 1 to 256, against a run trained alone.
``--scripts`` times 18 short runs of four kinds of task instead, against a plain script (``bench_scripts.py``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from momo_cli.bench_scripts import scripts_table

RIVAL = """
import sys
import optuna
import torch
from momo import Momo
from momo_cli.task import find_task

task_name, steps, seeds = sys.argv[1], int(sys.argv[2]), int(sys.argv[4])
lrs = [float(v) for v in sys.argv[3].split(",")]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def objective(trial):
    name = trial.suggest_categorical("optimizer", ["momo", "sgd-m"])
    lr = trial.suggest_float("lr", min(lrs), max(lrs))
    seed = trial.suggest_int("seed", 0, seeds - 1)
    task = find_task(task_name).build(seed, "cpu")
    model, parameters = task.model, task.model.parameters()
    make = {"momo": Momo, "sgd-m": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9)}[name]
    optimizer = make(parameters, lr=lr)
    step = 0
    while step < steps:
        for batch in task.train:
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            optimizer.step(loss=loss) if name == "momo" else optimizer.step()
            step += 1
            if step == steps:
                break
    model.eval()
    with torch.no_grad():
        losses = [(len(batch[0]), task.loss(model, batch).item()) for batch in task.val]
    value = sum(n * v for n, v in losses) / sum(n for n, _ in losses)
    return value if value == value else float("inf")


space = {"optimizer": ["momo", "sgd-m"], "lr": lrs, "seed": list(range(seeds))}
study = optuna.create_study(storage="sqlite:///rival.db", sampler=optuna.samplers.GridSampler(space))
study.optimize(objective, n_trials=2 * len(lrs) * seeds)
print(study.best_value)
"""


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak memory (MiB, the largest single process) of a command that must succeed."""
    start = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'output.txt').read_text()[-2000:]}")
    return seconds, usage.ru_maxrss / 1024


def stack_table(task_name: str, device_name: str) -> None:
    """Time of a step of K runs together, over the time of a step of one run alone, for each K."""
    import torch

    from momo_cli.plan import RunSpec, Settings, parse_optimizers
    from momo_cli.task import find_task
    from momo_cli.training import cpu
    from momo_cli.training.dispatch.timing import StepTimes

    device = torch.device(device_name)
    cpu.prepare(device)
    task = find_task(task_name).build(0, device)
    momo, sgd = parse_optimizers(["momo,sgd-m"])
    times = StepTimes(task, [RunSpec(momo, 1e-9, 0), RunSpec(sgd, 1e-9, 0)] * 128, Settings(), device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device_name
    print(f"{task_name}, momo and sgd-m, on {where}: a step of one run alone takes {1e3 * times.alone:.3g} ms")
    print(f"{'K':>5}{'ms a step':>12}{'over one alone':>16}{'runs gained':>13}")
    for k in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        try:
            seconds = k * (times.stack(k) or 0.0)
        except torch.OutOfMemoryError:
            print(f"{k:5}   out of memory")
            break
        print(f"{k:5}{1e3 * seconds:12.3g}{seconds / times.alone:15.2f}×{k * times.alone / seconds:12.1f}×")


def processes(device: str) -> int:
    """As many as there are cores, or devices."""
    from momo_cli.training import cpu
    from momo_cli.training.devices import parse_devices

    return cpu.cores() if device == "cpu" else len(parse_devices(device))


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m momo_cli.bench", description=__doc__)
    parser.add_argument("--task", default="digits-mlp")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lrs", default="1e-3:1e1:16", help="learning rates, as for momo sweep")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stack", action="store_true", help="time stacks of K runs")
    parser.add_argument("--scripts", nargs="*", metavar="NAME", help="time short runs of these tasks, or of all four")
    parser.add_argument("--commands", action="store_true", help="time momo's own cost of a run that is a command")
    given, options = parser.parse_known_args()
    if given.commands:
        from momo_cli.bench_commands import commands_table

        commands_table(given.rounds)
        return
    if given.scripts is not None:
        scripts_table(timed, given.rounds, given.scripts, options)
        return
    if options:
        parser.error(f"unknown: {' '.join(options)}")
    if given.stack:
        stack_table(given.task, given.device)
        return

    from momo_cli.plan.learning_rates import parse_values

    lrs = parse_values(given.lrs)
    sweep = [sys.executable, "-m", "momo_cli", "sweep", given.task, "--lrs", given.lrs, "--seeds", str(given.seeds),
             "--steps", str(given.steps), "--device", given.device]  # fmt: skip
    ways = {
        "(a) Optuna script": [
            sys.executable,
            "rival.py",
            given.task,
            str(given.steps),
            ",".join(map(str, lrs)),
            str(given.seeds),
        ],
        "(b) momo, separately": [*sweep, "--together", "off", "--jobs", "1"],
        "(c) momo, together": [*sweep, "--jobs", "1"],
        "(d) momo, in processes": [*sweep, "--jobs", str(processes(given.device))],
        "(e) momo, as it chooses": sweep,
    }
    if given.device != "cpu":
        del ways["(a) Optuna script"]
    print(f"{given.task}: 2 optimizers × {len(lrs)} LRs × {given.seeds} seeds, {given.steps} steps, on {given.device}")
    measured: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way, command in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "rival.py").write_text(RIVAL)
                measured[way].append(timed(command, Path(folder)))
    base = next(iter(ways))
    print(f"{'':26}{'seconds':>9}{'faster than ' + base[:3]:>20}{'peak MiB':>10}")
    for way, found in measured.items():
        seconds = statistics.median(s for s, _ in found)
        ratio = statistics.median(b / s for (b, _), (s, _) in zip(measured[base], found))
        memory = max(m for _, m in found)
        print(f"{way:26}{seconds:9.2f}{ratio:19.2f}×{memory:10.0f}")


if __name__ == "__main__":
    main()
