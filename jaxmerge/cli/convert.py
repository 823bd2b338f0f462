"""``jaxmerge convert``: adapters from one format of folders to another."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading
from jaxmerge.jobs.converting import Target

if TYPE_CHECKING:
    from jaxmerge.jobs.converting import Converted


@command(reads=Reading())
def convert(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    out: flags.Out,
    to: Target | None = None,
    like: Path | None = None,
    task: flags.TaskOfCheckpoint = None,
    component: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    ragged: flags.Ragged = False,
    force: flags.Force = False,
) -> None:
    """Convert adapters to orbax, a JAX library or another kind of file, and back.

    Several PEFT folders become one orbax checkpoint, of which --task takes one out.
    --to nnx, qwix, tunix, maxtext-llama, maxtext-qwen, gemma or keras writes what that
    library reads; --to peft, diffusers or kohya one adapter as that kind, where the
    names of its modules are certain. No update is lost, but the scale is folded into B
    (alpha = r).

    Args:
      to: What is written. Checkpoints become a PEFT folder unless given, and
        everything else one orbax checkpoint.
      like: Checkpoint of the JAX model that is to load the result; unless given one of
        those that were merged.
      component: Component of a pipeline, such as unet or text_encoder: which to take
        for a PEFT folder, or which a PEFT folder is.
      ragged: Give each module its own rank (not in files of diffusers).
    """
    from jaxmerge.jobs import converting

    console.show(converting.convert(**options), _lines)


def _lines(found: "Converted") -> Iterator[str]:
    yield (
        f"{found.path}: {len(found.adapters)} adapters, {found.modules} modules, "
        f"as {found.format} ({found.dtype})"
    )
    if found.zero_modules:
        yield f"  {found.zero_modules} modules whose update is zero are left out"
    yield from (f"  note: {note}" for note in found.notes)
