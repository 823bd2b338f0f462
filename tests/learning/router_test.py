"""A router that is taught by the adapters: what it finds, and what the fit leaves."""

import itertools
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit_problem import adamw

import jaxmerge as jm
from jaxmerge.models import token_gates, with_updates

TASKS, SIZE, LAYER = ("left", "right"), 6, "layer"
APPLY = nn.Dense(SIZE, use_bias=False, name=LAYER).apply


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(SIZE, use_bias=False, name=LAYER)(x))


@cache
def problem():
    """Two adapters, and tokens that say by their first half which task they are of."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(SIZE, 2)), rng.normal(size=(2, SIZE))) for _ in TASKS]
    stacks = {LAYER: jm.stack_adapters(pairs)}
    params = {
        "params": {
            LAYER: {"kernel": jnp.asarray(rng.normal(size=(SIZE, SIZE)), jnp.float32)}
        }
    }
    mean = 3 * rng.normal(size=SIZE)
    inputs = {
        task: jnp.asarray(rng.normal(size=(32, 5, SIZE)) + sign * mean, jnp.float32)
        for task, sign in zip(TASKS, (1, -1), strict=True)
    }
    answers = jm.teacher_answers(Model().apply, TASKS, stacks, [inputs], params=params)
    taught = {task: jm.Taught(inputs[task], answers[task]) for task in TASKS}
    return stacks, params, inputs, taught


@cache
def fitted(rank=None, frozen=True, steps=120):
    stacks, params, _, taught = problem()
    losses = jm.feature_distillation(Model().apply, distance=jm.squared_distance)
    learned = jm.core_router(rank=rank, frozen=frozen)
    return learned, jm.fit(
        *(learned, TASKS, stacks, losses, itertools.repeat(taught)),
        adamw(0.1),
        steps=steps,
        params=params,
        scalarise=jm.linear_scalarisation,
        steps_per_call=steps,
    )


@pytest.mark.thorough
def test_every_token_finds_the_adapter_of_its_task():
    stacks, params, inputs, taught = problem()
    learned, found = fitted()
    assert found.history.objective[-1] < 0.02 * found.history.objective[0]
    routed = found.updates[LAYER]
    for index, task in enumerate(TASKS):
        gates = token_gates(routed, inputs[task])
        assert float(gates[..., index].mean()) > 0.9
        student = with_updates(Model().apply, found.updates)(params, inputs[task])
        lost = jnp.mean((student - taught[task].answers) ** 2)
        own = with_updates(Model().apply, {})(params, inputs[task])
        assert lost < 0.05 * jnp.mean((own - taught[task].answers) ** 2)
    prepared = jm.route_cores(stacks[LAYER])
    np.testing.assert_array_equal(routed.cores, prepared.cores)  # they are frozen
    again = jm.apply_learned(learned, found.phis)(stacks)[LAYER]
    jax.tree.map(np.testing.assert_array_equal, again, routed)


@pytest.mark.thorough
def test_cores_that_may_move_mend_a_small_width():
    stacks, params, _, taught = problem()
    _, moved = fitted(rank=2, frozen=False)
    assert moved.phis[LAYER].shape == (2, 3 + 2 * 2)
    lost = jm.feature_distillation(Model().apply, distance=jm.squared_distance)
    narrow = jm.route_cores(stacks[LAYER], rank=2)
    for index, task in enumerate(TASKS):  # each told which task it is
        known = {LAYER: narrow.replace(gates=jnp.eye(2, dtype=jnp.float32)[index])}
        before = lost(params, known, {task: taught[task]})[task]
        after = lost(params, moved.updates, {task: taught[task]})[task]
        assert after < 0.8 * before


def test_coefficients_of_other_shapes_are_refused():
    stacks, *_ = problem()
    with pytest.raises(jm.Refusal, match=r"coefficients \(2, 3\), expected \(2, 5\)"):
        jm.apply_learned(jm.core_router(), {LAYER: jnp.zeros((2, 3))})(stacks)
    learned = jm.core_router()
    basis = learned.prepare(stacks[LAYER])
    with pytest.raises(jm.Refusal, match=r"expected \(2, 5\) or \(2, 21\)"):
        learned.apply(jnp.zeros((3, 5)), basis)
