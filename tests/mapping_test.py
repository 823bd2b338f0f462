"""From one module to a model: grouping, keys, chunks, devices, whole-model trimming."""

import gc
import os
import subprocess
import sys
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.mergers.whole_model import _merge_above

RANDOM = jm.full_space(jm.dare(jm.elect, density=0.5))
DECOMPOSED = jm.core_space(jm.dare(jm.elect, density=0.5))
MERGER = jm.core_space(partial(jm.ties, density=0.3))


@pytest.fixture(scope="module")
def model():
    """Modules of two shapes, one of which a task does not adapt."""
    shapes = {"q": (3, 2), "k": (3, 2), "v": (3, 2), "up": (3, 4), "down": (0, 4)}
    sizes = {"up": (20, 9), "down": (20, 9)}
    return {
        name: random_stack(ranks, *sizes.get(name, (12, 10)), seed=seed)
        for seed, (name, ranks) in enumerate(shapes.items())
    }


def dense_all(updates):
    return {name: np.asarray(jm.dense(update)) for name, update in updates.items()}


def same(left, right, tolerance=1e-12):
    left, right = dense_all(left), dense_all(right)
    assert left.keys() == right.keys()
    return all(distance(left[name], right[name]) < tolerance for name in left)


def test_equals_a_loop_and_keeps_the_order(model):
    merged = jm.map_modules(MERGER, model)
    assert list(merged) == list(model)
    one_by_one = {name: jax.jit(MERGER)(stack) for name, stack in model.items()}
    assert same(merged, one_by_one)


def test_one_program_for_each_shape(model):
    traces = []

    def merger(stack):
        traces.append(stack.ranks)
        return jm.concat(stack)

    for _ in range(2):
        jm.map_modules(merger, model)
    assert sorted(traces) == [(0, 4), (3, 2), (3, 4)]


def test_draws_depend_on_key_and_name_alone(model):
    key = jax.random.key(0)
    merged = jm.map_modules(RANDOM, model, key=key)
    backwards = jm.map_modules(RANDOM, dict(reversed(model.items())), key=key)
    alone = jm.map_modules(RANDOM, {"k": model["k"]}, key=key)
    assert same({name: backwards[name] for name in model}, merged)
    assert same(alone, {"k": merged["k"]})
    one_name = jm.map_modules(RANDOM, {"k": model["k"], "x": model["k"]}, key=key)
    assert not same({"k": one_name["x"]}, {"k": one_name["k"]}, 1e-3)
    assert not same(jm.map_modules(RANDOM, model, key=jax.random.key(1)), merged, 1e-3)


@pytest.mark.parametrize(
    ("devices", "chunk"), in_turn([8, 2, None], [None, 2, 99], quick=3)
)
def test_chunks_and_devices_change_nothing(model, chunk, devices):
    mesh = devices and jm.module_mesh(jax.devices()[:devices])
    options = {"chunk": chunk, "mesh": mesh}
    key, weights = jax.random.key(0), jnp.array([1.0, 0.5])
    merged = jm.map_modules(RANDOM, model, key=key, weights=weights, **options)
    assert same(merged, jm.map_modules(RANDOM, model, key=key, weights=weights))


@pytest.mark.parametrize("chunk", [None, 1])
def test_no_data_moves_between_devices(model, chunk):
    from jaxmerge.mapping import _run_on_mesh
    from jaxmerge.spread import stacked_on

    mesh = jm.module_mesh()
    rows = [(((model["q"],), {}), np.uint32(index)) for index in range(16)]
    given = (stacked_on(mesh, rows), jax.random.key(0), {})
    lowered = _run_on_mesh.lower(DECOMPOSED, chunk, mesh, *given)
    program = lowered.compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program


def test_results_stay_where_they_are_unless_gathered(model):
    mesh = jm.module_mesh(jax.devices()[:3])
    merged = jm.map_modules(MERGER, model, mesh=mesh)
    of = {name: update.b.devices() for name, update in merged.items()}
    first, second, _ = jax.devices()[:3]
    assert (of["q"], of["k"], of["down"]) == ({first}, {second}, {first})
    gathered = jm.map_modules(MERGER, model, mesh=mesh, gather=True)
    assert all(update.b.devices() == {first} for update in gathered.values())
    assert same(gathered, merged, 1e-300)


