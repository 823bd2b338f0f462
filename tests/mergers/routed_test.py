"""Routed cores, and the one update that they are where all gates are the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, task_updates, tolerance
from reference import ROOT

import jaxmerge as jm

M, N, RANKS = 12, 10, (3, 2, 3)
ROUTER = jm.Router(weights=jnp.zeros((3, 8)), biases=jnp.zeros(3))


route = jax.jit(jm.route_cores, static_argnames="rank")


@jax.jit
def fixed(routed, gates):
    """The update of each row of gates [G, T], [G, m, n]."""
    return jax.vmap(lambda g: jm.dense(jm.fixed_update(routed, g)))(gates)


def updates_of(stack, gates, rank=None):
    return fixed(route(stack, rank=rank), gates)


def kinds(dtype):
    stack = random_stack(RANKS, M, N, dtype=dtype)
    return {
        "generic": stack,
        "duplicate": jax.tree.map(lambda x: x.at[2].set(x[0]), stack),
        "zero": stack.replace(b=stack.b.at[1].set(0)),
        "deficient": stack.replace(a=stack.a.at[:, 1].set(stack.a[:, 0])),
        "sizes": stack.replace(
            b=stack.b * jnp.array([1.0, 1e-9, 1e9], dtype)[:, None, None]
        ),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_gate_is_that_adapter_and_equal_gates_are_the_average(dtype):
    gates = jnp.asarray([*np.eye(3), [1 / 3] * 3, [0.5, -1.0, 2.0]], dtype)
    for kind, stack in kinds(dtype).items():
        own = task_updates(stack)
        found, expected = (
            updates_of(stack, gates),
            jnp.einsum("gt,tmn->gmn", gates, own),
        )
        assert found.dtype == dtype
        for update, other in zip(found, expected, strict=True):
            assert distance(update, other) < tolerance(dtype), kind


@pytest.mark.parametrize("ranks", [(2,), (4, 0, 5, 3)])  # alone; more than there are
def test_an_absent_adapter_has_a_gate_of_its_own(ranks):
    stack, tasks = random_stack(ranks, M, N), len(ranks)
    gates = jnp.asarray([*np.eye(tasks), np.full(tasks, 1 / tasks)])
    expected = jnp.einsum("gt,tmn->gmn", gates, task_updates(stack))
    assert distance(updates_of(stack, gates), expected) < 1e-9


def test_a_width_keeps_what_compression_keeps():
    stack = random_stack(RANKS, M, N)
    compress = partial(jm.compress_adapters, components=3, rank=4)
    restore = jax.jit(
        lambda s: jax.vmap(jm.restore_adapter, (None, 0))(compress(s), jnp.arange(3))
    )
    expected = jnp.matmul(*restore(stack))
    assert distance(updates_of(stack, jnp.eye(3), rank=4), expected) < 1e-9
    shapes = jax.eval_shape(partial(jm.route_cores, rank=4), stack)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 4 * (M + N) + 3 * 16 + 3


def test_derivatives_are_finite():
    def loss(stack, gates):
        update = jm.dense(jm.fixed_update(jm.route_cores(stack), gates))
        return jnp.sum(update * jnp.linspace(0, 1, M * N).reshape(M, N))

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    for kind, stack in kinds(np.float64).items():
        found = jax.tree.leaves(gradient(stack, jnp.array([0.2, 0.3, 0.5])))
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in found), kind


@pytest.mark.thorough
def test_constant_gates_are_one_peft_adapter(tmp_path):
    folders = [ROOT / "experiments/digits8/adapters" / t for t in ("turned", "sheared")]
    adapters = jm.io.load_peft(folders)
    module, stack = next(iter(adapters.stacks.items()))
    routed = jm.map_modules(jm.route_cores, {module: stack})
    update = {module: jm.fixed_update(routed[module], [0.0, 1.0])}
    jm.io.save_peft(tmp_path / "one", update, like=adapters, rank=stack.ranks[1])
    back = jm.io.load_peft([tmp_path / "one"]).stacks
    assert distance(task_updates(back[module])[0], task_updates(stack)[1]) < 1e-4


def test_what_is_not_finite_stays_visible():
    stack = random_stack(RANKS, M, N)
    broken = stack.replace(b=stack.b.at[1, 2, 1].set(jnp.nan))
    assert not np.all(np.isfinite(updates_of(broken, jnp.eye(3))[1]))


def test_what_does_not_fit_is_refused():
    stack = random_stack(RANKS, M, N)
    with pytest.raises(jm.Refusal, match="rank must be at least 1, got 0"):
        jm.route_cores(stack, rank=0)
    with pytest.raises(jm.Refusal, match=r"route_cores takes .* gates \[T\]"):
        jax.eval_shape(lambda s: jm.route_cores(s, gates=jnp.ones(2)), stack)
    with pytest.raises(jm.Refusal, match="fixed_update takes routed cores"):
        jm.fixed_update(stack)
    routed = route(stack)
    np.testing.assert_allclose(routed.gates, 1 / 3)  # unless others are given
    routed = routed.replace(gates=ROUTER)
    with pytest.raises(jm.Refusal, match="got a router; what differs from token"):
        jm.fixed_update(routed)
    with pytest.raises(jm.Refusal, match=r"3 cores, got gates \(2, 3\)"):
        jm.fixed_update(routed, jnp.ones((2, 3)))
    with pytest.raises(jm.Refusal, match="routed cores are one for each token"):
        jm.scale(routed, by=2.0)
