"""Adapters and merged updates as orbax checkpoints, and back, exactly.

Orbax stores the leaves, numbered; everything else (module names, static ranks, layouts,
provenance) is JSON beside them, so that no name from a file ever becomes a path.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmerge.folders import Folder
from jaxmerge.io.adapters import Adapters, Source
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.factors import Layout
from jaxmerge.io.files import checked_file
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.options import ReadOptions, recorded_options
from jaxmerge.io.staging import staged_folder
from jaxmerge.types import AdapterStack, LowRank, Update

_FORMAT = "jaxmerge-orbax-1"
_LEAVES = "leaves"
_DAMAGE = (  # what json, orbax and the rebuilding below raise on damaged files
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
Modules = Mapping[str, AdapterStack] | Mapping[str, Update]


def save_orbax(path: Folder, value: Adapters | Modules, *, force: bool = False) -> None:
    """Saves adapters or merged updates as an orbax checkpoint.

    Args:
      path: folder to create.
      value: `Adapters`, or module -> `AdapterStack`, `LowRank` or dense array.
      force: replace ``path`` if it is an adapter or a checkpoint, and nothing else.

    Raises:
      AdapterError: a value of another kind, or a folder that cannot be written.
    """
    leaves: list[Any] = []
    if isinstance(value, Adapters):
        inputs = [source.path for source in value.sources]
        record = {"kind": "adapters", **_describe_adapters(value, leaves)}
    else:
        inputs = []
        record = {"kind": "modules", "modules": _describe_modules(value, leaves)}
    record["format"] = _FORMAT
    record["leaves"] = [
        {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for leaf in leaves
    ]
    with staged_folder(path, force=force, inputs=inputs) as folder:
        if leaves:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder.resolve() / _LEAVES, _numbered(leaves))
        text = json.dumps(record, indent=2)
        (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def load_orbax(path: Folder) -> Adapters | dict[str, Any]:
    """Reads what `save_orbax` wrote: the same value, static ranks and kinds included.

    Raises:
      AdapterError: not a complete checkpoint of this format.
    """
    folder = Path(path)
    try:
        record = json.loads(checked_file(folder / RECORD_FILE).read_text("utf-8"))
        if record["format"] != _FORMAT:
            raise AdapterError(f"{folder}: not an orbax checkpoint of jaxmerge")
        leaves = _restore(folder, record["leaves"])
        if record["kind"] == "adapters":
            return _rebuild_adapters(record, leaves)
        return _rebuild_modules(record["modules"], leaves)
    except AdapterError:
        raise
    except _DAMAGE as error:
        raise AdapterError(f"{folder}: not a complete checkpoint ({error})") from error


def _numbered(leaves: list[Any]) -> dict[str, Any]:
    """Leaves by number; orbax has no empty arrays, whose shape says everything."""
    return {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def _restore(folder: Path, described: list[Mapping[str, Any]]) -> list[np.ndarray]:
    leaves = [np.zeros(d["shape"], jax.numpy.dtype(d["dtype"])) for d in described]
    target = _numbered(leaves)
    if target:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder.resolve() / _LEAVES, target)
        for number, leaf in restored.items():
            # Orbax takes shape and dtype from its files, whatever the target says.
            if (leaf.shape, leaf.dtype) != (target[number].shape, target[number].dtype):
                raise AdapterError(f"{folder}: {RECORD_FILE} and the arrays differ")
            leaves[int(number)] = np.asarray(leaf)
    return leaves


def _describe_modules(modules: Mapping[str, Any], leaves: list[Any]) -> dict[str, Any]:
    def put(leaf: Any) -> int:
        leaves.append(leaf)
        return len(leaves) - 1

    described = {}
    for module, value in modules.items():
        if isinstance(value, AdapterStack):
            described[module] = {
                "kind": "stack",
                "b": put(value.b),
                "a": put(value.a),
                "ranks": list(value.ranks),
            }
        elif isinstance(value, LowRank):
            described[module] = {
                "kind": "low_rank",
                "b": put(value.b),
                "a": put(value.a),
            }
        elif isinstance(value, jax.Array | np.ndarray):
            described[module] = {"kind": "dense", "value": put(value)}
        else:
            raise AdapterError(
                f"module {module!r}: {type(value).__name__} is neither an adapter "
                "stack nor an update"
            )
    return described


def _rebuild_modules(
    described: Mapping[str, Any], leaves: list[np.ndarray]
) -> dict[str, Any]:
    def get(number: int) -> jax.Array:
        leaf = jax.numpy.asarray(leaves[number])
        if leaf.dtype != leaves[number].dtype:
            raise AdapterError(
                f"the checkpoint holds {leaves[number].dtype} values; "
                "enable jax_enable_x64 to load it"
            )
        return leaf

    modules: dict[str, Any] = {}
    for module, entry in described.items():
        if entry["kind"] == "stack":
            ranks = tuple(entry["ranks"])
            modules[module] = AdapterStack(
                a=get(entry["a"]), b=get(entry["b"]), ranks=ranks
            )
        elif entry["kind"] == "low_rank":
            modules[module] = LowRank(b=get(entry["b"]), a=get(entry["a"]))
        else:
            modules[module] = get(entry["value"])
    return modules


def _describe_adapters(adapters: Adapters, leaves: list[Any]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "modules": _describe_modules(adapters.stacks, leaves),
        "biases": _describe_modules(adapters.biases, leaves),
        "names": list(adapters.names),
        "layouts": {m: asdict(layout) for m, layout in adapters.layouts.items()},
        "sources": [asdict(source) for source in adapters.sources],
        "options": asdict(adapters.options),
        "heads": [],
    }
    for heads in adapters.heads:
        record["heads"].append({name: len(leaves) + i for i, name in enumerate(heads)})
        leaves.extend(heads.values())
    return record


def _rebuild_adapters(record: Mapping[str, Any], leaves: list[np.ndarray]) -> Adapters:
    return Adapters(
        stacks=_rebuild_modules(record["modules"], leaves),
        names=tuple(record["names"]),
        layouts={
            module: Layout(**{**layout, "kernel": tuple(layout["kernel"])})
            for module, layout in record["layouts"].items()
        },
        biases=_rebuild_modules(record["biases"], leaves),
        heads=tuple(
            {name: leaves[number] for name, number in heads.items()}
            for heads in record["heads"]
        ),
        sources=tuple(
            Source(
                **{
                    **source,
                    "zero_modules": tuple(source["zero_modules"]),
                    "notes": tuple(source.get("notes", ())),
                }
            )
            for source in record["sources"]
        ),
        options=ReadOptions(**recorded_options(record["options"])),
    )
