"""Which step of a fit first gave a number that is not finite."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.learning.step import FitState, Phis, Problem, task_gradients


def all_finite(tree: Any) -> bool:
    """Whether every number of a pytree is finite."""
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def explain(
    problem: Problem,
    step: Callable[..., Any],
    inputs: tuple[Any, Any, Any, jax.Array | None],
    before: FitState,
    phis: Phis,
    done: int,
    *,
    front: bool,
) -> None:
    """Repeats the steps of a call to find the first number that is not finite.

    Raises:
      FloatingPointError: always; names the step and the tasks.
    """
    bases, params, stacked, preference = inputs
    member = ""
    if front and preference is not None:
        good = np.ones(len(preference), bool)
        for phi in phis.values():
            good &= np.all(np.isfinite(phi), axis=tuple(range(1, phi.ndim)))
        index = int(np.argmin(good))
        before = jax.tree.map(lambda x: x[index], before)
        preference, member = preference[index], f" for preference {index}"
    state = jax.tree.map(jnp.asarray, before)
    run, each = jax.jit(step), jax.jit(partial(task_gradients, problem))
    where, advice = "", "a smaller learning rate, or float32 compute, may help"
    for offset in range(len(jax.tree.leaves(stacked)[0])):
        batch = jax.tree.map(lambda x, i=offset: x[i], stacked)
        gradients = each(state.phis, bases, params, batch)
        state, record = run(state, bases, params, batch, preference)
        where = f"step {done + offset + 1}{member}"
        finite = np.isfinite(record.losses)
        if not finite.all():
            tasks = [
                t for t, good in zip(problem.tasks, finite, strict=True) if not good
            ]
            raise FloatingPointError(
                f"{where}: the loss of {', '.join(tasks)} is not finite; {advice}"
            )
        tasks = [task for task, found in gradients.items() if not all_finite(found)]
        if tasks:
            raise FloatingPointError(
                f"{where}: the gradient of {', '.join(tasks)} is not finite; {advice}"
            )
        if not all_finite((record, state.phis)):
            break
    raise FloatingPointError(
        f"{where}: the objective or the optimiser's step is not finite, though every "
        f"loss and its gradient are; {advice}"
    )
