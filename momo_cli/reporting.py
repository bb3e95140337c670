"""From an experiment's runs to their report, for the commands and for Python alike."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from momo_cli.errors import UserError
from momo_cli.experiment import Collected, Experiment
from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.plan.optimizers import KNOWN
from momo_cli.runs import Run, check_objective
from momo_cli.search import Found, Search
from momo_cli.store import Store

if TYPE_CHECKING:
    from momo_cli.report import Report

EXTENSIONS = 2
"""How often a grid is extended by a decade, at most."""


def trials_of(found: Found, asked: Search) -> Collected:
    """The runs of an Optuna study, and what it found."""
    lines = list(found.lines)
    if asked.tune:
        lines.append("Values, sensitivity and good range are over trials in which the further arguments vary, too.")
    session = found.session
    return Collected(session.stored.name, session.objective, found.runs, session.reused, lines)


def report_of(collected: Collected, experiment: Experiment) -> Report:
    """The report of an experiment's runs."""
    lines = list(collected.lines) + _metric_hint(collected.objective, experiment.settings.maximize)
    if collected.reused:
        lines.append(
            f"{collected.reused} of {len(collected.runs)} runs were stored already (--fresh trains them again)."
        )
    key = experiment.key()
    key["settings"] = experiment.settings.key()
    return _report(key, collected.study, collected.objective, collected.runs, lines, command_of(key, experiment.study))


def check_failures(runs: list[Run]) -> None:
    """Refuse to report on nothing.

    Raises:
        UserError: Every run failed (exit code 1).
    """
    if runs and all(run.status == "failed" for run in runs):
        raise UserError(f"Every run failed ({len(runs)}), the first with:\n{runs[0].error}", code=1)


def usable(experiment: Experiment) -> Report | None:
    """What is stored of an experiment, if any of it didn't fail."""
    stored = experiment.stored()
    if all(run.status == "failed" for run in stored.runs()):
        return None
    return stored_report(experiment.store, stored.name, experiment.settings)


def extension_of(report: Report) -> list[RunSpec]:
    """A report's runs and one more decade for every optimizer whose best LR is at the end of its grid; else none."""
    from momo_cli.report.warnings import beyond

    def spec(label: str) -> OptimizerSpec:
        return OptimizerSpec(label, label) if report.script else OptimizerSpec.parse(label)

    further = [
        RunSpec(spec(entry.optimizer), lr, seed)
        for entry in report.figures.optimizers
        for lr in beyond(entry)
        for seed in sorted({run.seed for run in report.runs if run.optimizer == entry.optimizer})
    ]
    before = [
        RunSpec(spec(run.optimizer), run.lr, run.seed, tuple(run.params.items()))
        for run in report.runs
        if run.status != "failed"
    ]
    return before + further if further else []


def stored_report(store: Store, study: str | None, settings: Settings | None = None) -> Report:
    """The report of what is stored: the study called ``study``, else the latest one.

    Args:
        store: Where.
        study: Its name, or None.
        settings: The objective to report; where they name none, the one last asked for.

    Raises:
        UserError: Nothing is stored, or no such study.
    """
    studies = store.studies()
    if not studies:
        raise UserError(
            f"No runs are stored in {store.url}.\nName a task to run, for instance: momo compare digits-mlp"
        )
    stored = store.read(study or studies[-1].study)
    info = next(info for info in studies if info.name == stored.name)
    runs = stored.runs()
    objective, maximize = info.objective, info.maximize
    if settings is not None and settings.objective is not None and not stored.key.get("imported"):
        objective, maximize = settings.objective, settings.maximize
        check_objective(objective, runs)
    key = stored.key
    if not key.get("imported"):
        # Where nothing was asked for, nothing is shown as asked.
        own = objective in {run.own_objective for run in runs}
        asked = {"objective": None if own else objective, "maximize": maximize}
        key = key | {"settings": key["settings"] | asked}
        runs = [run.under(objective) for run in runs]
    return _report(key, stored.name, objective, runs, [], command_of(key, study))


def _report(
    key: dict[str, Any], study: str, objective: str, runs: list[Run], lines: list[str], command: str | None
) -> Report:
    from momo_cli import figures
    from momo_cli.report import Report

    seeds = 1 + max((run.seed for run in runs), default=0)
    if command is not None and seeds > 1:
        command += f" --seeds {seeds}"
    script = tuple(key.get("command", ()))
    return Report(
        task=key["task"],
        study=study,
        objective=objective,
        runs=runs,
        figures=figures.analyze(runs, maximize=bool(key["settings"]["maximize"]), sampled=_is_sample(key)),
        settings={
            **key["set"],
            **Settings.given(key["settings"]),
            **({"command": shlex.join(script)} if script else {}),
        },
        lines=lines,
        command=command,
        default_lrs=default_lrs(runs, known_only=command is None or bool(script)),
        script=script,
    )


def _is_sample(key: dict[str, Any]) -> bool:
    """Whether the learning rates of a key's runs are an Optuna study's, which draws them."""
    search = key.get("search")
    return search is not None and search["sampler"] != "grid"


def _metric_hint(objective: str, maximize: bool) -> list[str]:
    if maximize or not re.search(r"acc|auc|f1|score|precision|recall|psnr|bleu", objective.lower()):
        return []
    return [f"Note: smaller values of {objective} count as better here; if larger ones are, add --maximize."]


def default_lrs(runs: list[Run], known_only: bool) -> dict[str, float]:
    """Each optimizer's own default LR, by label; optimizers that have none or can't be found are left out.

    Args:
        runs: The runs.
        known_only: Whether a label is anyone's text, never a reason to import a module of that name.
    """
    found = {}
    for label in dict.fromkeys(run.optimizer for run in runs):
        try:
            spec = OptimizerSpec.parse(label)
            if spec.name in KNOWN or not (known_only or ":" in spec.name):
                found[label] = spec.default_lr
        except UserError:
            pass
    return found


def command_of(key: dict[str, Any], study: str | None = None) -> str | None:
    """The command that adds runs to the study of ``key``, without ``-o``, ``--lrs`` and what stands after ``--``.

    None for imported runs.
    """
    if key.get("imported"):
        return None
    words = ["momo", "sweep"] if "command" in key else ["momo", "sweep", key["task"]]
    for flag in ("read", "read_file"):
        if key.get(flag) is not None:
            words += [f"--{flag.replace('_', '-')}", key[flag]]
    for name, value in dict(key["set"]).items():
        words += ["--set", f"{name}={value}"]
    for name, value in Settings.given(key["settings"]).items():
        if value is True:
            words.append(f"--{name}")
        else:
            words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words + (["--study", study] if study else []))
