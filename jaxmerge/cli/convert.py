"""``jaxmerge convert``: PEFT folders <-> orbax checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError
from jaxmerge.cli.options import Folders, Force, Json, Out, Quiet, with_read_options
from jaxmerge.cli.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.io import Adapters


@with_read_options
def convert(
    *,
    folders: Folders,
    out: Out,
    read: dict[str, Any],
    task: Annotated[
        str | None, typer.Option(help="Which adapter, of a checkpoint with several.")
    ] = None,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="A rank for each module (PEFT only).")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert PEFT folders to orbax, and back.

    The direction follows from the input. Several folders become one checkpoint, and
    --task takes one out of it. Nothing is lost either way, but a PEFT folder
    comes back with its scale folded into B (alpha = r).
    """
    from jaxmerge.io.staging import check_target

    check_target(out, force=force, inputs=folders)
    start_jax()
    from jaxmerge import io
    from jaxmerge.io.stored import is_orbax, load_stored

    console = Console(as_json=as_json, quiet=quiet)
    if any(is_orbax(folder) for folder in folders):
        if len(folders) > 1:
            raise CommandError("give one checkpoint at a time")
        adapters = _one_adapter(load_stored(folders[0], read), folders[0], task)
        target = {"force": force, "inputs": folders}
        kind, dtype = "peft", _write_peft(out, adapters, ragged=ragged, **target)
    else:
        policy = "keep" if read["heads"] == "error" else read["heads"]
        adapters = io.load_peft(folders, **{**read, "heads": policy})
        io.save_orbax(out, adapters, force=force)
        kind, dtype = "orbax", "float32"
    zeros = sum(len(source.zero_modules) for source in adapters.sources)
    document = {
        "path": str(out),
        "format": kind,
        "adapters": list(adapters.names),
        "modules": len(adapters.stacks),
        "zero_modules": zeros,
        "dtype": dtype,
    }

    def lines():
        yield (
            f"{out}: {len(adapters.names)} adapters, {len(adapters.stacks)} modules, "
            f"as {kind} ({dtype})"
        )
        if zeros:
            yield f"  {zeros} modules whose update is zero are left out"

    console.result(document, lines)


def _one_adapter(
    value: "Adapters | dict[str, Any]", path: Path, task: str | None
) -> "Adapters":
    from jaxmerge.io import AdapterError, Adapters

    if not isinstance(value, Adapters):
        raise AdapterError(
            f"{path}: holds merged updates without the layouts of an adapter; write "
            "them with jaxmerge.io.save_peft(..., like=adapters)"
        )
    if task is None and len(value.names) > 1:
        raise CommandError(
            f"{path}: holds {', '.join(value.names)}; choose one with --task"
        )
    if task is not None and task not in value.names:
        raise CommandError(
            f"{path}: no adapter {task!r}; there are {', '.join(value.names)}"
        )
    return value.task(task or value.names[0])


def _write_peft(out: Path, adapter: "Adapters", *, ragged: bool, **target: Any) -> str:
    from jaxmerge import io
    from jaxmerge.stacks import concatenate

    report = io.save_peft(
        out,
        {module: concatenate(stack) for module, stack in adapter.stacks.items()},
        like=adapter,
        biases={module: bias[0] for module, bias in adapter.biases.items()},
        heads="first",
        ragged=ragged,
        card={"pipeline": "concat"},
        **target,
    )
    return report.dtype
