"""What commands read that run adapters through their base model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import refusing_bad_input
from jaxmerge.cli.options import task_names

if TYPE_CHECKING:
    from jaxmerge.io import Adapters
    from jaxmerge.tasks import Base, Unlabeled


class ModelInputs(NamedTuple):
    """Adapters, their base, their heads and the inputs of their tasks.

    Attributes:
      files: digests of what was read beside the adapters; empty unless asked for.
    """

    adapters: "Adapters"
    base: "Base"
    heads: dict[str, Any]
    unlabeled: "Unlabeled"
    files: dict[str, Any]


def read_model_inputs(
    console: Console,
    folders: list[Path],
    read: dict[str, Any],
    *,
    base: Path,
    data: Path,
    names: str | None = None,
    text_heads: Path | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    with_heads: bool = True,
    with_digests: bool = False,
) -> ModelInputs:
    """Reads everything, and refuses what does not belong together.

    Without heads their mapping is empty, and the loss is that of null spaces: every
    adapter must have one.
    """
    from jaxmerge import io
    from jaxmerge.jobs.fitting import check_fit
    from jaxmerge.learning.null_space import check_seen
    from jaxmerge.tasks import load_base, load_unlabeled, task_heads
    from jaxmerge.tasks.heads import check_saved
    from jaxmerge.tasks.record import files_read

    with console.progress("reading", 3) as advance, refusing_bad_input():
        adapters = io.load_peft(folders, **read)
        adapters = replace(adapters, names=task_names(names, adapters.names))
        files = {}
        if with_digests:
            files = files_read(base, data, adapters.names, text_heads)
        advance(1)
        model = load_base(base)
        advance(1)
        unlabeled = load_unlabeled(
            data, adapters.names, model, max_length=max_length, limit=limit
        )
        if with_heads:
            heads = task_heads(model, adapters, text_heads)
        else:
            check_saved(adapters, model.head_module)
            check_seen(adapters.names, adapters.stacks)
            heads = {}
        check_fit(model, adapters, heads, unlabeled)
        advance(1)
    return ModelInputs(adapters, model, heads, unlabeled, files)
