"""From the options of a command to the report of its runs: what ``sweep``, ``compare`` and ``recommend`` share."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

from momo_cli.commands import outputs as out
from momo_cli.commands.options import OutputOptions, TrainingOptions
from momo_cli.errors import UserError
from momo_cli.experiment import Collected, Experiment
from momo_cli.plan import RunSpec, grid, parse_lrs, parse_optimizers
from momo_cli.task.loading import find_task

if TYPE_CHECKING:
    from momo_cli.report import Report


def collect_report(
    command: str, task: str, training: TrainingOptions, outputs: OutputOptions, default_optimizers: str, default_seeds: int
) -> Report:
    """Train what the command line asks for and isn't stored, and analyze the runs.

    Raises:
        UserError: Something is wrong, or every run failed (exit code 1).
    """
    out.check(outputs)
    experiment = experiment_of(task, training)
    optimizers = parse_optimizers(training.optimizer or [default_optimizers])
    if not optimizers:
        raise UserError("--optimizer names no optimizer.\nFor instance -o momo,adam.")
    specs = grid(optimizers, parse_lrs(training.lrs or [], optimizers), training.seeds or default_seeds)
    collected = run(experiment, specs, outputs)
    return report_of(collected, experiment, command_line(task, training))


def experiment_of(task: str, training: TrainingOptions) -> Experiment:
    """The experiment that the options describe."""
    source = find_task(task, training.arguments())
    return Experiment(source, training.settings(), training.open_store(), training.device, training.study, training.fresh)


def run(experiment: Experiment, specs: list[RunSpec], outputs: OutputOptions) -> Collected:
    """Collect ``specs`` under a live display.

    Raises:
        UserError: As :meth:`Experiment.collect`, or every run failed.
    """
    from momo_cli.report.progress import LiveDisplay

    _, notes = out.consoles(outputs)
    with LiveDisplay(notes, experiment.source.name) as display:
        try:
            collected = experiment.collect(specs, display)
        except KeyboardInterrupt:
            done = display.done + display.reused
            print(f"Interrupted. {done} of {len(specs)} runs are stored; the same command goes on from there.", file=sys.stderr)
            raise
    failed = [r for r in collected.runs if r.status == "failed"]
    for failure in _distinct(failed):
        which = f"{failure.optimizer} at lr {failure.lr:g}, seed {failure.seed}"
        more = sum(f.error == failure.error for f in failed) - 1
        print(f"Failed: {which}" + (f", and {more} more the same way" if more else "") + f"\n{failure.error}", file=sys.stderr)
    if collected.runs and len(failed) == len(collected.runs):
        raise UserError(f"Every run failed ({len(failed)}); the error of the user's code stands above.", code=1)
    return collected


def report_of(collected: Collected, experiment: Experiment, command: str | None) -> Report:
    """The report of an experiment's runs."""
    from momo_cli import figures
    from momo_cli.report import Report

    maximize = experiment.settings.maximize
    lines = list(collected.lines)
    if collected.reused:
        lines.append(f"{collected.reused} of {len(collected.runs)} runs were stored already (--fresh trains them again).")
    return Report(
        task=experiment.source.name,
        study=collected.study,
        objective=collected.objective,
        maximize=maximize,
        runs=collected.runs,
        analysis=figures.analyze(collected.runs, maximize=maximize),
        settings=described(experiment.settings.key(), dict(experiment.source.arguments)),
        lines=lines,
        command=command,
        default_lrs=default_lrs(collected.runs),
    )


def described(settings: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, name to value."""
    unset = (None, False, "off", 0.0)
    return {**arguments, **{name: value for name, value in settings.items() if value not in unset}}


def default_lrs(runs: list[Any]) -> dict[str, float]:
    """Each optimizer's own default LR, by label; optimizers that have none or can't be found are left out."""
    found = {}
    for label in dict.fromkeys(r.optimizer for r in runs):
        try:
            found[label] = parse_optimizers([label])[0].default_lr
        except UserError:
            pass
    return found


def command_line(task: str, training: TrainingOptions) -> str:
    """The command that adds runs to the same study, without ``-o`` and ``--lrs``."""
    words = ["momo", "sweep", task]
    for text in training.set_ or []:
        words += ["--set", text]
    for flag, value, default in (
        ("--steps", training.steps, None),
        ("--epochs", training.epochs, None),
        ("--schedule", training.schedule, "constant"),
        ("--warmup", training.warmup, 0.0),
        ("--amp", training.amp, "off"),
        ("--clip", training.clip, None),
        ("--objective", training.objective, None),
        ("--study", training.study, None),
    ):
        if value != default:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    if training.maximize:
        words.append("--maximize")
    return shlex.join(words)


def _distinct(failed: list[Any]) -> list[Any]:
    return list({run.error: run for run in reversed(failed)}.values())[::-1]
