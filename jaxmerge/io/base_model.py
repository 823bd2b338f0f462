"""A full model on disk: its config, its weights in one file or many, by headers."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.disk import Unchanged
from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.files import INDEX, checked_file, first_entries, read_object, sha256
from jaxmerge.io.packed.unpacked import (
    Quantised,
    Unpacked,
    unpack,
    without_quantisation,
)
from jaxmerge.io.places import folder_place
from jaxmerge.io.quantised import refuse_quantised
from jaxmerge.io.shards import open_weights
from jaxmerge.io.tensors import TensorFile, read_piece, usual_dtype

MODEL_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_OTHER_WEIGHTS = re.compile(r".+\.(bin|pt|pth|gguf|h5|msgpack|onnx)")
_SHARD = re.compile(r".+-\d+-of-\d+\.safetensors")
_EXPECTED = (
    "expected a Hugging Face model folder, as `hf download NAME --local-dir base` "
    "makes it"
)
BLOCK = 2**21  # values that are in memory at a time


@dataclass(frozen=True)
class BaseModel:
    """A full model whose headers have been read and checked.

    Attributes:
      folder: where it is.
      config: its ``config.json``.
      tensors: its weights, all files of them as one.
      unchanged: its config and its weights, since before they were opened.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: TensorFile
    unchanged: Unchanged

    @property
    def files(self) -> tuple[Path, ...]:
        """Config, index and weight files."""
        return (self.folder / MODEL_CONFIG, *self.tensors.files)

    @property
    def sha256(self) -> dict[str, str]:
        """File name -> SHA-256, of all that was read."""
        return {path.name: sha256(path) for path in self.files}

    @property
    def dtype(self) -> np.dtype:
        """The floating dtype of most of its values."""
        return usual_dtype(self.tensors.infos.values())

    @property
    def quantised(self) -> Mapping[str, Quantised]:
        """Key -> weight, of those that are unpacked when they are read."""
        return self.tensors.quantised if isinstance(self.tensors, Unpacked) else {}

    @property
    def model_types(self) -> set[str]:
        """``model_type`` of the config and of those within it."""
        return set(_model_types(self.config))

    def blocks(self, key: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows of a tensor, some at a time: which, and their values [rows, n].

        The first axis of a tensor is that of its rows, the others are flattened.
        """
        rows, columns = matrix_shape(self.tensors.infos[key].shape)
        height = max(1, BLOCK // max(columns, 1))
        weight = self.quantised.get(key)
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            place = slice(start, stop)
            if weight is not None:
                yield place, weight.rows(place)
                continue
            values = read_piece(self.tensors, key, start * columns, stop * columns)
            yield place, values.reshape(stop - start, columns)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of a tensor as a matrix; a single number is a row of its own.

    >>> matrix_shape((6, 3, 2, 2)), matrix_shape((5,)), matrix_shape(())
    ((6, 12), (5, 1), (1, 1))
    """
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def open_model(folder: Folder, *, dequantise: bool | None = None) -> BaseModel:
    """Opens a model folder.

    Args:
      folder: Hugging Face folder.
      dequantise: take quantised weights for what they stand for; None where the caller
        leaves no choice.

    Raises:
      AdapterError: it is no such folder, or holds quantised weights that are not to be
        unpacked, or cannot be.
    """
    if not Path(folder).is_dir():
        raise AdapterError(f"{folder}: no such folder; {_EXPECTED}")
    path = folder_place(folder)
    weights = _weight_file(path)
    unchanged = Unchanged(entry for entry in path.iterdir() if entry.is_file())
    if not os.path.lexists(path / MODEL_CONFIG):
        raise AdapterError(f"{path}: has no {MODEL_CONFIG}; {_EXPECTED}")
    config = read_object(path / MODEL_CONFIG, largest=16 * 2**20)
    tensors = open_weights(weights)
    if dequantise:
        tensors = unpack(path, config, tensors)
        config = without_quantisation(config)
        refuse_quantised(path, config, tensors.plain)
    else:
        refuse_quantised(path, config, tensors.infos, choice=dequantise is not None)
    return BaseModel(path, config, tensors, unchanged)


def _weight_file(path: Path) -> Path:
    there = [n for name in _WEIGHTS for n in (name, name + INDEX)]
    there = [name for name in there if os.path.lexists(path / name)]
    if len(there) > 1:
        raise AdapterError(
            f"{path}: holds both {there[0]} and {there[1]}, which may be different "
            "weights; remove those that are not meant"
        )
    if not there:
        raise AdapterError(f"{path}: no {_WEIGHTS[0]} or {_no_weights(path)}")
    return checked_file(path / there[0])


def _no_weights(path: Path) -> str:
    names = sorted(entry.name for entry in first_entries(path, 10_000))
    shards = [name for name in names if _SHARD.fullmatch(name)]
    index = f"{_WEIGHTS[0]}{INDEX}"
    if shards:
        return f"{index} for its shards {listing(shards)}; copy it from their source"
    if "adapter_config.json" in names:
        return f"{index}: this is an adapter, not a model; give its base model"
    others = [name for name in names if _OTHER_WEIGHTS.fullmatch(name)]
    there = f"it holds {listing(others)}" if others else "there are no weights"
    return (
        f"{index}; {there}. Load the model with transformers' from_pretrained and "
        "write it with save_pretrained into a folder of its own"
    )


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(config.get("model_type"), str):
        yield config["model_type"]
    for value in config.values():
        if isinstance(value, dict):
            yield from _model_types(value)
