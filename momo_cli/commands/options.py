"""The options that commands share: declared once, parsed by Typer, handed over as one object."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from momo_cli.errors import UserError
from momo_cli.plan.optimizers import KNOWN
from momo_cli.plan.settings import AMP, SCHEDULES, Settings
from momo_cli.search import PRUNERS, SAMPLERS
from momo_cli.store import DEFAULT_URL, GRACE, Store
from momo_cli.task.builtin import BUILTIN

_RUNS, _SEARCH, _TRAINING, _STORE, _OUTPUT = "Runs", "Optuna study", "Training", "Stored runs", "Output"


def _starting(known: Any) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def task_argument(more: str = "") -> Any:
    """The argument TASK, with ``more`` behind its help."""
    builtin = ", ".join(BUILTIN)
    return typer.Argument(
        metavar="[TASK]" if more else "TASK",
        help=f"module:function, path/to/file.py:function (':build' may be left off), or a built-in task: {builtin}. {more}".rstrip(),
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


@dataclasses.dataclass
class TrainingOptions:
    """How runs are trained."""

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
            + ", any class of torch.optim in lower case, or package.module:Class; arguments in brackets: 'adamw(weight_decay=0.1)'.",
        ),
    ] = None
    lrs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LRS",
            rich_help_panel=_RUNS,
            help="Learning rates: 0.01,0.1,1 or 1e-4:1e1:11 (log-spaced), for one optimizer momo=0.1,1,10 (repeatable). "
            "Default: 9 values, two per decade, centred on each optimizer's own default.",
        ),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Seeds 0 … N-1 for every run.", rich_help_panel=_RUNS, show_default=False
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Keyword argument of the task's function, repeatable.",
            rich_help_panel=_RUNS,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Training steps of a run. Default: the task's, else one epoch.", rich_help_panel=_TRAINING
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Passes over the training data instead of --steps.", rich_help_panel=_TRAINING),
    ] = None
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
    amp: Annotated[
        str,
        typer.Option(
            metavar="|".join(AMP), help="Mixed precision.", rich_help_panel=_TRAINING, autocompletion=_starting(AMP)
        ),
    ] = "off"
    clip: Annotated[
        float | None, typer.Option(metavar="NORM", help="Clip the gradient's norm.", rich_help_panel=_TRAINING)
    ] = None
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="train_loss, val_loss or a metric. Default: val_loss where there is val.",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    maximize: Annotated[
        bool, typer.Option("--maximize", help="Larger values of the objective are better.", rich_help_panel=_TRAINING)
    ] = False
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:0,cuda:1 or mps.", rich_help_panel=_TRAINING)
    ] = "auto"
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
    storage: StorageOption = DEFAULT_URL
    study: StudyOption = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is stored.", rich_help_panel=_STORE)] = False
    grace: GraceOption = GRACE

    def settings(self) -> Settings:
        """What changes a run's result."""
        return Settings(
            self.steps, self.epochs, self.schedule, self.warmup, self.amp, self.clip, self.objective, self.maximize
        )

    def arguments(self) -> dict[str, Any]:
        """``--set``, as Python literals where they are ones, else as strings."""
        parsed = {}
        for text in self.set_ or []:
            key, equals, value = text.partition("=")
            if not equals or not key.isidentifier():
                raise UserError(f"--set {text}: write key=value, for instance --set width=128.")
            try:
                parsed[key] = ast.literal_eval(value)
            except (SyntaxError, ValueError):
                parsed[key] = value
        return parsed

    def open_store(self) -> Store:
        """The store that ``--storage`` names."""
        return Store(self.storage, self.grace)


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


@dataclasses.dataclass
class OutputOptions:
    """What becomes of the result besides the table on the screen."""

    json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="Everything as JSON; - writes JSON alone to stdout.", rich_help_panel=_OUTPUT
        ),
    ] = None
    csv: Annotated[str | None, typer.Option(metavar="FILE|-", help="The runs as CSV.", rich_help_panel=_OUTPUT)] = (
        None
    )
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="The tables as Markdown.", rich_help_panel=_OUTPUT)
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The plot as .png, .svg or .pdf (extra 'plot').", rich_help_panel=_OUTPUT),
    ] = None
    plot_kind: Annotated[
        str,
        typer.Option(
            metavar="lr|curves|steps",
            help="Final value against LR, loss curves, or Momo's step sizes.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "lr"
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="All of it in one HTML file (extra 'plot').", rich_help_panel=_OUTPUT),
    ] = None
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes.", rich_help_panel=_OUTPUT)] = (
        False
    )

    @property
    def to_stdout(self) -> bool:
        """Whether a file format takes stdout, so that everything else goes to stderr."""
        return "-" in (self.json, self.csv, self.markdown)


def with_options(*bundles: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of dataclasses; it is called with one object of each, by the class's name in snake case."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True)
        names = {bundle: _snake(bundle.__name__) for bundle in bundles}
        parameters = [p for p in own.parameters.values() if p.name not in names.values()]
        for bundle in bundles:
            hints = typing.get_type_hints(bundle, vars(sys.modules[bundle.__module__]), include_extras=True)
            for field in dataclasses.fields(bundle):
                parameters.append(
                    inspect.Parameter(
                        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
                    )
                )

        @functools.wraps(command)
        def called(**given: Any) -> Any:
            for bundle, name in names.items():
                given[name] = bundle(**{field.name: given.pop(field.name) for field in dataclasses.fields(bundle)})
            return command(**given)

        ordered = sorted(parameters, key=lambda p: p.kind)
        called.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in ordered}
        del called.__wrapped__
        return called

    return decorate


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
