"""Runs on their way to the store, in a process of their own: nothing finished is lost, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sqlite3
import threading
import time

import pytest
from support import TASK, children, left_running, wait_for_trials

from momo_cli.errors import UserError
from momo_cli.runs import Run
from momo_cli.store import Store, study_key

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
        assert [info.objective for info in Store(url).studies()] == ["val_loss"]
        stored.append(reread.runs())
    assert stored[0] == stored[1] == runs_of(5)


def test_a_writing_process_that_dies_loses_nothing(folder):
    with Store().open(KEY) as runs:
        runs.write_elsewhere()
        runs.start(["momo"], "val_loss")
        for i, run in enumerate(runs_of(30)):
            runs.add(run)
            if i == 10:
                multiprocessing.active_children()[0].kill()
    assert {run.lr for run in Store().open(KEY).runs()} == {run.lr for run in runs_of(30)}


def test_what_the_storage_refuses_is_said_before_anything_is_trained(folder, momo_process):
    (folder / "broken.db").write_text("no database")
    process = momo_process("sweep", "mymodule", "--lrs", "0.1", "--storage", "broken.db")
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 2 and "--storage sqlite:///broken.db can't be used" in err and len(err.splitlines()) <= 3
    )

    (folder / "read").mkdir()
    with Store("sqlite:///read/only.db").open(KEY) as runs, pytest.raises(UserError, match="can't be used"):
        runs.write_elsewhere()
        (folder / "read").rmdir()
        runs.start(["momo"], "val_loss")


def test_killed_in_the_middle_it_leaves_no_process_and_keeps_what_was_stored(folder, momo, momo_process):
    (folder / "mymodule.py").write_text(
        TASK + "\nimport time\n_build = build\ndef build(seed):\n    time.sleep(0.3)\n    return _build(seed)\n"
    )
    process = momo_process("sweep", "mymodule", "--lrs", "1e-3:1:40", "--together", "off", "--jobs", "1")
    wait_for_trials(3)
    others = children(process.pid)
    assert others
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert not left_running(others, seconds=5)
    code, out, _ = momo("list")
    assert code == 0 and int(out.split("mymodule:build")[1].split()[0]) >= 3


def test_ctrl_c_while_the_last_runs_are_stored_waits_for_them(folder):
    def interrupt_and_unlock():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        other.rollback()

    with pytest.raises(KeyboardInterrupt), Store().open(KEY) as runs:
        lines: list[str] = []
        runs.say = lines.append
        runs.start(["momo"], "val_loss")
        # Locked until Ctrl-C has come, so that there is something to wait for however fast runs are stored.
        other = sqlite3.connect("momo.db", check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        for run in runs_of(60):
            runs.add(run)
        threading.Timer(0.2, interrupt_and_unlock).start()
    assert runs.waiting == 0 and len(Store().open(KEY).runs()) == 60
    assert len(lines) == 1 and re.match(r"Storing \d+ finished runs; Ctrl-C again", lines[0])


def test_two_commands_make_one_database_at_once(folder, momo, momo_process):
    both = [momo_process("sweep", "mymodule", "--lrs", lrs, "-q") for lrs in ("0.01,0.1", "1,10")]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    code, out, _ = momo("list")
    assert code == 0 and re.search("mymodule:build +8 ", out)


def test_a_locked_database_is_called_locked(folder, momo):
    assert momo("sweep", "mymodule", "--lrs", "0.1")[0] == 0
    with sqlite3.connect("momo.db") as other:
        other.execute("BEGIN IMMEDIATE")
        code, _, err = momo("sweep", "mymodule", "--lrs", "0.2", "--storage", "sqlite:///momo.db?timeout=0.1")
        other.rollback()
    assert code == 2 and "database is locked" in err and len(err.strip().splitlines()) <= 3


def test_a_task_may_change_the_folder(folder, momo):
    (folder / "elsewhere").mkdir()
    (folder / "mymodule.py").write_text(
        TASK.replace(
            "    data =", "    import os; os.chdir('elsewhere') if os.path.isdir('elsewhere') else None\n    data ="
        )
    )
    code, _, err = momo("sweep", str(folder / "mymodule.py"), "--lrs", "0.1,1", "--json", "out.json")
    assert code == 0, err
    os.chdir(folder)
    assert (
        (folder / "out.json").exists() and (folder / "momo.db").exists() and not any((folder / "elsewhere").iterdir())
    )
