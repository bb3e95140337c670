"""The options that commands share: declared once, read by Typer, and parsed here into values, once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
import shlex
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from momo_cli.asked import Options
from momo_cli.errors import UserError, literal
from momo_cli.experiment import Experiment
from momo_cli.plan.optimizers import KNOWN
from momo_cli.plan.schedules import SCHEDULES
from momo_cli.plan.settings import AMP
from momo_cli.report.exports import FORMATS, Format, Target
from momo_cli.search import PRUNERS, SAMPLERS
from momo_cli.store import DEFAULT_URL, GRACE, Store
from momo_cli.task.builtin import BUILTIN
from momo_cli.task.loading import TaskSource, find_task
from momo_cli.training.script import Command

COMMAND = "-- "
"""What a TASK begins with that is a command; its words follow as a shell quotes them."""

_TASK, _SCRIPT, _RUNS, _SEARCH, _TRAINING = "Task", "Training script", "Runs", "Optuna study", "Training"
_STORE, _OUTPUT = "Stored runs", "Output"


def _starting(known: Iterable[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


class TaskCommand(TyperCommand):
    """A command of ours whose TASK may be a training script's command, after ``--``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Make one TASK of the words after ``--``."""
        if "--" in args:
            at = args.index("--")
            args = [*args[: at + 1], COMMAND + shlex.join(args[at + 1 :])]
        return super().parse_args(ctx, args)


def task_argument(more: str = "") -> Any:
    """The argument TASK, with ``more`` behind its help."""
    builtin = ", ".join(BUILTIN)
    return typer.Argument(
        metavar="[TASK]" if more else "TASK",
        help="module:function, path/to/file.py:function (':build' may be left off), a built-in task "
        f"({builtin}), or, after --, the command of a training script: -- python train.py --lr {{lr}}. {more}".rstrip(),
        autocompletion=_starting(BUILTIN),
    )


TaskArgument = Annotated[str, task_argument()]
StorageOption = Annotated[
    str,
    typer.Option(
        envvar="MOMO_STORAGE", metavar="URL", help="Optuna storage that keeps the runs.", rich_help_panel=_STORE
    ),
]
GraceOption = Annotated[
    int,
    typer.Option(
        metavar="SECONDS",
        min=3,
        help="Runs of a process that has sent no heartbeat for so long go to others.",
        rich_help_panel=_STORE,
    ),
]
StudyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Name of the study; by default one for each task and settings.", rich_help_panel=_STORE
    ),
]


def _seconds(help: str) -> Any:
    return typer.Option(metavar="SECONDS", help=help, rich_help_panel=_TRAINING, show_default=False)


TimeoutOption = Annotated[
    float | None, _seconds("End a run after this time, as failed; in a stack, after its share of it.")
]
CheckpointOption = Annotated[
    float | None,
    _seconds("Keep a checkpoint of each run under way so often, in momo-runs beside the store; runs go on from there."),
]


@dataclasses.dataclass
class TaskOptions:
    """How one run of a task is made."""

    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Keyword argument of the task's function, repeatable.",
            rich_help_panel=_TASK,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Training steps of a run. Default: the task's, else one epoch.", rich_help_panel=_TASK
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Passes over the training data instead of --steps.", rich_help_panel=_TASK),
    ] = None
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="train_loss, val_loss or a metric. Default: val_loss where there is val.",
            rich_help_panel=_TASK,
        ),
    ] = None
    amp: Annotated[
        str,
        typer.Option(
            metavar="|".join(AMP), help="Mixed precision.", rich_help_panel=_TASK, autocompletion=_starting(AMP)
        ),
    ] = "off"
    clip: Annotated[
        float | None, typer.Option(metavar="NORM", help="Clip the gradient's norm.", rich_help_panel=_TASK)
    ] = None
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:0,cuda:1 or mps.", rich_help_panel=_TASK)
    ] = "auto"
    read: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="For each line of a script's output: named groups value (the objective) or loss, and step.",
            rich_help_panel=_SCRIPT,
        ),
    ] = None
    read_file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="A CSV or JSON file that a script leaves, as {dir}/log.csv.", rich_help_panel=_SCRIPT
        ),
    ] = None
    timeout: TimeoutOption = None

    def asked(self) -> Options:
        """The options in plain values.

        Raises:
            UserError: One isn't written as it should be.
        """
        return Options(**self._given())

    def _given(self) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(Options)}
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in names}
        return given | {"task_args": arguments(self.set_ or [])}

    def source(self, task: str, asked: Options | None = None) -> TaskSource | Command:
        """The task, with its arguments; ``asked`` stands for these options where some of them are others.

        Raises:
            UserError: There is no such task, an argument is not KEY=VALUE, or an option is for scripts alone.
        """
        asked = asked or self.asked()
        given = dict(asked.task_args)
        if task.startswith(COMMAND):
            words = shlex.split(task.removeprefix(COMMAND))
            return Command.parse(words, arguments=tuple(given.items()), steps=asked.steps, epochs=asked.epochs)
        asked.check_function()
        return find_task(task, given)


