"""The command line: ``jaxmerge merge A B C --pipeline "..." --out DIR``."""

from typing import Annotated

import typer

from jaxmerge import __version__
from jaxmerge.cli import (
    check,
    collect,
    convert,
    evaluate,
    inspect,
    learn,
    merge,
    methods,
    plan,
    verify,
)
from jaxmerge.cli.exits import Commands, stop_as_by_ctrl_c
from jaxmerge.runtime import limit_threads

app: typer.Typer = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxmerge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where a failure comes from.")
    ] = False,
) -> None:
    """Merge LoRA adapters exactly: PEFT folders in, one PEFT folder out."""


for _command in (
    *(merge.merge, collect.collect, learn.learn, plan.plan, inspect.inspect),
    *(check.check, evaluate.evaluate, convert.convert, verify.verify, methods.methods),
):
    app.command()(_command)


def main() -> None:
    """Runs the command line and exits with its code."""
    stop_as_by_ctrl_c()
    limit_threads()
    app(prog_name="jaxmerge")
