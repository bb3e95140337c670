"""What tests of the command share."""

from __future__ import annotations

import os
import subprocess
import sys

import hypothesis
import pytest
import torch
from support import ROOT, TASK, a_report

from momo_cli.__main__ import run

# Two threads that wait for each other at every small operation are many times slower than one on a busy machine.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", max_examples=1000, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    """Property tests try the same examples every time, unless exploring is what is asked for: ``-m explore``."""
    hypothesis.settings.load_profile("explore" if config.option.markexpr == "explore" else "fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the property tests."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("explore")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a small task in ``mymodule.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOMO_STORAGE", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [n for n in sys.modules if n == "mymodule" or n.startswith("momo_cli.task.files.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "mymodule.py").write_text(TASK)
    return tmp_path


@pytest.fixture
def momo(folder, capsys):
    """Runs the command line in this process: ``momo("sweep", …) -> (exit code, stdout, stderr)``."""

    def command(*arguments: str) -> tuple[int, str, str]:
        for name in [n for n in sys.modules if n == "mymodule" or n.startswith("momo_cli.task.files.")]:
            del sys.modules[name]
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def momo_process(folder):
    """Starts the command line, or what else ``interpreter`` says, as a process of its own, in the folder."""

    def start(*arguments: str, interpreter: tuple[str, ...] = ("-m", "momo_cli"), **options) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        return subprocess.Popen(
            [sys.executable, *interpreter, *map(str, arguments)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env, **options},
        )

    return start


@pytest.fixture
def make_report():
    """Makes reports of made-up sweeps."""
    return a_report
