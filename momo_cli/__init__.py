"""The command ``momo``: how robust is my training to the learning rate, and what should I set?

>>> import momo_cli
>>> momo_cli.Task(model=None, loss=None, train=[]).steps is None
True
"""

from momo_cli.task import Task

__all__ = ["Task"]
