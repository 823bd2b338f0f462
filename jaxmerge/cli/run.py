"""``jaxmerge run``: a merge as a small file says, or as a folder was made."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Distributed, Force, Json, Quiet
from jaxmerge.cli.merge import merged_lines
from jaxmerge.runtime import start_jax


def run(
    *,
    recipe: Annotated[
        Path,
        typer.Argument(
            help="YAML or JSON file with a recipe, or a folder written by merge."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder to create; that of the recipe unless given."
        ),
    ] = None,
    hub: Annotated[
        bool,
        typer.Option("--hub", help="Download adapters that are ids on the Hub."),
    ] = False,
    force: Force = False,
    as_recipe: Annotated[
        bool,
        typer.Option(
            "--print", help="Merge nothing, print the recipe of a merged folder."
        ),
    ] = False,
    distributed: Distributed = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge as a recipe says, or again as a merged folder records it.

    A recipe lists adapters with parameters.weight and parameters.density, a pipeline
    or a merge_method of mergekit or PEFT, and any option of merge by its name. Weights
    and densities are numbers, numbers over the layers, or conditions on the names of
    modules. Paths are taken from the folder of the file.
    """
    from jaxmerge.jobs import running

    console = Console(as_json=as_json, quiet=quiet)
    if as_recipe:
        found = running.recipe_of(recipe)
        text = running.recipe_text(found)
        console.result(found, lambda: iter(text.splitlines()))
        return
    start_jax(distributed=distributed)
    merged = running.run_recipe(
        recipe, out=out, hub=hub, force=force, progress=console.progress
    )
    console.result(merged.to_json(), lambda: merged_lines(merged))
