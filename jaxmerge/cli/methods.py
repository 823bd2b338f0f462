"""``jaxmerge methods``: named pipelines, and the steps that pipelines are made of."""

from collections.abc import Iterator
from typing import Annotated, get_args

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Json

_NEEDS = {
    "model merger": "; needs --base and --data",
    "learned merger": "; for jaxmerge learn",
}


def methods(
    *,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The named methods as a Markdown table.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List named methods and all pipeline steps."""
    from jaxmerge.spec import STEPS, method_markdown, method_table

    if markdown:
        typer.echo(method_markdown(), nl=False)
        return
    document = {
        "methods": [row._asdict() for row in method_table()],
        "steps": {
            name: {
                "kind": step.kind,
                "usage": usage(name),
                "says": step.says,
                "arxiv": step.arxiv,
                "random": step.random,
                "statistics": step.statistics,
                "model": step.kind == "model merger",
                "learned": step.kind == "learned merger",
            }
            for name, step in STEPS.items()
        },
    }
    Console(as_json=as_json).result(document, _lines)


def usage(name: str) -> str:
    """A step with its arguments, those that must be given as ``..``."""
    from jaxmerge.spec.kinds import REQUIRED
    from jaxmerge.spec.steps import STEPS

    arguments = STEPS[name].arguments
    given = [
        f"{keyword}={'..' if argument.default is REQUIRED else argument.default}"
        for keyword, argument in arguments.items()
        if argument.default is not None
    ]
    return f"{name}({', '.join(given)})" if given else name


def _lines() -> Iterator[str]:
    from jaxmerge.spec import PRESETS
    from jaxmerge.spec.kinds import Kind
    from jaxmerge.spec.steps import STEPS, names_of

    yield "Methods: give a name as --pipeline, or write its steps and change them.\n"
    for name, preset in PRESETS.items():
        yield f"  {name}: {preset.method} (arXiv {preset.arxiv})"
        yield f"      {preset.pipeline}"
        yield f"      numbers: {preset.source}"
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
