"""An experiment whose runs are commands: any training script, started once for each run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from momo_cli.errors import UserError
from momo_cli.experiment import Display, Experiment
from momo_cli.plan.grid import RunSpec
from momo_cli.plan.optimizers import KNOWN, OptimizerSpec, split_outside_brackets
from momo_cli.store import StoredRuns
from momo_cli.training.script import Command, Limits, Reading, ScriptTrainer
from momo_cli.training.script.command import SCRIPT, placeholders

if TYPE_CHECKING:
    from momo_cli.training.dispatch.executor import Trains
    from momo_cli.training.run.record import Watch

_FUNCTION_ONLY = {
    "together": "auto", "checkpoint": None, "schedule": "constant", "warmup": 0.0, "amp": "off", "clip": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScriptOptimizer(OptimizerSpec):
    """An optimizer by a word that only the script needs to know."""

    def check(self, lr: float, extra: dict[str, float] | None = None) -> None:
        """Nothing can be found before the script runs."""

    @property
    def default_lr(self) -> float:
        """The LR that its default grid is centred on, where the word is one of momo's own names.

        Raises:
            UserError: It isn't, so ``--lrs`` must say.
        """
        if self.name in KNOWN:
            return KNOWN[self.name].default_lr
        owner = "" if self.label == SCRIPT else f"{self.label}="
        raise UserError(
            f"What learning rates {self.label} takes isn't known: say which with --lrs or, for a study, --lr-range.\n"
            f"For instance --lrs {owner}1e-4:1e-1:7."
        )


@dataclasses.dataclass(frozen=True)
class ScriptExperiment(Experiment):
    """An experiment with a command as its task.

    Attributes:
        source: The command.
        reading: How the script's numbers are read.
    """

    source: Command
    reading: Reading = dataclasses.field(default_factory=Reading)
    tuned_have_defaults = False

    def __post_init__(self) -> None:
        self.reading.check()
        for name, default in _FUNCTION_ONLY.items():
            given = getattr(self if hasattr(self, name) else self.settings, name)
            if given != default:
                raise UserError(
                    f"--{name} {given} is for tasks that are functions; a script does that by itself, or doesn't.\n"
                    f"Leave it out; an argument of the script's own can be varied as {{NAME}} with --set NAME=…."
                )

    def optimizers(self, texts: Sequence[str]) -> list[OptimizerSpec]:
        """The labels of ``-o``, any words that the script knows; by default one.

        Raises:
            UserError: The command takes an optimizer, and none is named.
        """
        labels = list(dict.fromkeys(label for text in texts for label in split_outside_brackets(text)))
        if not texts and "optimizer" in placeholders(self.source.words):
            raise UserError(
                "{optimizer} in the command has no value: name the optimizers that the script knows.\n"
                "For instance: momo sweep -o sgd,adamw -- python train.py --lr {lr} --opt {optimizer}"
            )
        return [
            ScriptOptimizer(label, split_outside_brackets(label, "+")[0].partition("(")[0])
            for label in labels or [SCRIPT]
        ]

    def key(self) -> dict[str, Any]:
        """Everything that changes a result."""
        return super().key() | {
            "command": list(self.source.words),
            "read": self.reading.pattern,
            "read_file": self.reading.file,
        }

    def check_optimizers(self, specs: list[RunSpec]) -> None:
        """Find what would make runs alike that should differ: optimizers themselves are the script's affair.

        Raises:
            UserError: The command can't be run as asked.
        """
        tuned = list(self.search["tune"]) if self.search else []
        labels = list(dict.fromkeys(spec.optimizer.label for spec in specs))
        self.source.check(labels, tuned, self.reading.file)
        jobs = self.limits().jobs
        if jobs > 1 and self.reading.file is not None and "{" not in self.reading.file:
            raise UserError(
                f"--read-file {self.reading.file}: {jobs} runs at once would write the same file.\n"
                "Have the script write to {dir}, and read {dir}/" + os.path.basename(self.reading.file) + "."
            )

    def trainer(
        self,
        specs: list[RunSpec],
        stored: StoredRuns,
        objective: str,
        watch: Watch,
        display: Display,
        batch: int | None,
    ) -> tuple[str, contextlib.AbstractContextManager[Trains]]:
        """What runs the command; arguments and errors as for :meth:`Experiment.trainer`."""
        self.check_optimizers(specs)
        name = self.settings.objective or objective
        under = self.folder(stored)
        return name, ScriptTrainer(self.source, self.reading, under, name, self.limits(), watch, display.said)

    def limits(self) -> Limits:
        """How many scripts run at once, where, and for how long.

        Raises:
            UserError: ``--device`` names none.
        """
        devices = visible_devices(self.device)
        return Limits(self.jobs or len(devices), devices, self.timeout)


def visible_devices(device: str) -> tuple[str | None, ...]:
    """``CUDA_VISIBLE_DEVICES`` for each device of ``--device``; None where the script is to choose.

    >>> visible_devices("auto"), visible_devices("cpu")
    ((None,), ('',))

    Raises:
        UserError: It isn't ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:0,cuda:1``.
    """
    if device in ("auto", "cuda", "mps"):
        return (None,)
    if device == "cpu":
        return ("",)
    ours = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    found: list[str | None] = []
    for word in device.split(","):
        match = re.fullmatch(r"cuda:(\d+)", word.strip())
        if match is None or (ours and int(match[1]) >= len(ours)):
            visible = f"CUDA_VISIBLE_DEVICES names {len(ours)} devices. " if match else ""
            raise UserError(f"--device {device}: {visible}Write auto, cpu, mps, cuda or cuda:0,cuda:1.")
        found.append(ours[int(match[1])] if ours else match[1])
    return tuple(found)
