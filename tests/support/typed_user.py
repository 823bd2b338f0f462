# pyright: strict, reportMissingTypeStubs=false
"""What users write, for `types_test`: read by a type checker, never run."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, assert_type

import jax
import numpy as np
import optax  # has no types of its own

import jaxmerge as jm
from jaxmerge.jobs.merging import Merged


def merge_folders(folders: list[str], out: str) -> jm.io.SaveReport:
    merged = jm.merge(folders, "ties(density=0.2)|core|scale(0.6)", out=out)
    assert_type(merged, Merged)
    return merged.saved


def median(stacked: jax.Array, **_: Any) -> jax.Array:
    return jax.numpy.median(stacked, axis=0)


def compose(folders: list[str]) -> dict[str, jm.Update]:
    adapters = jm.io.load_peft(folders, heads="keep")
    assert_type(adapters, jm.io.Adapters)
    merger = jm.pico(jm.core_space(partial(jm.ties, density=0.2)))
    merger = jm.then(merger, partial(jm.scale, by=0.8), jm.isotropize)
    assert_type(merger, jm.Merger)
    assert_type(jm.each_module(merger)(adapters.stacks), dict[str, jm.Update])
    assert_type(jm.full_space(jm.dare(median, density=0.5)), jm.Merger)
    updates = jm.map_modules(merger, adapters.stacks)
    assert_type(updates, dict[str, jm.Update])
    small = jm.map_modules(partial(jm.truncate, rank=16), updates)
    assert_type(small, dict[str, jm.LowRank])
    assert_type(jm.io.save_peft("merged", small, like=adapters).rank, int)
    whole = jm.trim_whole_model(jm.elect, jm.knots, density=0.2)
    assert_type(whole, jm.ModelMerger)
    assert_type(jm.parse("tsv|core").run(adapters.stacks), dict[str, jm.Update])
    return whole(adapters.stacks)


def parts(stack: jm.AdapterStack) -> jm.Update:
    assert_type(stack.replace(b=stack.b / 2), jm.AdapterStack)
    assert_type(jm.ties(stack.b, density=0.2), jax.Array)
    assert_type(jm.magnitude_threshold([stack.b], 3), jax.Array)
    assert_type(jm.linalg.svd(stack.b), tuple[jax.Array, jax.Array, jax.Array])
    assert_type(jm.diagnostics.diagnose(stack), jm.diagnostics.Diagnosis)
    assert_type(jm.task_norms(stack), jax.Array)
    return jm.scale(jm.concat(stack), by=0.5)


def learn(
    stacks: Mapping[str, jm.AdapterStack],
    heads: Mapping[str, jax.Array],
    batches: Iterable[Mapping[str, jax.Array]],
    params: Any,
) -> jm.Fitted:
    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return inputs @ params

    def logits(head: jax.Array, features: jax.Array) -> jax.Array:
        return features @ head.T

    losses, rate = jm.entropies(apply, logits, heads), optax.adamw(1e-2)
    problem = (jm.tara_b(), list(heads), stacks, losses, batches, rate)
    fitted = jm.fit(*problem, steps=20, params=params)
    assert_type(fitted.updates, dict[str, jm.Update])
    assert_type(fitted.history.objective, np.ndarray)
    merged = jm.apply_learned(jm.tara_b(), fitted.phis)(stacks)
    assert_type(merged, dict[str, jm.Update])
    return fitted
