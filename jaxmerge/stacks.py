"""Stacks of adapters: made from factors, read by mergers.

`stack_adapters` is the door where shapes are checked. The others give what a merger
needs of the T adapters of one module: their factors side by side, those of the tasks
that are present, their weights and their norms.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_model, check_stack
from jaxmerge.refusals import Refusal
from jaxmerge.types import AdapterStack, LowRank


def stack_adapters(
    pairs: Sequence[tuple[ArrayLike, ArrayLike] | None],
    *,
    dtype: Any = jnp.float32,
    name: str = "module",
) -> AdapterStack:
    """Stacks the factors of T adapters of one module, padding mixed ranks with zeros.

    Args:
      pairs: for each task ``(b, a)`` of shapes [m, r_t] and [r_t, n], with the LoRA
        scale folded into ``b``; None where the task does not adapt this module.
      dtype: precision of the stack and of all that is computed from it: float32, or
        float64 with ``jax_enable_x64``. Factors of any dtype, such as those in bf16 or
        fp16, are converted to it.
      name: name of the module, for messages.

    Returns:
      AdapterStack with ``ranks`` taken from the factors.

    Raises:
      ValueError: factors that are not matrices, do not fit each other, or differ in
        m or n between tasks; no task at all; a dtype that has no decompositions.

    >>> import numpy as np
    >>> two = (np.ones((4, 2)), np.ones((2, 3)))
    >>> one = (np.ones((4, 1)), np.ones((1, 3)))
    >>> stack = stack_adapters([two, None, one])
    >>> stack.ranks, stack.a.shape, stack.b.shape
    ((2, 0, 1), (3, 2, 3), (3, 4, 2))
    """
    dtype = _precision(dtype, name)
    factors = [
        None if p is None else (np.asarray(p[0]), np.asarray(p[1])) for p in pairs
    ]
    shapes = set()
    for task, pair in enumerate(factors):
        if pair is None:
            continue
        b, a = pair
        if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
            raise ValueError(
                f"{name}: task {task} has factors b {b.shape} and a {a.shape}; "
                "expected [m, r] and [r, n]"
            )
        shapes.add((b.shape[0], a.shape[1]))
    if not shapes:
        raise ValueError(f"{name}: no task adapts this module")
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: tasks adapt matrices of different shapes {sorted(shapes)}; "
            "adapters of different base models cannot be merged"
        )
    ((m, n),) = shapes
    ranks = tuple(0 if pair is None else pair[0].shape[1] for pair in factors)
    if max(ranks) == 0:
        raise ValueError(f"{name}: every adapter has rank 0")
    stacked_a = np.zeros((len(ranks), max(ranks), n), dtype)
    stacked_b = np.zeros((len(ranks), m, max(ranks)), dtype)
    for task, pair in enumerate(factors):
        if pair is not None:
            stacked_b[task, :, : ranks[task]] = pair[0]
            stacked_a[task, : ranks[task]] = pair[1]
    a, b = jax.device_put((stacked_a, stacked_b))  # unlike asarray, compiles nothing
    return AdapterStack(a=a, b=b, ranks=ranks)


def described_stack(
    pairs: Sequence[tuple[np.ndarray, np.ndarray] | None],
) -> AdapterStack:
    """Shapes of what `stack_adapters` makes of factors that fit each other."""
    m, n = next((b.shape[0], a.shape[1]) for b, a in filter(None, pairs))
    ranks = tuple(0 if pair is None else pair[1].shape[0] for pair in pairs)
    tasks, rank = len(ranks), max(ranks)
    shapes = ((tasks, rank, n), (tasks, m, rank))
    a, b = (cast("Any", jax.ShapeDtypeStruct(x, jnp.float32)) for x in shapes)
    return AdapterStack(a=a, b=b, ranks=ranks)


def concatenate(stack: AdapterStack) -> LowRank:
    """``[B_1 .. B_T]`` [m, K] and ``[A_1; ..; A_T]`` [K, n] without the padding.

    K is exactly the sum of the ranks. The product is the sum of the updates.
    """
    return LowRank(
        b=jnp.concatenate([stack.b[t, :, : stack.ranks[t]] for t in stack.present], 1),
        a=jnp.concatenate([stack.a[t, : stack.ranks[t], :] for t in stack.present], 0),
    )


def present_factors(stack: AdapterStack) -> tuple[jax.Array, jax.Array]:
    """Padded factors b [T', m, R] and a [T', R, n] of the T' tasks that are present."""
    if len(stack.present) == len(stack.ranks):
        return stack.b, stack.a
    present = jnp.asarray(stack.present)
    return stack.b[present], stack.a[present]


