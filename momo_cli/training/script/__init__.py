"""A run that is a command: any training script, started once for each run and read while it runs."""

from momo_cli.training.script.command import Command
from momo_cli.training.script.sources import Reading
from momo_cli.training.script.trainer import Limits, ScriptTrainer

__all__ = ["Command", "Limits", "Reading", "ScriptTrainer"]
