"""Everything on screen holds at any width, in colour or without, and when piped."""

import io
import math
import re
import shlex

import pytest
from rich.console import Console

from momo_cli import figures
from momo_cli.report import terminal

FOUR = ("momo", "sgd-m", "momo-adam", "adam")
LONG = ("momo", "schedulefree:AdamWScheduleFree", "adamw(weight_decay=0.1)", "prodigyopt:Prodigy")


def shown(show, report, width=None, colour=False, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    show(
        report,
        Console(file=file, width=width, force_terminal=colour or None, color_system="truecolor" if colour else None),
    )
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("show", [terminal.print_sweep, terminal.print_compare])
@pytest.mark.parametrize("optimizers", [("momo", "sgd-m"), FOUR, LONG])
@pytest.mark.parametrize("lrs", [1, 9, 13, 41])
@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_too_long_and_nothing_is_lost(make_report, show, optimizers, lrs, width, colour):
    report = make_report(optimizers, lrs=lrs, failing=lrs > 1)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(show, report, width, colour))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # rich's sign for what it cut
    flat = re.sub(r"\s", "", text)
    for entry in report.figures.optimizers:
        assert entry.optimizer in flat
        if entry.best is not None:
            assert text.count("*") >= len(optimizers)
    assert ("✗" in text) == any(run.status == "diverged" for run in report.runs)


def test_two_optimizers_fit_a_narrow_terminal_as_rows(make_report):
    lines = shown(terminal.print_sweep, make_report(), 80).splitlines()
    [momo] = [line for line in lines if line.startswith("momo ") and line.count("0.") > 5]
    assert len(re.findall(r"\d\.\d{3}", momo)) == 9 and momo.count("*") == 1


def test_the_strips_are_aligned_on_the_defaults(make_report):
    text = shown(terminal.print_compare, make_report(FOUR), 200)
    assert re.search(r"×0\.01 +×0\.032 +×0\.1 +×0\.32 +×1 +×3\.2 +×10 +×32 +×100", text)
    assert "momo 1, sgd-m 1, momo-adam 0.01 and adam 0.001" in text


def test_a_command_to_paste_stands_whole(make_report):
    report = make_report(("momo", "adam(betas=(0.9, 0.95))"), lrs=3)
    for run in report.runs:  # the larger the learning rate, the better
        run.status, run.objective = "ok", 1 - 0.1 * math.log10(run.lr)
    report.figures = figures.analyze(report.runs)
    lines = shown(terminal.print_sweep, report, 80).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("momo sweep"))
    command = lines[start].strip()
    while command.endswith("\\"):
        start += 1
        command = command[:-1] + lines[start].strip()
    lrs = [entry.lrs for entry in report.figures.optimizers]
    next_lrs = [figures.next_lrs(known, known[-1], 1.0) for known in lrs]
    assert [[f"{lr:.4g}" for lr in more] for more in next_lrs] == [["10", "31.62"], ["0.01", "0.03162"]]
    assert shlex.split(command) == [
        "momo", "sweep", "digits-mlp", "-o", "momo", "--lrs", "momo=" + ",".join(f"{lr:.12g}" for lr in [*lrs[0], *next_lrs[0]]),
        "-o", "adam(betas=(0.9, 0.95))", "--lrs", "adam(betas=(0.9, 0.95))=" + ",".join(f"{lr:.12g}" for lr in [*lrs[1], *next_lrs[1]]),
    ]  # fmt: skip


def test_a_plain_encoding_is_enough(make_report):
    text = shown(terminal.print_sweep, make_report(FOUR), 80, encoding="ascii")
    assert "x diverged" in text and ">=" in text
