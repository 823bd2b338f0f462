"""Statistics of inputs as one safetensors file: written whole, read back exactly."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxmerge.disk import share
from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.files import checked_file
from jaxmerge.io.staging import staged_file
from jaxmerge.io.tensors import SafetensorsFile

if TYPE_CHECKING:
    from jaxmerge.stats.moments import Statistics

_FORMAT = "jaxmerge-moments-1"


def save_moments(path: Folder, statistics: "Mapping[str, Statistics]") -> None:
    """Saves module -> `Moments` or `Sketch` of one task, or of tasks stacked.

    Tensors are named ``module:field``; a file of this name is replaced at once.

    Raises:
      AdapterError: values of another kind, or a file that cannot be written.
    """
    path = Path(path)
    tensors = {}
    for module, value in statistics.items():
        fields = getattr(value, "_fields", ())
        if fields not in _kinds():
            raise AdapterError(
                f"module {module!r}: {type(value).__name__} is no statistics of inputs"
            )
        tensors |= {
            f"{module}:{field}": np.asarray(array, order="C")
            for field, array in zip(fields, value, strict=True)
        }
    with staged_file(path) as staged:
        save_file(tensors, staged, metadata={"format": _FORMAT})
        share(staged)


def load_moments(
    path: Folder, modules: Iterable[str] | None = None
) -> "dict[str, Statistics]":
    """Reads what `save_moments` wrote, with the modules in order of their names.

    Args:
      path: the file.
      modules: which to read; all unless given.

    Raises:
      AdapterError: not such a file, a module that it lacks, or values that are NaN,
        infinite or out of shape.
    """
    path = Path(path)
    file = SafetensorsFile(checked_file(path))
    if file.metadata.get("format") != _FORMAT:
        raise AdapterError(f"{path}: holds no statistics; `save_moments` writes them")
    wanted = None if modules is None else set(modules)
    parts: dict[str, dict[str, jnp.ndarray]] = {}
    for key in file.infos:
        module, _, field = key.rpartition(":")
        if wanted is None or module in wanted:
            parts.setdefault(module, {})[field] = _finite(file, key)
    missing = sorted(set(wanted or ()) - parts.keys())
    if missing:
        raise AdapterError(f"{path}: no statistics of module {missing[0]!r}")
    kinds = {frozenset(fields): kind for fields, kind in _kinds().items()}
    statistics = {}
    for module, fields in sorted(parts.items()):
        if frozenset(fields) not in kinds:
            raise AdapterError(f"{path}: module {module!r} has fields {sorted(fields)}")
        value = kinds[frozenset(fields)](**fields)
        _check_shapes(path, module, value)
        statistics[module] = value
    return statistics


def _kinds() -> "dict[tuple[str, ...], type[Statistics]]":
    from jaxmerge.stats.moments import Moments, Sketch  # flax, only where it is needed

    return {kind._fields: kind for kind in (Moments, Sketch)}


def _finite(file: SafetensorsFile, key: str) -> jax.Array:
    array = file.read(key)
    kinds = (np.dtype(np.float32), np.dtype(np.float64))
    if array.dtype not in kinds or not np.all(np.isfinite(array)):
        raise AdapterError(f"{file.path}: {key!r} is not all finite float32 or float64")
    value = jnp.asarray(array)
    if value.dtype != array.dtype:
        raise AdapterError(
            f"{file.path}: {key!r} is {array.dtype}; enable jax_enable_x64 to load it"
        )
    return value


def _check_shapes(path: Path, module: str, value: "Statistics") -> None:
    tasks, n = value.count.shape, value.mean.shape[-1:]
    second = value[2].shape  # gram or rows
    fits = (value.mean.shape, second[:-2], second[-1:]) == (tasks + n, tasks, n)
    if not fits or (hasattr(value, "gram") and second[-2:] != n + n):
        raise AdapterError(
            f"{path}: module {module!r}: shapes {[x.shape for x in value]} do not fit "
            "each other"
        )
