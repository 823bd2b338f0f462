"""``jaxmerge methods``: named pipelines, and the steps that pipelines are made of."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import as_flag

if TYPE_CHECKING:
    from jaxmerge.spec.presets import MethodRow

_NEEDS = {
    "model merger": "; needs --base and --data",
    "learned merger": "; for jaxmerge learn",
}


def methods(
    *,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The named methods as a Markdown table.")
    ] = False,
    as_json: flags.Json = False,
) -> None:
    """List named methods and all pipeline steps."""
    from jaxmerge.spec import method_markdown, method_table
    from jaxmerge.spec.step_table import step_table

    if markdown:
        typer.echo(method_markdown(), nl=False)
        return
    rows = [_as_json(row) for row in method_table()]
    Console(as_json=as_json).result({"methods": rows, "steps": step_table()}, _lines)


def _as_json(row: "MethodRow") -> dict[str, Any]:
    needs = {option.name: option.value for option in row.needs}
    return {**row._asdict(), "needs": needs, "command": _command(row)}


def _command(row: "MethodRow") -> str:
    """The command that merges by a method, with all that it needs."""
    from jaxmerge.spec import parse

    needs = "".join(f" {as_flag(option)}" for option in row.needs)
    verb = "learn" if parse(row.name).learned else "merge"
    return f"jaxmerge {verb} ADAPTER... --pipeline {row.name}{needs} --out OUT"


def _lines() -> Iterator[str]:
    from jaxmerge.spec import method_table
    from jaxmerge.spec.kinds import Kind
    from jaxmerge.spec.step_table import usage
    from jaxmerge.spec.steps import STEPS, names_of

    yield "Methods: give a name as --pipeline, or write its steps and change them."
    yield "Full space gives weight deltas (--dense full); for an adapter give it"
    yield "--dense truncate --rank N instead. A seed may be any number.\n"
    for row in method_table():
        source = f" (arXiv {row.arxiv})" if row.arxiv else ""
        yield f"  {row.name}: {row.method}{source}"
        if row.pipeline != row.name:
            yield f"      {row.pipeline}"
        yield f"      numbers: {row.source}"
        yield f"      {_command(row)}"
    yield "\nSteps: rule | rule transforms | space | calibrations | posts"
    yield "       merger or learned merger       | calibrations | posts"
    yield "       model merger                                  | posts"
    for kind in get_args(Kind):
        yield f"\n  {kind}s"
        for name in names_of(kind):
            step = STEPS[name]
            source = f" (arXiv {step.arxiv})" if step.arxiv else ""
            needs = "; needs --stats" if step.statistics else _NEEDS.get(kind, "")
            yield f"    {usage(name)}: {step.says}{source}{needs}"
