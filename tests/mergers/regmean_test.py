"""RegMean and SSR-Merge against least squares solved directly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, task_updates
from task_inputs import RANKS, M, N, inputs_of
from tiers import in_turn

import jaxmerge as jm


def statistics(inputs, *, sketch=None, dtype=np.float64):
    measure = jm.moments_of if sketch is None else partial(jm.sketch_of, size=sketch)
    return jm.stack_moments([{"q": measure(jnp.asarray(x, dtype))} for x in inputs])[
        "q"
    ]


def solved(inputs, targets, ridge_rows=None):
    """Rows of D^T by lstsq on all inputs, each task of weight one, in float64."""
    x = np.concatenate([x / len(x) ** 0.5 for x in inputs])
    y = np.concatenate(
        [x @ d.T / len(x) ** 0.5 for x, d in zip(inputs, targets, strict=True)]
    )
    if ridge_rows is not None:
        x = np.concatenate([x, *(np.diag(scales) for scales, _ in ridge_rows)])
        y = np.concatenate([y, *(scales[:, None] * d.T for scales, d in ridge_rows)])
    return np.linalg.lstsq(x, y, rcond=None)[0].T


@pytest.mark.parametrize(
    ("ranks", "sketch"), in_turn([RANKS, (3, 0, 3), (5, 5, 5)], [None, N])
)
def test_regmean_is_least_squares(ranks, sketch):
    stack = random_stack(ranks, M, N)
    inputs = inputs_of(3)
    present = list(stack.present)
    exact = solved(
        [inputs[t] for t in present],
        [np.asarray(task_updates(stack)[t]) for t in present],
    )
    merged = jm.regmean(stack, stats=statistics(inputs, sketch=sketch))
    assert merged.b.shape == (M, sum(ranks))
    assert distance(jm.dense(merged), exact) < 1e-9


def test_ridge_draws_towards_the_mean():
    stack, inputs = random_stack(RANKS, M, N), inputs_of(3)
    updates = [np.asarray(d) for d in task_updates(stack)]
    squares = sum(np.mean(x**2, axis=0) for x in inputs)
    scales = (0.3 * squares / 3) ** 0.5
    exact = solved(inputs, updates, [(scales, d) for d in updates])
    merged = jm.regmean(stack, stats=statistics(inputs), ridge=0.3)
    assert distance(jm.dense(merged), exact) < 1e-9
    far = jm.regmean(stack, stats=statistics(inputs), ridge=1e9)
    assert distance(jm.dense(far), np.mean(updates, axis=0)) < 1e-7


def test_off_diagonal_entries_shrink():
    stack, inputs = random_stack(RANKS, M, N), inputs_of(3)
    grams = [x.T @ x / len(x) for x in inputs]
    shrunk = [0.1 * g + 0.9 * np.diag(np.diag(g)) for g in grams]
    updates = [np.asarray(d) for d in task_updates(stack)]
    exact = sum(d @ g for d, g in zip(updates, shrunk, strict=True)) @ np.linalg.inv(
        sum(shrunk)
    )
    merged = jm.regmean(stack, stats=statistics(inputs), off_diagonal=0.1)
    assert distance(jm.dense(merged), exact) < 1e-9
    with pytest.raises(ValueError, match="exact moments only"):
        jm.regmean(stack, stats=statistics(inputs, sketch=4), off_diagonal=0.1)


@pytest.mark.thorough
@pytest.mark.parametrize("sketch", [None, 4])
@pytest.mark.parametrize("merger", [jm.regmean, jm.ssr])
def test_few_inputs(merger, sketch):
    """A deficient Gram matrix: right on what was seen, regular in what was not.

    Unseen are directions of features in units of their own root mean square.
    """
    stack = random_stack(RANKS, M, N)
    inputs = [x - 0.2 for x in inputs_of(3, rank=2)]
    stats = statistics(inputs, sketch=sketch)
    merged = np.asarray(jm.dense(merger(stack, stats=stats)))
    updates = np.asarray(task_updates(stack))
    for x, d in zip(inputs, updates, strict=True):  # six directions: all can be met
        if merger is jm.regmean:
            assert distance(x @ merged.T, x @ d.T) < 1e-8
    size = np.sqrt(sum(np.mean(x**2, axis=0) for x in inputs))
    seen = np.linalg.svd(np.concatenate(inputs) / size)[2][:6]
    unseen = np.eye(N) - seen.T @ seen
    if merger is jm.regmean:
        assert distance(merged * size @ unseen, updates.mean(0) * size @ unseen) < 1e-8
    assert np.all(np.isfinite(merged))
    one = random_stack((3,), M, N)
    alone = merger(one, stats=statistics(inputs[:1], sketch=sketch))
    assert distance(jm.dense(alone), task_updates(one)[0]) < 1e-12


@pytest.mark.parametrize("merger", [jm.regmean, jm.ssr])
def test_no_inputs_at_all(merger):
    stack = random_stack(RANKS, M, N)
    stats = jax.tree.map(jnp.zeros_like, statistics(inputs_of(3)))
    fallback = {jm.regmean: jm.average, jm.ssr: jm.concat}[merger]
    merged = jm.dense(merger(stack, stats=stats))
    assert distance(merged, jm.dense(fallback(stack))) < 1e-12


@pytest.mark.parametrize("sketch", [None, N])
def test_ssr_is_the_best_router(sketch):
    """Least squares over all K x K routers, in the space of the outputs."""
    stack, inputs = random_stack((2, 1, 3), M, N), inputs_of(3)
    b, a = (np.asarray(x) for x in jm.concat(stack))
    columns, targets = [], []
    for x, d in zip(inputs, np.asarray(task_updates(stack)), strict=True):
        z = x / len(x) ** 0.5
        columns.append(np.kron(b, z @ a.T))
        targets.append((z @ d.T).T.ravel())
    columns = np.concatenate(columns)
    router = np.linalg.lstsq(columns, np.concatenate(targets), rcond=None)[0]
    exact = b @ router.reshape(6, 6) @ a
    merged = jm.ssr(stack, stats=statistics(inputs, sketch=sketch))
    assert np.array_equal(merged.a, a)
    assert distance(jm.dense(merged), exact) < 1e-8


def test_ssr_ridge_and_scales_of_directions():
    """The ridge is relative to each direction: scaling rows of A changes nothing."""
    stack, stats = random_stack(RANKS, M, N), statistics(inputs_of(3))
    scales = jnp.asarray(np.random.default_rng(1).uniform(1e-3, 1e3, (3, 4)))
    scaled = stack.replace(
        a=stack.a * scales[..., None], b=stack.b / scales[:, None, :]
    )
    for ridge in (0.0, 0.1):
        merge = partial(jm.ssr, stats=stats, ridge=ridge)
        assert distance(jm.dense(merge(scaled)), jm.dense(merge(stack))) < 1e-8
    b, a = jm.concat(stack)
    g = np.asarray(a @ jm.times_gram(a, jm.equal_parts(stats)).T)
    q = np.concatenate([
        stack.a[t, :r] @ np.asarray(stats.gram[t] / stats.count[t]) @ a.T
        for t, r in enumerate(RANKS)
    ])  # fmt: skip
    extra = 0.1 * np.diag(np.diag(g))
    exact = b @ (q + extra) @ np.linalg.inv(g + extra) @ a
    assert distance(jm.dense(jm.ssr(stack, stats=stats, ridge=0.1)), exact) < 1e-9


@pytest.mark.parametrize("merger", [jm.regmean, jm.ssr])
def test_derivatives(merger):
    stack, stats = random_stack(RANKS, M, N), statistics(inputs_of(3))
    direction = random_stack(RANKS, M, N, seed=4)
    target = np.random.default_rng(1).normal(size=(M, N))

    @jax.jit
    def loss(step):
        moved = jax.tree.map(lambda x, d: x + step * d, stack, direction)
        return jnp.sum(jm.dense(merger(moved, stats=stats)) * target)

    expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert jax.grad(loss)(0.0) == pytest.approx(float(expected), rel=1e-5)
    to_data = jax.grad(lambda x: jm.norm(merger(stack, stats=x)))(stats)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in to_data)


@pytest.mark.parametrize("merger", [jm.regmean, jm.ssr])
def test_single_precision(merger):
    inputs = inputs_of(3)
    exact = merger(random_stack(RANKS, M, N), stats=statistics(inputs))
    stack = random_stack(RANKS, M, N, dtype=np.float32)
    single = merger(stack, stats=statistics(inputs, dtype=np.float32))
    assert single.a.dtype == single.b.dtype == np.float32
    assert distance(jm.dense(single), jm.dense(exact)) < 1e-3


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_units_of_features(ridge):
    """``D(x * c) = D(x) / c`` for adapters and inputs in other units."""
    stack, inputs = random_stack(RANKS, M, N), inputs_of(3)
    units = np.random.default_rng(2).uniform(1e-3, 1e3, N)
    inputs = [np.where(np.arange(N) == 4, 0, x) for x in inputs]  # nobody has seen 4
    other = stack.replace(a=jnp.asarray(np.asarray(stack.a) / units))
    merge = partial(jm.regmean, ridge=ridge)
    merged = jm.dense(merge(stack, stats=statistics(inputs)))
    scaled = merge(other, stats=statistics([x * units for x in inputs]))
    assert distance(np.asarray(jm.dense(scaled)) * units, merged) < 1e-8
    assert distance(merged[:, 4], jm.dense(jm.average(stack))[:, 4]) < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("outlier", "sketch"), in_turn([3000.0, 100.0, 1.0], [None, 96], quick=2)
)
def test_a_large_feature_does_not_drown_the_others(outlier, sketch):
    """In float32, with one feature as language models have them."""
    n, rng = 96, np.random.default_rng(3)
    stack = random_stack(RANKS, M, n)
    scale = np.where(np.arange(n) == 7, outlier, 1.0)
    inputs = [(x + 0.5) * scale for x in inputs_of(3, n=n, counts=(400, 300, 500))]
    inputs = [x + 0.3 * rng.normal(size=x.shape) * scale for x in inputs]
    exact = solved(inputs, [np.asarray(d) for d in task_updates(stack)])
    single = jax.tree.map(lambda x: x.astype(jnp.float32), stack)
    stats = statistics(inputs, sketch=sketch, dtype=np.float32)
    merged = np.asarray(jm.dense(jm.regmean(single, stats=stats)), np.float64)
    assert distance(merged * scale, exact * scale) < 1e-2


@pytest.mark.parametrize("merger", [jm.regmean, jm.ssr])
def test_tasks_that_do_not_meet_add_up(merger):
    """Disjoint row and column spaces, inputs in the matching ones: the sum is exact."""
    rng, eye = np.random.default_rng(0), np.eye(N)
    stack = jm.stack_adapters(
        [(eye[:M, :2] * [3.0, 2.0], eye[:2]), (eye[:M, 2:5], eye[2:5])],
        dtype=np.float64,
    )
    inputs = [rng.normal(size=(20, 2)) @ eye[:2], rng.normal(size=(30, 3)) @ eye[2:5]]
    merged = merger(stack, stats=statistics(inputs))
    assert distance(jm.dense(merged), jm.dense(jm.concat(stack))) < 1e-12


def test_whole_models():
    stacks = {name: random_stack(RANKS, M, N, seed=i) for i, name in enumerate("qv")}
    stats = {name: statistics(inputs_of(3, seed=i)) for i, name in enumerate("qv")}
    merger = jm.then(jm.regmean, partial(jm.scale, by=0.5))
    merge = jm.each_module(merger)
    merged = merge(stacks, stats=stats)
    for name in "qv":
        one = jm.regmean(stacks[name], stats=stats[name])
        assert distance(jm.dense(merged[name]), 0.5 * jm.dense(one)) < 1e-9
    with pytest.raises(ValueError, match="no statistics of module 'v'"):
        merge(stacks, stats={"q": stats["q"]})
    two = jax.tree.map(lambda x: x[:2], stats)
    with pytest.raises(ValueError, match="q: expected statistics of 3 tasks and 11"):
        merge(stacks, stats=two)
    with pytest.raises(TypeError, match="stats"):
        jm.regmean(stacks["q"])
