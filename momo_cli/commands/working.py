"""``momo work``: take part in runs that are open."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import Annotated

import typer

from momo_cli.commands import outputs as out
from momo_cli.commands.options import (
    COMMAND,
    CheckpointOption,
    GraceOption,
    OutputOptions,
    StorageOption,
    StudyOption,
    TimeoutOption,
    TrainingOptions,
    task_argument,
)
from momo_cli.commands.running import run
from momo_cli.errors import UserError
from momo_cli.experiment import Experiment
from momo_cli.plan import OptimizerSpec, RunSpec, Settings
from momo_cli.runs import Run
from momo_cli.store import DEFAULT_URL, GRACE, Store, StudyInfo
from momo_cli.task.loading import TaskSource, find_task
from momo_cli.training.script import Command


def work(
    task: Annotated[str | None, task_argument("Without one: whatever is open, of any task.")] = None,
    storage: StorageOption = DEFAULT_URL,
    study: StudyOption = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:0,cuda:1 or mps.")] = "auto",
    together: Annotated[str, typer.Option(metavar="auto|off|N", help="Runs trained at once in one process.")] = "auto",
    jobs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes.", show_default=False)] = None,
    timeout: TimeoutOption = None,
    checkpoint: CheckpointOption = None,
    grace: GraceOption = GRACE,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes.")] = False,
) -> None:
    """Take part in the runs that other commands have begun, until none is open.

    Runs the code of the tasks that the storage names, found from the current folder.

    [bold]Example[/bold]

      momo work --storage postgresql://user@host/momo
    """
    store = Store(storage, grace)
    outputs = OutputOptions(quiet=quiet)
    out.check(outputs)
    done: set[str] = set()
    while True:
        opened = [
            info for info in store.studies() if info.open and info.study not in done and _asked(info, task, study)
        ]
        if not opened:
            break
        info = opened[0]
        done.add(info.study)
        options = TrainingOptions(
            device=device,
            together=together,
            jobs=jobs,
            timeout=timeout,
            checkpoint=None if "command" in info.key else checkpoint,
            storage=storage,
            grace=grace,
        )
        experiment = _experiment(info, options)
        specs = [_spec(asked, "command" in info.key) for asked in store.read(info.study).open_runs()]
        if specs:
            run(experiment, specs, outputs)
            print(f"{info.study}: {len(specs)} runs are done.", file=sys.stderr)
    if not done:
        print(f"Nothing is open in {store.url}.", file=sys.stderr)


def _asked(info: StudyInfo, task: str | None, study: str | None) -> bool:
    return (
        not info.key.get("imported")
        and task in (None, info.task, info.task.removesuffix(":build"))
        and study in (None, info.study)
    )


def _experiment(info: StudyInfo, options: TrainingOptions) -> Experiment:
    """The experiment whose runs the study holds.

    Raises:
        UserError: The task's code here is not that of the study.
    """
    key, task = info.key, info.task
    known = info.objective and "search" not in key  # a study by --trials has its own in its key
    asked = {"objective": info.objective, "maximize": info.maximize} if known else {}
    settings = Settings(**info.key["settings"] | asked)
    source: TaskSource | Command
    if "command" in key:
        task = COMMAND + shlex.join(key["command"])
        options.read, options.read_file, options.objective = key["read"], key["read_file"], settings.objective
        source = Command(tuple(key["command"]), tuple(key["set"].items()), settings.steps, settings.epochs)
    else:
        source = find_task(task, key["set"])
    experiment = dataclasses.replace(
        options.experiment(task),
        source=source,
        settings=settings,
        study=info.study,
        search=key.get("search"),
    )
    if experiment.key() != key:
        raise UserError(
            f"{info.study} is of other code than {experiment.source.file} has here.\n"
            "Update it on this machine, or name another study with --study."
        )
    return experiment


def _spec(run: Run, of_script: bool) -> RunSpec:
    optimizer = OptimizerSpec(run.optimizer, run.optimizer) if of_script else OptimizerSpec.parse(run.optimizer)
    return RunSpec(optimizer, run.lr, run.seed, tuple(run.params.items()))


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(work)
