"""Adapters from one format of folders to another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast, get_args

from jaxmerge.folders import Folder
from jaxmerge.io.options import BridgeName
from jaxmerge.jobs.reading import ReadOptions, one_adapter
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.io import Adapters

_ONE = "a folder of this format holds one adapter; merge them first, or give one"


@dataclass(frozen=True)
class Converted:
    """Adapters that were written in the other format.

    Attributes:
      path: what was written.
      format: "peft", "orbax" or the library.
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
    to: str | None = None,
    like: Folder | None = None,
    task: str | None = None,
    ragged: bool = False,
    force: bool = False,
    **read: Unpack[ReadOptions],
) -> Converted:
    """Converts adapters between PEFT folders, orbax and checkpoints of JAX libraries.

    Nothing is lost, but a PEFT folder comes back with its scale folded into B
    (alpha = r), and a checkpoint of a library with the scale that its alpha leaves.

    Args:
      folders: PEFT folders or checkpoints of JAX libraries, or one orbax checkpoint of
        this package.
      out: what to create.
      to: "peft"; "orbax", one checkpoint of several adapters; or the library "nnx",
        "qwix", "tunix" or "gemma". PEFT folders become "orbax" unless given, and
        everything else "peft".
      like: checkpoint of the model that the library is to load the result into; unless
        given one of those that a merged folder was made of, if any.
      task: name of the adapter to take from a checkpoint that holds several.
      ragged: give each module its own rank (PEFT only).
      force: replace a folder that holds an adapter and nothing else.
      **read: see `jaxmerge.io.load_peft`; for a library ``lora_alpha`` is what it will
        multiply with.

    Raises:
      Refusal: what cannot be converted exactly.
    """
    from jaxmerge import io
    from jaxmerge.io.bridges.opened_tree import is_tree
    from jaxmerge.io.formats import FORMATS, format_of, resolve
    from jaxmerge.io.staging import check_target
    from jaxmerge.io.stored import load_stored

    inputs = [*folders, *([] if like is None else [like])]
    check_target(out, force=force, inputs=inputs)
    trees = [folder for folder in folders if is_tree(Path(folder))]
    stored = any(format_of(folder) for folder in folders)
    kind = to or ("peft" if stored or trees else "orbax")
    libraries = get_args(BridgeName)
    if kind not in ("peft", *FORMATS, *libraries):
        known = ", ".join((*FORMATS, *libraries))
        raise Refusal(Option("to", kind, quoted=True), f": expected peft, {known}")
    if like is not None and kind not in libraries:
        raise Refusal(Option("like"), f" is for {', '.join(libraries)}")
    if kind in libraries and trees:
        raise Refusal(
            f"{trees[0]}: is a checkpoint of a JAX library already; convert it with ",
            Option("to", "peft", quoted=True),
            " first, as only one alpha can be given at a time",
        )
    if kind in FORMATS and not stored:
        policy = read.get("heads", "error")
        adapters = io.load_peft(
            folders, **{**read, "heads": "keep" if policy == "error" else policy}
        )
        resolve(FORMATS[kind].save)(out, adapters, force=force)
        dtype = FORMATS[kind].dtype
    elif len(folders) > 1:
        raise Refusal("give one checkpoint at a time" if stored else _ONE)
    else:
        adapters = one_adapter(load_stored(folders[0], **read), folders[0], task)
        target: dict[str, Any] = {"force": force, "inputs": inputs}
        if kind in libraries:
            dtype = _write_tree(
                *(out, adapters, cast(BridgeName, kind)),
                *(folders[0], like, read, target),
            )
        else:
            kind, dtype = "peft", _write_peft(out, adapters, ragged=ragged, **target)
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


def _write_tree(
    out: Folder,
    adapter: "Adapters",
    library: BridgeName,
    folder: Folder,
    like: Folder | None,
    read: ReadOptions,
    target: dict[str, Any],
) -> str:
    from jaxmerge.io.bridges.saved_trees import save_tree, tree_of_merge

    made_of = tree_of_merge(folder, library)
    alpha, scan_axis = read.get("lora_alpha"), read.get("scan_axis")
    if made_of is not None:
        like = made_of.like if like is None else like
        alpha = made_of.alpha if alpha is None else alpha
        scan_axis = made_of.scan_axis if scan_axis is None else scan_axis
    found = save_tree(
        out,
        adapter,
        library,
        like=like,
        alpha=alpha,
        scan_axis=scan_axis,
        **target,
    )
    return found.dtype
