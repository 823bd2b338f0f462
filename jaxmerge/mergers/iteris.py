"""IterIS (arXiv 2411.15231): RegMean in rounds, on the inputs in the last merge."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_model
from jaxmerge.mapping import map_modules
from jaxmerge.mergers.regmean import least_squares_rows
from jaxmerge.models.adapt import Apply, with_taps, with_updates
from jaxmerge.stacks import concatenate, task_norms, task_updates, weigh
from jaxmerge.stats.moments import (
    Mask,
    Moments,
    check_mask,
    counted_rows,
    masks_by_module,
)
from jaxmerge.types import AdapterStack, LowRank, Update


class PairedSums(NamedTuple):
    """Inputs X of one module under the task's adapter, and X~ in the merged model."""

    count: jax.Array  # []: tokens
    energy: jax.Array  # []: ||W_t X||^2
    routed: jax.Array  # [R, n], A_t X X~^T
    gram: jax.Array  # [n, n], X~ X~^T


class ModelSample(NamedTuple):
    """A model with inputs of every task, for mergers that run the model.

    Attributes:
      apply: pure function of parameters and batch that runs a Flax model, not jitted.
      params: of the base model.
      batches: for each task a list of its batches.
      mask: gives for a batch which tokens count, as in `jaxmerge.collect_inputs`.
      base: module -> W0 [m, n], see `jaxmerge.models.layer_weights`.
    """

    apply: Apply
    params: Any
    batches: Sequence[Sequence[Any]]
    mask: Mask | None = None
    base: Mapping[str, jax.Array] | None = None


def iteris(
    stacks: Mapping[str, AdapterStack],
    *,
    sample: ModelSample,
    iterations: int = 10,
    balance: bool = True,
    mix: float = 5e-4,
    ridge: ArrayLike = 1e-7,
    weights: ArrayLike | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    **extra: Any,
) -> dict[str, Update]:
    """Merges by least squares on inputs, again and again on those of the last merge.

    With X_t the inputs of a module under adapter t and X~_t those of the same samples
    in the merged model, ``D = (sum_t c_t D_t X_t X~_t^T) (sum_t c_t X~_t X~_t^T)^-1``.
    The first round takes X~ = X, which is RegMean with weights c_t. A `ModelMerger`.

    Args:
      stacks: module -> the T adapters.
      sample: the base model, and for each task its batches, of one structure for all
        tasks. They are read in every round: lists, not generators.
      iterations: rounds; 6 to 24 in the paper.
      balance: give task t the weight ``c_t = ||W_t||^2 / ||W_t X_t||^2``, W_t = W0 +
        D_t, or D_t alone without ``sample.base``. Otherwise each task counts the same,
        by the mean over its tokens.
      mix: share of X_t in X~_t, which steadies the rounds.
      ridge: as for `jaxmerge.regmean`.
      weights: [T], multiply the updates.
      chunk: see `jaxmerge.map_modules`.
      mesh: see `jaxmerge.map_modules`.

    Returns:
      module -> LowRank of rank K, for any number of adapters.

    Raises:
      ValueError: batches for another number of tasks, a task without a batch, or as
        for `jaxmerge.models.with_taps`.

    Cost: each round runs every sample through two adapted models, and solves as
    `jaxmerge.regmean`; one n x n for each module, whatever T.

    Deviations: the official code works for two adapters. It adds 1e-7 times the norm of
    each product to its diagonal, both sides apart; here the ridge is one number for
    both, so a single adapter comes back unchanged. Without ``sample.base`` an adapter
    that is zero has no weight; it always has W0.
    """
    check_model(iteris, stacks)
    apply, params, batches, mask, base = sample
    tasks = {len(stack.ranks) for stack in stacks.values()}
    if tasks != {len(batches)} or iterations < 1:
        raise ValueError(
            f"iteris: got batches of {len(batches)} tasks for adapters of "
            f"{sorted(tasks)} tasks, and {iterations} iterations; expected as many "
            "tasks and at least one iteration"
        )
    base = dict.fromkeys(stacks) if base is None else base
    size = {name: _squares(stack, base[name]) for name, stack in stacks.items()}
    sums_of_batch = jax.jit(partial(_sums_of_batch, apply, mask, mix))
    merged: dict[str, Update] = {}
    for _ in range(iterations):
        routed = {name: [] for name in stacks}
        total = dict.fromkeys(stacks, 0.0)
        for task, of_task in enumerate(batches):
            own = task_updates(stacks, task)
            sums = None
            for batch in of_task:
                new = sums_of_batch(params, own, merged or own, base, batch)
                sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
            if sums is None:
                raise ValueError(
                    f"iteris: task {task} has no batch; give lists, which can be read "
                    "in every round"
                )
            for name, found in sums.items():
                share = linalg.divide(
                    size[name][task] if balance else jnp.ones_like(found.count),
                    found.energy if balance else found.count,
                )
                routed[name].append(share * found.routed)
                if stacks[name].ranks[task]:
                    total[name] = total[name] + share * found.gram
        stacked = {name: jnp.stack(parts) for name, parts in routed.items()}
        merged = map_modules(
            _solve,
            stacks,
            stacked,
            total,
            ridge=ridge,
            weights=weights,
            chunk=chunk,
            mesh=mesh,
            gather=True,
        )
    return merged


