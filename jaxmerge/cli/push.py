"""``jaxmerge push``: a merged folder to the Hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Json, Quiet

if TYPE_CHECKING:
    from jaxmerge.jobs.pushing import Pushed


def push(
    *,
    folder: Annotated[
        Path, typer.Argument(help="Folder written by jaxmerge merge or learn.")
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository to create.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let anybody read it; private otherwise.")
    ] = False,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Upload jaxmerge.json too, which names the inputs by their paths.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Upload to a repository that exists.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which files would be uploaded.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Upload a merged adapter to the Hub of Hugging Face.

    Its config, weights, card and heads; nothing else of the folder. The extra hub is
    needed, and a login by `hf auth login`.
    """
    from jaxmerge.jobs import pushing

    console = Console(as_json=as_json, quiet=quiet)
    found = pushing.push(
        folder, repository, public=public, record=record, force=force, dry_run=dry_run
    )
    console.result(found.to_json(), lambda: _lines(found))


def _lines(found: "Pushed") -> Iterator[str]:
    done = f"uploaded, commit {found.commit}" if found.commit else "would be uploaded"
    yield f"{found.repository}: {len(found.files)} files {done}"
    yield from (f"  {name}" for name in found.files)
    if found.url:
        yield f"  {found.url}"
