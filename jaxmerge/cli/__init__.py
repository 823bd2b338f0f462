"""The command line: ``jaxmerge merge A B C --pipeline "..." --out DIR``."""

from typing import Annotated

import typer

from jaxmerge import __version__
from jaxmerge.cli import (
    bake,
    check,
    cluster,
    collect,
    components,
    convert,
    evaluate,
    extract,
    inspect,
    learn,
    merge,
    methods,
    plan,
    push,
    run,
    tune,
    verify,
)
from jaxmerge.cli.examples import examples
from jaxmerge.cli.exits import Commands, stop_as_by_ctrl_c
from jaxmerge.runtime import limit_threads, return_freed_memory

app: typer.Typer = typer.Typer(
    cls=Commands,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxmerge {__version__}")
        raise typer.Exit


@app.callback(epilog=examples(""))
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where a failure comes from.")
    ] = False,
) -> None:
    """Merge LoRA adapters exactly: PEFT folders in, one PEFT folder out."""


for _panel, _commands in {
    "Before a merge": (
        *(plan.plan, inspect.inspect, check.check, cluster.cluster),
        methods.methods,
    ),
    "Merge": (merge.merge, run.run, collect.collect, learn.learn, tune.tune),
    "After a merge": (verify.verify, evaluate.evaluate, convert.convert, push.push),
    "Instead of a merge": (components.compress, components.restore),
    "Full models": (bake.bake, extract.extract),
}.items():
    for _command in _commands:
        _name = _command.__name__
        app.command(rich_help_panel=_panel, epilog=examples(_name))(_command)


def main() -> None:
    """Runs the command line and exits with its code."""
    stop_as_by_ctrl_c()
    limit_threads()
    return_freed_memory()
    app(prog_name="jaxmerge")
