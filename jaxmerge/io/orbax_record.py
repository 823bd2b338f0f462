"""The record of an orbax checkpoint, checked against its leaves and its digests.

What the record says of an array can be seen in the array, and what it says of an
adapter follows from its config; nothing is believed that can be checked. Digests of
the leaves and of the record find the rest. Checkpoints of the first format have none.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.fields import (
    ANY,
    DIGEST,
    DIGESTS,
    FLAG,
    HUB_ID,
    NUMBER,
    PATH,
    TEXT,
    Fields,
    Items,
    Maybe,
    Table,
    Value,
    check_fields,
    one_of,
    whole,
    wrong_field,
)
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.tensors import FLOATING

FORMAT = "jaxmerge-orbax-2"
WITHOUT_DIGESTS = "jaxmerge-orbax-1"
KINDS = {"linear": 0, "embedding": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3}
_DTYPES = tuple(dtype.name for dtype in FLOATING)

_PLACE = Value("the number of a leaf", whole(0))
_SIZE = Value("a size", whole(0, 2**40))
_DTYPE = Value("a dtype", lambda name: dtype_named(name) is not None)
_LEAF = Fields({"shape": Items(_SIZE), "dtype": _DTYPE}, {"sha256": DIGEST})
_STACK = Fields({"kind": ANY, "b": _PLACE, "a": _PLACE, "ranks": Items(_SIZE)})
_LOW_RANK = Fields({"kind": ANY, "b": _PLACE, "a": _PLACE})
_DENSE = Fields({"kind": ANY, "value": _PLACE})
_OF_CORES = {"kind": ANY, **dict.fromkeys(("b", "a", "cores"), _PLACE)}
_MODULES = {
    "stack": _STACK,
    "low_rank": _LOW_RANK,
    "dense": _DENSE,
    "routed": Fields({**_OF_CORES, "gates": _PLACE}),
    "routed_by_router": Fields({**_OF_CORES, "weights": _PLACE, "biases": _PLACE}),
}
_COMPRESSED = {
    "reversible": Fields(
        {
            "kind": ANY,
            **dict.fromkeys(("b", "a", "components", "coefficients"), _PLACE),
            "ranks": Items(_SIZE),
        }
    )
}
_LAYOUT = Fields(
    {
        "kind": one_of(tuple(KINDS)),
        "kernel": Items(Value("a size of at least 1", whole(1, 2**40))),
        "fan_in_fan_out": Maybe(FLAG),
    }
)
_SOURCE = Fields(
    {
        "path": PATH,
        "config": Table(ANY),
        "weight_file": TEXT,
        "sha256": DIGESTS,
        **dict.fromkeys(("base_model", "revision", "task_type"), Maybe(TEXT)),
        "dtype": one_of(_DTYPES),
        "scales": Table(NUMBER),
        "zero_modules": Items(TEXT),
    },
    {"notes": Items(TEXT), "hub": Maybe(HUB_ID), "kind": TEXT},
)
_COMMON: dict[str, Any] = {
    "format": one_of((FORMAT, WITHOUT_DIGESTS)),
    "kind": one_of(("adapters", "compressed", "modules")),
    "modules": Table(ANY),
    "leaves": Items(_LEAF),
}
_OF_MODULES = Fields(_COMMON, {"sha256": DIGEST})
_OF_ADAPTERS = Fields(
    {
        **_COMMON,
        "biases": Table(ANY),
        "names": Items(TEXT, least=1),
        "layouts": Table(_LAYOUT),
        "sources": Items(_SOURCE, least=1),
        "options": Table(ANY),
        "heads": Items(Table(_PLACE)),
    },
    {"sha256": DIGEST},
)


def described_leaf(leaf: Any) -> dict[str, Any]:
    """Shape, dtype and digest of a leaf."""
    return {
        "shape": list(leaf.shape),
        "dtype": leaf.dtype.name,
        "sha256": _digest_of(leaf),
    }


def digest_of_record(record: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a record but itself."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def check_record(record: Mapping[str, Any], path: Path) -> None:
    """AdapterError, which names the field, unless a record is whole and well formed."""
    if record.get("format") not in (FORMAT, WITHOUT_DIGESTS):
        raise AdapterError(f"{path}: not an orbax checkpoint of this version")
    has_adapters = record.get("kind") in ("adapters", "compressed")
    check_fields(record, _OF_ADAPTERS if has_adapters else _OF_MODULES, path)
    tables = ("modules", "biases") if has_adapters else ("modules",)
    used = []
    for table in tables:
        compressed = (record["kind"], table) == ("compressed", "modules")
        known = _COMPRESSED if compressed else _MODULES
        for module, entry in record[table].items():
            field = f"{table}.{module}"
            named = entry.get("kind") if isinstance(entry, Mapping) else None
            if not isinstance(named, str) or named not in known:
                expected = f"a module of kind {', '.join(known)}"
                raise wrong_field(path, field, expected, entry)
            check_fields(entry, known[named], path, field)
            used += [entry[name] for name in entry if name not in ("kind", "ranks")]
    used += [n for heads in record.get("heads", ()) for n in heads.values()]
    if sorted(used) != list(range(len(record["leaves"]))):
        raise AdapterError(
            f"{path}: field leaves: has {len(record['leaves'])}, but modules and "
            f"heads use {show(sorted(used))}; each belongs to one of them"
        )
    if record["format"] == FORMAT and record.get("sha256") != digest_of_record(record):
        raise AdapterError(
            f"{path}: field sha256: is not that of the record, so it was changed; "
            "convert the adapter again"
        )


def check_array(
    described: Mapping[str, Any], array: Any, number: object, folder: Path
) -> None:
    """AdapterError unless an array has the shape and dtype that the record says."""
    shape, dtype = list(array.shape), np.dtype(array.dtype).name
    if (shape, dtype) != (described["shape"], described["dtype"]):
        raise AdapterError(
            f"{folder}: field leaves[{number}]: the array is {dtype} {shape}, "
            f"{RECORD_FILE} says {described['dtype']} {described['shape']}"
        )


def check_leaf(
    described: Mapping[str, Any], leaf: np.ndarray, number: int, folder: Path
) -> None:
    """AdapterError unless an array is the one that was saved."""
    check_array(described, leaf, number, folder)
    if "sha256" in described and _digest_of(leaf) != described["sha256"]:
        raise AdapterError(
            f"{folder}: field leaves[{number}].sha256: is not that of the array, so "
            "one of them was changed; convert the adapter again"
        )


def _digest_of(leaf: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()


def dtype_named(name: Any) -> np.dtype | None:
    if not isinstance(name, str):
        return None
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        return None
