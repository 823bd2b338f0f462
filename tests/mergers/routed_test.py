"""Routed cores, and the one update that they are where all gates are the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, task_updates, tolerance

import jaxmerge as jm

M, N, RANKS = 12, 10, (3, 2, 3)
ROUTER = jm.Router(weights=jnp.zeros((3, 8)), biases=jnp.zeros(3))


@partial(jax.jit, static_argnames="rank")
def updates_of(stack, gates, rank=None):
    """The update of each row of gates [G, T], [G, m, n]."""
    routed = jm.route_cores(stack, rank=rank)
    return jax.vmap(lambda g: jm.dense(jm.fixed_update(routed, g)))(gates)


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
    mean = jm.dense(jm.scale(jm.concat(stack), by=1 / tasks))
    assert distance(jm.dense(jm.fixed_update(jm.route_cores(stack))), mean) < 1e-9


def test_a_width_keeps_what_compression_keeps():
    stack = random_stack(RANKS, M, N)
    found = updates_of(stack, jnp.eye(3), rank=4)
    merge = jm.compress_adapters(stack, components=3, rank=4)
    for task, update in enumerate(found):
        assert distance(update, jm.dense(jm.restore_adapter(merge, task))) < 1e-9
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


def test_a_whole_model_is_one_call_and_constant_gates_are_one_peft_adapter(tmp_path):
    folders = [
        "experiments/digits8/adapters/turned",
        "experiments/digits8/adapters/sheared",
    ]
    adapters = jm.io.load_peft(folders)
    routed = jm.map_modules(jm.route_cores, adapters.stacks)
    updates = {module: jm.fixed_update(x, [1.0, 0.0]) for module, x in routed.items()}
    rank = max(stack.ranks[0] for stack in adapters.stacks.values())
    jm.io.save_peft(tmp_path / "one", updates, like=adapters, rank=rank)
    back = jm.io.load_peft([tmp_path / "one"]).stacks
    for module, stack in adapters.stacks.items():
        own = task_updates(stack)[0]
        assert distance(task_updates(back[module])[0], own) < 1e-4, module


def test_what_is_not_finite_stays_visible():
    stack = random_stack(RANKS, M, N)
    broken = stack.replace(b=stack.b.at[1, 2, 1].set(jnp.nan))
    assert not np.all(np.isfinite(updates_of(broken, jnp.eye(3))[1]))


def test_what_does_not_fit_is_refused():
    stack = random_stack(RANKS, M, N)
    with pytest.raises(jm.Refusal, match="rank must be at least 1, got 0"):
        jm.route_cores(stack, rank=0)
    with pytest.raises(jm.Refusal, match=r"route_cores takes .* gates \[T\]"):
        jm.route_cores(stack, gates=[1.0, 0.0])
    with pytest.raises(jm.Refusal, match="fixed_update takes routed cores"):
        jm.fixed_update(stack)
    routed = jm.route_cores(stack, gates=ROUTER)
    with pytest.raises(jm.Refusal, match="got a router; what differs from token"):
        jm.fixed_update(routed)
    with pytest.raises(jm.Refusal, match=r"3 cores, got gates \(2, 3\)"):
        jm.fixed_update(routed, jnp.ones((2, 3)))
    with pytest.raises(jm.Refusal, match="routed cores are one for each token"):
        jm.scale(routed, by=2.0)
