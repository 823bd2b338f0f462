"""IterIS: rounds of least squares, on inputs of the merged model."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, task_updates
from task_inputs import RANKS, M, N, inputs_of

import jaxmerge as jm


class Model(nn.Module):
    @nn.compact
    def __call__(self, batch):
        x = nn.Dense(7, name="first", param_dtype=jnp.float64)(batch["x"])
        return nn.Dense(M, name="second", param_dtype=jnp.float64)(jnp.tanh(x))


SHAPES = {"first": (7, N), "second": (M, 7)}


@pytest.fixture(scope="module")
def model():
    """Adapters of two layers, and the model with inputs of every task."""
    batches = [
        [{"x": jnp.asarray(x[i::2])} for i in range(2)]
        for x in inputs_of(3, (12, 20, 16))
    ]
    params = Model().init(jax.random.key(0), batches[0][0])
    stacks = {
        name: random_stack(RANKS, m, n, seed=m, scale=0.1)
        for name, (m, n) in SHAPES.items()
    }
    return stacks, jm.ModelSample(Model().apply, params, batches)


def weights_of(sample):
    return {n: sample.params["params"][n]["kernel"].T for n in SHAPES}


def alone(stacks, task):
    return {n: jm.LowRank(b=s.b[task], a=s.a[task]) for n, s in stacks.items()}


def test_first_round_of_iteris_is_regmean(model):
    stacks, sample = model
    merged = jm.iteris(stacks, sample=sample, iterations=1, balance=False, ridge=0.0)
    stats = jm.stack_moments(
        [
            jm.collect_inputs(
                jm.models.with_updates(sample.apply, alone(stacks, task)),
                sample.params,
                sample.batches[task],
                modules=SHAPES,
            )
            for task in range(3)
        ]
    )
    exact = jm.each_module(jm.regmean)(stacks, stats=stats)
    for name in SHAPES:
        assert distance(jm.dense(merged[name]), jm.dense(exact[name])) < 1e-8


def test_posts_follow_iteris_as_any_merger_of_whole_models(model):
    stacks, sample = model
    halved = jm.Calibration(after=partial(jm.scale, by=0.5))
    run = partial(jm.iteris, iterations=1)
    merged = jm.calibrated_model(run, halved)(stacks, sample=sample)
    for name, update in run(stacks, sample=sample).items():
        assert distance(jm.dense(merged[name]), 0.5 * jm.dense(update)) < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize("with_base", [False, True])
def test_second_round_of_iteris_is_least_squares(model, with_base):
    """On inputs of the merged model, towards outputs on inputs of each adapter."""
    stacks, sample = model
    layers, base = sample.params["params"], weights_of(sample)
    given = sample._replace(base=base if with_base else None)
    run = partial(jm.iteris, stacks, sample=given, ridge=0.0, mix=0.1)
    before, merged = run(iterations=1), run(iterations=2)

    def second_inputs(update, task):
        x = np.concatenate([batch["x"] for batch in sample.batches[task]])
        layer = layers["first"]
        kernel = np.asarray(layer["kernel"]) + np.asarray(jm.dense(update)).T
        return np.tanh(x @ kernel + np.asarray(layer["bias"]))

    xs, ys = [], []
    for task in range(3):
        update = np.asarray(task_updates(stacks["second"])[task])
        whole = update + (np.asarray(base["second"]) if with_base else 0)
        x = second_inputs(alone(stacks, task)["first"], task)
        share = np.linalg.norm(whole) / np.linalg.norm(x @ whole.T)
        together = second_inputs(before["first"], task)
        xs.append(share * (0.9 * together + 0.1 * x))
        ys.append(share * x @ update.T)
    exact = np.linalg.lstsq(np.concatenate(xs), np.concatenate(ys), rcond=None)[0].T
    # exact only where rows of A reach: the solution is B_t A_t X_t X~_t^T (..)^-1
    assert distance(jm.dense(merged["second"]), exact) < 1e-7


def test_iteris_of_one_adapter_and_of_absent_ones(model):
    stacks, sample = model
    one = {
        n: s.replace(a=s.a[:1], b=s.b[:1], ranks=s.ranks[:1]) for n, s in stacks.items()
    }
    first = sample._replace(batches=sample.batches[:1])
    merged = jm.iteris(one, sample=first, iterations=3)
    for name in SHAPES:
        assert distance(jm.dense(merged[name]), task_updates(one[name])[0]) < 1e-9
    lacking = {
        "first": stacks["first"],
        "second": stacks["second"].replace(
            a=stacks["second"].a.at[1].set(0),
            b=stacks["second"].b.at[1].set(0),
            ranks=(2, 0, 3),
        ),
    }
    merged = jm.iteris(lacking, sample=sample, iterations=2)
    assert merged["second"].a.shape == (5, 7)
    assert all(np.all(np.isfinite(jm.dense(update))) for update in merged.values())


@pytest.mark.parametrize("options", ["base", "balance", "neither"])
def test_tasks_without_a_module_take_no_part_in_it(model, options):
    stacks, sample = model
    second = stacks["second"]
    keep = jnp.array([True, False, False])[:, None, None]
    alone_in_it = second.replace(
        a=jnp.where(keep, second.a, 0), b=jnp.where(keep, second.b, 0), ranks=(2, 0, 0)
    )
    if options == "base":
        sample = sample._replace(base=weights_of(sample))
    merged = jm.iteris(
        stacks | {"second": alone_in_it},
        sample=sample,
        iterations=1,
        ridge=0.0,
        balance=options != "balance",
    )
    assert distance(jm.dense(merged["second"]), task_updates(alone_in_it)[0]) < 1e-9


def test_iteris_leaves_padding_out(model):
    stacks, sample = model
    padded = [
        [{"x": jnp.pad(b["x"], ((0, 3), (0, 0)), constant_values=5.0),
          "mask": jnp.arange(len(b["x"]) + 3) < len(b["x"])} for b in task]
        for task in sample.batches
    ]  # fmt: skip
    masked = sample._replace(batches=padded, mask=lambda batch: batch["mask"])
    merged = jm.iteris(stacks, sample=masked, iterations=2)
    for name, update in jm.iteris(stacks, sample=sample, iterations=2).items():
        assert distance(jm.dense(merged[name]), jm.dense(update)) < 1e-7


def test_iteris_refusals(model):
    stacks, sample = model
    two = sample._replace(batches=sample.batches[:2])
    with pytest.raises(ValueError, match=r"batches of 2 tasks for adapters of \[3\]"):
        jm.iteris(stacks, sample=two)
    spent = sample._replace(batches=[iter(sample.batches[0]), *sample.batches[1:]])
    with pytest.raises(ValueError, match=r"task 0 has no batch; give lists"):
        jm.iteris(stacks, sample=spent)
