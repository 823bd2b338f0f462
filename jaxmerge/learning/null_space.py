"""Losses without heads: shares of inputs outside of the adapters' row spaces (NSC)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.learning.objectives import null_space_ratio, row_basis
from jaxmerge.learning.step import Losses, Updates, check_tasks
from jaxmerge.models.adapt import Apply, with_taps, with_updates
from jaxmerge.stats.moments import Mask, masks_by_module
from jaxmerge.types import AdapterStack


def null_space_ratios(
    apply: Apply,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    *,
    modules: Collection[str] | None = None,
    mask: Mask | None = None,
    merged: bool | None = None,
) -> Losses:
    """NSC's loss of each task (arXiv 2603.26317), for `fit` on any kind of model.

    For task t the mean over modules of `null_space_ratio`: the share of the inputs of a
    module, in the merged model on data of task t, that A_t maps to zero.

    Args:
      apply: pure function of parameters and inputs that runs a Flax model; what it
        gives is not used, so generative models serve as well.
      tasks: names of the adapters, in the order of the stacks.
      stacks: module -> adapters.
      modules: which of them are measured; all unless given. The paper takes the last
        quarter of the blocks. Coefficients behind the last one never change.
      mask: which tokens of a batch count, as for `jaxmerge.collect_inputs`.
      merged: see `jaxmerge.models.with_updates`; by default the faster of the two.

    Returns:
      A function as `fit` takes it.

    Raises:
      ValueError: a stack of another number of adapters, a module without adapters, or a
        task without an adapter in any of the modules.
    """
    check_tasks(tasks, stacks)
    modules = list(stacks) if modules is None else list(modules)
    unknown = sorted(set(modules) - set(stacks))
    if unknown:
        raise ValueError(f"null_space_ratios: {unknown[0]!r} has no adapters")
    check_seen(tasks, {name: stacks[name] for name in modules})
    bases = {name: row_basis(stacks[name].a) for name in modules}

    def of_task(index: int, params: Any, updates: Updates, inputs: Any) -> jax.Array:
        own = [name for name in modules if stacks[name].ranks[index] > 0]
        _, taps = with_taps(with_updates(apply, updates, merged=merged), own)(
            params, inputs
        )
        visible = masks_by_module(mask, inputs, own)
        ratios = [
            null_space_ratio(taps[name], bases[name][index], mask=visible[name])
            for name in own
        ]
        return jnp.mean(jnp.stack(ratios))

    def losses(
        params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        return {
            task: of_task(tasks.index(task), params, updates, inputs)
            for task, inputs in batch.items()
        }

    return losses


def check_seen(tasks: Sequence[str], stacks: Mapping[str, AdapterStack]) -> None:
    """Refuses a task without an adapter in any of the modules: it has no loss."""
    for index, task in enumerate(tasks):
        if not any(stack.ranks[index] for stack in stacks.values()):
            raise ValueError(
                f"null-space loss: {task!r} has an adapter in none of {len(stacks)} "
                "measured modules, so that it sees no inputs; leave it out"
            )
