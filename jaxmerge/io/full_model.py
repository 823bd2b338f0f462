"""A full model with changes, written shard by shard and a few rows at a time."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.disk import share
from jaxmerge.io.base_model import MODEL_CONFIG, BaseModel
from jaxmerge.io.changes import Addition, Changes
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.files import sha256
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.replaceable import CARD_FILE
from jaxmerge.io.safetensors_writer import SafetensorsWriter
from jaxmerge.io.tensors import FLOATING, Described, TensorInfo
from jaxmerge.refusals import Option

_WEIGHTS = re.compile(
    r".+\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|onnx_data|npz|ot|tflite)"
    r"|.+\.index\.json|adapter_config\.json"
)
_OF_QUANTISED = ("quantize_config.json", "quant_config.json")  # of GPTQ and AWQ
_DTYPES = ("dtype", "torch_dtype")  # of transformers 5 and 4


@dataclass
class Losses:
    """What became of the changed tensors.

    Attributes:
      change: key -> Frobenius norm of the update over that of the weight before.
      cast_error: key -> what rounding took, over the norm of the update, or of the
        tensor where it was replaced.
    """

    change: dict[str, float] = field(default_factory=dict)
    cast_error: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What is to be written.

    Attributes:
      changes: of the model.
      sources: key that the model lacks -> key whose values it has, before changes.
      config: of the result.
      dtype: of all floating tensors; None keeps that of each.
    """

    changes: Changes
    sources: Mapping[str, str]
    config: Mapping[str, Any]
    dtype: np.dtype | None = None


def write_weights(
    folder: Path, model: BaseModel, target: Target, advance: Callable[[], None]
) -> tuple[dict[str, str], Losses]:
    """Writes the weights, in files of the same names as those of the model.

    Every sum is formed in float32 (float64 where the model is) and rounded once.
    Memory: the changes, and blocks of 2 million values of one tensor; no tensor is
    ever whole.

    Args:
      folder: where to.
      model: the model.
      target: what becomes of it.
      advance: called after every tensor of the model.

    Returns:
      File name -> SHA-256, and what was lost.
    """
    files = _tensors_of_files(model, target)
    losses, digests = Losses(), {}
    for name, infos in files.items():
        path = folder / name
        with SafetensorsWriter(path, infos, {"format": "pt"}) as writer:
            for key in writer.keys:
                for block in _blocks(model, target, key, infos[key], losses):
                    writer.write(block)
                advance()
        share(path)
        digests[name] = writer.sha256
        if sha256(path) != writer.sha256:
            raise RuntimeError(f"{name} does not read back as it was written")
    if model.tensors.path.suffix == ".json":
        _write_index(folder / model.tensors.path.name, files)
    return digests, losses


def write_config(folder: Path, model: BaseModel, target: Target) -> None:
    """Writes ``config.json``, as it was unless something in it has changed."""
    path = folder / MODEL_CONFIG
    config = dict(target.config)
    if target.dtype is not None:
        name = next((n for n in _DTYPES if n in config), _DTYPES[0])
        config[name] = target.dtype.name
    if config == model.config and not model.quantised:
        shutil.copyfile(model.folder / MODEL_CONFIG, path)
    else:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def copy_others(folder: Path, model: BaseModel) -> tuple[str, ...]:
    """Copies what else the model's folder holds, such as its tokenizer.

    Returns:
      What was left out: weights in other formats or in subfolders, which are not those
      of the result, configs of a quantisation that it has no more, and what is no plain
      file.
    """
    ours = {RECORD_FILE, CARD_FILE, *(path.name for path in model.files)}
    left: list[str] = []
    for path in _files_below(model.folder):
        name = path.relative_to(model.folder).as_posix()
        if name in ours:
            continue
        stale = bool(model.quantised) and name in _OF_QUANTISED
        if stale or not path.is_file() or _WEIGHTS.fullmatch(path.name):
            left.append(name)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return tuple(left)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder, hidden ones left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(path)
        else:
            yield path


