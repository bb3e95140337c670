"""The commands: each wires task, plan, training, store, figures and report together, and nothing more."""

from __future__ import annotations

import typer

from momo_cli.commands import checking, comparing, listing, recommending, sweeping, tables, working

app = typer.Typer(
    name="momo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How robust is my training to the learning rate, and what should I set?",
    pretty_exceptions_enable=False,
)
for _module in (sweeping, comparing, recommending, checking, listing, tables, working):
    _module.register(app)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version and leave.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"momo {installed('momo-opt')}")
        raise typer.Exit
