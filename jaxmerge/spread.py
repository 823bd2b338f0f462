"""What lies on which device: modules and their results, parameters, batches.

The devices may belong to several processes: each stacks the rows of its own devices and
finds the results of these, unless they are gathered.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

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
from jaxmerge.refusals import Option, Refusal

Tree = TypeVar("Tree")
Rules = Sequence[tuple[str, PartitionSpec]]  # patterns of names, and their places


def module_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, ``modules``, over the given devices.

    Args:
      devices: all of them unless given, those of other processes included.
    """
    return _mesh("modules", devices)


def _mesh(axis: str, devices: Sequence[Any] | None) -> Mesh:
    devices = devices or jax.devices()
    return jax.make_mesh(
        (len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices
    )


def mesh_of_jobs(axis: Literal["modules", "data"]) -> Mesh | None:
    """The devices that jobs use together; None where one is all there is.

    Those of all processes, or the accelerators of this one. The devices that a CPU
    pretends to have share its cores, and are left alone.
    """
    if several() or (jax.device_count() > 1 and jax.default_backend() != "cpu"):
        return _mesh(axis, None)
    return None


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, ``data``, over the given devices.

    Args:
      devices: all of them unless given, those of other processes included.
    """
    return _mesh("data", devices)


def on_all(mesh: Mesh | None, tree: Tree) -> Tree:
    """A tree whose arrays lie whole on every device of a mesh.

    Arrays that lie on several devices already stay where they are, and so do all where
    there is no mesh.
    """
    if mesh is None:
        return tree

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            return leaf
        return _placed(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(place, tree)


def over_data(mesh: Mesh | None, batch: Tree, *, axis: int = 0) -> Tree:
    """A batch whose inputs are spread over the axis ``data`` of a mesh.

    Args:
      mesh: such as `data_mesh`; without one nothing is moved.
      batch: arrays, the same in every process. Those whose number of inputs the devices
        do not divide lie whole on each of them.
      axis: that of the inputs.
    """
    if mesh is None:
        return batch
    spread = PartitionSpec(*[None] * axis, "data")

    def place(leaf: Any) -> Any:
        shape = np.shape(leaf)
        even = len(shape) > axis and shape[axis] % mesh.shape["data"] == 0
        return _placed(leaf, NamedSharding(mesh, spread if even else PartitionSpec()))

    return jax.tree.map(place, batch)


def by_rules(mesh: Mesh, tree: Any, rules: Rules) -> Any:
    """Where each array of a tree is to lie, by the first rule that its name fits.

    Args:
      mesh: the devices.
      tree: parameters, or their shapes.
      rules: pairs of a regular expression, found anywhere in a name such as
        ``model.layers.0.mlp.up_proj.kernel``, and the axes of the mesh over which the
        axes of the array are spread. What fits no rule lies whole on every device.

    Returns:
      A tree of ``NamedSharding``, for ``jax.device_put`` or ``jax.jit``.

    Raises:
      Refusal: a rule names an axis that the mesh does not have, or does not divide an
        array evenly.

    >>> mesh = data_mesh(jax.devices()[:1])
    >>> rules = [("kernel$", PartitionSpec(None, "data"))]
    >>> found = by_rules(mesh, {"up": {"kernel": jnp.ones((2, 3))}}, rules)
    >>> tuple(found["up"]["kernel"].spec)
    (None, 'data')
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return _place_of(name, np.shape(leaf), mesh, rules)

    return jax.tree_util.tree_map_with_path(place, tree)


def placed_by_rules(mesh: Mesh, rules: Rules) -> Callable[[str, np.ndarray], jax.Array]:
    """From the name and the values of an array to that array, where `by_rules` puts it.

    Every device gets its part of the values from the host, so that an array which is
    spread lies whole on none. In several processes all of them give the same values.
    """

    def place(name: str, values: np.ndarray) -> jax.Array:
        return _placed(values, _place_of(name, values.shape, mesh, rules))

    return place


def _place_of(
    name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> NamedSharding:
    """Refusal where a rule does not fit the mesh or the shape."""
    specs = (spec for pattern, spec in rules if re.search(pattern, name))
    spec = next(specs, PartitionSpec())
    parts = [() if p is None else (p,) if isinstance(p, str) else p for p in spec]
    unknown = {axis for axes in parts for axis in axes} - {*mesh.axis_names}
    if unknown:
        raise Refusal(
            f"{name}: its rule spreads it over the axis {min(unknown)!r}, the mesh has "
            f"{', '.join(mesh.axis_names)}"
        )
    counts = [math.prod(mesh.shape[axis] for axis in axes) for axes in parts]
    uneven = [k for k, d in zip(counts, shape, strict=False) if d % k]
    if uneven or len(parts) > len(shape):
        raise Refusal(
            f"{name} {shape} cannot be spread as {spec} over {dict(mesh.shape)}: an "
            "axis has to be a multiple of the devices that share it; put a rule for "
            "it in front of the others"
        )
    return NamedSharding(mesh, spec)


def check_devices(params: Any, batch: Any) -> None:
    """Refuses parameters and a batch that were put on different devices.

    Raises:
      Refusal: says which are where, and what to do.
    """
    found = [_devices_of(tree) for tree in (params, batch)]
    if len(set[frozenset[Any]]().union(*found)) > 1:
        many = [max(map(len, sets), default=0) for sets in found]
        raise Refusal(
            f"params lie on {many[0]} of the devices and the batches on {many[1]}; "
            "computation needs all of it on the same ones: put params on the mesh of "
            "the batches by jax.device_put, or leave the batches in NumPy and give ",
            Option("mesh", "jaxmerge.data_mesh()"),
        )


def _devices_of(tree: Any) -> set[frozenset[Any]]:
    """The sets of devices on which arrays were put."""
    return {
        frozenset(leaf.sharding.device_set)
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and leaf.committed
    }


def _placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, with a sharding."""
    if not several():
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


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
    assert isinstance(leaf.sharding, NamedSharding)
    mesh = leaf.sharding.mesh
    assert isinstance(mesh, Mesh)
    devices = list(mesh.devices.flat)
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
