"""What is asked of momo, in plain values: the command line and Python both come to this, and are one from here on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from momo_cli.errors import UserError, did_you_mean, literal
from momo_cli.experiment import Collected, Display, Experiment
from momo_cli.plan import OptimizerSpec, Settings, grid, parse_lrs, parse_optimizers
from momo_cli.plan.learning_rates import parse_range
from momo_cli.plan.optimizers import split_outside_brackets
from momo_cli.report import numbers
from momo_cli.reporting import trials_of
from momo_cli.script_experiment import ScriptExperiment
from momo_cli.search import NEEDED, PRUNERS, SAMPLERS, Search, search
from momo_cli.store import DEFAULT_URL, GRACE, Store
from momo_cli.task.function import FunctionSource
from momo_cli.task.loading import TaskSource
from momo_cli.training.script import Command, Reading

Range = tuple[float, float] | str
_MOST_RUNS = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """The keywords of :func:`sweep`, :func:`compare` and :func:`recommend`; each is the command's option of that name.

    They are these, and those of :class:`momo_cli.plan.Settings`: ``steps``, ``epochs``, ``schedule``, ``warmup``,
    ``amp``, ``clip``, ``objective`` and ``maximize``.

    Attributes:
        optimizers: Specs such as ``adamw(weight_decay=0.1)``; of a script any words.
        lrs: Learning rates for all, or by optimizer; a string as the command takes.
        seeds: Seeds 0 … N-1.
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
        timeout: Seconds after which a run is ended, as ``failed``; of a stack's time a run's is its share.
        checkpoint: Seconds from one checkpoint of a run under way to the next; by default none are kept.
        grace: Seconds after which runs of a process that sends no heartbeats go to others.
        vary: One more axis, as ``"width=32,64"`` or ``{"width": [32, 64]}``: a task's keyword, ``steps`` or ``epochs``.
        progress: Show the display, on a terminal or in a notebook.
    """

    optimizers: str | Sequence[str] | None = None
    lrs: str | Sequence[str | float] | Mapping[str, str | Sequence[float]] | None = None
    seeds: int | None = None
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
    checkpoint: float | None = None
    grace: int = GRACE
    vary: str | Mapping[str, Sequence[Any]] | None = None
    progress: bool = False

    def settings(self) -> Settings:
        """What changes a run's result."""
        return Settings(**self.key())

    def varied(self) -> tuple[str, list[tuple[Any, Options]]]:
        """What is varied, and for each of its values the options with that value.

        Raises:
            UserError: It isn't written as it should be, or the options don't go with it.
        """
        assert self.vary is not None
        if self.trials is not None:
            raise UserError("--vary compares learning rates that all values have: give --lrs instead of --trials.")
        if self.study is not None:
            raise UserError("--vary makes a study for each value, so they can't all have the name of --study.")
        name, values = _vary(self.vary)
        counts = name in ("steps", "epochs")
        if name in self.task_args or (counts and not (self.steps is None and self.epochs is None)):
            given = "--steps or --epochs" if counts else f"--set {name}"
            raise UserError(f"--vary {name} and {given} were both given. Leave one out.")
        if counts and not all(type(v) is int or (name == "epochs" and type(v) is float) for v in values):
            raise UserError(f"--vary {name}={','.join(map(str, values))}: {name} are positive numbers.")
        changes = [{name: v} if counts else {"task_args": {**self.task_args, name: v}} for v in values]
        return name, [(v, dataclasses.replace(self, vary=None, **change)) for v, change in zip(values, changes)]

    def reading(self) -> Reading:
        """How a script's numbers are read."""
        return Reading(self.read, self.read_file, self.objective)

    def experiment(self, source: TaskSource | Command, store: Store) -> Experiment:
        """The task, and how its runs are trained and kept.

        Raises:
            UserError: An option is wrong, or for scripts alone.
        """
        together: int | Literal["auto"] = 1 if self.together == "off" else self.together
        for flag, seconds in (("--timeout", self.timeout), ("--checkpoint", self.checkpoint)):
            if seconds is not None and not 0 < seconds < math.inf:
                raise UserError(f"{flag} {seconds:g}: it must be a positive number of seconds.")
        if self.checkpoint is not None and self.storage is None:
            raise UserError("checkpoint: without a storage nothing is kept. Name one, or leave checkpoint out.")
        how = (self.settings(), store, self.device, self.study, self.fresh, together)
        if isinstance(source, Command):
            return ScriptExperiment(source, *how, self.jobs, self.timeout, self.checkpoint, reading=self.reading())
        self.check_function()
        if isinstance(source, FunctionSource):
            for name, given in (("jobs", (self.jobs or 1) > 1), ("timeout", self.timeout is not None)):
                if given:
                    raise UserError(
                        f"{name}={getattr(self, name)}: {source.name} is in no file that others can import, so that it "
                        f"is trained in this process alone.\nPut it in a file of its own, or leave {name} out."
                    )
        jobs = 1 if isinstance(source, FunctionSource) else self.jobs
        return Experiment(source, *how, jobs, self.timeout, self.checkpoint)

    def check_function(self) -> None:
        """Find options that a task which is a function doesn't take.

        Raises:
            UserError: There is one.
        """
        for name in ("read", "read_file"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} is for a training script: momo sweep … -- python train.py --lr {{lr}}."
                )

    def specs(self, experiment: Experiment, default: str) -> list[OptimizerSpec]:
        """The optimizers asked for, else ``default``; of a script any words, by default one.

        Raises:
            UserError: A spec is wrong, or there is none.
        """
        texts = [self.optimizers] if isinstance(self.optimizers, str) else list(self.optimizers or [])
        if isinstance(experiment, ScriptExperiment):
            found = experiment.optimizers(texts)
        else:
            found = parse_optimizers(texts or [default])
        if not found:
            raise UserError("--optimizer names no optimizer.\nFor instance -o momo,adam.")
        return found

    def search(self) -> Search | None:
        """The Optuna study asked for; None where a grid is.

        Raises:
            UserError: There is no such sampler or pruner, a range is none, or a grid is asked for, too.
        """
        if self.trials is None:
            for name in ("lr_range", "tune"):
                if getattr(self, name):
                    flag = name.replace("_", "-")
                    raise UserError(f"--{flag} is for an Optuna study: say how many trials with --trials N.")
            return None
        if self.lrs is not None and len(self.lrs):
            raise UserError(
                "--lrs and --trials were both given: a study chooses the learning rates.\n"
                "Give their range with --lr-range LOW:HIGH."
            )
        return Search(
            self.trials,
            _installed("--sampler", one_of("--sampler", self.sampler, SAMPLERS)),
            _installed("--pruner", one_of("--pruner", self.pruner, PRUNERS)),
            None if self.lr_range is None else _range(self.lr_range, "--lr-range "),
            {name: _range(ends, f"--tune {name}=") for name, ends in self.tune.items()},
        )


