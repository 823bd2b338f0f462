"""A small problem of fitting: two layers, three tasks, batches of several sizes."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmerge as jm
from jaxmerge.models import with_updates
from jaxmerge.spec.steps import names_of

TASKS = ("first", "second", "third")
SIZES = {"hidden": (7, 5), "out": (6, 7)}  # module -> (m, n)
LEARNED = names_of("learned merger")
METHODS = {name: getattr(jm, name)() for name in LEARNED} | {
    "adamerging": jm.adamerging(clamp=False, initial=0.4),
    "tara_b on calibrated": jm.compose(jm.tara_b(), before=jm.calibrate),
    "tara_a then svc": jm.compose(jm.tara_a(), jm.svc),
}


class Model(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.Dense(7, name="hidden", dtype=self.dtype)(inputs)
        return nn.Dense(6, name="out", dtype=self.dtype)(jnp.tanh(hidden))


def draw(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make_stacks(ranks=(2, 3, 1), dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        name: jm.stack_adapters(
            [(rng.normal(size=(m, r)), rng.normal(size=(r, n))) for r in ranks],
            dtype=dtype,
        )
        for name, (m, n) in SIZES.items()
    }


PARAMS = Model().init(jax.random.key(0), jnp.zeros((1, 5), jnp.float32))


def make_losses(merged=False, dtype=jnp.float32, change=None, heads=10):
    """Entropies; ``change(task, loss, updates, batch)`` may spoil one of them."""
    heads = {task: draw(heads + t, 6, 4) for t, task in enumerate(TASKS)}
    apply = Model(dtype=dtype).apply

    def losses(params, updates, batch):
        found = {}
        for task, inputs in batch.items():
            features = with_updates(apply, updates, merged=merged)(params, inputs)
            logits = jnp.matmul(features.astype(jnp.float32), heads[task])
            found[task] = jm.entropy(logits)
            if change is not None:
                found[task] = change(task, found[task], updates, inputs)
        return found

    return losses


def make_batches(seed=0):
    """A new batch for every step; the tasks' batches differ in size."""
    for step in itertools.count():
        yield {
            t: draw(100 * seed + 10 * step + i, 4 + i, 5) for i, t in enumerate(TASKS)
        }


def adamw(rate):
    def with_promotion(function):
        def call(*args, **kwargs):
            with jax.numpy_dtype_promotion("standard"):
                return function(*args, **kwargs)

        return call

    inner = optax.adamw(rate)
    return optax.GradientTransformation(inner.init, with_promotion(inner.update))


def run(method="tara_a", steps=12, **options):
    given = {
        "learned": METHODS[method],
        "tasks": TASKS,
        "stacks": make_stacks(),
        "losses": make_losses(),
        "batches": make_batches(),
        "optimizer": adamw(0.05),
        "params": PARAMS,
        "steps_per_call": 4,
    }
    return jm.fit(**given | options, steps=steps)


def assert_trees(left, right, tolerance=0.0):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), left, right
    )