@pytest.mark.thorough
@pytest.mark.parametrize("chunk", [None, 1])
def test_a_mesh_may_be_used_inside_of_a_program(model, chunk):
    mesh = jm.module_mesh(jax.devices()[:2])
    inside = jax.jit(lambda x: jm.map_modules(MERGER, x, mesh=mesh, chunk=chunk))
    assert same(inside(model), jm.map_modules(MERGER, model))


def test_extra_inputs_trace_and_missing_values_are_named(model):
    sweep = jax.jit(
        jax.vmap(
            lambda weights: jm.map_modules(jm.concat, model, weights=weights)["q"].b
        )
    )
    weights = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    assert distance(sweep(weights)[1], jm.concat(model["q"], weights=weights[1]).b) == 0
    with pytest.raises(ValueError, match="'down'"):
        jm.map_modules(jnp.add, model, {"q": 1.0})


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("space", "density"), in_turn(["full", "knots", "core"], [0.1, 0.3, 1.0])
)
def test_whole_model_trimming_has_one_threshold_for_each_task(model, space, density):
    space = getattr(jm, space)
    merged = jm.trim_whole_model(jm.elect, space, density=density)(model)
    project = jax.jit(space.project)
    projected = {name: project(stack) for name, stack in model.items()}
    size = sum(matrices[0].size for matrices, _ in projected.values())
    expected = {name: list(projected[name][0]) for name in model}
    for task in range(2):
        rows = {
            name: stack.present.index(task)
            for name, stack in model.items()
            if task in stack.present
        }
        vector = np.concatenate(
            [np.abs(projected[name][0][row]).ravel() for name, row in rows.items()]
        )
        kept = min(int(density * size), vector.size)
        threshold = np.sort(vector)[vector.size - kept]
        for name, row in rows.items():
            matrix = projected[name][0][row]
            expected[name][row] = jnp.where(jnp.abs(matrix) >= threshold, matrix, 0)
    for name, rows in expected.items():
        update = space.rebuild(jm.elect(jnp.stack(rows)), projected[name][1])
        assert distance(jm.dense(merged[name]), jm.dense(update)) < 1e-12


@pytest.mark.thorough
def test_whole_model_trimming_on_devices_and_under_jit(model):
    merge = jm.trim_whole_model(jm.elect, jm.knots, density=0.3)
    plain = merge(model)
    assert same(merge(model, mesh=jm.module_mesh()), plain)
    traced = jax.jit(
        lambda density: jm.trim_whole_model(jm.elect, jm.knots, density=density)(model)
    )
    assert same(traced(0.3), plain)
    per_module = jm.map_modules(jm.knots_space(partial(jm.ties, density=0.3)), model)
    assert not same(per_module, plain, 0.05)


def test_a_rule_that_is_built_once_is_traced_once(model):
    traces = []

    def rule(matrices, **extra):
        traces.append(matrices.shape)
        return jm.elect(matrices)

    for density in (0.3, 0.4):
        jm.trim_whole_model(rule, jm.full, density=density)(model)
    assert len(traces) == len(set(traces)) == 3


def test_rules_of_whole_models_are_not_kept_forever():
    first = partial(jm.elect)
    found = weakref.ref(first)
    _merge_above(jm.full, first)
    del first
    for _ in range(100):
        _merge_above(jm.full, partial(jm.elect))
    gc.collect()
    assert found() is None


@pytest.mark.thorough
def test_decompositions_at_once_do_not_wait_forever():
    """Batched LAPACK calls side by side have stalled XLA's pool of two threads."""
    code = (
        "import jax, jax.numpy as jnp, numpy as np, jaxmerge as jm\n"
        "rng = np.random.default_rng(0)\n"
        "b, a = rng.normal(size=(8, 768, 16)), rng.normal(size=(8, 16, 768))\n"
        "stack = jm.stack_adapters(list(zip(b, a)))\n"
        "stacks = jax.tree.map(lambda x: jnp.stack([x] * 4), stack)\n"
        "for merger in (jm.tsv_m, jm.core_space(jm.tsv)):\n"
        "    jax.block_until_ready(jax.jit(jax.vmap(merger))(stacks))\n"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "NPROC": "2"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, env=environment
    )
