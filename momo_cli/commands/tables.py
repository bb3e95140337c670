"""``momo import`` and ``momo export``: runs from and to CSV."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from momo_cli.commands import outputs as out
from momo_cli.commands.options import OutputOptions, StorageOption, StudyOption, conditions, with_options
from momo_cli.errors import UserError
from momo_cli.plan import Settings
from momo_cli.reporting import stored_report
from momo_cli.store import DEFAULT_URL, Store, study_key, unstored
from momo_cli.task.builtin import BUILTIN


@with_options(OutputOptions)
def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE.csv", help="A table of runs, one a row (or one a row and epoch).")
    ],
    output_options: OutputOptions,
    lr_col: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the learning rate.")] = "lr",
    optimizer_col: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column with the optimizer; repeatable. Default: optimizer."),
    ] = None,
    value_col: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the final value.")] = "objective",
    seed_col: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column that tells seeds apart.")] = None,
    epoch_col: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the epoch; of each run the last counts.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep only these rows; repeatable.")
    ] = None,
    initial: Annotated[
        float | None, typer.Option(metavar="V", help="The value before training. Default: the worst one seen.")
    ] = None,
    maximize: Annotated[bool, typer.Option("--maximize", help="Larger values are better.")] = False,
    storage: StorageOption = DEFAULT_URL,
    study: StudyOption = None,
) -> None:
    """Read runs from a CSV table (of W&B, MLflow, one's own), store them, and compare them.

    [bold]Example[/bold]

      momo import runs.csv --optimizer-col name --lr-col lr --value-col val_acc --maximize
    """
    from momo_cli.interchange.reading import read_csv
    from momo_cli.report import terminal

    out.check(output_options)
    store = Store(storage)
    left = unstored.read(file)
    if left is not None:
        report = stored_report(store, store.restore(left).name)
        report.lines.insert(0, f"Stored {len(left.runs)} runs of {left.name}.")
        out.show(report, output_options, terminal.print_compare)
        return
    kept = conditions(where or [])
    optimizer_cols = optimizer_col or ["optimizer"]
    runs, notes = read_csv(
        file,
        lr_col=lr_col,
        optimizer_cols=optimizer_cols,
        value_col=value_col,
        seed_col=seed_col,
        epoch_col=epoch_col,
        where=kept,
        initial=initial,
    )
    chosen = {
        "lr_col": lr_col,
        "optimizer_cols": optimizer_cols,
        "value_col": value_col,
        "seed_col": seed_col,
        "epoch_col": epoch_col,
        "where": kept,
        "initial": initial,
    }
    chosen = {name: value for name, value in chosen.items() if value}
    settings = Settings().key() | {"objective": value_col, "maximize": maximize}
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    stored = store.open(study_key(Path(file).name, digest, chosen, settings, imported=True), study)
    if not stored.runs():
        with stored:
            stored.start(list(dict.fromkeys(run.optimizer for run in runs)), value_col)
            stored.add_all(runs)
    report = stored_report(store, stored.name)
    report.lines[:0] = notes
    out.show(report, output_options, terminal.print_compare)


def export(
    file: Annotated[str, typer.Argument(metavar="[FILE.csv|-]", help="Where to write; - is stdout.")] = "-",
    storage: StorageOption = DEFAULT_URL,
    study: StudyOption = None,
) -> None:
    """Write the stored runs of the latest task, or of --study, as CSV.

    [bold]Example[/bold]

      momo export runs.csv
    """
    if file in BUILTIN or ":" in file or file.endswith(".py"):
        raise UserError(
            f"{file} is a task, and export takes the file to write.\n"
            f"The task's study is chosen with --study NAME; momo list shows them."
        )
    from momo_cli.report.exports import FORMATS, Target

    [csv] = [form for form in FORMATS if form.name == "csv"]
    report = stored_report(Store(storage), study)
    csv.write(report, Target(file))
    if file != "-":
        print(f"Wrote {len(report.runs)} runs of {report.task} ({report.study}) to {file}.", file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("import")(import_)
    app.command()(export)
