"""Transformations beside those of optax: decay to the start, mean of the last steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmerge as jm
from jaxmerge.learning.optimizers import decay_to_start, tail_average

RATE, WEIGHT = 0.05, 0.3


@pytest.fixture(autouse=True)
def as_optax_needs_it():
    """Its moments mix Python and array types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def walk(optimizer, start, steps=7, seed=0):
    """The parameters after every step of random gradients."""
    rng = np.random.default_rng(seed)
    state, params, found = optimizer.init(start), start, []
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        gradient = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
        )
        change, state = update(gradient, state, params)
        params = optax.apply_updates(params, change)
        found.append(params)
    return found


def start_of(dtype, offset=0.0):
    return {"w": jnp.full((3,), offset, dtype), "v": jnp.full((2, 2), offset, dtype)}


def chained(weight=WEIGHT):
    rate = optax.scale_by_learning_rate(RATE)
    return optax.chain(optax.scale_by_adam(), decay_to_start(weight), rate)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_decay_to_a_start_of_zero_is_that_of_adamw(dtype):
    start = start_of(dtype)
    found = walk(chained(), start)
    adamw = walk(optax.adamw(RATE, weight_decay=WEIGHT), start)
    for one, other in zip(found, adamw, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5), one, other)


def test_decay_does_not_depend_on_where_the_start_lies():
    """Moved by 2, a fit by the same gradients moves by 2; that of AdamW does not."""
    near, far = (walk(chained(), start_of(jnp.float64, x))[-1] for x in (0.0, 2.0))
    np.testing.assert_allclose(near["w"] + 2, far["w"], rtol=1e-12)
    adamw = optax.adamw(RATE, weight_decay=WEIGHT)
    near, far = (walk(adamw, start_of(jnp.float64, x))[-1] for x in (0.0, 2.0))
    assert np.abs(near["w"] + 2 - far["w"]).max() > 0.01


def test_without_gradients_nothing_leaves_the_start_and_all_come_back():
    start, optimizer = {"w": jnp.ones(2)}, chained()
    state, zero = optimizer.init(start), {"w": jnp.zeros(2)}
    change, _ = optimizer.update(zero, state, start)
    assert not change["w"].any()
    change, _ = optimizer.update(zero, state, {"w": jnp.array([3.0, -1.0])})
    np.testing.assert_allclose(change["w"], RATE * WEIGHT * np.array([-2.0, 2.0]))
    with pytest.raises(ValueError, match="needs the parameters"):
        decay_to_start(0.1).update(zero, decay_to_start(0.1).init(start))


@pytest.mark.parametrize("first", [1, 4, 7])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_last_step_leads_to_the_mean_of_the_last(first, dtype):
    start = start_of(dtype, 0.5)
    plain = walk(optax.adam(RATE), start)
    found = walk(tail_average(optax.adam(RATE), first=first, steps=7), start)
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-14
    for one, other in zip(found[:-1], plain[:-1], strict=True):
        np.testing.assert_array_equal(one["w"], other["w"])
    mean = np.mean([p["w"] for p in plain[first - 1 :]], axis=0)
    assert found[-1]["w"].dtype == dtype
    np.testing.assert_allclose(found[-1]["w"], mean, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("first", [0, 8])
def test_a_first_step_that_is_none_is_refused(first):
    with pytest.raises(ValueError, match=f"first={first} is not from 1 to 7"):
        tail_average(optax.sgd(1.0), first=first, steps=7)


def fit_of_two(optimizer, steps, folder=None):
    """A merge of one number that two tasks pull to 1 and to 2."""
    stacks = {"w": jm.stack_adapters([([[1.0]], [[1.0]]), ([[1.0]], [[2.0]])])}

    def losses(params, updates, batch):
        merged = jm.dense(updates["w"])[0, 0]
        return {task: (merged - target) ** 2 for task, target in batch.items()}

    batches = itertools.repeat({"low": np.float32(1), "high": np.float32(2)})
    given = (jm.tara_a(), ("low", "high"), stacks, losses, batches, optimizer)
    return jm.fit(*given, steps=steps, steps_per_call=2, checkpoint=folder)


def test_a_fit_takes_them_and_resumes_with_the_same_bits(tmp_path):
    optimizer = tail_average(chained(), first=5, steps=8)
    whole = fit_of_two(optimizer, 8, tmp_path / "whole")
    fit_of_two(optimizer, 6, tmp_path / "stopped")
    again = fit_of_two(optimizer, 8, tmp_path / "stopped")
    np.testing.assert_array_equal(whole.phis["w"], again.phis["w"])


def test_a_fit_takes_an_optimizer_whose_state_holds_the_parameters():
    """As that of SAM does; the buffers of both are given to the compiled steps."""
    worst = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    sam = optax.contrib.sam(optax.sgd(0.05), worst, sync_period=2)
    fitted = fit_of_two(sam, 120)
    np.testing.assert_allclose(jm.dense(fitted.updates["w"]), [[1.5]], atol=0.1)
