"""Adapters and merged updates as orbax checkpoints, and back, exactly.

Orbax stores the leaves, numbered; everything else (module names, static ranks, layouts,
provenance) is JSON beside them, so that no name from a file ever becomes a path.
"""

import json
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from jaxmerge.folders import Folder
from jaxmerge.io.adapters import Adapters, Source
from jaxmerge.io.compressed_folder import CompressedAdapters
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.files import read_object
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.module_layout import Layout
from jaxmerge.io.options import checked_options
from jaxmerge.io.orbax_checks import check_adapters, check_compressed, check_modules
from jaxmerge.io.orbax_modules import (
    describe_compressed,
    describe_modules,
    rebuild_compressed,
    rebuild_modules,
)
from jaxmerge.io.orbax_record import (
    FORMAT,
    check_array,
    check_leaf,
    check_record,
    described_leaf,
    digest_of_record,
    dtype_named,
)
from jaxmerge.io.staging import folder_of_one
from jaxmerge.processes import alone, fetched, together
from jaxmerge.types import AdapterStack, RoutedCores, Update

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
Modules = Mapping[str, AdapterStack] | Mapping[str, Update] | Mapping[str, RoutedCores]


@together()
def save_orbax(
    path: Folder,
    value: Adapters | CompressedAdapters | Modules,
    *,
    force: bool = False,
) -> None:
    """Saves adapters, merged updates or routed cores as an orbax checkpoint.

    Args:
      path: folder to create.
      value: `Adapters`, `CompressedAdapters`, or module -> `AdapterStack`, `LowRank`,
        dense array or `RoutedCores`.
      force: replace ``path`` if it is an adapter or a checkpoint, and nothing else.

    Raises:
      AdapterError: a value of another kind or that contradicts itself, such as a stack
        whose padding is not zero, or a folder that cannot be written.
    """
    leaves: list[Any] = []
    value = fetched(value)
    if isinstance(value, Adapters):
        inputs = [source.path for source in value.sources]
        modules = describe_modules(value.stacks, leaves)
        record = {"kind": "adapters", **_describe_adapters(value, modules, leaves)}
        check_modules(value.stacks, Path(path))
        check_adapters(value, Path(path))
    elif isinstance(value, CompressedAdapters):
        inputs = [source.path for source in value.rest.sources]
        modules = describe_compressed(value, leaves)
        record = _describe_adapters(value.rest, modules, leaves)
        record = {"kind": "compressed", **record}
        check_compressed(value, Path(path))
    else:
        inputs = []
        record = {"kind": "modules", "modules": describe_modules(value, leaves)}
        check_modules(value, Path(path))
    record["format"] = FORMAT
    record["leaves"] = [described_leaf(leaf) for leaf in leaves]
    record["sha256"] = digest_of_record(record)
    with folder_of_one(path, force=force, inputs=inputs) as folder:
        if folder is None:
            return
        if leaves:
            with _checkpointer() as checkpointer:
                checkpointer.save(folder.resolve() / _LEAVES, _numbered(leaves))
        text = json.dumps(record, indent=2)
        (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def load_orbax(path: Folder) -> Adapters | CompressedAdapters | dict[str, Any]:
    """Reads what `save_orbax` wrote: the same value, static ranks and kinds included.

    Raises:
      AdapterError: not a complete checkpoint of this format.
    """
    folder = Path(path)
    try:
        record = read_object(folder / RECORD_FILE)
        check_record(record, folder / RECORD_FILE)
        leaves = _restore(folder, record["leaves"])
        if record["kind"] == "compressed":
            merges, ranks = rebuild_compressed(record["modules"], leaves)
            rest = _rebuild_adapters(record, {}, leaves, folder)
            compressed = CompressedAdapters(merges, ranks, rest)
            check_compressed(compressed, folder)
            return compressed
        modules = rebuild_modules(record["modules"], leaves)
        check_modules(modules, folder)
        if record["kind"] == "modules":
            return modules
        adapters = _rebuild_adapters(record, modules, leaves, folder)
        check_adapters(adapters, folder)
        return adapters
    except AdapterError:
        raise
    except _DAMAGE as error:
        raise AdapterError(f"{folder}: not a complete checkpoint ({error})") from error


def _numbered(leaves: list[Any]) -> dict[str, Any]:
    """Leaves by number; orbax has no empty arrays, whose shape says everything."""
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves) if leaf.size}


def _restore(folder: Path, described: list[Mapping[str, Any]]) -> list[np.ndarray]:
    """The leaves; nothing is allocated before orbax's own files agree on the sizes."""
    wanted = [str(i) for i, entry in enumerate(described) if 0 not in entry["shape"]]
    place, restored = folder.resolve() / _LEAVES, {}
    if wanted:
        with _silent_orbax(), _checkpointer() as checkpointer:
            stored = _tree(checkpointer.metadata(place))
            for number in wanted:  # orbax would cast to the dtype that is asked for
                check_array(described[int(number)], stored[number], number, folder)
            if stored.keys() != set(wanted):
                raise AdapterError(
                    f"{folder}: holds arrays that {RECORD_FILE} does not name"
                )
            empty = {n: np.zeros(stored[n].shape, stored[n].dtype) for n in wanted}
            restored = checkpointer.restore(place, empty)
    leaves = []
    for index, entry in enumerate(described):
        shape, dtype = entry["shape"], dtype_named(entry["dtype"])
        leaf = restored.get(str(index))
        leaves.append(np.zeros(shape, dtype) if leaf is None else np.asarray(leaf))
        check_leaf(entry, leaves[-1], index, folder)
    return leaves


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax in this process alone: by itself it waits for all processes."""
    return ocp.StandardCheckpointer(multiprocessing_options=alone())


@contextmanager
def _silent_orbax() -> Generator[None, None, None]:
    """Without orbax's log of damaged files, which shows what is in them as it is."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _tree(metadata: Any) -> dict[str, Any]:
    """Number -> shape and dtype of every array in a checkpoint of orbax."""
    return dict(metadata.item_metadata.tree)


def _describe_adapters(
    adapters: Adapters, modules: Mapping[str, Any], leaves: list[Any]
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "modules": modules,
        "biases": describe_modules(adapters.biases, leaves),
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


def _rebuild_adapters(
    record: Mapping[str, Any],
    stacks: dict[str, Any],
    leaves: list[np.ndarray],
    folder: Path,
) -> Adapters:
    return Adapters(
        stacks=stacks,
        names=tuple(record["names"]),
        layouts={
            module: Layout(**{**layout, "kernel": tuple(layout["kernel"])})
            for module, layout in record["layouts"].items()
        },
        biases=rebuild_modules(record["biases"], leaves),
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
        options=checked_options(record["options"], folder, "options"),
    )
