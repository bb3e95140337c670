"""Tables from elsewhere, and our own there and back."""

import csv as csv_module
import json

import pytest

from momo_cli import figures
from momo_cli.errors import UserError
from momo_cli.interchange import writing
from momo_cli.interchange.reading import read_csv
from momo_cli.report import Report, document
from momo_cli.report.advice import advise

LOSSES = {  # name, learning rate: loss at the last epoch; None: it diverged
    ("adam", 1e-4): 0.30, ("adam", 1e-3): 0.10, ("adam", 1e-2): 0.80, ("adam", 1e-1): None,
    ("momo-adam", 1e-4): 0.30, ("momo-adam", 1e-3): 0.11, ("momo-adam", 1e-2): 0.09, ("momo-adam", 1e-1): 0.12,
    ("sgd-m", 1e-2): 0.90, ("sgd-m", 1e-1): 0.20, ("sgd-m", 1.0): 0.15, ("sgd-m", 10.0): None,
}  # fmt: skip


@pytest.fixture
def table(tmp_path):
    """One row an epoch, several optimizers, settings that some of them lack, and runs of another schedule."""
    path = tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        writer = csv_module.writer(file)
        writer.writerow(["id", "epoch", "train_loss", "val_score", "name", "beta", "lr", "lr_schedule", "weight_decay"])
        for schedule in ("constant", "cosine"):
            for (name, lr), loss in LOSSES.items():
                for epoch in range(3):
                    value = "" if loss is None and epoch else (loss or 1.0) + 0.1 * (2 - epoch)
                    score = "none" if value == "" else 1 - value / 2
                    beta = "none" if name == "adam" else 0.9
                    writer.writerow([f"{name}:{lr}:{schedule}", epoch, value, score, name, beta, lr, schedule, 0])
    return path


COLUMNS = dict(lr_col="lr", optimizer_cols=["name"], epoch_col="epoch", where={"lr_schedule": "constant"})


def test_the_last_epoch_counts(table):
    runs, notes = read_csv(table, value_col="train_loss", **COLUMNS)
    assert {(r.optimizer, r.lr): r.objective for r in runs} == LOSSES
    assert [r.status for r in runs].count("diverged") == 2 and "2 without a finite train_loss" in notes[0]
    analysis = figures.analyze(runs)
    assert analysis.initial == 0.9  # the worst value seen
    adam, momo_adam, sgd_m = analysis.optimizers
    area = lambda values: sum((a + b) / 2 for a, b in zip(values, values[1:])) / (len(values) - 1)
    assert adam.values == (0.3, 0.1, 0.8, 0.9)
    assert adam.sensitivity == figures.Interval(pytest.approx(area([0.2, 0.0, 0.7, 0.8])))
    assert momo_adam.regret.value == momo_adam.sensitivity.value == pytest.approx(area([0.21, 0.02, 0.0, 0.03]))
    assert sgd_m.regret.value == pytest.approx(area([0.81, 0.11, 0.06, 0.81]))
    ratio = analysis.comparisons[0]
    assert (ratio.a, ratio.b) == ("momo-adam", "adam")
    assert ratio.sensitivity_ratio.value == pytest.approx(area([0.21, 0.02, 0, 0.03]) / area([0.2, 0, 0.7, 0.8]))


@pytest.mark.parametrize("value, maximize", [("train_loss", False), ("val_score", True)])
def test_the_recommendation(table, value, maximize):
    runs, _ = read_csv(table, value_col=value, **COLUMNS)
    analysis = figures.analyze(runs, maximize=maximize)
    advice = advise(Report("runs.csv", "", value, runs, analysis))
    assert advice.optimizer == "momo-adam" and advice.lr == 1e-2
    assert any("one seed" in line for line in advice.warnings)


def test_runs_that_no_column_tells_apart_are_seeds(table):
    where = COLUMNS | {"where": {}}
    runs, notes = read_csv(table, value_col="train_loss", **where)
    assert len(runs) == 2 * len(LOSSES) and {r.seed for r in runs} == {0, 1}
    text = " ".join(notes)
    assert "count as seeds" in text and "--where lr_schedule=" in text
    runs, notes = read_csv(table, value_col="train_loss", **where | {"optimizer_cols": ["name", "lr_schedule", "beta"]})
    assert {r.seed for r in runs} == {0} and "momo-adam(lr_schedule=cosine, beta=0.9)" in {r.optimizer for r in runs}
    assert "adam(lr_schedule=constant)" in {r.optimizer for r in runs}
    _, notes = read_csv(table, value_col="train_loss", **COLUMNS | {"epoch_col": None})
    assert "--epoch-col epoch" in " ".join(notes)


