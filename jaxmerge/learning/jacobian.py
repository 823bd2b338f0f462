"""How the losses of all tasks react to the directions of their adapters (TARA)."""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge import linalg
from jaxmerge.diagnostics import (
    TaskJacobian,
    condition_number,
    mean_jacobian,
    misalignment,
    sensitivity,
    task_jacobians,
)
from jaxmerge.directions import tara_a
from jaxmerge.fitting import entropies, single_adapter_losses
from jaxmerge.io import Adapters
from jaxmerge.learning.bases import Base
from jaxmerge.learning.unlabeled import Unlabeled
from jaxmerge.objectives import smooth_tchebycheff

UNIFORM = "all alike"


class Reactions(NamedTuple):
    """The task-direction Jacobian J [T, D] at one point, and what follows from it.

    P = T + 1 preferences: all weight on one task, in the order of the tasks, and equal
    weights.

    Attributes:
      tasks: their names.
      initial: the coefficient of every direction.
      inputs: of each task, over which the losses are means.
      losses: f [T], entropies of the merged model in nats.
      anchors: z [T], the same with the task's own adapter alone.
      slopes: [T], norms of the rows of J: how fast a loss can change with phi.
      singular_values: of J, [T].
      condition: kappa, the largest of them over the smallest that is not noise.
      sensitivities: ``h(rho)`` [P, D].
      misalignment: ``xi`` between every two preferences, [P, P].
      repeat: ``xi`` between one half of the batches and the other under the same
        preference, [P]: what chance alone gives, with half of the inputs. nan for one
        batch.
      modules: module -> where its directions are among the D.
    """

    tasks: tuple[str, ...]
    initial: float
    inputs: int
    losses: np.ndarray
    anchors: np.ndarray
    slopes: np.ndarray
    singular_values: np.ndarray
    condition: float
    sensitivities: np.ndarray
    misalignment: np.ndarray
    repeat: np.ndarray
    modules: dict[str, slice]

    @property
    def preferences(self) -> tuple[str, ...]:
        """Names of the P preferences: of the one task, or `UNIFORM`."""
        return (*self.tasks, UNIFORM)

    @property
    def sizes(self) -> np.ndarray:
        """Norms of the sensitivities, [P]."""
        return np.linalg.norm(self.sensitivities, axis=1)

    @property
    def shares(self) -> np.ndarray:
        """Parts of ``sum_k |h_k|``, the largest first, [P, D]; rows of zeros stay."""
        sizes = np.sort(np.abs(self.sensitivities), axis=1)[:, ::-1]
        total = sizes.sum(axis=1, keepdims=True)
        return sizes / np.where(total > 0, total, 1)

    @property
    def top_tenth(self) -> np.ndarray:
        """Of ``sum_k |h_k|`` the part in the tenth of the directions that matter most.

        [P]; 0.1 if all matter alike.
        """
        shares = self.shares
        return shares[:, : max(1, round(shares.shape[1] / 10))].sum(axis=1)


def reactions(
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    batch: int = 16,
    batches: int = 8,
    logit_scale: float = 1.0,
    initial: float = 0.4,
) -> Reactions:
    """Measures J where a fit of TARA-A begins, on the batches with which it begins.

    The objective is the smooth Tchebycheff one (alpha 1) with the losses of the single
    adapters as anchors, as in `learn`.

    Args:
      base: the model.
      adapters: T adapters of it.
      heads: task -> head, see `task_heads`.
      unlabeled: inputs of every task.
      batch: inputs of each task that go through the model at a time.
      batches: how many.
      logit_scale: multiplies the logits before the softmax.
      initial: every coefficient.

    Raises:
      ValueError: numbers that are not finite.
    """
    tasks, learned = adapters.names, tara_a(initial=initial)
    losses = entropies(base.apply, base.logits, heads, logit_scale=logit_scale)
    stream = unlabeled.batches(size=batch, seed=0)
    seen = list(itertools.islice(stream, batches))
    own = {"params": base.params}
    anchors = single_adapter_losses(tasks, adapters.stacks, losses, seen, **own)
    each = task_jacobians(learned, tasks, adapters.stacks, losses, seen, **own)
    jacobian = mean_jacobian(each)
    if not jnp.isfinite(jacobian.matrix).all():
        task = tasks[int(jnp.isfinite(jacobian.matrix).all(axis=1).argmin())]
        raise ValueError(
            f"{base.folder}: the derivatives of the loss of {task} are not finite; "
            "look for weights that are far too large"
        )
    h = _sensitivities(jacobian, anchors)
    singular_values = linalg.svd(jacobian.matrix)[1]
    apart = jax.vmap(jax.vmap(misalignment, (None, 0)), (0, None))(h, h)
    repeat = np.full(len(h), np.nan)
    if batches > 1:
        halves = (mean_jacobian(each[::2]), mean_jacobian(each[1::2]))
        repeat = jax.vmap(misalignment)(*(_sensitivities(j, anchors) for j in halves))
    return Reactions(
        tasks=tasks,
        initial=initial,
        inputs=batch * batches,
        losses=_numbers(jacobian.losses),
        anchors=_numbers(anchors),
        slopes=np.linalg.norm(_numbers(jacobian.matrix), axis=1),
        singular_values=_numbers(singular_values),
        condition=float(condition_number(singular_values)),
        sensitivities=_numbers(h),
        misalignment=_numbers(apart),
        repeat=_numbers(repeat),
        modules=_places(adapters),
    )


def _sensitivities(jacobian: TaskJacobian, anchors: jax.Array) -> jax.Array:
    """h [P, D] for each task alone and for all alike."""
    count = len(jacobian.losses)
    preferences = np.vstack([np.eye(count), np.full(count, 1 / count)])
    scalarise = partial(smooth_tchebycheff, anchors=anchors)
    return jnp.stack(
        [sensitivity(jacobian, preference=p, scalarise=scalarise) for p in preferences]
    )


def _places(adapters: Adapters) -> dict[str, slice]:
    """Directions of each module, in the sorted order of `task_jacobian`."""
    places, start = {}, 0
    for module, stack in sorted(adapters.stacks.items()):
        places[module] = slice(start, start + sum(stack.ranks))
        start = places[module].stop
    return places


def _numbers(values: jax.Array | np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)
