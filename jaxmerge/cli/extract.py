"""``jaxmerge extract``: two full models in, the adapter between them out."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.jobs.extracting import Others
from jaxmerge.jobs.low_rank import Method
from jaxmerge.reports.saved import saved_lines

if TYPE_CHECKING:
    from jaxmerge.jobs.extracting import Extracted


@command()
def extract(
    console: Console,
    options: Options,
    *,
    tuned: Annotated[Path, typer.Argument()],
    base: Path,
    out: flags.Out,
    rank: flags.CountOrNone = None,
    energy: float | None = None,
    ragged: flags.Ragged = False,
    others: Others = "error",
    save: flags.NamesOf = None,
    method: Method = "auto",
    seed: flags.Seed = 0,
    base_name: str | None = None,
    dtype: flags.Dtype = None,
    force: flags.Force = False,
) -> None:
    """Find the adapter between two full models.

    Of the difference of every weight the leading directions are kept, as many as --rank
    or --energy says, and the share that they hold is reported. The models are read
    weight by weight.

    Args:
      tuned: Hugging Face folder of a model.
      base: That of the model which it was tuned from.
      rank: Number of directions of every module.
      energy: Keep this share of the squared norm of every difference.
      others: What becomes of norms, biases, new heads and whatever else differs and is
        no low-rank update: refuse, save whole, or leave out.
      save: Modules that are saved whole anyway, by the ends of their names.
      method: Decompose differences exactly, or find their leading directions by
        products with random vectors; auto does the first where it costs little.
      seed: Seed of the random vectors.
      base_name: Base model that the adapter names, such as its id on the Hub; the
        folder unless given.
      dtype: Dtype of the adapter; float32 unless given.
    """
    from jaxmerge.jobs import extracting

    found = extracting.extract(**options, progress=console.progress)
    console.show(found, _lines)


def _lines(found: "Extracted") -> Iterator[str]:
    yield f"{found.saved.path}: an adapter of {len(found.ranks)} modules"
    if found.whole:
        yield f"  whole     {len(found.whole)} weights are saved as they are"
    yield from saved_lines(found)
