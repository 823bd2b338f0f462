"""Modules spread over the devices of a mesh, and their results taken from them.

The devices may belong to several processes: each stacks the rows of its own devices and
finds the results of these, unless they are gathered.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from jaxmerge.processes import several


def module_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, ``modules``, over the given devices.

    Args:
      devices: all of them unless given, those of other processes included.
    """
    devices = devices or jax.devices()
    return jax.make_mesh(
        (len(devices),), ("modules",), axis_types=(AxisType.Auto,), devices=devices
    )


def stacked_on(mesh: Mesh, trees: Sequence[Any]) -> Any:
    """Trees of L modules as one, [L', ...], spread over a mesh of D devices.

    Each device gets L' / D neighbours, L' being the next multiple of D; the first
    modules fill it up.
    """
    count, devices = len(trees), list(mesh.devices.flat)
    share = -(-count // len(devices))
    sharding = NamedSharding(mesh, PartitionSpec("modules"))
    parts: list[Any] = []
    for index, device in enumerate(devices):
        if device.process_index != jax.process_index():
            continue
        rows = [trees[k % count] for k in range(index * share, (index + 1) * share)]
        with jax.default_device(device):
            parts.append(jax.tree.map(_stack, *jax.device_put(rows, device)))

    def whole(*shards: jax.Array) -> jax.Array:
        shape = (share * len(devices), *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, [*shards])

    return jax.tree.map(whole, *parts)


def _stack(*rows: jax.Array) -> jax.Array:
    return jnp.stack(rows)


def results_of(outputs: Any, names: Sequence[str], *, gather: bool) -> dict[str, Any]:
    """module -> its result, of a tree [L', ...] that a mesh has computed.

    Args:
      outputs: spread over the axis ``modules``, as `stacked_on` spreads.
      names: of the L modules.
      gather: bring all to the first device, in every process. Otherwise each stays
        where it is, and those of other processes cannot be read here.
    """
    take = _gathered if gather else _in_place
    leaves, structure = jax.tree.flatten(outputs)
    rows = [take(leaf, len(names)) for leaf in leaves]
    return {
        name: structure.unflatten([row[index] for row in rows])
        for index, name in enumerate(names)
    }


def _gathered(leaf: jax.Array, count: int) -> list[jax.Array]:
    from jax.experimental import multihost_utils

    if several():
        values = multihost_utils.process_allgather(leaf, tiled=True)
    else:
        values = jax.device_get(leaf)
    return [jnp.asarray(row) for row in np.asarray(values)[:count]]


def _in_place(leaf: jax.Array, count: int) -> list[jax.Array]:
    devices = list(leaf.sharding.mesh.devices.flat)
    share = leaf.shape[0] // len(devices)
    here: Mapping[Any, jax.Array] = {x.device: x.data for x in leaf.addressable_shards}

    def row(index: int) -> jax.Array:
        device = devices[index // share]
        if device in here:
            return here[device][index % share]
        return jax.make_array_from_single_device_arrays(
            leaf.shape[1:], SingleDeviceSharding(device), [], dtype=leaf.dtype
        )

    return [row(index) for index in range(count)]
