"""How strongly, and how unevenly, the losses react to each direction (TARA)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.learning.apply import prepared
from jaxmerge.learning.objectives import smooth_tchebycheff
from jaxmerge.learning.step import (
    Losses,
    Phis,
    Problem,
    Scalarise,
    batches_by_task,
    check_tasks,
    one_loss,
)
from jaxmerge.stats.moments import Statistics
from jaxmerge.types import AdapterStack, Learned


class TaskJacobian(NamedTuple):
    """Derivatives of the losses in the coefficients phi.

    Attributes:
      matrix: [T, D], ``J_tk = d f_t / d phi_k``; D coefficients, those of one module
        after those of another, in the sorted order of the names of the modules.
      losses: [T], f at the same phi.
    """

    matrix: jax.Array
    losses: jax.Array


class TaskRows(NamedTuple):
    """The row of one task in J and its loss, on each of N batches.

    Attributes:
      matrix: [N, D].
      losses: [N].
    """

    matrix: jax.Array
    losses: jax.Array


def task_jacobian(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    losses: Losses,
    batches: Iterable[Mapping[str, Any]],
    *,
    phis: Mapping[str, jax.Array] | None = None,
    params: Any = None,
    stats: Mapping[str, Statistics] | None = None,
) -> TaskJacobian:
    """The task-direction Jacobian of TARA (arXiv 2603.26299), by autodiff in phi.

    ``J_tk = <dL_t/dW, S_k>_F``: phi_k multiplies direction S_k (``b_k a_k^T`` for
    `jaxmerge.tara_a`), so ``dL_t/dW`` is never formed. TARA measures anisotropy by its
    condition number: ``condition_number(jaxmerge.linalg.svd(J.matrix)[1])``, the ratio
    of the largest to the smallest change of the losses for a unit step of phi. It is
    infinite where the losses cannot move independently: where J has a rank below T.

    Args:
      learned: what phi means: `jaxmerge.tara_a`, `tara_b`, `adamerging` or `compose`.
      tasks: names of the adapters, in the order of the stacks.
      stacks: module -> adapters.
      losses: as for `jaxmerge.fit`.
      batches: dicts of task -> batch; J_t and f_t are means over those that have t.
      phis: module -> coefficients; the first ones of ``learned`` unless given.
      params: passed to the losses.
      stats: as for `jaxmerge.fit`.

    Raises:
      ValueError: a stack of another number of adapters, or a task without a batch.

    >>> from jaxmerge.learning.coefficients import tara_a
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stacks = {"w": stack_adapters([([[2.0]], [[1.0]]), ([[3.0]], [[1.0]])])}
    >>> def losses(params, updates, batch):
    ...     return {t: x * dense(updates["w"])[0, 0] for t, x in batch.items()}
    >>> batch = {"low": jnp.float32(1), "high": jnp.float32(10)}
    >>> print(task_jacobian(tara_a(), ("low", "high"), stacks, losses, [batch]).matrix)
    [[ 2.  3.]
     [20. 30.]]
    """
    arguments = (learned, tasks, stacks, losses, batches)
    found = jacobian_rows(*arguments, phis=phis, params=params, stats=stats)
    return mean_jacobian([found[task] for task in tasks])


def jacobian_rows(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    losses: Losses,
    batches: Iterable[Mapping[str, Any]],
    *,
    phis: Mapping[str, jax.Array] | None = None,
    params: Any = None,
    stats: Mapping[str, Statistics] | None = None,
) -> dict[str, TaskRows]:
    """The rows of each task on every batch, to see how much they depend on the inputs.

    Arguments and errors are those of `task_jacobian`.

    Returns:
      task -> rows; tasks may have different numbers of batches.
    """
    check_tasks(tasks, stacks)
    of_tasks = batches_by_task(tasks, batches)
    problem = Problem(learned, tuple(tasks), losses, smooth_tchebycheff)
    bases = prepared(learned, stacks, stats)
    if phis is None:
        phis = {name: learned.init(basis) for name, basis in bases.items()}
    found = {}
    for task, own in of_tasks.items():
        run = jax.jit(partial(_row, problem, task))
        each = [run(dict(phis), bases, params, batch) for batch in own]
        found[task] = TaskRows(*map(jnp.stack, zip(*each, strict=True)))
    return found


def mean_jacobian(rows: Sequence[TaskRows]) -> TaskJacobian:
    """Means of the rows of each task, over batches of one size.

    >>> one = TaskRows(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0.0, 1.0]))
    >>> print(mean_jacobian([one, one]).matrix)
    [[2. 3.]
     [2. 3.]]
    """
    means = [jax.tree.map(lambda x: jnp.mean(x, axis=0), of_task) for of_task in rows]
    return TaskJacobian(*map(jnp.stack, zip(*means, strict=True)))


def sensitivity(
    jacobian: TaskJacobian,
    *,
    preference: ArrayLike | None = None,
    scalarise: Scalarise = smooth_tchebycheff,
) -> jax.Array:
    """``h(rho) = d scalarise(f, rho) / d phi = J^T (d scalarise / d f)``, [D].

    How the objective under a preference reacts to each direction (arXiv 2603.26299).

    Args:
      jacobian: from `task_jacobian`.
      preference: rho, [T]; 1/T for each task unless given.
      scalarise: `jaxmerge.smooth_tchebycheff` or `linear_scalarisation`, with further
        arguments bound by ``functools.partial``.

    >>> from jaxmerge.learning.objectives import linear_scalarisation
    >>> jacobian = TaskJacobian(jnp.array([[1.0, 0.0], [0.0, 4.0]]), jnp.zeros(2))
    >>> print(sensitivity(jacobian, scalarise=linear_scalarisation))
    [0.5 2. ]
    """
    rho = None if preference is None else jnp.asarray(preference, jacobian.losses.dtype)
    weights = jax.grad(partial(scalarise, preference=rho))(jacobian.losses)
    return linalg.matmul(weights, jacobian.matrix)


def misalignment(first: jax.Array, second: jax.Array) -> jax.Array:
    """``xi = 1 - |cos(h(rho1), h(rho2))|`` of two sensitivities [D], in [0, 1].

    0 if the same directions matter under both preferences, 1 if others do (TARA, arXiv
    2603.26299, the figure of misalignment between preferences), and 1 where one of them
    is zero.

    >>> print(misalignment(jnp.array([1.0, 0.0]), jnp.array([-2.0, 0.0])))
    0.0
    >>> print(misalignment(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    1.0
    """
    size = linalg.root(jnp.sum(first * first)) * linalg.root(jnp.sum(second * second))
    cosine = linalg.divide(jnp.abs(jnp.sum(first * second)), size)
    return 1 - jnp.minimum(cosine, 1)


def _row(
    problem: Problem,
    task: str,
    phis: Phis,
    bases: Mapping[str, Any],
    params: Any,
    batch: Any,
) -> tuple[jax.Array, jax.Array]:
    loss = partial(one_loss, problem, task, bases, params, {task: batch})
    value, change = jax.value_and_grad(loss)(phis)
    return ravel_pytree(change)[0], value
