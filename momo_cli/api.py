"""momo in Python: ``sweep``, ``compare``, ``recommend`` and ``load``, which return a :class:`~momo_cli.report.Report`.

import momo_cli
report = momo_cli.sweep(build, optimizers=["momo", "sgd-m"], lrs=[0.01, 0.1, 1], seeds=2, steps=100)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from momo_cli.asked import Options, collect
from momo_cli.errors import UserError
from momo_cli.experiment import Collected, Display, Experiment
from momo_cli.figures import Prefer
from momo_cli.plan import COMPARED, SEEDS, SWEPT
from momo_cli.report import Report
from momo_cli.report.varied import VariedReport
from momo_cli.reporting import EXTENSIONS, check_failures, extension_of, report_of, stored_report, usable
from momo_cli.store import Store
from momo_cli.task.function import source_of
from momo_cli.task.loading import TaskSource, find_task
from momo_cli.training.script import Command
from momo_cli.user_code import UserCodeError

View = Literal["sweep", "compare", "recommend"]

Task = Callable[..., Any] | str | Sequence[str]
"""A function that returns a task, a string as the command takes, or the command of a script as a list of words."""


def sweep(task: Task, **options: Any) -> Report | VariedReport:
    """Train every optimizer at every learning rate with every seed, as far as it isn't stored.

    With ``vary`` the report is a :class:`~momo_cli.report.varied.VariedReport`: of each value, and over all of them.

    Args:
        task: A function that returns a task, a string as ``momo sweep`` takes, or the words of a script's command.
        options: See :class:`Options`.

    Raises:
        UserError: The task or an option is wrong, or every run failed.

    Example:
        >>> import momo_cli, torch
        >>> def build(seed):
        ...     x = torch.randn(64, 3)
        ...     model = torch.nn.Linear(3, 1)
        ...     loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True)).square().mean()
        ...     return model, loss, list(x.split(16))
        >>> report = momo_cli.sweep(build, optimizers=["momo"], lrs=[0.1, 1], steps=20, storage=None)
        >>> [figures.best_lr for figures in report.optimizers]
        [1.0]
    """
    return _report(task, Options(**options), SWEPT, 1, "sweep")


def compare(task: Task | None = None, **options: Any) -> Report | VariedReport:
    """Compare optimizers over their learning rates, training what is missing; without a task the latest that is stored.

    Args:
        task: As for :func:`sweep`.
        options: See :class:`Options`.

    Raises:
        UserError: As for :func:`sweep`, or nothing is stored.
    """
    asked = Options(**options)
    if task is None:
        if asked.vary is not None:
            raise UserError("vary needs the task.")
        return dataclasses.replace(_stored(asked), view="compare")
    return _report(task, asked, COMPARED, SEEDS, "compare")


def recommend(
    task: Task | None = None, *, prefer: Prefer = "robust", extend: bool = False, **options: Any
) -> Report | VariedReport:
    """Name the optimizer and the learning rate to use: ``report.recommendation``, with its reasons and warnings.

    Args:
        task: As for :func:`sweep`; its stored runs are used, where there are some and ``options`` ask for no others.
        prefer: ``robust``: the optimizer of least regret; ``best``: the smallest value of all.
        extend: Where a best learning rate is at the end of its grid, run up to two decades further.
        options: See :class:`Options`.

    Raises:
        UserError: As for :func:`compare`.
    """
    from momo_cli.report.advice import advise

    asked = Options(**options)
    if prefer not in ("robust", "best"):
        raise UserError(f"prefer={prefer!r}: write 'robust' or 'best'.")
    if asked.vary is not None:
        if task is None or extend or prefer == "best":
            raise UserError("vary needs the task, and goes with neither extend=True nor prefer='best'.")
        return _report(task, asked, COMPARED, SEEDS, "recommend")
    if task is None:
        if extend:
            raise UserError("extend=True trains further runs, so it needs the task.")
        report = _stored(asked)
    else:
        with _experiment(task, asked) as experiment:
            plain = not (asked.optimizers or asked.lrs or asked.seeds or asked.fresh or asked.trials)
            found = (usable(experiment) if plain else None) or _trained(experiment, asked, COMPARED, SEEDS)
            for _ in range(EXTENSIONS if extend else 0):
                further = extension_of(found)
                if further:
                    experiment = dataclasses.replace(experiment, fresh=False)
                    with _display(asked, experiment) as display:
                        found = _checked_report(experiment.collect(further, display), experiment)
            report = found
    return dataclasses.replace(report, advice=advise(report, prefer), view="recommend")


def load(study: str | None = None, storage: str | None = None) -> Report:
    """What is stored: the study of that name, else the latest one.

    Args:
        study: The study's name, as ``momo list`` shows it.
        storage: Optuna's storage URL. Default: ``MOMO_STORAGE``, else ``sqlite:///momo.db``.

    Raises:
        UserError: Nothing is stored, or no such study.
    """
    return _stored(Options(study=study) if storage is None else Options(study=study, storage=storage))


def _report(task: Task, asked: Options, optimizers: str, seeds: int, view: View) -> Report | VariedReport:
    if asked.vary is not None:
        name, requests = asked.varied()
        reports = []
        with contextlib.ExitStack() as kept:
            made = [(each, kept.enter_context(_experiment(task, each))) for _, each in requests]
            for each, experiment in made:
                show = functools.partial(_display, each, experiment)
                reports.append(report_of(collect(experiment, each, optimizers, seeds, show), experiment))
        check_failures([run for report in reports for run in report.runs])
        return VariedReport(name, [value for value, _ in requests], reports, view)
    with _experiment(task, asked) as experiment:
        return dataclasses.replace(_trained(experiment, asked, optimizers, seeds), view=view)


def _stored(asked: Options) -> Report:
    if asked.storage is None:
        raise UserError("storage=None keeps nothing, so there is nothing stored to read: give the task, or a storage.")
    return stored_report(Store(asked.storage), asked.study, asked.settings())


def _trained(experiment: Experiment, asked: Options, default: str, default_seeds: int) -> Report:
    collected = collect(experiment, asked, default, default_seeds, functools.partial(_display, asked, experiment))
    return _checked_report(collected, experiment)


def _checked_report(collected: Collected, experiment: Experiment) -> Report:
    check_failures(collected.runs)
    return report_of(collected, experiment)


@contextlib.contextmanager
def _experiment(task: Task, asked: Options) -> Iterator[Experiment]:
    source = _source(task, asked)
    with contextlib.ExitStack() as kept:
        url = asked.storage
        if url is None:
            url = f"sqlite:///{kept.enter_context(tempfile.TemporaryDirectory(prefix='momo-'))}/momo.db"
        try:
            yield asked.experiment(source, Store(url, asked.grace))
        except UserCodeError as error:
            raise UserError(f"{error}\n{error.frames}") from error


def _source(task: Task, asked: Options) -> TaskSource | Command:
    arguments = dict(asked.task_args)
    if isinstance(task, str) and not ("{" in task or " " in task.strip()):
        return find_task(task, arguments)
    if isinstance(task, (str, list, tuple)):
        words = [task] if isinstance(task, str) else list(task)
        return Command.parse(words, arguments=tuple(arguments.items()), steps=asked.steps, epochs=asked.epochs)
    return source_of(task, arguments)  # type: ignore[arg-type]  # what isn't a function is refused there


def _display(asked: Options, experiment: Experiment, runs: int = 0) -> contextlib.AbstractContextManager[Display]:
    from momo_cli.report.progress import display

    return display(experiment.source.name, shown=asked.progress)
