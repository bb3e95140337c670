"""Stores that someone else made, or a newer version: opening one runs nothing, and shows what can be shown."""

from __future__ import annotations

import json

import optuna
import pytest

from momo_cli.runs import Run
from momo_cli.store import Store, study_key
from momo_cli.store.storage import KEY

SETTINGS = {"maximize": False, "objective": "val_loss"}
ESCAPE = "\x1b]0;title\x07\x1b[2J"
VIEWS = (
    ("list",),
    ("compare",),
    ("recommend",),
    ("export",),
    ("compare", "--json", "-"),
    ("compare", "--markdown", "-"),
)


def store(labels, name="theirs", task="task"):
    with Store().open(study_key(task, "digest", {}, SETTINGS), name) as runs:
        runs.start(labels, "val_loss")
        runs.add_all([Run(label, lr, objective=lr, initial=9.0) for label in labels for lr in (0.1, 1.0, 10.0)])


def attributes(change):
    with optuna.storages.RDBStorage("sqlite:///momo.db").engine.begin() as connection:
        return connection.exec_driver_sql(change)


@pytest.mark.parametrize(
    "label", ["trap:Class", f"adam{ESCAPE}", "[/]", "[bold]momo[/bold]", "[link=x]", "momo\x00", "a\nb"]
)
def test_a_label_is_text_alone(momo, folder, label):
    (folder / "trap.py").write_text("open('sprung', 'w')")
    store([label, "momo"])
    for view in VIEWS:
        code, out, err = momo(*view)
        assert code == 0, err
        assert "\x1b" not in out + err and "\x00" not in out + err and not (folder / "sprung").exists()
    assert len(json.loads(momo("compare", "--json", "-")[1])["runs"]) == 6


def test_a_newer_version_s_fields_are_ignored_and_what_is_no_run_is_left_out(momo, folder):
    store(["momo"])
    attributes(
        "update trial_user_attributes set value_json = json_set(value_json, '$.brand_new', 1) where key = 'momo:run'"
    )
    assert len(json.loads(momo("compare", "--json", "-")[1])["runs"]) == 3
    attributes(
        "update trial_user_attributes set value_json = json_set(value_json, '$.objective', 'one') "
        "where key = 'momo:run' and trial_id = 1"
    )
    assert len(json.loads(momo("compare", "--json", "-")[1])["runs"]) == 2


def test_studies_that_cannot_be_read_are_named_and_skipped(momo, folder):
    store(["momo"], "whole")
    storage = "sqlite:///momo.db"
    for name, key in (("odd", 1), ("empty", {}), (f"bad{ESCAPE}", study_key("t", "", {}, SETTINGS)),
                      ("worse", study_key(f"t{ESCAPE}", "", {}, SETTINGS))):  # fmt: skip
        study = optuna.create_study(study_name=name, storage=storage)
        study.set_user_attr(KEY, key)
        study.set_user_attr("optimizers", ["momo"])
    code, out, err = momo("list")
    assert code == 0 and "whole" in out and len(out.splitlines()) == 2
    assert all(f"Skipped: the study {name}" in err for name in ("odd", "empty", "bad", "worse")) and "\x1b" not in err
    assert momo("compare")[0] == 0


def test_a_study_with_as_many_other_runs_is_counted_without_reading_them(folder):
    store(["momo"], "first")
    store(["momo", "adam"], "second")
    statements = []
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
    def note(connection, cursor, statement, *rest):
        statements.append(statement)

    try:
        assert [(info.name, info.runs) for info in Store().studies()] == [("first", 3), ("second", 6)]
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", note)
    reading = [text for text in statements if "value_json" in text or "param_value" in text]
    assert reading and all("FROM study_" in text for text in reading)
