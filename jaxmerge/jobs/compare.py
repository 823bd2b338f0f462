"""What differs between two folders that should hold the same merge."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmerge import io
from jaxmerge.io.files import SAFETENSORS_FILE, read_object, sha256
from jaxmerge.io.image.file_kinds import WEIGHT_FILES
from jaxmerge.io.tensors import Described, open_tensors
from jaxmerge.types import AdapterStack


class Difference(NamedTuple):
    """One file, tensor or module that is not the same in both folders.

    Attributes:
      size: Frobenius norm of the difference relative to what is expected; None where
        there is nothing to measure.
    """

    where: str
    says: str
    size: float | None = None


def differences(found: Path, expected: Path, files: Iterable[str]) -> list[Difference]:
    """All differences, in the order of the files.

    Factors that differ are compared by their products: two machines may choose other
    signs for the same singular vectors.
    """
    result: list[Difference] = []
    for name in files:
        ours, theirs = found / name, expected / name
        if not ours.is_file() or not theirs.is_file():
            says = "is missing" if theirs.is_file() else "is not part of the result"
            result.append(Difference(name, says))
        elif sha256(ours) == sha256(theirs):
            continue
        elif name.endswith(".json"):
            result += _json_differences(name, ours, theirs)
        elif name == SAFETENSORS_FILE or name in WEIGHT_FILES:
            result += _adapter_differences(found, expected, name)
            result += _metadata_differences(name, ours, theirs)
        else:
            result += _tensor_differences(name, ours, theirs, _any)
            result += _metadata_differences(name, ours, theirs)
    return result


def _json_differences(name: str, ours: Path, theirs: Path) -> list[Difference]:
    try:
        found = read_object(ours)
    except io.AdapterError as error:
        return [Difference(name, f"is not JSON that can be read: {error}")]
    expected = read_object(theirs)
    return [
        Difference(
            f"{name}: {key}",
            f"is {_shown(found, key)}, expected {_shown(expected, key)}",
        )
        for key in sorted(found.keys() | expected.keys())
        if _as_json(found, key) != _as_json(expected, key)
    ]


def _shown(values: dict[str, Any], key: str) -> str:
    return _as_json(values, key)[:80]


def _as_json(values: dict[str, Any], key: str) -> str:
    """A value as it is written, so that 1, 1.0 and true are not the same."""
    return json.dumps(values[key], sort_keys=True) if key in values else "absent"


def _adapter_differences(found: Path, expected: Path, name: str) -> list[Difference]:
    """Differences of two adapters by module, then of all other tensors."""
    try:
        ours = io.load_peft([found], heads="keep", allow_zero=True)
    except io.AdapterError as error:
        return [Difference(name, f"cannot be read: {error}")]
    theirs = io.load_peft([expected], heads="keep", allow_zero=True)
    result = []
    for module in sorted(ours.stacks.keys() | theirs.stacks.keys()):
        one, other = ours.stacks.get(module), theirs.stacks.get(module)
        if one is None or other is None:
            says = "is zero or missing" if one is None else "is not in the result"
            result.append(Difference(f"module {module}", says))
            continue
        if one.b.shape[1] != other.b.shape[1] or one.a.shape[2] != other.a.shape[2]:
            result.append(Difference(f"module {module}", "has another shape"))
            continue
        size = _relative_difference(one, other)
        if size > 0:
            result.append(Difference(f"module {module}", "differs", size))

    files = (found / name, expected / name)
    result += _dtype_differences(*files)
    return result + _tensor_differences(name, *files, _is_no_factor)


_FACTOR = re.compile(
    r".+(\.lora_A\..+|\.lora_B\.weight|\.lora_embedding_[AB].*"
    r"|\.lora_(down|up)\.weight|:\d+:(down|up))"
)


def _is_no_factor(key: str) -> bool:
    return _FACTOR.fullmatch(key) is None


def _dtype_differences(ours: Path, theirs: Path) -> list[Difference]:
    """Factors that are kept in another dtype, whatever their values."""
    found, expected = open_tensors(ours).infos, open_tensors(theirs).infos
    return [
        Difference(
            f"{ours.name}: {key}",
            f"is {found[key].dtype}, expected {expected[key].dtype}",
        )
        for key in sorted(found.keys() & expected.keys())
        if not _is_no_factor(key) and found[key].dtype != expected[key].dtype
    ]


def _metadata_differences(name: str, ours: Path, theirs: Path) -> list[Difference]:
    """What the header of a weight file says beside its tensors."""
    try:
        found = open_tensors(ours).metadata
    except io.AdapterError:
        return []  # it is said already that the file cannot be read
    expected = open_tensors(theirs).metadata
    return [
        Difference(
            f"{name}: metadata {key!r}",
            f"is {found.get(key)!r:.80}, expected {expected.get(key)!r:.80}",
        )
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]


def _any(key: str) -> bool:
    return True


def _relative_difference(ours: AdapterStack, theirs: AdapterStack) -> float:
    """``||b a - b' a'|| / ||b' a'||`` from Gram matrices in float64."""
    b, a = (np.asarray(x[0], np.float64) for x in (ours.b, ours.a))
    b2, a2 = (np.asarray(x[0], np.float64) for x in (theirs.b, theirs.a))
    if np.array_equal(b, b2) and np.array_equal(a, a2):
        return 0.0
    difference = _norm(np.hstack([b, -b2]), np.vstack([a, a2]))
    return difference / (_norm(b2, a2) or 1.0)


def _norm(b: np.ndarray, a: np.ndarray) -> float:
    return float(np.sqrt(max(np.sum((b.T @ b) * (a @ a.T)), 0.0)))


def _tensor_differences(
    name: str, ours: Path, theirs: Path, chosen: Callable[[str], bool]
) -> list[Difference]:
    try:
        found = open_tensors(ours)
    except io.AdapterError as error:
        return [Difference(name, f"cannot be read: {error}")]
    expected, result = open_tensors(theirs), []
    for key in sorted(filter(chosen, {*found.infos, *expected.infos})):
        where = f"{name}: {key}"
        if key not in found.infos or key not in expected.infos:
            says = "is missing" if key in expected.infos else "is not in the result"
            result.append(Difference(where, says))
        elif found.infos[key] != expected.infos[key]:
            says = f"is {_kind(found.infos[key])}, not {_kind(expected.infos[key])}"
            result.append(Difference(where, says))
        else:
            x, y = (f.read(key) for f in (found, expected))
            if not np.array_equal(x, y):
                x, y = (values.astype(np.float64) for values in (x, y))
                scale = float(np.linalg.norm(y)) or 1.0
                size = float(np.linalg.norm(x - y)) / scale
                result.append(Difference(where, "differs", size))
    return result


def _kind(info: Described) -> str:
    return f"{np.dtype(info.dtype).name} {list(info.shape)}"
