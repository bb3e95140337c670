"""momo in Python: ``sweep``, ``compare``, ``recommend`` and ``load``, which return a :class:`~momo_cli.report.Report`.

import momo_cli
report = momo_cli.sweep(build, optimizers=["momo", "sgd-m"], lrs=[0.01, 0.1, 1], seeds=2, steps=100)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from momo_cli.errors import UserError
from momo_cli.experiment import Display, Experiment
from momo_cli.figures import Prefer
from momo_cli.plan import COMPARED, SEEDS, SWEPT, OptimizerSpec, Settings, grid, parse_lrs, parse_optimizers
from momo_cli.plan.learning_rates import parse_range
from momo_cli.report import Report
from momo_cli.reporting import EXTENSIONS, check_failures, extension_of, report_of, stored_report, trials_of, usable
from momo_cli.script_experiment import ScriptExperiment
from momo_cli.search import Search, search
from momo_cli.store import DEFAULT_URL, Store
from momo_cli.task.function import FunctionSource, source_of
from momo_cli.task.loading import TaskSource, find_task
from momo_cli.training.script import Command, Reading
from momo_cli.user_code import UserCodeError

if TYPE_CHECKING:
    from momo_cli.plan import RunSpec

Task = Callable[..., Any] | str | Sequence[str]
"""A function that returns a task, a string as the command takes, or the command of a script as a list of words."""

Range = tuple[float, float] | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords of :func:`sweep`, :func:`compare` and :func:`recommend`; each is the command's option of that name.

    Attributes:
        optimizers: Specs such as ``adamw(weight_decay=0.1)``; of a script any words.
        lrs: Learning rates for all, or by optimizer; a string as the command takes.
        seeds: Seeds 0 … N-1.
        steps: Training steps of a run.
        epochs: Passes over the data instead.
        schedule: ``constant``, ``cosine``, ``linear`` or ``wsd``.
        warmup: Share of the steps with a rising learning rate.
        amp: ``off``, ``bf16`` or ``fp16``.
        clip: Largest gradient norm.
        objective: ``train_loss``, ``val_loss`` or a metric.
        maximize: Larger values of the objective are better.
        task_args: Keyword arguments of the task's function (``--set``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:0,cuda:1`` or ``mps``.
        together: Runs trained at once in one process: ``auto``, ``off`` or a number.
        jobs: Processes.
        trials: Trials of an Optuna study for each optimizer, instead of ``lrs``.
        lr_range: The learning rates to search.
        tune: Ranges of further arguments to search, by name.
        sampler: Optuna's sampler.
        pruner: Optuna's pruner.
        storage: Optuna's storage URL; None keeps nothing. Default: ``MOMO_STORAGE``, else ``sqlite:///momo.db``.
        study: Name of the study.
        fresh: Train again what is stored.
        read: Of a script: a regular expression for each line of its output.
        read_file: Of a script: a CSV or JSON file that it leaves.
        timeout: Of a script: seconds of a run.
        progress: Show the display, on a terminal or in a notebook.
    """

    optimizers: str | Sequence[str] | None = None
    lrs: str | Sequence[float] | Mapping[str, str | Sequence[float]] | None = None
    seeds: int | None = None
    steps: int | None = None
    epochs: float | None = None
    schedule: str = "constant"
    warmup: float = 0.0
    amp: str = "off"
    clip: float | None = None
    objective: str | None = None
    maximize: bool = False
    task_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device: str = "auto"
    together: int | Literal["auto", "off"] = "auto"
    jobs: int | None = None
    trials: int | None = None
    lr_range: Range | None = None
    tune: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    sampler: str = "tpe"
    pruner: str = "none"
    storage: str | None = dataclasses.field(default_factory=lambda: os.environ.get("MOMO_STORAGE", DEFAULT_URL))
    study: str | None = None
    fresh: bool = False
    read: str | None = None
    read_file: str | None = None
    timeout: float | None = None
    progress: bool = False


