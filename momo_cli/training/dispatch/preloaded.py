"""What worker processes load, loaded once: each is a copy of a process that imports this (``processes.preload``)."""

import sys

# The folder that the command was started in: a file there that is called as a module of a library is not meant.
sys.path[:] = [folder for folder in sys.path if folder]

from momo_cli.processes import compiler_wanted  # noqa: E402
from momo_cli.training.dispatch import trainer, workers  # noqa: E402, F401

if compiler_wanted():
    import torch._dynamo  # noqa: F401
