"""Adapters from one format of folders, or kind of file, to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, get_args

from jaxmerge.folders import Folder
from jaxmerge.io.formats import FormatName
from jaxmerge.io.options import BridgeName
from jaxmerge.jobs.reading import ReadOptions, one_adapter
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.io import Adapters, SaveReport
    from jaxmerge.types import Update

Named = Literal["peft", "diffusers", "kohya"]  # kinds of files, by their names
Target = Literal[FormatName, Named, BridgeName]


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
    to: str | None = None,
    like: Folder | None = None,
    task: str | None = None,
    component: str | None = None,
    ragged: bool = False,
    force: bool = False,
    **read: Unpack[ReadOptions],
) -> Converted:
    """Converts adapters from one format of folders, or kind of file, to another.

    No update is lost, but the scale is folded into B (alpha = r), and a checkpoint of
    a library has the scale that its alpha leaves, and no place for saved modules.
    Modules get the names of the kind that is written, where they are certain.

    Args:
      folders: PEFT folders, files of image models or checkpoints of JAX libraries, or
        one orbax checkpoint of this package.
      out: what to create.
      to: "orbax", one checkpoint of several adapters; "peft", "diffusers" or "kohya",
        one adapter; or the library "nnx", "qwix", "tunix", "maxtext-llama",
        "maxtext-qwen", "gemma" or "keras". Checkpoints become "peft" unless given, and
        everything else "orbax".
      like: checkpoint of the model that the library is to load the result into; unless
        given one of those that a merged folder was made of, if any.
      task: name of the adapter to take from a checkpoint that holds several.
      component: of a pipeline, such as "unet": which to take for a PEFT folder, or
        which a PEFT folder is.
      ragged: give each module its own rank (PEFT and kohya only).
      force: replace a folder that holds an adapter and nothing else.
      **read: see `jaxmerge.io.load_peft`; for a library ``lora_alpha`` is what it will
        multiply with.

    Raises:
      Refusal: what cannot be converted exactly.
    """
    from jaxmerge import io
    from jaxmerge.io.bridges.opened_tree import is_tree
    from jaxmerge.io.errors import listing
    from jaxmerge.io.formats import FORMATS, format_of, resolve
    from jaxmerge.io.staging import check_target
    from jaxmerge.io.stored import is_compressed

    notes: tuple[str, ...] = ()
    inputs = [*folders, *([] if like is None else [like])]
    check_target(out, force=force, inputs=inputs)
    trees = [folder for folder in folders if is_tree(Path(folder))]
    stored = any(format_of(folder) for folder in folders)
    kind = to or ("peft" if stored or trees else "orbax")
    libraries = get_args(BridgeName)
    expected = (*FORMATS, *get_args(Named), *libraries)
    if kind not in expected:
        raise Refusal(
            Option("to", kind, quoted=True), f": expected {' or '.join(expected)}"
        )
    if like is not None and kind not in libraries:
        raise Refusal(Option("like"), f" is for {', '.join(libraries)}")
    if kind in libraries and trees:
        raise Refusal(
            f"{trees[0]}: is a checkpoint of a JAX library already; convert it with ",
            Option("to", "peft", quoted=True),
            " first, as only one alpha can be given at a time",
        )
    if kind in FORMATS and stored:
        raise Refusal(
            f"{folders[0]}: is a checkpoint of this kind already; convert it with ",
            Option("to", "peft", quoted=True),
        )
    if kind in FORMATS and (task, component) != (None, None):
        raise Refusal(
            *(Option("task"), " and ", Option("component")),
            f" are of one adapter, and {kind} holds all that are given",
        )
    if kind in FORMATS:
        adapters = io.load_peft(folders, **keeping_heads(read))
        resolve(FORMATS[kind].save)(out, adapters, force=force)
        dtype = FORMATS[kind].dtype
    elif len(folders) > 1:
        one = "give one adapter at a time; merge them to make one of several"
        raise Refusal("give one checkpoint at a time" if stored else one)
    else:
        found = _opened(folders[0], kind, task, read)
        target: dict[str, Any] = {"force": force, "inputs": inputs}
        if kind in libraries:
            adapters, library = found, cast(BridgeName, kind)
            dtype = _write_tree(out, found, library, folders[0], like, read, target)
            if found.heads[0]:
                notes = (
                    f"left out {listing(found.heads[0])}: a tree of {kind} has no "
                    "place for saved modules",
                )
        else:
            adapters = _renamed(found, folders[0], kind, component)
            card = None if is_compressed(folders[0]) else _recipe(kind, component)
            if card is not None and adapters is found and kind == "peft":
                card = {"pipeline": "concat"}
            report = write_adapter(out, adapters, ragged=ragged, card=card, **target)
            dtype = report.dtype
    return Converted(
        path=str(out),
        format=kind,
        adapters=adapters.names,
        modules=len(adapters.stacks),
        zero_modules=sum(len(source.zero_modules) for source in adapters.sources),
        dtype=dtype,
        notes=(*adapters.notes, *notes),
    )


def repeated(
    folder: Folder, recipe: Mapping[str, Any], read: ReadOptions
) -> "Adapters":
    """One adapter under other names again, as the recipe in the record says."""
    kind = recipe["converted"]
    found = _opened(folder, kind, None, read)
    return _renamed(found, folder, kind, recipe.get("component"))


def updates_of(adapter: "Adapters") -> "tuple[Mapping[str, Update], dict[str, Any]]":
    """What is written of one adapter: module -> update, and module -> LoRA bias."""
    from jaxmerge.stacks import concatenate

    updates = {module: concatenate(stack) for module, stack in adapter.stacks.items()}
    return updates, {module: bias[0] for module, bias in adapter.biases.items()}


def _recipe(kind: str, component: str | None) -> dict[str, Any]:
    """What a record says of an adapter under other names; see `repeated`."""
    chosen = {} if component is None else {"component": component}
    return {"converted": kind, **chosen}


def keeping_heads(read: ReadOptions) -> ReadOptions:
    """Options with which saved modules are kept, unless another policy is given."""
    policy = read.get("heads", "error")
    return {**read, "heads": "keep" if policy == "error" else policy}


def _opened(
    folder: Folder, kind: str, task: str | None, read: ReadOptions
) -> "Adapters":
    """One adapter; of kohya's files under the names of diffusers, if it leaves them."""
    from jaxmerge.io.formats import format_of
    from jaxmerge.io.image import naming
    from jaxmerge.io.opening import open_adapters
    from jaxmerge.io.options import ReadOptions as Reading
    from jaxmerge.io.read import load_opened
    from jaxmerge.io.stored import load_stored

    given: dict[str, Any] = {**keeping_heads(read)}
    if kind in get_args(BridgeName):  # then these are of the tree that is written
        given |= {"lora_alpha": None, "scan_axis": None}
    if format_of(folder) is not None:
        return one_adapter(load_stored(folder, **given), folder, task)
    hub = bool(given.pop("hub", False))
    options = Reading(**given)
    opened = open_adapters([folder], options, hub=hub)
    if opened[0].config.kind == "kohya" != kind:
        opened = [naming.in_diffusers_names(adapter) for adapter in opened]
    return one_adapter(load_opened(opened, options), folder, task)