@dataclasses.dataclass
class TrainingOptions(TaskOptions):
    """Which runs are trained, and how."""

    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--optimizer",
            metavar="SPEC",
            rich_help_panel=_RUNS,
            autocompletion=_starting(KNOWN),
            help="Optimizer, repeatable or comma-separated: "
            + ", ".join(KNOWN)
            + ", any class of torch.optim in lower case, or package.module:Class; arguments in brackets, schedule "
            "and warm-up behind: 'adamw(weight_decay=0.1)+cosine+warmup=0.1'.",
        ),
    ] = None
    lrs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LRS",
            rich_help_panel=_RUNS,
            help="Learning rates: 0.01,0.1,1 or 1e-4:1e1:11 (log-spaced), for one optimizer momo=0.1,1,10 "
            "(repeatable). Default: 9 values, two per decade, centred on each optimizer's own default.",
        ),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Seeds 0 … N-1 for every run.", rich_help_panel=_RUNS, show_default=False
        ),
    ] = None
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2,…",
            help="One more axis: everything for each value of a keyword of the task, of steps or of epochs. Does one "
            "learning rate serve all of them?",
            rich_help_panel=_RUNS,
        ),
    ] = None
    maximize: Annotated[
        bool, typer.Option("--maximize", help="Larger values of the objective are better.", rich_help_panel=_TRAINING)
    ] = False
    schedule: Annotated[
        str,
        typer.Option(
            metavar="|".join(SCHEDULES),
            help="Learning rate schedule.",
            rich_help_panel=_TRAINING,
            autocompletion=_starting(SCHEDULES),
        ),
    ] = "constant"
    warmup: Annotated[
        float,
        typer.Option(
            metavar="FRACTION", help="Share of the steps with a rising learning rate.", rich_help_panel=_TRAINING
        ),
    ] = 0.0
    together: Annotated[
        str,
        typer.Option(
            metavar="auto|off|N", help="Runs trained at once in one process; auto measures.", rich_help_panel=_TRAINING
        ),
    ] = "auto"
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Processes. Default: what the machine can feed.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None
    checkpoint: CheckpointOption = None
    storage: StorageOption = DEFAULT_URL
    study: StudyOption = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is stored.", rich_help_panel=_STORE)] = False
    grace: GraceOption = GRACE

    def asked(self, search: SearchOptions | None = None) -> Options:
        """The options in plain values; errors as for :meth:`TaskOptions.asked`."""
        return Options(**self._given(), **({} if search is None else search.given()))

    def _given(self) -> dict[str, Any]:
        if self.vary is not None and len(self.vary) > 1:
            raise UserError(f"--vary {self.vary[1]}: one axis at a time, and --vary {self.vary[0]} was given, too.")
        vary = self.vary[0] if self.vary else None
        return super()._given() | {"optimizers": self.optimizer, "together": self._together(), "vary": vary}

    def store(self) -> Store:
        """The store that ``--storage`` names."""
        return Store(self.storage, self.grace)

    def experiment(self, task: str) -> Experiment:
        """The task, and how its runs are trained and kept.

        Raises:
            UserError: The task or an option is wrong.
        """
        return self.asked().experiment(self.source(task), self.store())

    def _together(self) -> int | Literal["auto", "off"]:
        if self.together == "auto" or self.together == "off":
            return self.together  # type: ignore[return-value]
        if not re.fullmatch("0*[1-9][0-9]{0,8}", self.together):
            raise UserError(f"--together {self.together}: write auto, off, or how many runs to train at once.")
        return int(self.together)


