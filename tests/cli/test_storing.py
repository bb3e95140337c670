"""Runs on their way to the store, in a process of their own: nothing finished is lost, whoever dies."""

from __future__ import annotations

import signal
import time

import pytest

from momo_cli.errors import UserError
from momo_cli.runs import Run
from momo_cli.store import Store, study_key
from support import TASK, alive, children, wait_for_trials

KEY = study_key("task", "digest", {}, {"maximize": False})


def runs_of(count):
    return [Run("momo", 0.1 * (i + 1), status="ok", objective=1.0 / (i + 1), initial=2.0, steps=40,
                curve=[[step, 1.0 / step] for step in range(2, 42, 2)]) for i in range(count)]  # fmt: skip


def test_what_the_process_writes_is_what_a_writer_here_writes(folder):
    stored = []
    for url, elsewhere in (("sqlite:///here.db", False), ("sqlite:///there.db", True)):
        with Store(url).open(KEY) as runs:
            if elsewhere:
                runs.write_elsewhere()
            runs.start(["momo"], "val_loss")
            for run in runs_of(5):
                runs.add(run)
        reread = Store(url).open(KEY)
        assert reread.objective == "val_loss"
        stored.append(reread.runs())
    assert stored[0] == stored[1] == runs_of(5)


def test_a_writing_process_that_dies_loses_nothing(folder):
    with Store().open(KEY) as runs:
        runs.write_elsewhere()
        runs.start(["momo"], "val_loss")
        for i, run in enumerate(runs_of(30)):
            runs.add(run)
            if i == 10:
                runs._writer._process.kill()
    assert {run.lr for run in Store().open(KEY).runs()} == {run.lr for run in runs_of(30)}


def test_what_the_storage_refuses_is_said_before_anything_is_trained(folder, momo_process):
    (folder / "broken.db").write_text("no database")
    process = momo_process("sweep", "mymodule", "--lrs", "0.1", "--storage", "broken.db")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "--storage sqlite:///broken.db can't be used" in err and len(err.splitlines()) <= 3

    (folder / "read").mkdir()
    with Store("sqlite:///read/only.db").open(KEY) as runs, pytest.raises(UserError, match="can't be used"):
        runs.write_elsewhere()
        (folder / "read").rmdir()
        runs.start(["momo"], "val_loss")


def test_killed_in_the_middle_it_leaves_no_process_and_keeps_what_was_stored(folder, momo, momo_process):
    (folder / "mymodule.py").write_text(TASK + "\nimport time\n_build = build\ndef build(seed):\n    time.sleep(0.3)\n    return _build(seed)\n")
    process = momo_process("sweep", "mymodule", "--lrs", "1e-3:1:40", "--together", "off", "--jobs", "1")
    wait_for_trials(3)
    others = children(process.pid)
    assert others
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    deadline = time.time() + 5
    while any(map(alive, others)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, others))
    code, out, _ = momo("list")
    assert code == 0 and int(out.split("mymodule:build")[1].split()[0]) >= 3
