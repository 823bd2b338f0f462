"""``jaxmerge merge``: adapter folders in, one adapter folder out."""

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError, refusing_bad_input
from jaxmerge.cli.options import (
    BatchSize,
    Folders,
    Force,
    Json,
    Limit,
    MaxLength,
    Names,
    Out,
    Quiet,
    numbers,
    task_names,
    with_read_options,
)
from jaxmerge.cli.runtime import start_jax
from jaxmerge.reports.tables import size

if TYPE_CHECKING:
    from jaxmerge.io import SaveReport
    from jaxmerge.jobs.merge_recipe import Recipe


class Dense(StrEnum):
    error = "error"
    truncate = "truncate"
    full = "full"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@with_read_options
def merge(
    *,
    folders: Folders,
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "-p",
            help="Steps such as 'elect|trim(density=0.2)|core|scale(0.3)', or a name "
            "that `jaxmerge methods` lists.",
        ),
    ],
    out: Out,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="One for each adapter.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="For steps that draw at random."),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(help="Folder of `jaxmerge collect`, for steps that need it."),
    ] = None,
    names: Names = None,
    base: Annotated[
        Path | None,
        typer.Option(help="For iteris: Hugging Face folder of the base."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="For iteris: folder with inputs, as for `jaxmerge learn`."),
    ] = None,
    limit: Limit = None,
    batch: BatchSize = 16,
    max_length: MaxLength = None,
    rank: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Truncate to a rank (auto: the inputs')."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Truncate, but keep this share of every squared norm."),
    ] = None,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="A rank for each module (PEFT only).")
    ] = False,
    dense: Annotated[
        Dense,
        typer.Option(help="Dense results: refuse, truncate, or write weight deltas."),
    ] = Dense.error,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the output; the inputs' unless given.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Modules of one shape at a time.")
    ] = None,
    read: dict[str, Any],
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read headers, say what would be done.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge adapters into one PEFT adapter.

    Neither torch nor the base model is needed; methods that use inputs take them from
    statistics, only iteris runs the base. The folder appears complete or not at
    all; an existing one is replaced with --force only.
    """
    from jaxmerge.io import open_statistics
    from jaxmerge.jobs.merge_recipe import Recipe
    from jaxmerge.spec import check_weights, parse

    console = Console(as_json=as_json, quiet=quiet)
    given = numbers(weights, "--weights")
    recipe = Recipe(
        parse(pipeline),
        None if given is None else tuple(given),
        seed,
        None if stats is None else open_statistics(stats),
    )
    if recipe.weights is not None:
        check_weights(recipe.weights, len(folders))
    save = {
        "rank": _rank(rank),
        "energy": energy,
        "ragged": ragged,
        "dense": dense.value,
        "dtype": dtype and dtype.value,
        "force": force,
        "inputs": [path for path in (*folders, stats, base, data) if path is not None],
    }
    recipe.check_model(base, data)
    if not recipe.pipeline.model and (limit, batch, max_length) != (None, 16, None):
        raise CommandError(
            "--limit, --batch and --max-length are for pipelines that run the model"
        )
    _check_before_work(recipe, out, save)
    if dry_run:
        from jaxmerge.cli.plan import show_plan

        show_plan(console, folders, read, recipe=recipe, out=out, names=names)
        return
    start_jax()
    from jaxmerge import io

    clock = time.perf_counter()
    with console.progress("reading", 1) as advance:
        adapters = io.load_peft(folders, **read)
        adapters = replace(adapters, names=task_names(names, adapters.names))
        with refusing_bad_input():
            recipe = recipe.bound(
                adapters,
                base=base,
                data=data,
                batch=batch,
                limit=limit,
                max_length=max_length,
            )
        advance(1)
    with console.progress("merging modules", len(adapters.stacks)) as advance:
        updates, biases = recipe.run(adapters, chunk=chunk, advance=advance)
    with console.progress("writing and reading back", 1) as advance:
        report = io.save_peft(
            out, updates, like=adapters, biases=biases, card=recipe.to_record(), **save
        )
        advance(1)
    document = {
        "recipe": recipe.to_record(),
        "adapters": list(adapters.names),
        "seconds": round(time.perf_counter() - clock, 3),
        "bytes": sum((out / name).stat().st_size for name in report.files),
        "notes": list(_notes(recipe, report)),
        **report.to_json(),
    }
    console.result(document, lambda: _lines(recipe, report, document))


def _lines(recipe: "Recipe", report: "SaveReport", document: dict[str, Any]):
    adapters, modules = len(document["adapters"]), len(report.energy)
    yield f"{report.path}: {adapters} adapters merged, {modules} modules"
    yield f"  pipeline  {recipe.pipeline.text}"
    if len(recipe.pipeline.calls) > 1:
        yield f"  in order  {', '.join(recipe.pipeline.order)}"
    if recipe.statistics is not None:
        yield f"  inputs    statistics in {recipe.statistics.path}"
    yield from written_lines(report, document)


def written_lines(report: "SaveReport", document: dict[str, Any]):
    """What was written, for people."""
    if report.rank:
        needed = report.max_lora_rank
        serving = f"--max-lora-rank {needed}" if needed else "takes no such rank"
        yield f"  rank      {report.rank} (vLLM: {serving})"
    else:
        yield "  rank      none: weight deltas, to be added to the base weights"
    if any(report.cast_error.values()):
        yield f"  dtype     {report.dtype}, cast error {_worst(report.cast_error, max)}"
    else:
        yield f"  dtype     {report.dtype}, exact"
    if any(share < 1 for share in report.energy.values()):
        mean = sum(report.energy.values()) / len(report.energy)
        yield f"  energy    {mean:.4f} kept on average, {_worst(report.energy, min)}"
    else:
        yield "  energy    all of it, saving truncated nothing"
    if report.omitted:
        yield f"  omitted   {len(report.omitted)} modules"
    yield f"  size      {size(document['bytes'])}, done in {document['seconds']:.1f} s"
    yield from (f"  note: {note}" for note in document["notes"])


def _notes(recipe: "Recipe", report: "SaveReport"):
    names = {call.name for call in recipe.pipeline.calls}
    statistics = recipe.statistics
    if statistics is not None and statistics.measured.get("inputs_of") == "pretrained":
        yield (
            "the inputs were measured in the pretrained base; RegMean and SSR take "
            "them with each task's own adapter (jaxmerge collect --adapted)"
        )
    lossy = any(share < 1 for share in report.energy.values())
    if lossy and names & {"isotropize", "iso_c", "iso_cts"}:
        yield (
            "the merge has a flat spectrum, so which of its directions are kept is "
            "arbitrary and may differ between machines; better leave the rank as it is"
        )


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


def _check_before_work(recipe: "Recipe", out: Path, save: dict[str, Any]) -> None:
    """Refuses what would only be refused when the result is written."""
    from jaxmerge.io.staging import check_target

    check_target(out, force=save["force"], inputs=save["inputs"])
    if save["rank"] is not None and save["energy"] is not None:
        raise CommandError("--rank and --energy both decide the rank; give one of them")
    if save["energy"] is not None and not 0 < save["energy"] <= 1:
        raise CommandError(f"--energy {save['energy']}: expected a share in (0, 1]")
    truncated = save["rank"] is not None or save["energy"] is not None
    if recipe.pipeline.dense and save["dense"] == "error":
        raise CommandError(
            "in full space the result is dense; give --dense truncate with --rank or "
            "--energy, --dense full for weight deltas, or choose core or knots space"
        )
    if recipe.pipeline.dense and save["dense"] == "truncate" and not truncated:
        raise CommandError(
            "--dense truncate needs --rank N, --rank auto or --energy SHARE"
        )