def _tensors_of_files(
    model: BaseModel, target: Target
) -> dict[str, dict[str, Described]]:
    """File name -> its tensors; those that the model lacks come into the last file."""
    files: dict[str, dict[str, Described]] = {}
    for key, info in model.tensors.infos.items():
        name = model.tensors.holder(key).path.name
        dtype = _dtype(info.dtype, target)
        files.setdefault(name, {})[key] = TensorInfo(dtype, info.shape)
    last = files[max(files)]
    for key, source in target.sources.items():
        info = model.tensors.infos[source]
        last[key] = TensorInfo(_dtype(info.dtype, target), info.shape)
    for key, value in target.changes.new.items():
        dtype = value.dtype if value.dtype not in FLOATING else model.dtype
        last[key] = TensorInfo(_dtype(dtype, target), value.shape)
    return files


def _dtype(dtype: np.dtype, target: Target) -> np.dtype:
    wanted = target.dtype
    return wanted if wanted is not None and dtype in FLOATING else dtype


def _blocks(
    model: BaseModel, target: Target, key: str, info: Described, losses: Losses
) -> Iterator[np.ndarray]:
    """The values of a tensor of the result, some rows at a time."""
    changes = target.changes
    whole = changes.replaced.get(key, changes.new.get(key))
    if whole is not None:
        exact = whole if whole.dtype not in FLOATING else whole.astype(np.float32)
        cast = _cast(exact, info.dtype, key)
        losses.cast_error[key] = _relative(_square(_wide(cast) - exact), _square(exact))
        yield cast
        return
    source = target.sources.get(key, key)
    addition = changes.additions.get(key)
    if addition is None:
        for _, values in model.blocks(source):
            yield _cast(values, info.dtype, key)
        return
    yield from _summed(model, source, addition, info.dtype, key, losses)


def _summed(
    model: BaseModel,
    source: str,
    addition: Addition,
    dtype: np.dtype,
    key: str,
    losses: Losses,
) -> Iterator[np.ndarray]:
    """The sums of a weight and what is added to it, rounded once."""
    before = update = lost = 0.0
    for rows, values in model.blocks(source):
        if values.dtype not in FLOATING:
            raise AdapterError(
                f"{model.folder}: {source!r} has dtype {values.dtype}, expected a "
                "floating type"
            )
        weights, added = _wide(values), addition.rows(rows)
        exact = weights + added
        if not np.isfinite(exact).all():
            raise AdapterError(
                f"{model.folder}: {source!r} holds NaN or infinite values, or its sum "
                "with the update does; the file is damaged or the update is too large"
            )
        cast = _cast(exact, dtype, key)
        before, update = before + _square(weights), update + _square(added)
        lost += _square(_wide(cast) - exact)
        yield cast
    losses.change[key] = _relative(update, before)
    losses.cast_error[key] = _relative(lost, update)


def _wide(values: np.ndarray) -> np.ndarray:
    """In float32, or in float64 where it is."""
    return values if values.dtype == np.float64 else values.astype(np.float32)


def _cast(values: np.ndarray, dtype: np.dtype, key: str) -> np.ndarray:
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if values.dtype in FLOATING and np.isinf(cast).sum() > np.isinf(values).sum():
        raise AdapterError(
            f"{key!r}: its values do not fit into {dtype.name}; save with ",
            Option("dtype", "float32", quoted=True),
        )
    return cast


def _square(values: np.ndarray) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def _relative(lost: float, total: float) -> float:
    return math.sqrt(lost / total) if total else 0.0


def _write_index(path: Path, files: Mapping[str, Mapping[str, Described]]) -> None:
    sizes = [
        math.prod(info.shape) * info.dtype.itemsize
        for infos in files.values()
        for info in infos.values()
    ]
    places = {key: name for name, infos in files.items() for key in infos}
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": dict(sorted(places.items())),
    }
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
