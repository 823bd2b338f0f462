"""Fitting: what the first step is, its gradient, fronts, anchors, other losses."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_problem import (
    LEARNED,
    METHODS,
    PARAMS,
    SIZES,
    TASKS,
    Model,
    adamw,
    assert_trees,
    draw,
    make_batches,
    make_losses,
    make_stacks,
    run,
)
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.learning.apply import merge
from jaxmerge.learning.step import Problem, gradient, gradient_by_task


@pytest.mark.parametrize("method", METHODS)
def test_the_objective_falls(method):
    batch = next(make_batches())
    fitted = jm.fit(
        METHODS[method],
        TASKS,
        make_stacks(),
        make_losses(),
        itertools.repeat(batch),
        adamw(0.02),
        steps=20,
        params=PARAMS,
    )
    objective = fitted.history.objective
    assert objective.shape == (20,)
    assert fitted.history.losses.shape == (20, 3)
    assert objective[-1] < objective[0] - 0.01
    assert all(np.all(np.isfinite(phi)) for phi in fitted.phis.values())


@pytest.mark.thorough
@pytest.mark.parametrize("method", LEARNED)
def test_step_0_is_task_arithmetic(method):
    fitted = run(method, steps=1)
    stacks, losses, batch = make_stacks(), make_losses(), next(make_batches())
    updates = {m: jm.scale(jm.concat(s), by=0.4) for m, s in stacks.items()}
    found = losses(PARAMS, updates, batch)
    expected = [found[task] for task in TASKS]
    np.testing.assert_allclose(fitted.history.losses[0], expected, rtol=1e-5)


def test_gradient_in_phi_is_b_g_a():
    """``d f / d phi_k = b_k^T G a_k`` with G the gradient of the dense update."""
    stacks, batch = make_stacks(), next(make_batches())
    method, losses = METHODS["tara_a"], make_losses()
    bases = {m: method.prepare(s) for m, s in stacks.items()}
    phis = {m: draw(5, 6) for m in bases}
    problem = Problem(method, TASKS, losses, jm.smooth_tchebycheff)
    compute = jax.jit(partial(gradient, problem))
    _, found = compute(phis, bases, PARAMS, batch, None)

    def objective(dense):
        found = losses(PARAMS, dense, batch)
        return jm.smooth_tchebycheff(jnp.stack([found[task] for task in TASKS]))

    full = {m: jm.dense(u) for m, u in merge(method, phis, bases).items()}
    for module, g in jax.jit(jax.grad(objective))(full).items():
        b, a = bases[module].b, bases[module].a
        by_hand = jnp.einsum("mk,mn,kn->k", b, g, a)
        np.testing.assert_allclose(found[module], by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "merged"), in_turn([*METHODS], [False, True], quick=2)
)
def test_task_by_task_gives_the_same_gradient(method, merged):
    learned = METHODS[method]
    bases = {m: learned.prepare(s) for m, s in make_stacks().items()}
    phis = {m: learned.init(basis) for m, basis in bases.items()}
    problem = Problem(
        learned,
        TASKS,
        make_losses(merged),
        partial(jm.smooth_tchebycheff, alpha=0.1, anchors=jnp.array([0.1, 0.5, 0.2])),
        penalty=lambda phis, _: 0.1 * sum(jnp.sum(p**2) for p in phis.values()),
    )
    rest = (phis, bases, PARAMS, next(make_batches()), jnp.array([0.5, 0.3, 0.2]))
    whole = jax.jit(partial(gradient, problem))(*rest)
    parts = jax.jit(partial(gradient_by_task, problem))(*rest)
    assert_trees(whole, parts, 2e-5)


def test_accumulation_fits_the_same():
    assert_trees(run().phis, run(accumulate=True).phis, 1e-3)


def test_tasks_in_another_order():
    """Permuting adapters, losses and preference together permutes phi and no more."""
    order = [2, 0, 1]
    preference = jnp.array([0.5, 0.2, 0.3])
    stacks, losses = make_stacks(), make_losses()
    there = run("tara_b", preference=preference)
    moved = {
        m: s.replace(
            a=s.a[jnp.array(order)],
            b=s.b[jnp.array(order)],
            ranks=tuple(s.ranks[t] for t in order),
        )
        for m, s in stacks.items()
    }
    back = jm.fit(
        METHODS["tara_b"],
        [TASKS[t] for t in order],
        moved,
        losses,
        make_batches(),
        adamw(0.05),
        steps=12,
        params=PARAMS,
        preference=preference[jnp.array(order)],
    )
    for module in SIZES:
        np.testing.assert_allclose(
            jm.dense(there.updates[module]), jm.dense(back.updates[module]), atol=2e-3
        )


def test_a_front_is_its_members():
    preferences = jnp.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    front = run(preference=preferences)
    assert front.history.losses.shape == (2, 12, 3)
    for index, preference in enumerate(preferences):
        alone = run(preference=preference)
        of_front = jax.tree.map(lambda x, i=index: x[i], (front.phis, front.updates))
        assert_trees(of_front, (alone.phis, alone.updates), 1e-3)
        np.testing.assert_allclose(
            front.history.objective[index], alone.history.objective, rtol=1e-3
        )


def test_one_phi_for_all_modules():
    fitted = run("adamerging", shared=True)
    (phi,) = fitted.phis.values()
    assert phi.shape == (3,)
    for name, stack in make_stacks().items():
        expected = jm.dense(jm.task_arithmetic(stack, weights=phi))
        np.testing.assert_allclose(jm.dense(fitted.updates[name]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="share none"):
        jm.fit(
            jm.tara_a(),
            TASKS,
            make_stacks() | {"odd": make_stacks((1, 1, 1))["out"]},
            make_losses(),
            make_batches(),
            optax.sgd(0.1),
            steps=1,
            shared=True,
        )


def test_a_task_that_lacks_a_module():
    stacks = make_stacks()
    pair = (draw(1, 7, 2), draw(2, 2, 5))
    stacks["hidden"] = jm.stack_adapters([pair, None, pair])
    for method in LEARNED:
        fitted = jm.fit(
            METHODS[method],
            TASKS,
            stacks,
            make_losses(),
            make_batches(),
            adamw(0.05),
            steps=3,
            params=PARAMS,
        )
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(fitted.updates))


def test_anchors_are_the_losses_of_single_adapters():
    stacks, losses = make_stacks(), make_losses()
    batches = list(itertools.islice(make_batches(), 2))
    find = partial(jm.single_adapter_losses, TASKS, stacks, losses, params=PARAMS)
    anchors = find(batches)
    for index, task in enumerate(TASKS):
        weights = jnp.eye(3, dtype=jnp.float32)[index]
        updates = {m: jm.task_arithmetic(s, weights=weights) for m, s in stacks.items()}
        found = [losses(PARAMS, updates, batch)[task] for batch in batches]
        np.testing.assert_allclose(anchors[index], np.mean(found), rtol=1e-5)
    with pytest.raises(ValueError, match="at least one batch"):
        find([])
    with pytest.raises(ValueError, match="3 adapters, but 1 tasks"):
        jm.single_adapter_losses(["first"], stacks, losses, batches, params=PARAMS)


@pytest.mark.thorough
def test_bfloat16_compute_with_float32_phi():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    batches = (
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), batch)
        for batch in make_batches()
    )
    fitted = jm.fit(
        jm.tara_b(),
        TASKS,
        make_stacks(),
        make_losses(dtype=jnp.bfloat16),
        batches,
        adamw(0.01),
        steps=4,
        params=half,
    )
    assert all(phi.dtype == jnp.float32 for phi in fitted.phis.values())
    whole = run("tara_b", steps=4)
    np.testing.assert_allclose(
        fitted.history.losses[0], whole.history.losses[0], rtol=0.05
    )


@pytest.mark.parametrize("merged", [False, True])
def test_null_space_compression_without_heads(merged):
    """NSC's losses fall, equal the formula, and leave out masked rows."""
    stacks, batch = make_stacks(), next(make_batches())
    batch = {task: x.at[-1].set(jnp.nan) for task, x in batch.items()}
    losses = jm.null_space_ratios(
        Model().apply,
        TASKS,
        stacks,
        modules=["hidden"],
        mask=lambda inputs: ~jnp.any(jnp.isnan(inputs), axis=-1),
        merged=merged,
    )
    found = losses(PARAMS, {}, batch)
    for index, (task, inputs) in enumerate(batch.items()):
        z, rank = np.asarray(inputs[:-1], np.float64), stacks["hidden"].ranks[index]
        q = np.linalg.qr(np.asarray(stacks["hidden"].a[index, :rank], np.float64).T)[0]
        ratio = np.linalg.norm(z - z @ q @ q.T, axis=1) / np.linalg.norm(z, axis=1)
        np.testing.assert_allclose(found[task], ratio.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="'other' has no adapters"):
        jm.null_space_ratios(Model().apply, TASKS, stacks, modules=["other"])
    partly = stacks | {"out": make_stacks(ranks=(2, 0, 1))["out"]}
    jm.null_space_ratios(Model().apply, TASKS, partly)
    with pytest.raises(ValueError, match="'second' has an adapter in none of 1 meas"):
        jm.null_space_ratios(Model().apply, TASKS, partly, modules=["out"])


def test_null_space_compression_is_fitted():
    stacks = make_stacks()
    losses = jm.null_space_ratios(Model().apply, TASKS, stacks, modules=["out"])
    fitted = jm.fit(
        METHODS["adamerging"],
        TASKS,
        stacks,
        losses,
        itertools.repeat(next(make_batches())),
        adamw(0.02),
        steps=20,
        params=PARAMS,
        scalarise=jm.linear_scalarisation,
    )
    assert fitted.history.objective[-1] < fitted.history.objective[0] - 1e-3
