"""``jaxmerge push``: a merged folder to the Hub."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console

if TYPE_CHECKING:
    from jaxmerge.jobs.pushing import Pushed


@command(starts_jax=False)
def push(
    console: Console,
    options: Options,
    *,
    folder: flags.Folder,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    public: bool = False,
    record: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> None:
    """Upload a merged adapter to the Hub of Hugging Face.

    Its config, weights, card and heads; nothing else of the folder. The extra hub is
    needed, and a login by `hf auth login`.

    Args:
      repository: Repository to create.
      public: Let anybody read it; private otherwise.
      record: Upload jaxmerge.json too, which names the inputs by their paths.
      force: Upload to a repository that exists.
      dry_run: Say which files would be uploaded.
    """
    from jaxmerge.jobs import pushing

    console.show(pushing.push(**options), _lines)


def _lines(found: "Pushed") -> Iterator[str]:
    done = f"uploaded, commit {found.commit}" if found.commit else "would be uploaded"
    yield f"{found.repository}: {len(found.files)} files {done}"
    yield from (f"  {name}" for name in found.files)
    if found.url:
        yield f"  {found.url}"