def _renamed(
    adapters: "Adapters", folder: Folder, kind: str, component: str | None
) -> "Adapters":
    """One adapter under the names of a kind of file."""
    from jaxmerge.io.image import renaming

    if adapters.kind == "numbered":
        raise Refusal(
            f"{folder}: its modules are numbered in the order of the trainer's "
            "model, so their names are unknown; apply it to that model and save it "
            "with PEFT"
        )
    if component is not None and (adapters.kind == "peft") == (kind == "peft"):
        raise Refusal(
            Option("component"),
            " says which part of a pipeline a PEFT folder is; none is read or written",
        )
    if adapters.kind == "peft" != kind:
        adapters = renaming.to_diffusers_names(adapters, component)
    if adapters.kind == "diffusers" and kind == "peft":
        adapters = renaming.to_peft_names(adapters, component)
    if adapters.kind == "diffusers" and kind == "kohya":
        adapters = renaming.to_kohya_names(adapters)
    return adapters


def write_adapter(out: Folder, adapter: "Adapters", **options: Any) -> "SaveReport":
    """Writes one adapter that was read, its biases and saved modules included."""
    from jaxmerge import io

    updates, biases = updates_of(adapter)
    given = {"like": adapter, "biases": biases, "heads": "first"}
    return io.save_peft(out, updates, **given, **options)


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