def collect(
    experiment: Experiment,
    options: Options,
    default: str,
    default_seeds: int,
    display: Callable[[int], contextlib.AbstractContextManager[Display]],
) -> Collected:
    """Train what the options ask for and isn't stored: a grid, or an Optuna study.

    Args:
        experiment: From :meth:`Options.experiment`.
        options: The options.
        default: Optimizers where none are asked for.
        default_seeds: Seeds of a grid where none are asked for.
        display: Makes what the user sees, given the number of runs.

    Raises:
        UserError: Something is wrong; see :meth:`Experiment.collect`.
    """
    how, optimizers = options.search(), options.specs(experiment, default)
    if how is None:
        lrs, seeds = parse_lrs(_lrs(options.lrs), optimizers), options.seeds or default_seeds
        _check_size(sum(map(len, lrs.values())) * seeds)
        specs = grid(optimizers, lrs, seeds)
        with display(len(specs)) as shown:
            return experiment.collect(specs, shown)
    seeds = options.seeds or 1
    _check_size(len(optimizers) * how.trials * seeds)
    with display(len(optimizers) * how.trials * seeds) as shown:
        return trials_of(search(experiment, optimizers, how, seeds, shown), how)


def _vary(given: str | Mapping[str, Sequence[Any]]) -> tuple[str, list[Any]]:
    """What ``--vary`` names, and its values."""
    if isinstance(given, str):
        name, equals, text = given.partition("=")
        values = [literal(word) for word in split_outside_brackets(text)] if equals and text.strip() else []
    else:
        if len(given) != 1:
            raise UserError("vary: one axis at a time, as {'width': [32, 64]}.")
        name, values = next((name, list(values)) for name, values in given.items())
    if not name.isidentifier() or name in ("seed", "device", "lr", "optimizer") or not values:
        raise UserError(f"--vary {given}: write NAME=V1,V2,…, for instance --vary width=32,64,128.")
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"--vary {given}: a value stands there twice.")
    return name, values


def one_of(flag: str, word: str, known: Sequence[str]) -> str:
    """``word``, if it is one of ``known``.

    Raises:
        UserError: It isn't.
    """
    if word not in known:
        raise UserError(
            f"{flag} {word}: there is no such value.{did_you_mean(word, list(known))}\n"
            f"Write {numbers.names(list(known), 'or')}."
        )
    return word


def _installed(flag: str, word: str) -> str:
    """``word``, if the package that Optuna needs for it is there."""
    package = NEEDED.get(word)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"{flag} {word} needs the package {package}, which isn't installed: pip install {package}.")
    return word


def _check_size(runs: int) -> None:
    if runs > _MOST_RUNS:
        raise UserError(
            f"These are {runs:.3g} runs, more than the {_MOST_RUNS} that one command takes.\n"
            "Give fewer --lrs, --seeds or --trials."
        )


def _lrs(given: str | Sequence[str | float] | Mapping[str, str | Sequence[float]] | None) -> list[str]:
    """Learning rates as ``--lrs`` takes them."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        return [f"{label}={values}" for label, own in given.items() for values in _lrs(own)]
    return [given] if isinstance(given, str) else [lr if isinstance(lr, str) else repr(float(lr)) for lr in given]


def _range(given: Range, flag: str) -> tuple[float, float]:
    return parse_range(given if isinstance(given, str) else "{!r}:{!r}".format(*map(float, given)), flag)