def sweep(task: Task, **options: Any) -> Report:
    """Train every optimizer at every learning rate with every seed, as far as it isn't stored.

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


def compare(task: Task | None = None, **options: Any) -> Report:
    """Compare optimizers over their learning rates, training what is missing; without a task the latest that is stored.

    Args:
        task: As for :func:`sweep`.
        options: See :class:`Options`.

    Raises:
        UserError: As for :func:`sweep`, or nothing is stored.
    """
    asked = Options(**options)
    if task is None:
        return dataclasses.replace(_stored(asked), view="compare")
    return _report(task, asked, COMPARED, SEEDS, "compare")


def recommend(task: Task | None = None, *, prefer: Prefer = "robust", extend: bool = False, **options: Any) -> Report:
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
                    found = _collected(dataclasses.replace(experiment, fresh=False), further, asked)
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


def _report(task: Task, asked: Options, optimizers: str, seeds: int, view: Literal["sweep", "compare"]) -> Report:
    with _experiment(task, asked) as experiment:
        return dataclasses.replace(_trained(experiment, asked, optimizers, seeds), view=view)


def _stored(asked: Options) -> Report:
    if asked.storage is None:
        raise UserError("storage=None keeps nothing, so there is nothing stored to read: give the task, or a storage.")
    return stored_report(Store(asked.storage), asked.study)


def _trained(experiment: Experiment, asked: Options, default: str, default_seeds: int) -> Report:
    texts = [asked.optimizers] if isinstance(asked.optimizers, str) else list(asked.optimizers or [])
    optimizers: list[OptimizerSpec]
    if isinstance(experiment, ScriptExperiment):
        optimizers = experiment.optimizers(texts)
    else:
        optimizers = parse_optimizers(texts or [default])
    if asked.trials is None:
        for name in ("lr_range", "tune"):
            if getattr(asked, name):
                raise UserError(f"{name} is for an Optuna study: say how many trials=… it has.")
        specs = grid(optimizers, parse_lrs(_lrs(asked.lrs), optimizers), asked.seeds or default_seeds)
        return _collected(experiment, specs, asked)
    if asked.lrs is not None:
        raise UserError("lrs and trials were both given: a study chooses the learning rates. Give their lr_range.")
    how = Search(
        asked.trials,
        asked.sampler,
        asked.pruner,
        None if asked.lr_range is None else _range(asked.lr_range, "lr_range "),
        {name: _range(ends, f"tune {name}=") for name, ends in asked.tune.items()},
    )
    with _display(asked, experiment.source.name) as display:
        found = search(experiment, optimizers, how, asked.seeds or 1, display)
    check_failures(found.runs)
    return report_of(trials_of(found, how), experiment)


def _collected(experiment: Experiment, specs: list[RunSpec], asked: Options) -> Report:
    with _display(asked, experiment.source.name) as display:
        collected = experiment.collect(specs, display)
    check_failures(collected.runs)
    return report_of(collected, experiment)


@contextlib.contextmanager
def _experiment(task: Task, asked: Options) -> Iterator[Experiment]:
    settings = Settings(
        asked.steps,
        asked.epochs,
        asked.schedule,
        asked.warmup,
        asked.amp,
        asked.clip,
        asked.objective,
        asked.maximize,
    )
    source = _source(task, asked)
    with contextlib.ExitStack() as kept:
        url = asked.storage
        if url is None:
            url = f"sqlite:///{kept.enter_context(tempfile.TemporaryDirectory(prefix='momo-'))}/momo.db"
        together: int | Literal["auto"] = 1 if asked.together == "off" else asked.together
        how = (settings, Store(url), asked.device, asked.study, asked.fresh, together)
        if isinstance(source, Command):
            reading = Reading(asked.read, asked.read_file, asked.objective)
            yield ScriptExperiment(source, *how, asked.jobs, reading=reading, timeout=asked.timeout)
            return
        for name in ("read", "read_file", "timeout"):
            if getattr(asked, name) is not None:
                raise UserError(f"{name} is for a training script's command.")
        if isinstance(source, FunctionSource) and (asked.jobs or 1) > 1:
            raise UserError(
                f"jobs={asked.jobs}: {source.name} is in no file that others can import, so that it is trained in this "
                "process alone.\nPut it in a file of its own, or leave jobs out."
            )
        try:
            yield Experiment(source, *how, 1 if isinstance(source, FunctionSource) else asked.jobs)
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


def _lrs(given: str | Sequence[float] | Mapping[str, str | Sequence[float]] | None) -> list[str]:
    """Learning rates as ``--lrs`` takes them."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        return [f"{label}={values}" for label, own in given.items() for values in _lrs(own)]
    return [given if isinstance(given, str) else ",".join(repr(float(lr)) for lr in given)]


def _range(given: Range, flag: str) -> tuple[float, float]:
    return parse_range(given if isinstance(given, str) else "{!r}:{!r}".format(*map(float, given)), flag)


def _display(asked: Options, task: str) -> contextlib.AbstractContextManager[Display]:
    from momo_cli.report.progress import display

    return display(task, shown=asked.progress)
