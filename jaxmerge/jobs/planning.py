"""What a merge would meet, from headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Unpack

from jaxmerge.folders import Folder
from jaxmerge.jobs.merge_recipe import MergeRecipe
from jaxmerge.jobs.reading import ReadOptions, task_names
from jaxmerge.refusals import Message, Option

if TYPE_CHECKING:
    from jaxmerge.io import Plan
    from jaxmerge.spec import Pipeline
    from jaxmerge.spec.layerwise import PerModule

_HEADS = Message(
    [
        "some adapters bring heads; say what becomes of them when you merge: ",
        Option("heads", "keep", quoted=True),
        " writes them beside the merge",
    ]
)


@dataclass(frozen=True)
class Planned:
    """What was found, and for a dry run what would be made of it.

    Attributes:
      plan: the adapters, what they cost and what keeps them apart.
      recipe: of the merge, None where there is none yet.
      out: where the merge would be written.
    """

    plan: "Plan"
    recipe: MergeRecipe | None = None
    out: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        document = self.plan.to_json()
        if self.recipe is not None:
            recipe = self.recipe.to_record()
            document |= {"recipe": recipe, "out": self.out, "dry_run": True}
        return document


def plan(
    folders: Sequence[Folder],
    *,
    recipe: MergeRecipe | None = None,
    out: Folder | None = None,
    names: Sequence[str] | None = None,
    read_tensors: bool = False,
    **read: Unpack[ReadOptions],
) -> Planned:
    """Shows what a merge would meet; reads headers alone, without JAX.

    Args:
      folders: PEFT adapter folders.
      recipe: checked against the adapters where it is given, for a dry run.
      out: where that would be written.
      names: names of the tasks; by default those of the folders.
      read_tensors: also find zero and non-finite tensors.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Planned`. What keeps the adapters apart is in ``plan.conflicts``.

    Raises:
      Refusal: an adapter that cannot be read at all, or a recipe that does not fit.
    """
    from jaxmerge.io import plan_peft
    from jaxmerge.spec.checks import check_ranks

    undecided = recipe is None and read.get("heads", "error") == "error"
    if undecided:  # nothing is merged: no policy is needed
        read["heads"] = "keep"
    found = plan_peft(folders, read_tensors=read_tensors, **read)
    if undecided and any(adapter.heads for adapter in found.adapters):
        found = replace(found, notes=(*found.notes, _HEADS))
    named = task_names(names, tuple(adapter.name for adapter in found.adapters))
    pairs = zip(found.adapters, named, strict=True)
    found = replace(found, adapters=tuple(replace(a, name=name) for a, name in pairs))
    if recipe is not None:
        ranks = {name: module.ranks for name, module in found.modules.items()}
        check_ranks(recipe.pipeline, ranks)
        recipe = recipe.for_tasks(named).for_modules(list(found.modules))
        recipe.check_statistics(
            {name: module.shape[1] for name, module in found.modules.items()},
            [adapter.base_model for adapter in found.adapters],
            allow_different_bases=read.get("allow_different_bases", False),
        )
    return Planned(found, recipe, None if out is None else str(out))


def plan_merge(
    folders: Sequence[Folder],
    pipeline: "str | Pipeline",
    *,
    out: Folder,
    weights: "PerModule | None" = None,
    densities: "PerModule | None" = None,
    leave_out: Sequence[str] = (),
    seed: int | None = None,
    stats: Folder | None = None,
    names: Sequence[str] | None = None,
    base: Folder | None = None,
    data: Folder | None = None,
    rank: int | Literal["auto"] | None = None,
    energy: float | None = None,
    dense: Literal["error", "truncate", "full"] = "error",
    force: bool = False,
    **read: Unpack[ReadOptions],
) -> Planned:
    """Shows what `jaxmerge.merge` would do, without JAX; the arguments are its own.

    Returns:
      `Planned`, with the recipe of the merge.

    Raises:
      Refusal: what the merge would refuse before it reads any tensor.
    """
    from jaxmerge.jobs.merging import check_before, merge_recipe

    recipe = merge_recipe(
        *(folders, pipeline),
        weights=weights,
        densities=densities,
        leave_out=leave_out,
        seed=seed,
        stats=stats,
    )
    check_before(
        *(recipe, out),
        force=force,
        inputs=folders,
        base=base,
        data=data,
        rank=rank,
        energy=energy,
        dense=dense,
    )
    return plan(folders, recipe=recipe, out=out, names=names, **read)
