"""The view of ``momo check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from momo_cli.report import numbers

if TYPE_CHECKING:
    from momo_cli.training.inspection import Inspection
    from momo_cli.training.script.inspection import ScriptInspection


def print_inspection(task: str, seen: Inspection, console: Console) -> None:
    """What was seen of ``task``, and what follows from it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    frozen = f", {seen.parameters - seen.trainable:,} of them frozen" if seen.trainable != seen.parameters else ""
    train, val = (("some" if count is None else f"{count:,}") for count in seen.batches)
    train += " training batch" + "es" * (seen.batches[0] != 1)
    val = "no validation" if seen.batches[1] is None else f"{val} validation batch" + "es" * (seen.batches[1] != 1)
    rows = [
        ("task", task),
        ("model", f"{seen.parameters:,} parameters{frozen}"),
        ("batch", f"{seen.shapes}, {seen.batch_size} samples"),
        ("data", f"{train}, {val}"),
        (
            "run",
            f"{seen.steps:,} steps, about {seen.steps * seen.step_seconds:.2g} s on {seen.device} "
            f"({1e3 * seen.step_seconds:.2g} ms a step)",
        ),
        (
            "memory",
            f"{seen.memory / 2**20:.3g} MiB"
            + ("" if seen.device.startswith("cuda") else " for parameters, gradients and state"),
        ),
        (
            "together",
            "runs can be trained together" if not seen.alone else f"runs are trained one after another: {seen.alone}",
        ),
        ("objective", f"{seen.objective}, {_number(seen.initial)} before the first step"),
        (
            "loss",
            f"{_number(seen.train_loss)} before the first step, {_number(seen.losses[-1])} after {len(seen.losses)} "
            "steps of momo at lr 1",
        ),
    ]
    for name, text in rows:
        table.add_row(name, Text(text))
    console.print(table)
    for line in [*_findings(seen), *([seen.untrained] if seen.untrained else [])]:
        console.print(Text(line))


def _findings(seen: Inspection) -> list[str]:
    losses = [seen.train_loss, *seen.losses]
    if any(loss != loss or abs(loss) == float("inf") for loss in losses[:1]):
        return [
            "The loss isn't finite before the first step: no optimizer can train this. Look at the data and the loss."
        ]
    if min(losses) < 0:
        return [
            f"The loss was negative ({min(losses):.4g}): give Momo's methods a lower bound a little below the lowest "
            "loss that adam, say, reaches, as in -o 'momo(lb=-3)' where that is -2.5. momo-star doesn't help there."
        ]
    return [
        f"The loss was not negative in these {len(seen.losses)} steps. The lower bound lb=0 of Momo's methods holds if "
        "it can never be (cross-entropy and squared errors can't; a log-likelihood of a density can)."
    ]


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def print_script(task: str, seen: ScriptInspection, console: Console) -> None:
    """What was seen of the one run of a script."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    run = seen.run
    known = {name: numbers.number(value) for name, value in (("objective", run.objective), ("ℓ0", run.initial))}
    counts = ", ".join(f"{count} of {name}" for name, count in seen.reported.items())
    rows = [
        ("script", task),
        ("command", seen.command),
        ("status", f"{run.status} after {run.seconds:.3g} s"),
        ("reports", f"{counts}, by {seen.way}" if counts else "none"),
        ("objective", f"{seen.objective} {known['objective']}, {known['ℓ0']} before training"),
        ("steps", str(run.steps)),
        ("identity", ", ".join(seen.files) or "the command alone"),
    ]
    for name, text in rows:
        table.add_row(name, Text(text))
    console.print(table)
    if run.error:
        console.print(Text(run.error))
