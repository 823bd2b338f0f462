"""Modules of an orbax checkpoint as entries of its record and numbered leaves."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmerge.io.compressed_folder import CompressedAdapters
from jaxmerge.io.errors import AdapterError
from jaxmerge.mergers.reversible import ReversibleMerge
from jaxmerge.types import AdapterStack, LowRank, RoutedCores, Router

_NO_LEAVES = ("kind", "ranks")  # of an entry


def describe_modules(modules: Mapping[str, Any], leaves: list[Any]) -> dict[str, Any]:
    """Module -> kind, ranks and numbers of leaves, which are appended."""
    described = {}
    for module, value in modules.items():
        kind, arrays = _parts(module, value)
        described[module] = {"kind": kind, **_numbered(arrays, leaves)}
        if isinstance(value, AdapterStack):
            described[module]["ranks"] = list(value.ranks)
    return described


def rebuild_modules(
    described: Mapping[str, Any], leaves: list[np.ndarray]
) -> dict[str, Any]:
    """What `describe_modules` was given."""
    modules: dict[str, Any] = {}
    for module, entry in described.items():
        kind, arrays = entry["kind"], _arrays(entry, leaves)
        if kind == "stack":
            modules[module] = AdapterStack(**arrays, ranks=tuple(entry["ranks"]))
        elif kind == "low_rank":
            modules[module] = LowRank(**arrays)
        elif kind == "dense":
            modules[module] = arrays["value"]
        else:
            basis = LowRank(b=arrays.pop("b"), a=arrays.pop("a"))
            cores = arrays.pop("cores")
            gates = arrays["gates"] if kind == "routed" else Router(**arrays)
            modules[module] = RoutedCores(basis, cores, gates)
    return modules


def describe_compressed(value: CompressedAdapters, leaves: list[Any]) -> dict[str, Any]:
    """As `describe_modules`, of compressed adapters."""
    described = {}
    for module, (basis, components, coefficients) in value.merges.items():
        arrays = {"components": components, "coefficients": coefficients}
        described[module] = {
            "kind": "reversible",
            **_numbered({**basis._asdict(), **arrays}, leaves),
            "ranks": list(value.ranks[module]),
        }
    return described


def rebuild_compressed(
    described: Mapping[str, Any], leaves: list[np.ndarray]
) -> tuple[dict[str, ReversibleMerge], dict[str, tuple[int, ...]]]:
    """Merges and ranks of what `describe_compressed` was given."""
    merges, ranks = {}, {}
    for module, entry in described.items():
        arrays = _arrays(entry, leaves)
        basis = LowRank(b=arrays.pop("b"), a=arrays.pop("a"))
        merges[module] = ReversibleMerge(basis, **arrays)
        ranks[module] = tuple(entry["ranks"])
    return merges, ranks


def _parts(module: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The kind of a module and its arrays by name."""
    if isinstance(value, AdapterStack):
        return "stack", {"b": value.b, "a": value.a}
    if isinstance(value, LowRank):
        return "low_rank", value._asdict()
    if isinstance(value, RoutedCores):
        arrays = {**value.basis._asdict(), "cores": value.cores}
        if isinstance(value.gates, Router):
            return "routed_by_router", {**arrays, **value.gates._asdict()}
        return "routed", {**arrays, "gates": value.gates}
    if isinstance(value, jax.Array | np.ndarray):
        return "dense", {"value": value}
    raise AdapterError(
        f"module {module!r}: {type(value).__name__} is neither an adapter stack, an "
        "update nor routed cores"
    )


def _numbered(arrays: Mapping[str, Any], leaves: list[Any]) -> dict[str, int]:
    numbers = {name: len(leaves) + i for i, name in enumerate(arrays)}
    leaves.extend(arrays.values())
    return numbers


def _arrays(entry: Mapping[str, Any], leaves: list[np.ndarray]) -> dict[str, Any]:
    names = [name for name in entry if name not in _NO_LEAVES]
    return {name: _get(leaves[entry[name]]) for name in names}


def _get(stored: np.ndarray) -> jax.Array:
    leaf = jax.numpy.asarray(stored)
    if leaf.dtype != stored.dtype:
        raise AdapterError(
            f"the checkpoint holds {stored.dtype} values; enable jax_enable_x64 to "
            "load it"
        )
    return leaf
