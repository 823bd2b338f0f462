"""``jaxmerge bake``: a base model and one adapter in, one full model out."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import (
    BaseFolder,
    Dtype,
    Json,
    Out,
    Quiet,
)
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.jobs.baking import Tied
from jaxmerge.reports.tables import size
from jaxmerge.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.jobs.baking import Baked


@partial(with_read_options, fixed={"heads": "first"})
def bake(
    *,
    adapter: Annotated[
        Path,
        typer.Argument(help="PEFT folder, weight deltas of a merge, or checkpoint."),
    ],
    base: BaseFolder,
    out: Out,
    head: Annotated[
        Path | None,
        typer.Option(
            help="Safetensors file with further saved modules, such as one of the "
            "folder heads of a merge."
        ),
    ] = None,
    new_heads: Annotated[
        bool,
        typer.Option(
            "--new-heads", help="Add saved modules that the base has not, as a head."
        ),
    ] = False,
    tied: Annotated[
        Tied,
        typer.Option(
            help="What becomes of an output layer that shares the embedding's weight, "
            "where the adapter changes one of them: refuse, give each its own (which "
            "the adapter computes), or change both (as PEFT's merge does)."
        ),
    ] = "error",
    dequantise: Annotated[
        bool,
        typer.Option(
            "--dequantise",
            help="Take weights of bitsandbytes (4-bit and 8-bit), GPTQ or AWQ for the "
            "values that they stand for. The result is not quantised.",
        ),
    ] = False,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Dtype of all weights; that of the base unless given."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Name of the adapter to take from a checkpoint of several."),
    ] = None,
    read: dict[str, Any],
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the folder if bake wrote it, and nothing else."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add an adapter to the weights of its base.

    The result is a full model that loads without PEFT. Sums are formed in float32 and
    rounded once; the base is read and written a few rows at a time, so that no model is
    too large. Config, tokenizer and the like come along.
    """
    start_jax()
    from jaxmerge.jobs import baking

    console = Console(as_json=as_json, quiet=quiet)
    found = baking.bake(
        adapter,
        base=base,
        out=out,
        head=head,
        new_heads=new_heads,
        tied=tied,
        dequantise=dequantise,
        dtype=dtype,
        task=task,
        force=force,
        progress=console.progress,
        **read,
    )
    console.result(found.to_json(), lambda: _lines(found))


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
