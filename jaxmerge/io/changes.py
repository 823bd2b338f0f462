"""What an adapter changes in a full model: which of its tensors, and by what."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.base_model import BaseModel
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.model_names import Front, front_of, key_of, lacks
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.prefixes import check_names, prefix_change
from jaxmerge.io.tensors import SafetensorsFile
from jaxmerge.io.tied_weights import Tie
from jaxmerge.refusals import Option

_COPY = 0.01  # relative difference of a copy in half precision, and more
_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
_TURNED = {"c_attn", "c_fc", "c_proj", "q_attn"}  # their layers with weights [n, m]


class Addition(Protocol):
    """What is added to a tensor, seen as a matrix of its first axis and the others."""

    def rows(self, rows: slice, /) -> np.ndarray: ...


class Product(NamedTuple):
    """``left @ right``, of which some rows are formed at a time.

    Attributes:
      left: [rows, r].
      right: [r, columns].
    """

    left: np.ndarray
    right: np.ndarray

    def rows(self, rows: slice, /) -> np.ndarray:
        """Some of its rows [rows, columns]."""
        return self.left[rows] @ self.right


class Stored(NamedTuple):
    """A dense update in a file, of which some rows are read at a time."""

    file: SafetensorsFile
    key: str
    columns: int

    def rows(self, rows: slice, /) -> np.ndarray:
        """Some of its rows [rows, columns]."""
        start, stop = rows.start * self.columns, rows.stop * self.columns
        values = self.file.read_values(self.key, start, stop).astype(np.float32)
        return values.reshape(-1, self.columns)


@dataclass(frozen=True)
class Changes:
    """The tensors of a full model that an adapter changes.

    Attributes:
      additions: key -> what is added to it.
      replaced: key -> saved tensor in its place.
      new: name -> saved tensor that the model has not.
      notes: what a reader should know.
    """

    additions: dict[str, Addition] = field(default_factory=dict)
    replaced: dict[str, np.ndarray] = field(default_factory=dict)
    new: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> set[str]:
        """All that is changed and there."""
        return {*self.additions, *self.replaced}


def changes_of(
    adapters: Adapters,
    heads: Mapping[str, np.ndarray],
    model: BaseModel,
    tie: Tie | None,
) -> Changes:
    """What one adapter changes in a model.

    Args:
      adapters: with one task.
      heads: its saved modules, by name.
      model: the full model.
      tie: what `find_tie` says of it.

    Raises:
      AdapterError: a module that the model lacks, or that is of another shape there.
    """
    shapes = {key: info.shape for key, info in model.tensors.infos.items()}
    if tie is not None:
        shapes.setdefault(tie.head, shapes[tie.embedding])
    front = front_of(list(adapters.stacks), shapes, model)
    changes = Changes(notes=front.notes)
    for module, stack in adapters.stacks.items():
        key = key_of(front.of(module), shapes)
        if key is None:
            raise lacks(module, shapes, model)
        layout = adapters.layouts[module]
        b, a = np.asarray(stack.b[0]), np.asarray(stack.a[0])
        shape = (b.shape[0], a.shape[1])
        turned = _turned(module, adapters, front, model, shapes)
        fits = layout.weight_shape(shape, turned=turned)
        if shapes[key] != fits:
            raise AdapterError(
                f"{model.folder}: {key!r} is {list(shapes[key])}, the adapter's update "
                f"of {module!r} {list(fits)}; it belongs to another base model"
            )
        across = turned or layout.kind == "embedding"
        changes.additions[key] = Product(a.T, b.T) if across else Product(b, a)
    for module, bias in adapters.biases.items():
        key = f"{front.of(module)}.bias"
        if shapes.get(key) != bias.shape[1:]:
            raise AdapterError(
                f"{model.folder}: module {module!r} has a LoRA bias, but the model has "
                f"no bias {key!r} of that size to which it could be added"
            )
        column = np.asarray(bias[0])[:, None]
        changes.additions[key] = Product(column, np.ones((1, 1), np.float32))
    for name, value in heads.items():
        key = front.of(name.replace(".base_layer.", "."))
        if key not in shapes:
            changes.new[name] = value
            continue
        if shapes[key] != value.shape:
            raise AdapterError(
                f"{model.folder}: {key!r} is {list(shapes[key])}, the one that the "
                f"adapter saved {list(value.shape)}; if tokens or classes were added, "
                "add them to the base first (resize_token_embeddings) and save it"
            )
        if key in changes.additions:
            _check_frozen(key, value, model)
        else:
            changes.replaced[key] = value
    return changes


def _check_frozen(key: str, value: np.ndarray, model: BaseModel) -> None:
    """AdapterError unless a saved weight that LoRA adapts too is that of the base.

    PEFT saves such copies of frozen embeddings, in whatever dtype.
    """
    saved, lost = value.astype(np.float32).reshape(len(value), -1), 0.0
    for rows, block in model.blocks(key):
        lost += float(np.sum(np.square(block.astype(np.float32) - saved[rows])))
    if lost > _COPY**2 * float(np.sum(np.square(saved))):
        raise AdapterError(
            f"{model.folder}: the adapter saved {key!r} and adapts it too, and what it "
            "saved is not what this model has; give the model that it was trained on, "
            "or train again with this module in target_modules or in modules_to_save "
            "alone"
        )


def deltas_of(file: SafetensorsFile, model: BaseModel, options: ReadOptions) -> Changes:
    """What a file of weight deltas, as a dense merge is saved, changes in a model.

    Args:
      file: ``<module>.weight`` for each module.
      model: the full model.
      options: the prefixes of names in the file.

    Raises:
      AdapterError: a weight that the model lacks, or that is of another shape there.
    """
    shapes = {key: info.shape for key, info in model.tensors.infos.items()}
    modules = {key: key.removesuffix(".weight") for key in file.infos}
    rename = prefix_change(
        modules.values(),
        strip_prefix=options.strip_prefix,
        add_prefix=options.add_prefix,
    )
    names = {key: rename(module) for key, module in modules.items()}
    check_names(modules.values(), names.values(), file.path, options)
    front = front_of(list(names.values()), shapes, model)
    changes = Changes(notes=front.notes)
    for key, info in file.infos.items():
        place = f"{front.of(names[key])}.weight"
        if place not in shapes:
            raise lacks(names[key], shapes, model)
        if shapes[place] != info.shape:
            raise AdapterError(
                f"{file.path}: {key!r} is {list(info.shape)}, the weight of "
                f"{model.folder} {list(shapes[place])}; it belongs to another base "
                "model"
            )
        columns = int(np.prod(info.shape[1:]))
        changes.additions[place] = Stored(file, key, columns)
    return changes


def is_turned(name: str, model: BaseModel) -> bool:
    """Whether transformers keeps the weight of a layer of this name as [n, m]."""
    return name in _TURNED and bool(model.model_types & _CONV1D)


def together(changes: Changes, tie: Tie, folder: Path) -> Changes:
    """Changes of which those of two tied layers are changes of the one weight.

    Raises:
      AdapterError: one of the layers is replaced, and not added to.
    """
    both = (tie.embedding, tie.head)
    parts = [changes.additions[key] for key in both if key in changes.additions]
    products = [part for part in parts if isinstance(part, Product)]
    if changes.replaced.keys() & set(both) or len(parts) > max(1, len(products)):
        raise AdapterError(
            f"{folder}: the adapter brings a weight of its own for {tie.embedding!r} "
            f"or {tie.head!r}, so that the two are no longer one; pass ",
            Option("tied", "untie", quoted=True),
        )
    if len(products) > 1:
        parts = [
            Product(
                np.concatenate([part.left for part in products], axis=1),
                np.concatenate([part.right for part in products]),
            )
        ]
    return replace(changes, additions=changes.additions | dict.fromkeys(both, parts[0]))


def _turned(
    module: str,
    adapters: Adapters,
    front: Front,
    model: BaseModel,
    shapes: Mapping[str, tuple[int, ...]],
) -> bool:
    """Whether the model keeps the weight of a linear layer as [n, m].

    The config of an adapter has one flag for all of its layers, which PEFT corrects
    layer by layer. Here the kind of model decides, then shapes that are not square.
    """
    layout = adapters.layouts[module]
    if layout.kind != "linear":
        return False
    if model.model_types & _CONV1D:
        return is_turned(module.rpartition(".")[2], model)
    if layout.fan_in_fan_out is False:
        return False
    seen: dict[str, bool] = {}
    for name, stack in adapters.stacks.items():
        (m, n), key = (
            (stack.b.shape[1], stack.a.shape[2]),
            key_of(front.of(name), shapes),
        )
        if key is not None and adapters.layouts[name].kind == "linear" and m != n:
            seen[name] = shapes[key] == (n, m)
    if module in seen:
        return seen[module]
    if len(set(seen.values())) != 1:
        raise AdapterError(
            f"{model.folder}: whether the square weight of {module!r} is stored "
            "transposed (fan_in_fan_out) cannot be seen from the model; correct "
            "fan_in_fan_out in adapter_config.json, or name the model_type in "
            "config.json"
        )
    return next(iter(seen.values()))
