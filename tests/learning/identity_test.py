"""Which fits may go on from a checkpoint: what is compared, and what is not."""

from functools import partial
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_problem import (
    PARAMS,
    TASKS,
    adamw,
    assert_trees,
    make_batches,
    make_losses,
    make_stacks,
    run,
)
from jax.sharding import NamedSharding, PartitionSpec
from methods import statistics
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.learning import checkpoint
from jaxmerge.learning.program import program_digest


def twice(task, loss, updates, batch):
    return 2 * loss


def square(phis, updates):
    return sum(jnp.sum(phi * phi) for phi in phis.values())


OTHERS = {
    "tasks": {"tasks": TASKS[::-1]},
    "adapters": {"stacks": make_stacks(ranks=(2, 3, 2))},
    "preference": {"preference": jnp.array([0.5, 0.3, 0.2])},
    "parameters": {"params": jax.tree.map(lambda x: 2 * x, PARAMS)},
    "batches": {"batches": make_batches(seed=1)},
    "method": {"learned": jm.tara_b()},
    "coefficients": {"learned": jm.tara_a(initial=0.3)},
    "losses": {"losses": make_losses(change=twice)},
    "objective": {"scalarise": partial(jm.smooth_tchebycheff, alpha=0.5)},
    "penalty": {"penalty": square},
    "optimizer": {"optimizer": adamw(0.04)},
}


@pytest.mark.parametrize("part", in_turn([*OTHERS], quick=5))
def test_a_checkpoint_of_another_fit_is_refused(tmp_path, part):
    run(steps=4, checkpoint=tmp_path)
    message = f"another fit, which differs in its {part}; choose another folder"
    with pytest.raises(ValueError, match=message):
        run(checkpoint=tmp_path, **OTHERS[part])


def test_so_is_one_of_other_statistics(tmp_path):
    stats = {module: statistics(stack) for module, stack in make_stacks().items()}
    learned = jm.compose(jm.tara_a(), before=jm.regmean_adapters)
    run(steps=4, learned=learned, stats=stats, checkpoint=tmp_path)
    others = {module: x._replace(gram=2 * x.gram) for module, x in stats.items()}
    with pytest.raises(ValueError, match="which differs in its adapters"):
        run(learned=learned, stats=others, checkpoint=tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "other",
    [
        {"learned": jm.adamerging(initial=0.4)},
        {"scalarise": jm.linear_scalarisation},
        {"scalarise": partial(jm.smooth_tchebycheff, anchors=jnp.ones(3))},
        {"optimizer": optax.sgd(0.05)},
        {"shared": True, "learned": jm.adamerging()},
        {"losses": make_losses(heads=20)},
        {"preference": jnp.full((2, 3), 1 / 3)},
    ],
)
def test_so_is_one_that_differs_in_a_function_or_in_an_array_that_it_holds(
    tmp_path, other
):
    run(steps=4, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another fit, which differs in its"):
        run(checkpoint=tmp_path, **other)


def test_what_another_version_traced_is_refused_with_the_version(tmp_path, monkeypatch):
    def newer(name):
        return "99.1" if name == "optax" else metadata.version(name)

    run(steps=4, checkpoint=tmp_path)
    monkeypatch.setattr(checkpoint, "version", newer)
    message = r"its optimizer \(or optax \d[\d.]* is now 99.1, which may be why\)"
    with pytest.raises(ValueError, match=message):
        run(checkpoint=tmp_path, optimizer=adamw(0.04))
    run(checkpoint=tmp_path)  # a version alone is no other fit


@pytest.mark.thorough
def test_placement_and_the_steps_of_a_call_are_no_other_fit(tmp_path):
    whole = run()
    run(steps=4, checkpoint=tmp_path)
    everywhere = NamedSharding(jm.module_mesh(), PartitionSpec())
    placed = jax.device_put(PARAMS, everywhere)
    batches = (jax.device_put(batch, everywhere) for batch in make_batches())
    options = {"params": placed, "batches": batches, "steps_per_call": 3}
    resumed = run(checkpoint=tmp_path, accumulate=True, **options)
    assert_trees(whole, resumed, tolerance=1e-4)


def test_batches_may_hold_random_keys(tmp_path):
    def batches(seed):
        for step, batch in enumerate(make_batches()):
            keys = jax.random.split(jax.random.key(seed + step), len(TASKS))
            yield {t: (batch[t], key) for t, key in zip(TASKS, keys, strict=True)}

    plain = make_losses()

    def losses(params, updates, batch):
        inputs = {
            task: x + jax.random.normal(key, x.shape, x.dtype)
            for task, (x, key) in batch.items()
        }
        return plain(params, updates, inputs)

    whole = run(losses=losses, batches=batches(0))
    run(losses=losses, batches=batches(0), steps=4, checkpoint=tmp_path)
    resumed = run(losses=losses, batches=batches(0), checkpoint=tmp_path)
    assert_trees(whole, resumed)
    with pytest.raises(ValueError, match="differs in its batches"):
        run(losses=losses, batches=batches(1), checkpoint=tmp_path)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint])
def test_a_digest_sees_arrays_and_numbers_at_any_depth(make, around):
    def digest(array, number, size=3):
        held = make(array)
        function = around(lambda x: jnp.where(x > number, x, held))
        return program_digest(lambda x: function(x) + 1, np.ones(size))

    start = digest([1.0, 2.0, 3.0], 0.0)
    assert digest([1.0, 2.0, 3.0], 0.0) == start
    assert digest([1.0, 2.0, 4.0], 0.0) != start
    assert digest([1.0, 2.0, 3.0], 0.5) != start
    assert digest([1.0], 0.0, size=1) != start


def test_a_digest_sees_what_a_loop_and_its_order_do():
    def digest(steps, first, second):
        def body(_, x):
            return second(first(x))

        return program_digest(
            lambda x: jax.lax.fori_loop(0, steps, body, x), np.ones(3)
        )

    start = digest(4, jnp.sin, jnp.cos)
    assert digest(4, jnp.sin, jnp.cos) == start
    assert digest(5, jnp.sin, jnp.cos) != start
    assert digest(4, jnp.cos, jnp.sin) != start
