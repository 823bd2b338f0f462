"""Distillation: its laws, its masks, stored and asked answers, resumption."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_problem import PARAMS, TASKS, Model, adamw, assert_trees, draw, make_stacks
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.learning.distillation import (
    Taught,
    distillation,
    feature_distillation,
    teacher_answers,
)
from jaxmerge.learning.objectives import (
    cosine_distance,
    divergence,
    squared_distance,
)

HEADS = {task: draw(t, 6, 4) for t, task in enumerate(TASKS)}
INPUTS = {task: draw(50 + t, 12 + t, 5) for t, task in enumerate(TASKS)}
APPLY = Model().apply


def logits(head, features):
    return jnp.matmul(features, head)


def taught(tasks=TASKS, stacks=None, **options):
    stacks = make_stacks() if stacks is None else stacks
    given = {"logits": logits, "heads": HEADS} | options
    answers = teacher_answers(APPLY, tasks, stacks, [INPUTS], params=PARAMS, **given)
    return {task: Taught(INPUTS[task], answers[task]) for task in tasks}


def own(stacks):
    return {task: jm.task_updates(stacks, t) for t, task in enumerate(TASKS)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_that_of_numpy(dtype, temperature):
    rng = np.random.default_rng(0)
    teacher, student = (rng.normal(size=(3, 7, 5)).astype(dtype) for _ in "ab")
    mask = rng.uniform(size=(3, 7)) < 0.6

    def softmax(x):
        e = np.exp(x.astype(np.float64) / temperature)
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    each = temperature**2 * (p * np.log(p / q)).sum(-1)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for chosen, expected in ((None, each.mean()), (mask, each[mask].mean())):
        options = {"temperature": temperature, "mask": chosen}
        found = divergence(jnp.asarray(teacher), jnp.asarray(student), **options)
        assert found.dtype == dtype
        assert float(found) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_merge_that_equals_the_teacher_has_no_loss_and_no_gradient(temperature):
    stacks = make_stacks(dtype=jnp.float64)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)
    apply = Model(dtype=jnp.float64).apply
    heads = {task: head.astype(jnp.float64) for task, head in HEADS.items()}
    inputs = {task: x.astype(jnp.float64) for task, x in INPUTS.items()}
    given = {"logits": logits, "heads": heads, "params": params}
    answers = teacher_answers(apply, TASKS, stacks, [inputs], **given)
    losses = distillation(apply, logits, heads, temperature=temperature)
    for task, updates in own(stacks).items():
        batch = {task: Taught(inputs[task], answers[task])}

        def loss(updates, task=task, batch=batch):
            return losses(params, updates, batch)[task]

        value, gradient = jax.value_and_grad(loss)(updates)
        assert abs(float(value)) < 1e-14
        assert max(jnp.abs(x).max() for x in jax.tree.leaves(gradient)) < 1e-13
        others = [u for other, u in own(stacks).items() if other != task]
        assert all(float(loss(other)) > 1e-3 for other in others)


def test_one_adapter_stays_at_coefficients_of_one():
    stacks = make_stacks(ranks=(3,))
    losses = distillation(APPLY, logits, HEADS)
    batch = taught(TASKS[:1], stacks)
    for learned in (jm.tara_a(initial=1.0), jm.tara_b(initial=1.0)):
        fitted = jm.fit(
            *(learned, TASKS[:1], stacks, losses, itertools.repeat(batch)),
            optax.sgd(0.5),
            steps=3,
            params=PARAMS,
        )
        for phi in fitted.phis.values():
            np.testing.assert_allclose(phi, 1, atol=1e-5)
        assert np.all(np.abs(fitted.history.losses) < 1e-6)


def test_the_order_of_the_tasks_changes_nothing():
    stacks, order = make_stacks(), np.array([2, 0, 1])
    moved = {
        name: jm.AdapterStack(
            a=s.a[order], b=s.b[order], ranks=tuple(s.ranks[t] for t in order)
        )
        for name, s in stacks.items()
    }
    preference = np.array([0.2, 0.5, 0.3], np.float32)
    options = {"steps": 6, "params": PARAMS}
    losses = distillation(APPLY, logits, HEADS)

    def fit(tasks, stacks, preference):
        batches = itertools.repeat(taught(tasks, stacks))
        given = (jm.tara_b(), tasks, stacks, losses, batches, adamw(0.05))
        return jm.fit(*given, preference=preference, **options)

    one = fit(TASKS, stacks, preference)
    names = tuple(TASKS[t] for t in order)
    other = fit(names, moved, preference[order])
    np.testing.assert_allclose(one.history.objective, other.history.objective, 1e-4)
    for name, update in one.updates.items():
        found = jm.dense(other.updates[name])
        np.testing.assert_allclose(found, jm.dense(update), atol=2e-4)


def test_what_is_masked_does_not_count():
    """As padding of a language model: tokens, and a vocabulary that all tasks share."""
    tokens = {"text": draw(0, 2, 6, 5)}
    keep = jnp.arange(6)[None, :] < jnp.array([[4], [2]])
    stacks = make_stacks(ranks=(2,))
    heads = {"text": HEADS["first"]}
    given = {"logits": logits, "heads": heads, "params": PARAMS}
    answers = teacher_answers(APPLY, ("text",), stacks, [tokens], **given)["text"]
    losses = distillation(APPLY, logits, heads, mask=lambda _: keep)
    updates = {name: jm.LowRank(2 * s.b[0], s.a[0]) for name, s in stacks.items()}

    def loss(inputs, answers):
        return losses(PARAMS, updates, {"text": Taught(inputs, answers)})["text"]

    spoilt = jnp.where(keep[..., None], tokens["text"], 9.0)
    other = np.where(keep[..., None], answers, -7.0)
    assert float(loss(tokens["text"], answers)) == float(loss(spoilt, other))
    chosen = divergence(
        jnp.asarray(answers)[keep],
        logits(
            heads["text"],
            jm.models.with_updates(APPLY, updates)(PARAMS, tokens["text"]),
        )[keep],
    )
    assert float(loss(tokens["text"], answers)) == pytest.approx(float(chosen), 1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("features", in_turn([False, True], quick=1))
def test_answers_that_are_asked_anew_are_those_that_were_kept(features):
    stacks = make_stacks()
    make = partial(distillation, APPLY, logits, HEADS)
    kept = taught()
    if features:
        make = partial(feature_distillation, APPLY)
        kept = taught(logits=None, heads=None)
    updates = {name: jm.concat(stack) for name, stack in stacks.items()}
    stored = make()(PARAMS, updates, kept)
    asked = make(teachers=own(stacks))(PARAMS, updates, INPUTS)
    assert stored.keys() == asked.keys() == set(TASKS)
    for task in TASKS:
        assert float(stored[task]) == pytest.approx(float(asked[task]), rel=1e-5)
        assert float(stored[task]) > 1e-3


@pytest.mark.parametrize("distance", [cosine_distance, squared_distance])
def test_distances_of_features(distance):
    x, mask = draw(0, 4, 3), jnp.array([True, False, True, True])
    assert float(distance(x, x)) == pytest.approx(0, abs=1e-6)
    spoilt = x.at[1].set(99.0)
    assert float(distance(spoilt, x, mask=mask)) == pytest.approx(0, abs=1e-6)
    assert float(distance(spoilt, x)) > 0.01
    zero = jnp.zeros_like(x)
    gradient = jax.grad(lambda y: distance(x, y))(zero)
    assert np.all(np.isfinite(gradient))
    half = distance(x.astype(jnp.bfloat16), 2 * x.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_a_fit_that_was_stopped_ends_with_the_same_bits(tmp_path):
    stacks, losses = make_stacks(), distillation(APPLY, logits, HEADS)

    def fit(steps, batch, **options):
        return jm.fit(
            *(jm.tara_b(), TASKS, stacks, losses, itertools.repeat(batch), adamw(0.05)),
            steps=steps,
            params=PARAMS,
            steps_per_call=2,
            **options,
        )

    batch, folder = taught(), tmp_path / "fit"
    fit(4, batch, checkpoint=folder)
    assert_trees(fit(10, batch), fit(10, batch, checkpoint=folder))
    other = {
        t: x._replace(answers=x.answers + np.float32(1e-3)) for t, x in batch.items()
    }
    with pytest.raises(ValueError, match="differs in its batches"):
        fit(12, other, checkpoint=folder)


@pytest.mark.thorough
def test_information_maximisation_is_not_lowered_by_one_class_for_all():
    heads = {"one": 99 * jnp.array([[1.0, 0.0], [1.0, 0.0]], jnp.float32)}
    x = {"one": jnp.eye(2, dtype=jnp.float32)}

    def apply(params, x):
        return x

    sure = jm.entropies(apply, logits, heads)(None, {}, x)["one"]
    told = jm.information(apply, logits, heads)(None, {}, x)["one"]
    assert float(sure) == pytest.approx(0, abs=1e-5)
    assert float(told) == pytest.approx(0, abs=1e-5)
    best = {"one": 99 * jnp.eye(2, dtype=jnp.float32)}
    told = jm.information(apply, logits, best)(None, {}, x)["one"]
    assert float(told) == pytest.approx(-np.log(2), abs=1e-5)