@dataclasses.dataclass
class SearchOptions:
    """An Optuna study instead of a grid."""

    trials: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Trials of an Optuna study for each optimizer, instead of --lrs.",
            rich_help_panel=_SEARCH,
        ),
    ] = None
    lr_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Learning rates to search. Default: the default grid's span.",
            rich_help_panel=_SEARCH,
        ),
    ] = None
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARG=LOW:HIGH",
            help="A further argument to search, as weight_decay=1e-6:1e-1; repeatable.",
            rich_help_panel=_SEARCH,
        ),
    ] = None
    sampler: Annotated[
        str,
        typer.Option(
            metavar="|".join(SAMPLERS),
            help="Optuna's sampler.",
            rich_help_panel=_SEARCH,
            autocompletion=_starting(SAMPLERS),
        ),
    ] = "tpe"
    pruner: Annotated[
        str,
        typer.Option(
            metavar="|".join(PRUNERS),
            help="Optuna's pruner.",
            rich_help_panel=_SEARCH,
            autocompletion=_starting(PRUNERS),
        ),
    ] = "none"

    def given(self) -> dict[str, Any]:
        """Keywords of :class:`momo_cli.asked.Options`.

        Raises:
            UserError: ``--tune`` isn't written as it should be.
        """
        ranges = {}
        for text in self.tune or []:
            name, equals, values = text.partition("=")
            if not equals or not name.isidentifier() or name == "lr":
                raise UserError(f"--tune {text}: write ARGUMENT=LOW:HIGH, for instance weight_decay=1e-6:1e-1.")
            ranges[name] = values
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {"tune": ranges}


@dataclasses.dataclass
class OutputOptions:
    """What becomes of the result besides the table on the screen.

    Attributes:
        targets: Each format asked for, and its file.
    """

    plot_kind: Annotated[
        str | None,
        typer.Option(
            metavar="lr|curves|steps|transfer",
            help="Final value against LR, loss curves, Momo's step sizes, or, with --vary, the values against LR.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes.", rich_help_panel=_OUTPUT)] = (
        False
    )
    targets: tuple[tuple[Format, Target], ...] = ()

    @property
    def to_stdout(self) -> bool:
        """Whether a format takes stdout, so that everything else goes to stderr."""
        return any(target.is_stdout for _, target in self.targets)

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """An option for each format, then its own."""
        formats = [
            _parameter(
                form.name,
                None,
                Annotated[str | None, typer.Option(metavar=form.metavar, help=form.help, rich_help_panel=_OUTPUT)],
            )
            for form in FORMATS
        ]
        return formats + [parameter for parameter in _fields(cls) if parameter.name != "targets"]

    @classmethod
    def from_given(cls, given: dict[str, Any]) -> OutputOptions:
        """From the options as typed."""
        files = {form: given.pop(form.name) for form in FORMATS}
        kind = given["plot_kind"]
        return cls(
            **given, targets=tuple((form, Target(file, kind)) for form, file in files.items() if file is not None)
        )


def arguments(texts: Iterable[str]) -> dict[str, Any]:
    """``--set KEY=VALUE`` as keyword to value: Python literals where they are ones, else strings.

    Raises:
        UserError: It is written otherwise.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--set {text}: write key=value, for instance --set width=128.")
        found[key] = literal(value)
    return found


def conditions(texts: Iterable[str]) -> dict[str, str]:
    """``--where COLUMN=VALUE`` as column to value.

    Raises:
        UserError: It is written otherwise.
    """
    found = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--where {text}: write COLUMN=VALUE.")
        found[column] = value
    return found


def with_options(*bundles: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of bundles; it is called with one object of each, by the class's name in snake case.

    A bundle is a dataclass whose fields are options, or a class with ``parameters`` and ``from_given`` of its own.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True)
        names = {_snake(bundle.__name__): bundle for bundle in bundles}
        options = {
            name: bundle.parameters() if hasattr(bundle, "parameters") else _fields(bundle)
            for name, bundle in names.items()
        }
        parameters = [parameter for parameter in own.parameters.values() if parameter.name not in names]
        parameters += itertools.chain(*options.values())

        @functools.wraps(command)
        def called(**given: Any) -> Any:
            for name, bundle in names.items():
                mine = {parameter.name: given.pop(parameter.name) for parameter in options[name]}
                given[name] = bundle.from_given(mine) if hasattr(bundle, "from_given") else bundle(**mine)
            return command(**given)

        ordered = sorted(parameters, key=lambda parameter: parameter.kind)
        called.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
        del called.__wrapped__
        return called

    return decorate


def _fields(bundle: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(bundle, vars(sys.modules[bundle.__module__]), include_extras=True)
    return [_parameter(field.name, field.default, hints[field.name]) for field in dataclasses.fields(bundle)]


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
