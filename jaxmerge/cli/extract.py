"""``jaxmerge extract``: two full models in, the adapter between them out."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Dtype, Force, Json, Out, Quiet, split
from jaxmerge.cli.merge import written_lines
from jaxmerge.jobs.extracting import Others
from jaxmerge.jobs.low_rank import Method
from jaxmerge.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.jobs.extracting import Extracted


def extract(
    *,
    tuned: Annotated[Path, typer.Argument(help="Hugging Face folder of a model.")],
    base: Annotated[
        Path, typer.Option(help="That of the model which it was tuned from.")
    ],
    out: Out,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Number of directions of every module.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Keep this share of the squared norm of every difference."),
    ] = None,
    ragged: Annotated[
        bool,
        typer.Option("--ragged", help="Give each module its own rank (PEFT only)."),
    ] = False,
    others: Annotated[
        Others,
        typer.Option(
            help="What becomes of norms, biases, new heads and whatever else differs "
            "and is no low-rank update: refuse, save whole, or leave out."
        ),
    ] = "error",
    save: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Modules that are saved whole anyway, by the ends of their names.",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="Decompose differences exactly, or find their leading directions by "
            "products with random vectors; auto does the first where it costs little."
        ),
    ] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the random vectors.")
    ] = 0,
    base_name: Annotated[
        str | None,
        typer.Option(
            help="Base model that the adapter names, such as its id on the Hub; the "
            "folder unless given."
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the adapter; float32 unless given.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the adapter between two full models.

    Of the difference of every weight the leading directions are kept, as many as --rank
    or --energy says, and the share that they hold is reported. The models are read
    weight by weight.
    """
    start_jax()
    from jaxmerge.jobs import extracting

    console = Console(as_json=as_json, quiet=quiet)
    found = extracting.extract(
        tuned,
        base=base,
        out=out,
        rank=rank,
        energy=energy,
        ragged=ragged,
        others=others,
        save=split(save) or (),
        method=method,
        seed=seed,
        base_name=base_name,
        dtype=dtype,
        force=force,
        progress=console.progress,
    )
    console.result(found.to_json(), lambda: _lines(found))


def _lines(found: "Extracted") -> Iterator[str]:
    yield f"{found.saved.path}: an adapter of {len(found.ranks)} modules"
    if found.whole:
        yield f"  whole     {len(found.whole)} weights are saved as they are"
    yield from written_lines(found.saved, found.size, found.seconds, found.notes)