def task_weights(stack: AdapterStack, weights: ArrayLike | None) -> jax.Array:
    """Weights of the tasks that adapt this module, one each unless given.

    Args:
      stack: T adapters of one module.
      weights: [T], any real numbers; None for ones.

    Returns:
      [number of present tasks], in the dtype of the stack.

    Raises:
      ValueError: ``weights`` is not of shape [T].
    """
    if weights is None:
        return jnp.ones(len(stack.present), stack.b.dtype)
    return of_present(stack, jnp.asarray(weights, stack.b.dtype), name="weights")


def of_present(stack: AdapterStack, values: ArrayLike, *, name: str) -> jax.Array:
    """Of numbers [T] those of the tasks that adapt this module.

    Raises:
      ValueError: the values, called by ``name``, are not of shape [T].
    """
    values = jnp.asarray(values)
    if values.shape != (len(stack.ranks),):
        raise ValueError(
            f"{name}: expected one number for each of the {len(stack.ranks)} tasks, "
            f"got shape {values.shape}"
        )
    return values[jnp.asarray(stack.present)]


def weigh(stack: AdapterStack, weights: ArrayLike | None) -> AdapterStack:
    """Multiplies the update of each task by its weight."""
    if weights is None:
        return stack
    every = jnp.zeros(len(stack.ranks), stack.b.dtype)
    every = every.at[jnp.asarray(stack.present)].set(task_weights(stack, weights))
    return stack.replace(b=stack.b * every[:, None, None])


def task_updates(stacks: Mapping[str, AdapterStack], task: int) -> dict[str, LowRank]:
    """module -> the update of one task alone, of one shape for all tasks.

    Zeros where the task has none, so that one program serves every task.

    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stacks = {"q": stack_adapters([([[3.0]], [[2.0]]), None])}
    >>> print(dense(task_updates(stacks, 0)["q"]), dense(task_updates(stacks, 1)["q"]))
    [[6.]] [[0.]]
    """
    check_model(task_updates, stacks)
    for name, stack in stacks.items():
        if not -len(stack.ranks) <= task < len(stack.ranks):
            raise Refusal(
                f"task_updates: {name} has {len(stack.ranks)} tasks, from 0 on; there "
                f"is no task {task}"
            )
    return {name: LowRank(s.b[task], s.a[task]) for name, s in stacks.items()}


def leave_out(stack: AdapterStack, tasks: Collection[int]) -> AdapterStack | None:
    """The adapters of a module without those of some tasks, which are then absent.

    Not the same as a weight of 0: who is absent is in no mean, no count and no basis.

    Args:
      stack: T adapters.
      tasks: numbers of tasks, from 0.

    Returns:
      A stack of T tasks and the same padding; None where no adapter is left.

    >>> from jaxmerge.stacks import stack_adapters
    >>> stack = stack_adapters([([[3.0]], [[2.0]]), ([[1.0]], [[1.0]])])
    >>> leave_out(stack, {1}).ranks, leave_out(stack, {0, 1})
    ((1, 0), None)
    """
    check_stack(leave_out, stack)
    ranks = tuple(0 if t in tasks else rank for t, rank in enumerate(stack.ranks))
    if not any(ranks):
        return None
    kept = jnp.asarray([rank > 0 for rank in ranks])[:, None, None]
    return stack.replace(
        a=jnp.where(kept, stack.a, 0), b=jnp.where(kept, stack.b, 0), ranks=ranks
    )


def task_norms(stack: AdapterStack) -> jax.Array:
    """Frobenius norm of every task's update, [T], from Gram matrices of its factors.

    >>> from jaxmerge.stacks import stack_adapters
    >>> print(task_norms(stack_adapters([([[3.0], [4.0]], [[2.0]]), None])))
    [10.  0.]
    """
    check_stack(task_norms, stack)
    norms, units = near_norms(stack)
    return norms / units.b / units.a


def near_norms(stack: AdapterStack) -> tuple[jax.Array, LowRank]:
    """Norms [T] of updates of ordinary magnitude, and powers of two that made them so.

    The powers [T], of b and of a, are those of `linalg.unit_power`.
    """
    (b, a), units = near_factors(stack.b, stack.a)
    gram_b = linalg.einsum("tmr,tms->trs", b, b)
    gram_a = linalg.einsum("trn,tsn->trs", a, a)
    return linalg.root(jnp.sum(gram_b * gram_a, axis=(1, 2))), units


def near_factors(b: jax.Array, a: jax.Array) -> tuple[LowRank, LowRank]:
    """Factors [T, ..] times powers of two, and these [T]: see `linalg.unit_power`."""
    units = LowRank(*(jax.vmap(linalg.unit_power)(x) for x in (b, a)))
    return LowRank(b * units.b[:, None, None], a * units.a[:, None, None]), units


def _precision(dtype: Any, name: str) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(
            f"{name}: no decompositions in {dtype.name}; leave dtype out, then factors "
            "of any dtype are computed in float32, or give float64"
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name}: for adapters in float64 set jax_enable_x64")
    return dtype
