"""``jaxmerge check``: is each adapter, alone, better than no adapter at all?"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import WorseThanBase
from jaxmerge.cli.flags import (
    DATA_FILES,
    BaseFolder,
    Folders,
    Json,
    LogitScale,
    MaxLength,
    ModelType,
    Names,
    Quiet,
    TextHeads,
    split,
)
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.reports.standings import standings
from jaxmerge.runtime import start_jax


@partial(with_read_options, fixed={"heads": "keep", "allow_zero": True})
def check(
    *,
    folders: Folders,
    base: BaseFolder,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with the inputs of each adapter and their classes, numbers "
            f"from 0 (field label, for CLIP array labels): {DATA_FILES}"
        ),
    ],
    names: Names = None,
    text_heads: TextHeads = None,
    task_type: ModelType = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of rows of each file that are read, at even distances; all "
            "unless given.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Number of inputs in the model at a time.")
    ] = 64,
    logit_scale: LogitScale = None,
    max_length: MaxLength = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit code 1 if any adapter is worse than its base; data without "
            "labels are refused.",
        ),
    ] = False,
    read: dict[str, Any],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Test each adapter alone against its base, on its own labeled data.

    The base gets the adapter's head. A difference in accuracy is clear where McNemar's
    exact test gives p below 0.05. Without labels only predictions are compared. For
    causal language models nats per token are compared.
    """
    start_jax()
    from jaxmerge.jobs import checking

    console = Console(as_json=as_json, quiet=quiet)
    found = checking.check(
        folders,
        base=base,
        data=data,
        names=split(names),
        text_heads=text_heads,
        task_type=task_type,
        limit=limit,
        batch=batch,
        logit_scale=logit_scale,
        max_length=max_length,
        strict=strict,
        progress=console.progress,
        **read,
    )

    def lines() -> Iterator[Any]:
        yield standings(found.standings)
        yield ""
        yield from (f"note: {note}" for note in found.notes)
        yield f"verdict: {found.verdict}"

    console.result(found.to_json(), lines)
    if strict and found.worse:
        raise WorseThanBase(f"worse than no adapter: {', '.join(found.worse)}")
