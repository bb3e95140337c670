"""momo's own cost of a run that is a command: ``python -m momo_cli.bench --commands``, on a script that does nothing.

The rival is a plain loop over the same commands, one after another. They take turns; a run's cost is the time that one
run more takes momo, less what it takes the loop, so that the time in which a command starts is told apart.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = """
import sys
print('{"step": 0, "loss": 1.0}')
print('{"val_loss": %s}' % sys.argv[1])
"""
_FEW, _MANY = 10, 60


def loop(lrs: list[float], folder: Path) -> float:
    """Seconds of the plain loop."""
    begin = time.perf_counter()
    for lr in lrs:
        subprocess.run([sys.executable, "train.py", repr(lr)], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def momo(lrs: list[float], folder: Path) -> float:
    """Seconds of ``momo sweep``, from starting Python to its table."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "momo_cli", "sweep", "-q", "--lrs", ",".join(map(repr, lrs))]
    script = ["--", sys.executable, "train.py", "{lr}"]
    subprocess.run([*command, *script], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def commands_table(rounds: int) -> None:
    """Print the time of the plain loop and of momo, and what a run more takes each."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for count in (_FEW, _MANY):
            lrs = [10 ** (-6 + 6 * i / count) for i in range(count)]
            for name, way in (("plain loop", loop), ("momo sweep", momo)):
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / "train.py").write_text(SCRIPT)
                    seconds.setdefault((name, count), []).append(way(lrs, Path(folder)))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    print(f"A script that does nothing, one run after another; median of {rounds} rounds")
    print(f"{'':14}{f'{_FEW} runs':>10}{f'{_MANY} runs':>10}{'a run more':>13}{'ratio':>8}")
    base = (medians["plain loop", _MANY] - medians["plain loop", _FEW]) / (_MANY - _FEW)
    for name in ("plain loop", "momo sweep"):
        few, many = medians[name, _FEW], medians[name, _MANY]
        each = (many - few) / (_MANY - _FEW)
        print(f"{name:14}{few:8.2f} s{many:8.2f} s{1e3 * each:10.1f} ms{each / base:8.2f}")
