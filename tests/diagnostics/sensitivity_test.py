"""The task-direction Jacobian against finite differences and explicit gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import random_stack
from tiers import in_turn

import jaxmerge as jm
from jaxmerge import diagnostics
from jaxmerge.spec.steps import names_of

CLOSE = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


TASKS = ("low", "high")


class Tiny(nn.Module):
    """Two layers with a curved activation between them."""

    @nn.compact
    def __call__(self, x, updates):
        for name, size in (("first", 7), ("second", 4)):
            layer = nn.Dense(size, name=name, param_dtype=jnp.float64)
            x = nn.tanh(layer(x) + x @ jm.dense(updates[name]).T)
        return x


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(5)
    stacks = {
        "first": random_stack([2, 1], 7, 6, seed=6),
        "second": random_stack([1, 2], 4, 7, seed=7),
    }
    batch = {t: jnp.asarray(rng.standard_normal((3, 6))) for t in TASKS}
    model = Tiny()
    nothing = {"first": jnp.zeros((7, 6)), "second": jnp.zeros((4, 7))}
    params = model.init(jax.random.key(0), batch["low"], nothing)

    def losses(params, updates, batch):
        return {
            t: jm.entropy(model.apply(params, x, updates)) for t, x in batch.items()
        }

    return stacks, losses, batch, params


@pytest.mark.parametrize("method", in_turn(names_of("learned merger"), quick=1))
def test_the_jacobian_is_that_of_finite_differences(problem, method):
    learned = getattr(jm, method)()
    stacks, losses, batch, params = problem
    found = diagnostics.task_jacobian(
        learned, TASKS, stacks, losses, [batch], params=params
    )
    phis = {name: learned.init(learned.prepare(s)) for name, s in stacks.items()}
    flat, unravel = jax.flatten_util.ravel_pytree(phis)
    assert found.matrix.shape == (2, flat.size)
    bases = {name: learned.prepare(stack) for name, stack in stacks.items()}

    @jax.jit
    def at(flat):
        phis = unravel(flat)
        updates = {name: learned.apply(phis[name], bases[name]) for name in stacks}
        found = losses(params, updates, batch)
        return jnp.stack([found[t] for t in TASKS])

    CLOSE(found.losses, at(flat))
    step = 1e-5
    for k, unit in enumerate(np.eye(flat.size)):
        slope = (at(flat + step * unit) - at(flat - step * unit)) / (2 * step)
        np.testing.assert_allclose(found.matrix[:, k], slope, rtol=1e-6, atol=1e-9)


def test_the_jacobian_is_the_gradient_in_the_weights_along_each_direction(problem):
    stacks, losses, batch, params = problem
    learned = jm.tara_a()
    found = diagnostics.task_jacobian(
        learned, TASKS, stacks, losses, [batch], params=params
    )
    merged = {n: 0.4 * jm.dense(jm.concat(stack)) for n, stack in stacks.items()}
    for row, task in zip(found.matrix, TASKS, strict=True):
        grads = jax.grad(lambda w, t=task: losses(params, w, {t: batch[t]})[t])(merged)
        expected = []
        for name in sorted(stacks):
            b, a = jm.concat(stacks[name])
            expected.append(np.einsum("mk,mn,kn->k", b, grads[name], a))
        CLOSE(row, np.concatenate(expected))


def test_the_jacobian_of_several_batches_is_the_mean(problem):
    stacks, losses, batch, params = problem
    other = jax.tree.map(lambda x: x[::-1] + 1, batch)

    def jacobian(*batches):
        options = {"params": params}
        return diagnostics.task_jacobian(
            jm.tara_a(), TASKS, stacks, losses, batches, **options
        )

    both, each = jacobian(batch, other), [jacobian(batch), jacobian(other)]
    CLOSE(both.matrix, sum(j.matrix for j in each) / 2)
    CLOSE(both.losses, sum(j.losses for j in each) / 2)
    with pytest.raises(ValueError, match="at least one batch"):
        jacobian()
    uneven = jacobian(batch, {TASKS[1]: other[TASKS[1]]})  # one has fewer batches
    CLOSE(uneven.matrix[0], each[0].matrix[0])
    CLOSE(uneven.matrix[1], both.matrix[1])
    CLOSE(uneven.losses, [each[0].losses[0], both.losses[1]])
    with pytest.raises(ValueError, match=f"{TASKS[0]!r} needs at least one batch"):
        jacobian({TASKS[1]: other[TASKS[1]]})


def test_sensitivity_is_the_gradient_of_the_scalarised_losses(problem):
    stacks, losses, batch, params = problem
    learned, rho = jm.tara_a(), jnp.asarray([0.9, 0.1])
    scalarise = partial(jm.smooth_tchebycheff, alpha=0.3)
    phis = {name: jnp.linspace(-1.0, 1.0, 3) for name in stacks}
    jacobian = diagnostics.task_jacobian(
        learned, TASKS, stacks, losses, [batch], phis=phis, params=params
    )

    def objective(phis):
        updates = {
            name: learned.apply(phis[name], learned.prepare(stack))
            for name, stack in stacks.items()
        }
        found = losses(params, updates, batch)
        return scalarise(jnp.stack([found[t] for t in TASKS]), preference=rho)

    expected, _ = jax.flatten_util.ravel_pytree(jax.grad(objective)(phis))
    h = diagnostics.sensitivity(jacobian, preference=rho, scalarise=scalarise)
    CLOSE(h, expected)
    other = diagnostics.sensitivity(jacobian, scalarise=scalarise)
    xi = diagnostics.misalignment(h, other)
    cosine = np.dot(h, other) / (np.linalg.norm(h) * np.linalg.norm(other))
    CLOSE(xi, 1 - abs(cosine))
    CLOSE(diagnostics.misalignment(h, -3.0 * h), 0)
    assert diagnostics.misalignment(h, jnp.zeros_like(h)) == 1
    with pytest.raises(ValueError, match="2 adapters, but 1 tasks"):
        diagnostics.task_jacobian(learned, ("low",), stacks, losses, [batch])


def test_the_condition_number_is_infinite_without_full_rank():
    condition = diagnostics.condition_number
    assert condition(jnp.asarray([4.0, 2.0, 1e-3])) == 4000
    assert condition(jnp.asarray([4.0, 2.0, 1e-16])) == jnp.inf
    assert condition(jnp.zeros(2)) == jnp.inf