@pytest.mark.parametrize("by_epoch", [False, True])
def test_seeds_with_epochs_in_either_order(tmp_path, by_epoch):
    """Three runs without a seed column, the second of which stops early when one stands after another."""
    lengths = [3, 3, 3] if by_epoch else [3, 1, 3]
    rows = [(epoch, seed) for seed, length in enumerate(lengths) for epoch in range(length)]
    if by_epoch:
        rows.sort()
    path = tmp_path / "t.csv"
    path.write_text("o;lr;e;v\n" + "".join(f"sgd;0.1;{e};{10 * s + e}\n" for e, s in rows))
    runs, _ = read_csv(path, lr_col="lr", optimizer_cols=["o"], value_col="v", epoch_col="e")
    assert [(r.seed, r.objective) for r in runs] == [(s, 10 * s + n - 1) for s, n in enumerate(lengths)]


def test_seeds_by_name_and_numbers_with_a_mark(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text(
        "\ufeffo\tlr\tseed\tv\nsgd\t0.1\tblue\t1\nsgd\t0.1\tred\tNaN\nsgd\tnone\tred\t3\n", encoding="utf-8"
    )
    runs, notes = read_csv(path, lr_col="lr", optimizer_cols=["o"], value_col="v", seed_col="seed", initial=5.0)
    assert [(r.seed, r.status, r.initial) for r in runs] == [(0, "ok", 5.0), (1, "diverged", 5.0)]
    assert any("1 row" in note for note in notes) and any("not whole numbers" in note for note in notes)


@pytest.mark.parametrize(
    "change, code, says",
    [
        ({"value_col": "trainloss"}, 2, "Did you mean 'train_loss'?"),
        ({"lr_col": "rate"}, 2, "Its columns: id, epoch"),
        ({"optimizer_cols": []}, 2, "--optimizer-col"),
        ({"where": {"lr_schedule": "wsd"}}, 2, "'constant', 'cosine'"),
        ({"value_col": "name"}, 1, "line 4: 'adam' in the column 'name' is not a number"),
    ],
)
def test_what_is_wrong_is_told(table, change, code, says):
    with pytest.raises(UserError) as error:
        read_csv(table, **{"value_col": "train_loss", **COLUMNS, **change})
    assert error.value.code == code and says in str(error.value) and len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n", b"o,lr,v\nsgd,0.1\n", b"o,lr,v\nsgd,none,1\n", b"\xff\xfe\x00", b"o,lr,v,v\ns,1,1,1\n", None],
)
def test_a_file_that_cannot_be_used(tmp_path, content):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_csv(path, lr_col="lr", optimizer_cols=["o"], value_col="v")
    assert error.value.code == 1


def test_there_and_back_again(make_report, tmp_path):
    report = make_report(("momo", "adam(betas=(0.9, 0.95))"), failing=True)
    report.runs[0].initial, report.runs[1].params = 1 / 3, {"weight_decay": 0.1}
    report.figures = figures.analyze(report.runs)
    path = tmp_path / "runs.csv"
    path.write_bytes(writing.table(report.runs).encode())
    runs, notes = read_csv(path, lr_col="lr", optimizer_cols=["optimizer"], value_col="objective")
    assert figures.analyze(runs) == report.figures
    for before, after in zip(report.runs, runs):
        before.curve, before.step_sizes = [], None
        assert before == after
    assert len(notes) == 1


def test_the_document(make_report):
    report = make_report(failing=True)
    report.runs[3].objective, report.runs[3].metrics = float("inf"), {"accuracy": float("nan")}
    report.advice = advise(report)
    text = json.dumps(document.to_json(report), allow_nan=False)
    found = json.loads(text)
    assert list(found) == [
        "schema",
        "task",
        "study",
        "objective",
        "initial",
        "runs",
        "optimizers",
        "comparisons",
        "recommendation",
    ]
    assert found["schema"] == "momo/1" and found["objective"] == {"name": "val_loss", "direction": "minimize"}
    assert list(found["runs"][0]) == [
        "optimizer", "lr", "seed", "status", "objective", "initial", "train_loss", "val_loss",
        "metrics", "steps", "seconds", "capped", "error",
    ]  # fmt: skip
    assert list(found["optimizers"][0]) == [
        "optimizer", "lrs", "values", "best_lr", "best", "best_at_edge", "sensitivity", "regret",
        "good_range", "expected_best", "runs", "diverged", "failed", "pruned", "capped",
    ]  # fmt: skip
    assert list(found["recommendation"]) == [
        "optimizer", "lr", "best_lr", "good_range", "expected", "because", "warnings", "code",
    ]  # fmt: skip
    assert writing.table([]).startswith("optimizer,lr,seed,status,objective,initial")


def test_crashed_runs_and_negative_learning_rates(tmp_path):
    path = tmp_path / "wandb.csv"
    path.write_text("o,lr,State,v\nsgd,0.1,finished,1\nsgd,1,crashed,\n")
    _, notes = read_csv(path, lr_col="lr", optimizer_cols=["o"], value_col="v")
    assert "crashed" in notes[1] and "--where State=finished" in notes[1]
    path.write_text("o,lr,v\nsgd,-0.1,1\n")
    with pytest.raises(UserError, match="line 2: the learning rate -0.1") as error:
        read_csv(path, lr_col="lr", optimizer_cols=["o"], value_col="v")
    assert error.value.code == 1
