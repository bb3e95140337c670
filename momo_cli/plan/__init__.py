"""The plan: which runs a command asks for — optimizers × learning rates × seeds — and the settings they share."""

from momo_cli.plan.grid import RunSpec, grid
from momo_cli.plan.learning_rates import default_lrs, parse_lrs
from momo_cli.plan.optimizers import COMPARED, SEEDS, SWEPT, OptimizerSpec, parse_optimizers
from momo_cli.plan.settings import Settings

__all__ = [
    "COMPARED",
    "SEEDS",
    "SWEPT",
    "OptimizerSpec",
    "RunSpec",
    "Settings",
    "default_lrs",
    "grid",
    "parse_lrs",
    "parse_optimizers",
]
