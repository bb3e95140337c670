"""``momo sweep`` as users type it: the table, the files, what is stored and reused, and what an error says."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys

import optuna
import pytest
from support import wait_for_trials

GRID = ("sweep", "mymodule:build", "--lrs", "0.01,0.1,1")


def document(momo, *arguments):
    code, out, err = momo(*arguments, "--json", "-")
    assert code == 0, err
    return json.loads(out), err


def test_a_users_module_with_exactly_that_spelling(momo):
    code, out, err = momo(*GRID)
    assert code == 0 and "Traceback" not in err
    assert re.search(r"momo +\d\.\d+", out) and re.search(r"sgd-m +\d\.\d+", out)


def test_json_holds_what_was_run_and_repeats_to_the_last_bit(momo):
    first, _ = document(momo, *GRID, "--seeds", "2")
    assert first["schema"] == "momo/1" and first["objective"] == {"name": "train_loss", "direction": "minimize"}
    assert {(r["optimizer"], r["lr"], r["seed"]) for r in first["runs"]} == {
        (o, lr, s) for o in ("momo", "sgd-m") for lr in (0.01, 0.1, 1.0) for s in (0, 1)
    }
    again, _ = document(momo, *GRID, "--seeds", "2", "--fresh")
    without_time = [[{k: v for k, v in r.items() if k != "seconds"} for r in d["runs"]] for d in (first, again)]
    assert without_time[0] == without_time[1]
    assert not {r["seconds"] for r in first["runs"]} & {r["seconds"] for r in again["runs"]}  # trained, not read
    by_seed = {r["seed"]: r["initial"] for r in first["runs"]}
    assert by_seed[0] != by_seed[1] and all(r["initial"] == by_seed[r["seed"]] for r in first["runs"])


def test_csv_and_markdown(momo, folder):
    code, _, _ = momo(*GRID, "--csv", "runs.csv", "--markdown", "table.md")
    assert code == 0
    rows = list(csv.DictReader((folder / "runs.csv").open()))
    assert len(rows) == 6 and {"optimizer", "lr", "seed", "status", "objective"} <= set(rows[0])
    assert "| momo" in (folder / "table.md").read_text()


def test_stored_runs_are_reused_and_missing_ones_trained(momo):
    momo(*GRID)
    _, out, _ = momo(*GRID)
    assert "6 of 6 runs were stored" in out
    _, out, _ = momo("sweep", "mymodule", "--lrs", "0.01,0.1,1,10")
    assert "6 of 8 runs were stored" in out
    _, out, _ = momo(*GRID, "--steps", "3")
    assert "were stored" not in out
    _, out, _ = momo(*GRID, "--set", "width=9")
    assert "were stored" not in out


def test_a_changed_source_file_starts_afresh_and_says_so(momo, folder):
    momo(*GRID)
    file = folder / "mymodule.py"
    file.write_text(file.read_text().replace("width=8", "width=16"))
    code, out, err = momo(*GRID)
    assert code == 0 and "mymodule.py has changed" in err and "were stored" not in out


def test_comments_docstrings_and_formatting_cost_nothing(momo, folder):
    momo(*GRID)
    file = folder / "mymodule.py"
    changed = file.read_text().replace(
        "def build(seed, width=8, samples=96):", "def build(seed, width = 8, samples=96):  # new\n    '''A task.'''"
    )
    file.write_text("# a comment\n" + changed)
    assert "6 of 6 runs were stored" in momo(*GRID)[1]


def test_a_changed_file_that_the_task_imports_counts_too(momo, folder):
    (folder / "lib").mkdir()
    (folder / "lib" / "__init__.py").write_text("")
    (folder / "lib" / "scale.py").write_text("SCALE = 1.0\n")
    file = folder / "mymodule.py"
    file.write_text("from lib.scale import SCALE\n" + file.read_text())
    momo(*GRID)
    assert "6 of 6 runs were stored" in momo(*GRID)[1]
    (folder / "lib" / "scale.py").write_text("SCALE = 2.0\n")
    assert "were stored" not in momo(*GRID)[1]


def test_a_loss_below_momos_bound_is_told(momo, folder):
    file = folder / "mymodule.py"
    file.write_text(file.read_text().replace("batch[1])\n", "batch[1]) - 5\n"))
    out = momo(*GRID)[1]
    assert "went below 0" in out and "momo(lb=" in out
    assert "went below 0" not in momo(*GRID, "-o", "momo(lb=-5),sgd-m")[1]


def test_smaller_accuracies_are_questioned(momo, folder):
    file = folder / "mymodule.py"
    file.write_text(
        file.read_text().replace(
            "return model, loss, train",
            "return {'model': model, 'loss': loss, 'train': train, 'val': train, "
            "'metrics': lambda m, b: {'accuracy': m(b[0]).mean()}}",
        )
    )
    assert "add --maximize" in momo(*GRID, "--objective", "accuracy")[1]
    assert "add --maximize" not in momo(*GRID, "--objective", "accuracy", "--maximize")[1]
    code, _, err = momo(*GRID, "--objective", "acuracy", "--storage", "other.db")
    assert code == 2 and "accuracy" in err and not (folder / "other.db").exists()


def test_optuna_reads_the_store(momo):
    result, _ = document(momo, *GRID)
    study = optuna.load_study(study_name=result["study"], storage="sqlite:///momo.db")
    assert len(study.trials) == 6
    best = min((r for r in result["runs"] if r["status"] == "ok"), key=lambda r: r["objective"])
    assert study.best_params == {"optimizer": best["optimizer"], "lr": best["lr"], "seed": 0}
    assert study.best_value == best["objective"]
    assert all(5 <= len(t.intermediate_values) <= 20 for t in study.trials if t.user_attrs["status"] == "ok")


def test_data_without_a_length_or_without_a_batch(momo, folder):
    (folder / "stream.py").write_text(
        "import torch\n"
        "class Stream(torch.utils.data.IterableDataset):\n"
        "    def __iter__(self): return iter(torch.ones(8, 2).split(2))\n"
        "class Nothing:\n"
        "    def __iter__(self): return iter(())\n"
        "def build(seed, empty=False):\n"
        "    train = Nothing() if empty else torch.utils.data.DataLoader(Stream(), batch_size=None)\n"
        "    return torch.nn.Linear(2, 1), lambda model, batch: model(batch).square().mean(), train\n"
    )
    result, _ = document(momo, "sweep", "stream.py", "--lrs", "0.01,0.1", "-o", "momo")
    assert [run["steps"] for run in result["runs"]] == [4, 4]
    code, _, err = momo("sweep", "stream.py", "--set", "empty=True", "--lrs", "0.01,0.1", "-o", "momo")
    assert code == 2 and "train gave no batch" in err and len(err.strip().splitlines()) <= 3


def test_optimizers_that_come_later_join_the_stored_ones(momo):
    momo(*GRID)
    arguments = ("sweep", "mymodule", "--lrs", "0.01,0.1,1", "-o", "momo,adamw(weight_decay=0.5),sgd(momentum=0.3)")
    first, _ = document(momo, *arguments)
    again, err = document(momo, *arguments)
    assert first == again and len(first["runs"]) == 9
    assert "9 of 9 runs were stored" in err


def test_a_named_study_refuses_other_settings(momo):
    assert momo(*GRID, "--study", "mine")[0] == 0
    assert "6 of 6" in momo(*GRID, "--study", "mine")[1]
    code, _, err = momo(*GRID, "--study", "mine", "--steps", "3")
    assert code == 2 and "steps None, not 3" in err


def test_a_user_error_fails_its_runs_alone(momo, folder):
    file = folder / "mymodule.py"
    file.write_text(
        file.read_text().replace(
            "    return model", "    if seed == 1: raise KeyError('no such file')\n    return model"
        )
    )
    code, out, err = momo(*GRID, "--seeds", "2", "--json", "-")
    assert code == 0
    runs = json.loads(out)["runs"]
    assert len(runs) == 12 and all((r["status"] == "failed") == (r["seed"] == 1) for r in runs)
    assert "no such file" in err and "mymodule.py" in err and "momo_cli" not in err
    file.write_text(file.read_text().replace("seed == 1", "True"))
    code, _, err = momo(*GRID)
    assert code == 2 and "KeyError" in err
    file.write_text(
        file.read_text().replace("if True: raise", "loss = lambda *a: {}['x']").replace("KeyError('no such file')", "")
    )
    code, _, err = momo(*GRID)
    assert code == 1 and "Every run failed" in err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("sweep", "nomodule:build"), "no module 'nomodule'"),
        (("sweep", "nofile.py"), "no file 'nofile.py'"),
        (("sweep", "mymodul"), "Did you mean 'mymodule'"),
        (("sweep", "mymodule:bild"), "Did you mean 'build'"),
        (("sweep", "digits-mpl"), "Did you mean 'digits-mlp'"),
        (("sweep", "mymodule", "-o", "adm"), "Did you mean 'adam'"),
        (("sweep", "mymodule", "-o", "adam(wd)"), "keyword arguments"),
        (("sweep", "mymodule", "-o", "adam+cosin"), "Did you mean 'cosine'"),
        (("sweep", "mymodule", "-o", "adam+warmup=2"), "warm-up from 0 to 1"),
        (("sweep", "mymodule", "-o", "adam(wd=1)"), "weight_decay"),
        (("sweep", "mymodule", "-o", "nothere:Class"), "nothere"),
        (("sweep", "mymodule", "-o", "torch.optim:Adm"), "Did you mean 'Adam'"),
        (("sweep", "mymodule", "--lrs", "1,x"), "'x' is not a number"),
        (("sweep", "mymodule", "--lrs", "0"), "positive"),
        (("sweep", "mymodule", "--lrs", "1:2"), "LOW:HIGH:COUNT"),
        (("sweep", "mymodule", "--lrs", "adam=1"), "not among the optimizers"),
        (("sweep", "mymodule", "--set", "depth=3"), "takes no argument 'depth'"),
        (("sweep", "mymodule", "--set", "depth"), "key=value"),
        (("sweep", "mymodule", "--steps", "0"), "positive"),
        (("sweep", "mymodule", "--steps", "x"), "--steps"),
        (("sweep", "mymodule", "--steps", "3", "--epochs", "1"), "Leave one out"),
        (("sweep", "mymodule", "--schedule", "cosin"), "Did you mean 'cosine'"),
        (("sweep", "mymodule", "--objective", "val_loss"), "measured on val"),
        (("sweep", "mymodule", "--maximize"), "--objective METRIC"),
        (("sweep", "mymodule", "--device", "gpu"), "not a device"),
        (("sweep", "mymodule", "--device", "cuda:77"), "CUDA device"),
        (("sweep", "mymodule", "--storage", "nonsense"), "storage URL"),
        (("sweep", "mymodule", "--storage", "sqlite:////no/such/folder/x.db"), "--storage"),
        (("sweep", "mymodule", "--json", "no/such/folder/x"), "no folder"),
        (("sweep", "mymodule", "--json", "."), "is a folder"),
        (("check", "mymodule", "--schedule", "cosine"), "--schedule"),
        (("sweep", "mymodule", "--frsh"), "--fresh"),
        (("sweep",), "TASK"),
        (("swep", "mymodule"), "Did you mean 'sweep'"),
    ],
)
def test_what_is_wrong_is_said_in_three_lines(momo, folder, arguments, says):
    if "cuda:77" in arguments:
        says = "CUDA device"
    code, out, err = momo(*arguments)
    assert code == 2 and out == ""
    assert says in err and len(err.strip().splitlines()) <= 3 and "Traceback" not in err
    assert not (folder / "momo.db").exists()


RETURNS = {
    "None": "not a task",
    "(model,)": "tuple of 1",
    "{'model': model, 'los': loss, 'train': train}": "Did you mean 'loss'",
    "{'model': model}": "without 'loss', 'train'",
    "(1, loss, train)": "not a torch.nn.Module",
    "(model, 1, train)": "not a function",
    "(model, torch.nn.MSELoss(), train)": "takes (model, batch)",
    "(model, loss, x)": "not batches",
    "(model, loss, iter(train))": "read only once",
    "(model, loss, [])": "without a single batch",
    "(model, lambda model, batch: model(batch[0]), train)": "shape [16, 1]",
    "(model, lambda model, batch: 1.0, train)": "a float",
    "(model, lambda model, batch: model(batch[0]).sum().long(), train)": "a tensor of int64",
    "(model, lambda model, batch: model(batch[0]).sum().detach(), train)": "without a gradient",
    "(model.requires_grad_(False), loss, train)": "without a trainable parameter",
}


@pytest.mark.parametrize("returned", RETURNS)
def test_a_wrong_return_value_is_said_plainly(momo, folder, returned):
    file = folder / "mymodule.py"
    file.write_text(file.read_text().replace("return model, loss, train", f"return {returned}"))
    code, _, err = momo(*GRID)
    assert code == 2 and RETURNS[returned] in err and len(err.strip().splitlines()) <= 3


def test_all_three_forms_of_return_are_the_same_task(momo, folder):
    results = []
    for form in (
        "model, loss, train",
        "{'model': model, 'loss': loss, 'train': train}",
        "momo_cli.Task(model=model, loss=loss, train=train)",
    ):
        file = folder / "mymodule.py"
        file.write_text(re.sub("return .*train.*", f"return {form}", "import momo_cli\n" + file.read_text()))
        results.append([r["objective"] for r in document(momo, *GRID)[0]["runs"]])
    assert results[0] == results[1] == results[2]


def test_interrupted_it_keeps_what_finished_and_goes_on(momo, momo_process, folder):
    file = folder / "mymodule.py"
    file.write_text(
        file.read_text() + "\nimport time\n_build = build\n"
        "def build(seed):\n    time.sleep(0.4)\n    return _build(seed)\n"
    )
    process = momo_process("sweep", "mymodule", "--lrs", "1e-3:1:12", "--together", "off", "--jobs", "1")
    wait_for_trials(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Interrupted" in err and "Traceback" not in err
    stored = int(re.search(r"(\d+) of 24 runs are stored", err)[1])
    assert 3 <= stored < 24
    file.write_text(file.read_text())
    _, out, _ = momo("sweep", "mymodule", "--lrs", "1e-3:1:12")
    assert f"{stored} of 24 runs were stored" in out


def test_help_is_quick_because_nothing_heavy_is_imported(folder):
    for arguments in ("--help", "sweep --help", "list"):
        code = (
            "import sys; from momo_cli.__main__ import run; run(sys.argv[1:]);"
            "print([m for m in ('torch', 'optuna', 'numpy', 'matplotlib', 'sklearn') if m in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments.split()],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(folder.__class__(__file__).parents[2])},
        )
        assert done.stderr.strip().endswith("[]"), done.stderr
        assert done.stdout


def test_completion_knows_tasks_and_optimizers(momo_process):
    for words, expected in (("momo sweep dig", "digits-mlp"), ("momo sweep x -o momo-", "momo-adam")):
        env = {"_MOMO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        out, _ = momo_process(env=env).communicate()
        assert expected in out.split()


def test_every_command_has_help_with_an_example(momo):
    from momo_cli.commands import app

    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        code, out, _ = momo(name, "--help")
        assert code == 0 and f"momo {name}" in out.split("Example")[1]


def test_list_and_check(momo):
    assert "No runs are stored" in momo("list")[1]
    momo(*GRID)
    code, out, _ = momo("list")
    assert code == 0 and "mymodule:build" in out and "train_loss" in out
    code, out, _ = momo("check", "mymodule")
    assert code == 0 and "float32[16, 4]" in out and "49 parameters" in out and "not negative" in out


def test_check_finds_a_negative_loss(momo, folder):
    file = folder / "mymodule.py"
    file.write_text(file.read_text().replace("batch[1])\n", "batch[1]) - 5\n"))
    code, out, _ = momo("check", "mymodule")
    assert code == 0 and "momo(lb=" in out


def test_tensors_that_no_optimizer_trains_are_named(momo, folder):
    file = folder / "mymodule.py"
    file.write_text(
        file.read_text().replace(
            "    return model",
            "    scale, teacher = torch.nn.Linear(1, 1), torch.nn.Linear(4, 1)\n"
            "    def loss(model, batch):\n"
            "        with torch.no_grad(): target = teacher(batch[0])\n"
            "        return (scale(model(batch[0])) - target).square().mean()\n"
            "    return model",
        )
    )
    for arguments in (GRID, ("check", "mymodule")):
        code, out, err = momo(*arguments)
        assert code == 0 and "scale.weight, scale.bias get a gradient" in " ".join((out + err).split())
        assert "teacher" not in out + err
