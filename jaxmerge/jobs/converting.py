"""Adapters to checkpoints and files of other formats, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from jaxmerge.folders import Folder
from jaxmerge.io.formats import FormatName
from jaxmerge.jobs.reading import ReadOptions
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.io import Adapters

Named = Literal["peft", "diffusers", "kohya"]  # kinds of files, by their names
Target = Literal[FormatName, Named]


@dataclass(frozen=True)
class Converted:
    """Adapters that were written in the other format.

    Attributes:
      path: what was written.
      format: what was written, one of `Target`.
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
    component: str | None = None,
    ragged: bool = False,
    force: bool = False,
    **read: Unpack[ReadOptions],
) -> Converted:
    """Converts PEFT folders to one checkpoint, back, or one kind of file to another.

    Nothing is lost either way, but the scale is folded into B (alpha = r). "peft",
    "diffusers" and "kohya" bring one adapter to the names of that kind, where they are
    certain; with "orbax" a checkpoint becomes a PEFT folder again.

    Args:
      folders: PEFT folders or files of image models, or one checkpoint.
      out: what to create.
      to: format of the checkpoint, one of `jaxmerge.io.formats.FORMATS`, or the kind of
        file: "peft", "diffusers" or "kohya".
      task: name of the adapter to take from a checkpoint that holds several.
      component: of a pipeline, such as "unet": which to take for a PEFT folder, or
        which a PEFT folder is.
      ragged: give each module its own rank (not in files of diffusers).
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
    expected = (*FORMATS, *get_args(Named))
    if to not in expected:
        raise Refusal(
            Option("to", to, quoted=True), f": expected {' or '.join(expected)}"
        )
    target = {"force": force, "inputs": folders}
    if to not in FORMATS:
        adapters = _named(folders, to, task=task, component=component, read=read)
        kind, dtype = to, _write(out, adapters, ragged=ragged, card=None, **target)
    elif any(format_of(folder) for folder in folders):
        if len(folders) > 1:
            raise Refusal("give one checkpoint at a time")
        adapters = _one_adapter(load_stored(folders[0], **read), folders[0], task)
        card = {"pipeline": "concat"}
        kind, dtype = "peft", _write(out, adapters, ragged=ragged, card=card, **target)
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


def _named(
    folders: Sequence[Folder],
    to: str,
    *,
    task: str | None,
    component: str | None,
    read: ReadOptions,
) -> "Adapters":
    """One adapter under the names of a kind of file."""
    from jaxmerge.io.formats import format_of
    from jaxmerge.io.image import naming, renaming
    from jaxmerge.io.opening import open_adapters
    from jaxmerge.io.options import ReadOptions as Reading
    from jaxmerge.io.read import load_opened
    from jaxmerge.io.stored import load_stored

    if len(folders) > 1:
        raise Refusal("give one adapter at a time; merge them to make one of several")
    if format_of(folders[0]) is not None:
        stored = load_stored(folders[0], **read)
        adapters = _one_adapter(stored, folders[0], task)
    else:
        policy = read.get("heads", "error")
        options = Reading(**{**read, "heads": "keep" if policy == "error" else policy})
        opened = open_adapters(folders, options)
        if opened[0].config.kind == "kohya" != to:
            opened = [naming.in_diffusers_names(adapter) for adapter in opened]
        adapters = load_opened(opened, options)
    if adapters.kind == "numbered":
        raise Refusal(
            f"{folders[0]}: its modules are numbered in the order of the trainer's "
            "model, so their names are unknown; apply it to that model and save it "
            "with PEFT"
        )
    if adapters.kind == "peft" != to:
        adapters = renaming.to_diffusers_names(adapters, component)
    if adapters.kind == "diffusers" and to == "peft":
        adapters = renaming.to_peft_names(adapters, component)
    if adapters.kind == "diffusers" and to == "kohya":
        adapters = renaming.to_kohya_names(adapters)
    return adapters


def _one_adapter(
    value: "Adapters | dict[str, Any]", path: Folder, task: str | None
) -> "Adapters":
    from jaxmerge.io import Adapters

    if not isinstance(value, Adapters):
        raise Refusal(
            f"{path}: holds merged updates without the layouts of an adapter; write "
            "them with jaxmerge.io.save_peft(..., like=adapters)"
        )
    names = value.names
    if task is None:
        if len(names) != 1:
            raise Refusal(
                f"{path}: holds {', '.join(names)}; choose one with ", Option("task")
            )
        task = names[0]
    if task not in names:
        raise Refusal(f"{path}: no adapter {task!r}; there are {', '.join(names)}")
    return value.task(task)


def _write(out: Folder, adapter: "Adapters", **options: Any) -> str:
    from jaxmerge import io
    from jaxmerge.stacks import concatenate

    report = io.save_peft(
        out,
        {module: concatenate(stack) for module, stack in adapter.stacks.items()},
        like=adapter,
        biases={module: bias[0] for module, bias in adapter.biases.items()},
        heads="first",
        **options,
    )
    return report.dtype
