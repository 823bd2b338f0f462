"""``jaxmerge run``: a merge as a small file says, or as a folder was made."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.merge import merged_lines
from jaxmerge.runtime import start_jax


@command(alone=("as_recipe",), starts_jax=False)
def run(
    console: Console,
    options: Options,
    *,
    recipe: Annotated[Path, typer.Argument()],
    out: flags.OutOrNone = None,
    hub: bool = False,
    force: flags.Force = False,
    as_recipe: Annotated[bool, typer.Option("--print")] = False,
    distributed: flags.Distributed = False,
) -> None:
    """Merge as a recipe says, or again as a merged folder records it.

    A recipe lists adapters with parameters.weight and parameters.density, a pipeline
    or a merge_method of mergekit or PEFT, and any option of merge by its name. Weights
    and densities are numbers, numbers over the layers, or conditions on the names of
    modules. Paths are taken from the folder of the file.

    Args:
      recipe: YAML or JSON file with a recipe, or a folder written by merge.
      out: Folder to create; that of the recipe unless given.
      hub: Download adapters that are ids on the Hub.
      as_recipe: Merge nothing, print the recipe of a merged folder.
    """
    from jaxmerge.jobs import running

    if as_recipe:
        found = running.recipe_of(recipe)
        console.result(found, lambda: running.recipe_text(found).splitlines())
        return
    start_jax(distributed=distributed)
    merged = running.run_recipe(**options, progress=console.progress)
    console.show(merged, merged_lines)
