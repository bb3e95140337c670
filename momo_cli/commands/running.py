"""From the options of a command to the report of its runs: what ``sweep``, ``compare`` and ``recommend`` share."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from momo_cli.commands import outputs as out
from momo_cli.commands.options import OutputOptions, TrainingOptions
from momo_cli.errors import UserError
from momo_cli.experiment import Collected, Experiment
from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.plan.optimizers import KNOWN
from momo_cli.runs import Run
from momo_cli.search import Search, search
from momo_cli.store import Store

if TYPE_CHECKING:
    from momo_cli.report import Report
    from momo_cli.report.progress import LiveDisplay


def collect_report(
    task: str, training: TrainingOptions, outputs: OutputOptions, default_optimizers: str, default_seeds: int
) -> tuple[Report, Experiment]:
    """Train what the command line asks for and isn't stored, and analyze the runs.

    Returns:
        The report, and the experiment that more runs may be asked of.

    Raises:
        UserError: Something is wrong, or every run failed (exit code 1).
    """
    out.check(outputs)
    experiment = training.experiment(task)
    collected = run(experiment, training.runs(default_optimizers, default_seeds), outputs)
    return report_of(collected, experiment), experiment


def search_report(
    task: str, training: TrainingOptions, outputs: OutputOptions, default_optimizers: str, asked: Search
) -> Report:
    """Run the Optuna study that the command line asks for, as far as it isn't stored, and analyze its runs.

    Raises:
        UserError: Something is wrong, or every run failed (exit code 1).
    """
    out.check(outputs)
    experiment = training.experiment(task)
    optimizers = training.optimizers(default_optimizers)
    seeds = training.seeds or 1
    with _display(experiment, outputs, len(optimizers) * asked.trials * seeds) as display:
        found = search(experiment, optimizers, asked, seeds, display)
    _say_failures(found.runs)
    session = found.session
    if asked.tune:
        found.lines.append(
            "Values, sensitivity and good range are over trials in which the further arguments vary, too."
        )
    collected = Collected(session.stored.name, session.objective, found.runs, session.reused, found.lines)
    return report_of(collected, experiment)


def run(experiment: Experiment, specs: list[RunSpec], outputs: OutputOptions) -> Collected:
    """Collect ``specs`` under a live display.

    Raises:
        UserError: As :meth:`Experiment.collect`, or every run failed.
    """
    with _display(experiment, outputs, len(specs)) as display:
        collected = experiment.collect(specs, display)
    _say_failures(collected.runs)
    return collected


@contextlib.contextmanager
def _display(experiment: Experiment, outputs: OutputOptions, runs: int) -> Iterator[LiveDisplay]:
    """The live display; an interruption is answered with how many of the ``runs`` are stored."""
    from momo_cli.report.progress import LiveDisplay

    _, notes = out.consoles(outputs)
    with LiveDisplay(notes, experiment.source.name) as display:
        try:
            yield display
        except KeyboardInterrupt:
            done = display.done + display.reused
            print(
                f"Interrupted. {done} of {runs} runs are stored; the same command goes on from there.", file=sys.stderr
            )
            raise


def _say_failures(runs: list[Run]) -> None:
    failed = [run for run in runs if run.status == "failed"]
    for failure in _distinct(failed):
        which = f"{failure.optimizer} at lr {failure.lr:g}, seed {failure.seed}"
        more = sum(f.error == failure.error for f in failed) - 1
        print(
            f"Failed: {which}" + (f", and {more} more the same way" if more else "") + f"\n{failure.error}",
            file=sys.stderr,
        )
    if runs and len(failed) == len(runs):
        raise UserError(f"Every run failed ({len(failed)}); the error of the user's code stands above.", code=1)


def report_of(collected: Collected, experiment: Experiment) -> Report:
    """The report of an experiment's runs."""
    lines = list(collected.lines) + _metric_hint(collected.objective, experiment.settings.maximize)
    if collected.reused:
        lines.append(
            f"{collected.reused} of {len(collected.runs)} runs were stored already (--fresh trains them again)."
        )
    key = experiment.key()
    return _report(key, collected.study, collected.objective, collected.runs, lines, command_of(key, experiment.study))


def stored_report(store: Store, study: str | None) -> Report:
    """The report of what is stored: the study called ``study``, else the latest one.

    Raises:
        UserError: Nothing is stored, or no such study.
    """
    studies = store.studies()
    if not studies:
        raise UserError(
            f"No runs are stored in {store.url}.\nName a task to run, for instance: momo compare digits-mlp"
        )
    stored = store.read(study or studies[-1].study)
    return _report(stored.key, stored.name, stored.objective, stored.runs(), [], command_of(stored.key, study))


def _report(
    key: dict[str, Any], study: str, objective: str, runs: list[Run], lines: list[str], command: str | None
) -> Report:
    from momo_cli import figures
    from momo_cli.report import Report

    seeds = 1 + max((run.seed for run in runs), default=0)
    if command is not None and seeds > 1:
        command += f" --seeds {seeds}"
    return Report(
        task=key["task"],
        study=study,
        objective=objective,
        runs=runs,
        figures=figures.analyze(runs, maximize=bool(key["settings"]["maximize"]), sampled=_is_sample(key)),
        settings={**key["set"], **Settings.given(key["settings"])},
        lines=lines,
        command=command,
        default_lrs=default_lrs(runs, imported=command is None),
    )


def _is_sample(key: dict[str, Any]) -> bool:
    """Whether the learning rates of a key's runs are an Optuna study's, which draws them."""
    search = key.get("search")
    return search is not None and search["sampler"] != "grid"


def _metric_hint(objective: str, maximize: bool) -> list[str]:
    if maximize or not re.search(r"acc|auc|f1|score|precision|recall|psnr|bleu", objective.lower()):
        return []
    return [f"Note: smaller values of {objective} count as better here; if larger ones are, add --maximize."]


def default_lrs(runs: list[Run], imported: bool) -> dict[str, float]:
    """Each optimizer's own default LR, by label; optimizers that have none or can't be found are left out."""
    found = {}
    for label in dict.fromkeys(run.optimizer for run in runs):
        try:
            spec = OptimizerSpec.parse(label)
            # A stored label is anyone's text: never a reason to import a module of that name.
            if spec.name in KNOWN or not (imported or ":" in spec.name):
                found[label] = spec.default_lr
        except UserError:
            pass
    return found


def command_of(key: dict[str, Any], study: str | None = None) -> str | None:
    """The command that adds runs to the study of ``key``, without ``-o`` and ``--lrs``; None for imported runs."""
    if key.get("imported"):
        return None
    words = ["momo", "sweep", key["task"]]
    for name, value in dict(key["set"]).items():
        words += ["--set", f"{name}={value}"]
    for name, value in Settings.given(key["settings"]).items():
        if value is True:
            words.append(f"--{name}")
        else:
            words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words + (["--study", study] if study else []))


def _distinct(failed: list[Run]) -> list[Run]:
    return list({run.error: run for run in reversed(failed)}.values())[::-1]
