"""The command line: ``jaxmerge merge A B C --pipeline "..." --out DIR``."""

from typing import Annotated

import typer

from jaxmerge import __version__
from jaxmerge.cli.convert import convert
from jaxmerge.cli.errors import Commands
from jaxmerge.cli.look import inspect, plan
from jaxmerge.cli.merge import merge
from jaxmerge.cli.methods import methods
from jaxmerge.cli.runtime import limit_threads
from jaxmerge.cli.verify import verify

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxmerge {__version__}")
        raise typer.Exit


@app.callback()
def jaxmerge(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where a failure comes from.")
    ] = False,
) -> None:
    """Merge LoRA adapters exactly: PEFT folders in, one PEFT folder out."""


for command in (merge, plan, inspect, convert, verify, methods):
    app.command(no_args_is_help=command is not methods)(command)


def main() -> None:
    """Runs the command line and exits with its code."""
    limit_threads()
    app(prog_name="jaxmerge")
