"""The content of a folder of a merged adapter, made module by module."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.compress import Compressed, blank, compress
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.files import SAFETENSORS_FILE
from jaxmerge.io.image.output_file import image_file
from jaxmerge.io.output_config import output_config
from jaxmerge.io.saved_modules import Heads, head_modules
from jaxmerge.io.wrappers import PEFT_PREFIX
from jaxmerge.refusals import Option
from jaxmerge.streamed import Streamed, described
from jaxmerge.types import Update
from jaxmerge.updates import dense as dense_of

_VANISHED = 0.1  # of the norm of a module, lost by the cast to the dtype of the output
DELTA_FILE = "delta.safetensors"
_Parts = Mapping[str, np.ndarray]


class Written(NamedTuple):
    """What became of a module.

    Attributes:
      energy: share of the squared norm that truncation left.
      cast_error: relative error of the cast.
      mark: of its values, for who reads them back, see `mark_of`.
    """

    energy: float
    cast_error: float
    mark: int


@dataclass(frozen=True)
class Output:
    """The content of a folder.

    Attributes:
      name: of the weight file.
      blanks: its tensors in their order, those of modules without values.
      places: key -> module and part of a tensor of a module; others have values.
      parts: module -> its tensors, made when they are asked for.
      config: the adapter config; None for full-weight deltas and for files of image
        models.
      header: what the header of the weight file says.
      ranks: module -> rank of its tensors, padding included; none of deltas.
      written: module -> what became of it, of those that have been made.
      files: other files: name -> tensors by key.
    """

    name: str
    blanks: Mapping[str, np.ndarray]
    places: Mapping[str, tuple[str, str]]
    parts: Streamed[_Parts]
    config: dict[str, Any] | None
    header: Mapping[str, str]
    ranks: Mapping[str, int]
    written: dict[str, Written]
    files: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def tensor(self, key: str) -> np.ndarray:
        """The values of a tensor of the weight file."""
        if key not in self.places:
            return self.blanks[key]
        module, part = self.places[key]
        return self.parts[module][part]


def mark_of(*arrays: np.ndarray | None) -> int:
    """A checksum of the values of some arrays in float32, bit by bit."""
    mark = 0
    for values in arrays:
        if values is not None:
            mark = zlib.crc32(np.ascontiguousarray(values, np.float32).data, mark)
    return mark


def adapter_output(
    updates: Mapping[str, Update],
    like: Adapters,
    *,
    dtype: np.dtype,
    rank: int | None,
    energy: float | None,
    ragged: bool,
    biases: Mapping[str, np.ndarray],
    heads: Heads,
) -> Output:
    """One adapter of the kind of the inputs: one rank, or one per module if ragged."""
    factors = compress(updates, rank=rank, energy=energy, ragged=ragged)
    widest = rank or max(1, *(f.rank for f in factors.shapes.values()))
    ranks = {
        module: max(shape.rank, 1) if ragged else widest
        for module, shape in factors.shapes.items()
    }
    cast_biases = {module: _cast(x, dtype, module) for module, x in biases.items()}
    written: dict[str, Written] = {}

    def tensors_of(module: str, b: np.ndarray, a: np.ndarray) -> _Parts:
        parts = like.layouts[module].to_tensors(b, a)
        if module in cast_biases:
            parts["lora_B.bias"] = cast_biases[module]
        return parts

    def make(module: str) -> _Parts:
        found = factors[module]
        padded = found.padded(ranks[module])
        b, a = (_cast(x, dtype, module) for x in (padded.b, padded.a))
        error = padded.error_of(Compressed(b, a))
        mark = mark_of(b, a, cast_biases.get(module))
        written[module] = Written(found.energy, _held(error, dtype, module), mark)
        return tensors_of(module, b, a)

    modules = {
        module: tensors_of(
            module,
            blank((shape.b.shape[0], ranks[module]), dtype),
            blank((ranks[module], shape.a.shape[1]), dtype),
        )
        for module, shape in factors.shapes.items()
    }
    config, header = None, {"format": "pt"}
    if like.kind == "peft":
        name, tensors = SAFETENSORS_FILE, _peft_tensors(modules, heads)
        config = output_config(
            ranks,
            like,
            modules_to_save=head_modules(heads, like),
            lora_bias=bool(biases),
        )
    else:
        name, tensors, said = image_file(modules, heads, like)
        header |= said
    return Output(
        name,
        dict(sorted(tensors.items())),
        _places(modules, tensors),
        _one_by_one(modules, make),
        config,
        header,
        ranks,
        written,
    )


def delta_output(
    updates: Mapping[str, Update], like: Adapters, *, dtype: np.dtype
) -> Output:
    """Full-weight deltas: ``<module>.weight``, in the shape of the base weight."""
    unclear = [m for m in updates if like.layouts[m].fan_in_fan_out is None]
    if unclear:
        raise AdapterError(
            f"the configs disagree on fan_in_fan_out for {listing(unclear)}, so the "
            "shape of the base weights is unclear; correct the wrong config"
        )
    written: dict[str, Written] = {}

    def make(module: str) -> _Parts:
        exact = np.asarray(dense_of(updates[module]))
        cast = _cast(exact, dtype, module)
        total = np.linalg.norm(exact.astype(np.float64))
        lost = np.linalg.norm(cast.astype(np.float64) - exact)
        error = _held(float(lost / total) if total else 0.0, dtype, module)
        weight = like.layouts[module].to_weight(cast)
        written[module] = Written(1.0, error, mark_of(weight))
        return {"weight": weight}

    modules: dict[str, _Parts] = {}
    for module in updates:
        stack = described(like.stacks)[module]
        shape = (stack.b.shape[1], stack.a.shape[2])
        modules[module] = {
            "weight": like.layouts[module].to_weight(blank(shape, dtype))
        }
    tensors = {f"{m}.weight": parts["weight"] for m, parts in sorted(modules.items())}
    return Output(
        DELTA_FILE,
        tensors,
        _places(modules, tensors),
        _one_by_one(modules, make),
        None,
        {"format": "pt"},
        {},
        written,
    )


def _peft_tensors(modules: Mapping[str, _Parts], heads: Heads) -> dict[str, np.ndarray]:
    tensors = {f"{PEFT_PREFIX}{name}": value for name, value in heads.items()}
    for module, parts in modules.items():
        for leaf, value in parts.items():
            tensors[f"{PEFT_PREFIX}{module}.{leaf}"] = value
    return tensors


def _places(
    modules: Mapping[str, _Parts], tensors: _Parts
) -> dict[str, tuple[str, str]]:
    """Which part of which module the tensors of a file are; others are none."""
    parts = {
        id(value): (module, part)
        for module, values in modules.items()
        for part, value in values.items()
    }
    return {key: parts[id(x)] for key, x in tensors.items() if id(x) in parts}


def _one_by_one(
    modules: Mapping[str, _Parts], make: Callable[[str], _Parts]
) -> Streamed[_Parts]:
    def some(names: Sequence[str]) -> dict[str, _Parts]:
        return {module: make(module) for module in names}

    return Streamed(([module] for module in modules), some, lambda: modules)


def _held(error: float, dtype: np.dtype, module: str) -> float:
    """The relative error of a cast; AdapterError if little more than zeros is left."""
    if error > _VANISHED:
        raise AdapterError(
            f"module {module!r}: its values are too small for {dtype.name}, which ",
            f"would lose {error:.0%} of them; save with ",
            Option("dtype", "float32", quoted=True),
        )
    return error


def _cast(values: np.ndarray, dtype: np.dtype, module: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise AdapterError(
            f"module {module!r}: its values do not fit into {dtype.name}; save with ",
            Option("dtype", "float32", quoted=True),
        )
    return cast
