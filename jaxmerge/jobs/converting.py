"""PEFT folders to checkpoints of other formats, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from jaxmerge.folders import Folder
from jaxmerge.jobs.reading import ReadOptions, one_adapter
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.io import Adapters


@dataclass(frozen=True)
class Converted:
    """Adapters that were written in the other format.

    Attributes:
      path: what was written.
      format: "peft" or "orbax".
      adapters: their names.
      modules: how many modules they adapt.
      zero_modules: how many modules were left out, as their update is zero.
      dtype: dtype of the tensors.
      notes: what reading changed or left out.
    """

    path: str
    format: str
    adapters: tuple[str, ...]
    modules: int
    zero_modules: int
    dtype: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        lists = {"adapters": list(self.adapters), "notes": list(self.notes)}
        return {**self.__dict__, **lists}


def convert(
    folders: Sequence[Folder],
    *,
    out: Folder,
    to: str = "orbax",
    task: str | None = None,
    ragged: bool = False,
    force: bool = False,
    **read: Unpack[ReadOptions],
) -> Converted:
    """Converts PEFT folders to one checkpoint, or an adapter of a checkpoint to PEFT.

    The direction follows from the input. Nothing is lost either way, but a PEFT folder
    comes back with its scale folded into B (alpha = r).

    Args:
      folders: PEFT folders, or one checkpoint.
      out: what to create.
      to: format of the checkpoint, one of `jaxmerge.io.formats.FORMATS`.
      task: name of the adapter to take from a checkpoint that holds several.
      ragged: give each module its own rank (PEFT only).
      force: replace a folder that holds an adapter and nothing else.
      **read: see `jaxmerge.io.load_peft`.

    Raises:
      Refusal: what cannot be converted exactly.
    """
    from jaxmerge import io
    from jaxmerge.io.formats import FORMATS, format_of, resolve
    from jaxmerge.io.staging import check_target
    from jaxmerge.io.stored import load_stored

    check_target(out, force=force, inputs=folders)
    if to not in FORMATS:
        raise Refusal(
            Option("to", to, quoted=True), f": expected {' or '.join(FORMATS)}"
        )
    if any(format_of(folder) for folder in folders):
        if len(folders) > 1:
            raise Refusal("give one checkpoint at a time")
        adapters = one_adapter(load_stored(folders[0], **read), folders[0], task)
        target = {"force": force, "inputs": folders}
        kind, dtype = "peft", _write_peft(out, adapters, ragged=ragged, **target)
    else:
        policy = read.get("heads", "error")
        adapters = io.load_peft(
            folders, **{**read, "heads": "keep" if policy == "error" else policy}
        )
        resolve(FORMATS[to].save)(out, adapters, force=force)
        kind, dtype = to, FORMATS[to].dtype
    return Converted(
        path=str(out),
        format=kind,
        adapters=adapters.names,
        modules=len(adapters.stacks),
        zero_modules=sum(len(source.zero_modules) for source in adapters.sources),
        dtype=dtype,
        notes=adapters.notes,
    )


def _write_peft(
    out: Folder, adapter: "Adapters", *, ragged: bool, **target: Any
) -> str:
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
