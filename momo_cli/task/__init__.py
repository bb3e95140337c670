"""The task: what the user hands in — a model, a loss, data — and how it is found, called and checked."""

from momo_cli.task.definition import Task
from momo_cli.task.loading import TaskSource, find_task

__all__ = ["Task", "TaskSource", "find_task"]
