"""``jaxmerge merge``: adapter folders in, one adapter folder out."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import (
    Distributed,
    Dtype,
    Folders,
    Force,
    Json,
    Limit,
    MaxLength,
    Memory,
    ModelType,
    Names,
    Out,
    Quiet,
    Stats,
    numbers,
    refuse_loose_numbers,
    split,
)
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.io.files import CONFIG_FILE
from jaxmerge.reports.tables import size
from jaxmerge.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.io import SaveReport
    from jaxmerge.jobs.merging import Merged


Dense = Literal["error", "truncate", "full"]


@with_read_options
def merge(
    *,
    folders: Folders,
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "-p",
            help="Steps such as 'tsv|core|scale(0.2)', or a name "
            "that `jaxmerge methods` lists.",
        ),
    ],
    out: Out,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="A weight for each adapter.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK@BLOCK",
            help="Leave the adapter of a task out of a block of the model, such as "
            "cars@encoder.layer.0. Repeatable.",
        ),
    ] = None,
    densities: Annotated[
        str | None,
        typer.Option(
            metavar="D,D,...", help="A density for each adapter, for density=each."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**32 - 1, help="Seed of the steps that draw at random."
        ),
    ] = None,
    stats: Stats = None,
    names: Names = None,
    base: Annotated[
        Path | None,
        typer.Option(help="For iteris: Hugging Face folder of the base model."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="For iteris: folder with inputs, as for `jaxmerge learn`."),
    ] = None,
    limit: Limit = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="For iteris: inputs in the model at a time; 16 unless given."
        ),
    ] = None,
    max_length: MaxLength = None,
    task_type: ModelType = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto", help="Truncate to a rank; auto is that of the inputs."
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Truncate, but keep this share of every squared norm."),
    ] = None,
    ragged: Annotated[
        bool,
        typer.Option("--ragged", help="Give each module its own rank (PEFT only)."),
    ] = False,
    dense: Annotated[
        Dense,
        typer.Option(
            help="Refuse dense results, truncate them, or write weight deltas."
        ),
    ] = "error",
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Dtype of the output; that of the inputs unless given."),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Work on this many modules of one shape at a time."),
    ] = None,
    memory: Memory = None,
    read: dict[str, Any],
    force: Force = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read headers alone and say what would be done."
        ),
    ] = False,
    distributed: Distributed = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge adapters into one PEFT adapter.

    Neither torch nor the base model is needed; methods that use inputs take them from
    statistics, only iteris runs the base. The folder appears complete or not at
    all; an existing one is replaced with --force only.
    """
    from jaxmerge.jobs import merging

    refuse_loose_numbers(folders, weights)
    console = Console(as_json=as_json, quiet=quiet)
    asked = {
        "weights": numbers(weights, "--weights"),
        "leave_out": leave_out or (),
        "densities": numbers(densities, "--densities"),
        "seed": seed,
        "stats": stats,
    }
    output = {"rank": _rank(rank), "energy": energy, "dense": dense}
    if dry_run:
        from jaxmerge.cli.plan import show
        from jaxmerge.jobs.planning import plan

        recipe = merging.merge_recipe(folders, pipeline, **asked)
        merging.check_before(
            recipe, out, force=force, inputs=folders, base=base, data=data, **output
        )
        show(console, plan(folders, recipe=recipe, out=out, names=split(names), **read))
        return
    start_jax(distributed=distributed)
    found = merging.merge(
        folders,
        pipeline,
        out=out,
        names=split(names),
        base=base,
        data=data,
        limit=limit,
        batch=batch,
        max_length=max_length,
        task_type=task_type,
        ragged=ragged,
        dtype=dtype,
        chunk=chunk,
        memory=memory,
        force=force,
        progress=console.progress,
        **asked,
        **output,
        **read,
    )
    console.result(found.to_json(), lambda: merged_lines(found))


def merged_lines(found: "Merged") -> Iterator[str]:
    """What was merged, for people."""
    pipeline, statistics = found.recipe.pipeline, found.recipe.statistics
    adapters, modules = len(found.adapters), len(found.saved.energy)
    yield f"{found.saved.path}: {adapters} adapters merged, {modules} modules"
    yield f"  pipeline  {pipeline.text}"
    if len(pipeline.calls) > 1:
        yield f"  in order  {', '.join(pipeline.order)}"
    if found.recipe.left_out:
        yield f"  without   {', '.join(found.recipe.left_out)}"
    if statistics is not None:
        yield f"  inputs    statistics in {statistics.path}"
    yield from written_lines(found.saved, found.size, found.seconds, found.notes)


def written_lines(
    saved: "SaveReport", count: int, seconds: float, notes: tuple[str, ...]
) -> Iterator[str]:
    """What was written, for people."""
    if saved.rank:
        needed = saved.max_lora_rank
        serving = f"--max-lora-rank {needed}" if needed else "takes no such rank"
        of_peft = CONFIG_FILE in saved.files
        yield f"  rank      {saved.rank}" + (f" (vLLM: {serving})" if of_peft else "")
    else:
        yield "  rank      none: weight deltas, to be added to the base weights"
    if any(saved.cast_error.values()):
        yield f"  dtype     {saved.dtype}, cast error {_worst(saved.cast_error, max)}"
    else:
        yield f"  dtype     {saved.dtype}, saved without a loss"
    if any(share < 1 for share in saved.energy.values()):
        mean = sum(saved.energy.values()) / len(saved.energy)
        yield f"  energy    {mean:.4f} kept on average, {_worst(saved.energy, min)}"
    else:
        yield "  energy    all of it, saving truncated nothing"
    if saved.omitted:
        yield f"  omitted   {len(saved.omitted)} modules"
    yield f"  size      {size(count)}, done in {seconds:.1f} s"
    yield from (f"  note: {note}" for note in notes)


def _worst(values: dict[str, float], pick: Any) -> str:
    module = pick(values, key=values.__getitem__)
    word = "at most" if pick is max else "at least"
    return f"{word} {values[module]:.3g} ({module})"


def _rank(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(
            f"expected a positive number or 'auto', got {text!r}", param_hint="--rank"
        )
    return int(text)
