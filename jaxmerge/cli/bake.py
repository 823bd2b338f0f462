"""``jaxmerge bake``: a base model and one adapter in, one full model out."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading
from jaxmerge.jobs.baking import Tied
from jaxmerge.reports.tables import size

if TYPE_CHECKING:
    from jaxmerge.jobs.baking import Baked


@command(reads=Reading(without=("heads",)))
def bake(
    console: Console,
    options: Options,
    *,
    adapter: Annotated[Path, typer.Argument()],
    base: flags.BaseFolder,
    out: flags.Out,
    head: Path | None = None,
    new_heads: bool = False,
    tied: Tied = "error",
    dequantise: bool = False,
    dtype: flags.Dtype = None,
    task: flags.TaskOfCheckpoint = None,
    force: flags.Force = False,
) -> None:
    """Add an adapter to the weights of its base.

    The result is a full model that loads without PEFT. Sums are formed in float32 and
    rounded once; the base is read and written a few rows at a time, so that no model is
    too large. Config, tokenizer and the like come along.

    Args:
      adapter: PEFT folder, weight deltas of a merge, or checkpoint.
      head: Safetensors file with further saved modules, such as one of the folder
        heads of a merge.
      new_heads: Add saved modules that the base has not, as a head.
      tied: What becomes of an output layer that shares the embedding's weight, where
        the adapter changes one of them: refuse, give each its own (which the adapter
        computes), or change both (as PEFT's merge does).
      dequantise: Take weights of bitsandbytes (4-bit and 8-bit), GPTQ or AWQ for the
        values that they stand for. The result is not quantised.
      dtype: Dtype of all weights; that of the base unless given.
      force: Replace the folder if bake wrote it, and nothing else.
    """
    from jaxmerge.jobs import baking

    found = baking.bake(**options, progress=console.progress)
    console.show(found, _lines)


def _lines(found: "Baked") -> Iterator[str]:
    yield f"{found.path}: a full model, {len(found.change)} weights changed"
    for title, keys in (("replaced", found.replaced), ("added", found.added)):
        if keys:
            yield f"  {title:<9} {', '.join(keys[:4])}{', ..' if keys[4:] else ''}"
    yield f"  dtype     {found.dtype}, {_rounding(found.cast_error)}"
    yield f"  size      {size(found.size)}, done in {found.seconds:.1f} s"
    yield from (f"  note: {note}" for note in found.notes)


def _rounding(cast_error: dict[str, float]) -> str:
    if not any(cast_error.values()):
        return "saved without a loss"
    key = max(cast_error, key=cast_error.__getitem__)
    mean = sum(cast_error.values()) / len(cast_error)
    return (
        f"rounding took {mean:.2g} of an update on average, at most "
        f"{cast_error[key]:.2g} ({key})"
    )
