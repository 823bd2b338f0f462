"""From a base, adapters and inputs to coefficients that are learned block by block."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.jobs.fit_recipe import Outcome, enough_batches
from jaxmerge.jobs.learn_recipe import LearnRecipe
from jaxmerge.jobs.progress import Progress
from jaxmerge.learning.blockwise import fit_blocks
from jaxmerge.learning.fit import History
from jaxmerge.learning.fit import Progress as FitProgress
from jaxmerge.learning.least_squares import solve_blocks
from jaxmerge.learning.streams import blocks_of
from jaxmerge.learning.work import Work
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.unlabeled import Unlabeled


def on_host() -> AbstractContextManager[Any]:
    """Where a model is read of which one block at a time is to be on a device."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # this process was told to have no other device
        return nullcontext()


def block_recipe(
    recipe: LearnRecipe,
    base: Base,
    adapters: Adapters,
    unlabeled: Unlabeled,
    *,
    work: Work,
    stats: Mapping[str, Statistics] | None = None,
    progress: Progress,
) -> Outcome:
    """Learns the coefficients of a recipe whose unit is a block or a layer.

    Parameters stay on the host, see `on_host`, but for those of one block.

    Args:
      recipe: how the coefficients are learned.
      base: the model.
      adapters: T adapters of it.
      unlabeled: inputs of every task.
      work: keeps what was found of each block.
      stats: module -> statistics of the inputs of all tasks, where the recipe needs
        them.
      progress: shows how far it is.

    Returns:
      Outcome, whose history is the mean over blocks.

    Raises:
      FloatingPointError: a loss or its gradient is not finite; names task and step.
    """
    tasks, anchors = adapters.names, [0.0] * len(adapters.names)
    work.start(anchors)
    given = (recipe.learned, tasks, adapters.stacks, base.blocks, unlabeled.inputs)
    count = len(blocks_of(base.blocks, adapters.stacks))
    with progress("the first block", count) as advance:

        def report(found: FitProgress) -> None:
            first, last = found.history.objective[[0, -1]]
            title = f"features of the last block: {first:.4f} to {last:.4f}"
            advance(1, title=title)

        options = {
            "params": jax.device_get(base.params),
            "batch": recipe.batch,
            "preference": recipe.rho,
            "stats": stats,
            "checkpoint": work.checkpoints,
            "report": report,
        }
        if recipe.unit == "layer":
            fitted = solve_blocks(*given, **options)
        else:
            auto = recipe.start == "auto"
            fitted = fit_blocks(
                *given,
                recipe.optimizer,
                steps=recipe.steps,
                seed=recipe.seed,
                scalarise=recipe.scalarise(jnp.asarray(anchors, jnp.float32)),
                search=enough_batches(base, unlabeled, recipe.batch) if auto else 0,
                **options,
            )
    return Outcome(
        updates=fitted.updates,
        phis={name: np.asarray(phi) for name, phi in fitted.phis.items()},
        history=History(*(x.mean(axis=0) for x in fitted.history)),
        anchors=anchors,
        start=None,
        before={},
        after={},
    )
