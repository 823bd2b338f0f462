"""From one module to a whole model: grouping, keys, chunks and devices.

Methods never see a model or a mesh. `map_modules` runs them over all modules: those of
equal shape and ranks go through one compiled, vectorised program.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from jaxmerge.doors import check_inputs, check_modules
from jaxmerge.spread import results_of, stacked_on
from jaxmerge.streamed import Streamed, described

Result = TypeVar("Result")

_BY_MODULE = ("weights", "densities", "stats")  # inputs that modules may have apart

# A program is found again by the function that it was compiled from, so these are kept.
_kept_functions = lru_cache(maxsize=64)


def map_modules(
    fn: Callable[..., Result],
    modules: Mapping[str, Any],
    *rest: Mapping[str, Any],
    key: jax.Array | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    gather: bool = False,
    extras: Sequence[str] = (),
    **extra: Any,
) -> dict[str, Result]:
    """Applies a function, usually a `Merger`, to every module of a model.

    Args:
      fn: called as ``fn(modules[name], *(tree[name] for tree in rest), **extra)``, and
        with ``key=`` where a key is given. Build it once: a new closure or ``partial``
        compiles again.
      modules: name -> AdapterStack, or any other tree of arrays. Where they are
        `jaxmerge.streamed.Streamed`, so are the results: each is computed when it is
        asked for.
      rest: further trees by the same names.
      key: key of the whole run; each module gets ``fold_in(key, crc32(name))``, which
        depends neither on the order nor on the other modules.
      chunk: modules of one shape that are worked on at a time; bounds the memory. By
        default all of them, on a CPU one: decompositions run one after the other there
        anyway, and the arrays of one module stay in its cache. One at a time they are
        not stacked, and models of any depth share a program.
      mesh: spreads the modules of each shape over the axis ``modules`` of a mesh
        (`module_mesh`), which may lie in several processes; no data moves between
        devices. Every result stays on the device that computed it.
      gather: bring the results of a mesh to the first device, in every process.
      extras: names of further inputs that a part of ``fn`` takes, beside those of
        `jaxmerge.types` and the keywords of ``fn`` itself.
      extra: inputs of the call (see `jaxmerge.types`) such as ``weights``, passed to
        ``fn``; may be traced. ``weights``, ``densities`` and ``stats`` that are a
        mapping are those of each module, all others the same for all modules.
        Hyper-parameters are bound to the function that they are meant for.

    Returns:
      name -> result, in the order of ``modules``.

    Raises:
      ValueError: ``rest``, or an input given module by module, misses a module.
      TypeError: an input that nobody is known to take, such as a misspelt one.

    >>> from jaxmerge.mergers.linear import concat
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense, scale, then
    >>> halved = then(concat, partial(scale, by=0.5))
    >>> stacks = {"q": stack_adapters([([[1.0]], [[2.0]]), ([[3.0]], [[1.0]])])}
    >>> print(dense(map_modules(halved, stacks, weights=[1.0, 2.0])["q"]))
    [[4.]]
    >>> own = {"q": [1.0, 0.0]}
    >>> print(dense(map_modules(halved, stacks, weights=own)["q"]))
    [[1.]]
    """
    check_modules("map_modules", modules)
    check_inputs(fn, extra, extras)
    own = {k: extra.pop(k) for k in _BY_MODULE if isinstance(extra.get(k), Mapping)}
    for tree in (*rest, *own.values()):
        missing = sorted(set(modules) - set(tree))
        if missing:
            raise ValueError(f"map_modules: no value for module {missing[0]!r}")
    if isinstance(modules, Streamed):
        options = {"chunk": chunk, "mesh": mesh, "gather": gather, "extras": extras}
        found = _streamed(fn, (modules, *rest), own, key, extra, options)
        return cast("dict[str, Result]", found)  # typed as what it stands for
    trees = {
        name: (
            (modules[name], *(tree[name] for tree in rest)),
            {k: _value(k, values[name]) for k, values in own.items()},
        )
        for name in modules
    }
    if chunk is None and jax.default_backend() == "cpu":
        chunk = 1
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((trees, key, extra)))
    if chunk == 1 and mesh is None and not traced:
        return {
            name: _run_one(fn, tree, None if key is None else (key, _hash(name)), extra)
            for name, tree in trees.items()
        }
    groups: dict[Any, list[str]] = {}
    for name, tree in trees.items():
        leaves, structure = jax.tree.flatten(tree)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        groups.setdefault((structure, shapes), []).append(name)

    results: dict[str, Result] = {}
    for names in groups.values():
        rows = [(trees[name], _hash(name)) for name in names]
        if mesh is not None and not traced:
            spread = stacked_on(mesh, rows)
            outputs = _run_on_mesh(fn, chunk, mesh, spread, key, extra)
            results |= results_of(outputs, names, gather=gather)
            continue
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
        if mesh is None:
            outputs = _run(fn, chunk, stacked, key, extra)
        else:
            order = np.arange(-(-len(names) // mesh.size) * mesh.size) % len(names)
            padded = jax.tree.map(lambda x, order=order: x[order], stacked)
            outputs = _run_on_mesh(fn, chunk, mesh, padded, key, extra)
        for index, name in enumerate(names):
            results[name] = jax.tree.map(lambda x, i=index: x[i], outputs)
    return {name: results[name] for name in modules}


def _streamed(
    fn: Callable[..., Result],
    trees: tuple[Mapping[str, Any], ...],
    own: Mapping[str, Mapping[str, Any]],
    key: jax.Array | None,
    extra: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Streamed[Result]:
    """The results for modules of which one group at a time is made."""
    first = trees[0]
    assert isinstance(first, Streamed)

    def make(names: Sequence[str]) -> Mapping[str, Result]:
        some = [{name: tree[name] for name in names} for tree in trees]
        mine = {k: {name: v[name] for name in names} for k, v in own.items()}
        inputs = {**extra, **mine}
        return map_modules(fn, *some, key=key, **options, **inputs)

    def describe() -> dict[str, Result]:
        programs: dict[Any, Result] = {}
        found: dict[str, Result] = {}
        shapes = [described(tree) for tree in trees]
        for name in first:
            inputs = tuple(shape[name] for shape in shapes)
            leaves, structure = jax.tree.flatten(inputs)
            kind = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
            if kind not in programs:
                mine = {k: _value(k, values[name]) for k, values in own.items()}
                keys = None if key is None else (key, _hash(name))
                programs[kind] = _run_one.eval_shape(fn, (inputs, mine), keys, extra)
            found[name] = programs[kind]
        return found

    return Streamed(first.groups, make, describe)


def _value(name: str, value: Any) -> Any:
    """An input of one module; the numbers of its tasks as one array."""
    return value if name == "stats" else jnp.asarray(value)


def _hash(name: str) -> np.uint32:
    return np.uint32(zlib.crc32(name.encode()))


@partial(jax.jit, static_argnums=0)
def _run_one(
    fn: Callable[..., Any],
    tree: Any,
    key: tuple[jax.Array, np.uint32] | None,
    extra: dict[str, Any],
) -> Any:
    """One module: nothing is stacked, and the program knows no number of modules."""
    given, own = tree
    more = {} if key is None else {"key": jax.random.fold_in(*key)}
    return fn(*given, **{**extra, **own}, **more)


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    fn: Callable[..., Any],
    chunk: int | None,
    stacked: Any,
    key: jax.Array | None,
    extra: dict[str, Any],
) -> Any:
    """Modules of one shape: their trees and the hashes of their names, stacked."""

    def one(row: tuple[Any, jax.Array]) -> Any:
        (given, own), name = row
        more = {} if key is None else {"key": jax.random.fold_in(key, name)}
        return fn(*given, **{**extra, **own}, **more)

    if chunk is None:
        return jax.vmap(one)(stacked)
    return jax.lax.map(one, stacked, batch_size=None if chunk == 1 else chunk)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run_on_mesh(
    fn: Callable[..., Any],
    chunk: int | None,
    mesh: Mesh,
    stacked: Any,
    key: jax.Array | None,
    extra: dict[str, Any],
) -> Any:
    local = jax.shard_map(
        partial(_run, fn, chunk),
        mesh=mesh,
        in_specs=(PartitionSpec("modules"), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec("modules"),
        check_vma=False,
    )
    return local(stacked, key, extra)