def _sums_of_batch(
    apply: Apply,
    mask: Mask | None,
    mix: float,
    params: Any,
    own: Mapping[str, LowRank],
    merged: Mapping[str, Update],
    base: Mapping[str, jax.Array | None],
    batch: Any,
) -> dict[str, PairedSums]:
    _, alone = with_taps(with_updates(apply, own), own)(params, batch)
    _, together = with_taps(with_updates(apply, merged), own)(params, batch)
    keep = masks_by_module(mask, batch, own)
    sums = {}
    for name, (b, a) in own.items():
        check_mask(name, alone[name], keep[name])
        x, count = counted_rows(alone[name], keep[name])
        y, _ = counted_rows(together[name], keep[name])
        x, y = x.astype(a.dtype), y.astype(a.dtype)
        y = (1 - mix) * y + mix * x
        seen = linalg.matmul(x, a.T)
        outputs = linalg.matmul(seen, b.T)
        if (weight := base[name]) is not None:
            outputs = outputs + linalg.matmul(x, weight.astype(a.dtype).T)
        sums[name] = PairedSums(
            count=count.astype(a.dtype),
            energy=jnp.sum(outputs * outputs),
            routed=linalg.matmul(seen.T, y),
            gram=linalg.matmul(y.T, y),
        )
    return sums


def _squares(stack: AdapterStack, base: ArrayLike | None) -> jax.Array:
    """``||W_t||^2`` of every task, [T], without forming the sum of W0 and an update."""
    squares = task_norms(stack) ** 2
    if base is None:
        return squares
    base = jnp.asarray(base, stack.a.dtype)
    onto_base = linalg.einsum("mn,trn->tmr", base, stack.a)
    return jnp.sum(base**2) + 2 * jnp.sum(onto_base * stack.b, (1, 2)) + squares


def _solve(
    stack: AdapterStack,
    routed: jax.Array,
    total: jax.Array,
    *,
    ridge: ArrayLike,
    weights: ArrayLike | None,
) -> LowRank:
    b, a = concatenate(weigh(stack, weights))
    rows = [routed[t, : stack.ranks[t]] for t in stack.present]
    n = total.shape[0]
    moments = Moments(
        count=jnp.ones((), total.dtype), mean=jnp.zeros(n, total.dtype), gram=total
    )
    solved = least_squares_rows(
        a, jnp.concatenate(rows), moments, tasks=len(rows), ridge=ridge
    )
    return LowRank(b=b, a=solved)
