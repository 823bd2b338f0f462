"""Learned coefficients on directions: TARA-A, TARA-B and AdaMerging.

A `Learned` method keeps everything that needs a decomposition in ``prepare``, so that
``apply`` is cheap and differentiable in the coefficients phi, the only thing that is
fitted. All coefficients equal to c give c times task arithmetic, whatever the method.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.doors import check_stack
from jaxmerge.mergers.spaces import project_knots
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import concatenate
from jaxmerge.types import AdapterStack, Learned, LowRank, Post, Squares, Update


@flax.struct.dataclass
class Directions:
    """``sum_k phi_k b_k a_k``, phi being expanded to one number for each direction."""

    b: jax.Array  # [m, K]
    a: jax.Array  # [K, n]
    owners: jax.Array  # [K], int: the coefficient that direction k uses
    coefficients: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class SharedDirections:
    """``U sum_t diag(phi_t) C_t A_t``, with the rows of all ``C_t A_t`` on common U."""

    u: jax.Array  # [m, R]
    coordinates: jax.Array  # [R, K], the columns of task t are U^T B_t
    a: jax.Array  # [K, n]
    owners: jax.Array  # [K], int: the task of column k
    tasks: int = flax.struct.field(pytree_node=False)


class Composed(NamedTuple):
    """What `compose` prepares: the inner method's basis, and the original adapters."""

    basis: Any
    stack: AdapterStack


def tara_a(*, initial: float = 0.4) -> Learned:
    """TARA-Merging, variant A (arXiv 2603.26299): one coefficient for each direction.

    ``D(phi) = sum_t sum_j phi_tj b_tj a_tj^T = B_cat diag(phi) A_cat``, phi of shape
    [K], in the order of the tasks.

    Args:
      initial: every coefficient at the start; 0.4 in the paper.

    Returns:
      Learned. ``apply`` gives a LowRank of rank K at the cost of one product b * phi.

    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> method = tara_a(initial=0.5)
    >>> basis = method.prepare(stack_adapters([([[2.0]], [[3.0]]), ([[1.0]], [[4.0]])]))
    >>> print(dense(method.apply(method.init(basis), basis)))
    [[5.]]
    """

    init = _first_coefficients(initial)
    return Learned(_single_directions, init, _weigh_directions, _squares_of_directions)


def adamerging(*, initial: float = 0.3, clamp: bool = True) -> Learned:
    """AdaMerging (arXiv 2310.02575), layer-wise: one coefficient for each task.

    ``D(phi) = sum_t phi_t B_t A_t``, phi of shape [T]; the coefficient of a task that
    does not adapt the module changes nothing. One phi for all modules
    (``jaxmerge.fit(..., shared=True)``) gives the task-wise variant.

    Args:
      initial: every coefficient at the start; 0.3 in the paper.
      clamp: confine the coefficients to [0, 1], as published; TARA's baseline does not.
    """

    def apply(phi: jax.Array, basis: Directions) -> LowRank:
        return _weigh_directions(jnp.clip(phi, 0, 1) if clamp else phi, basis)

    init = _first_coefficients(initial)
    squares = None if clamp else _squares_of_directions
    return Learned(_directions_of_tasks, init, apply, squares)


def tara_b(*, initial: float = 0.4) -> Learned:
    """TARA-Merging, variant B: coefficients on shared singular directions.

    With ``U S [V_1^T .. V_T^T]`` the singular value decomposition of the updates side
    by side, ``D(phi) = sum_t U diag(phi_t * s) V_t^T``, phi of shape [T, R] with
    R = min(m, K). As ``S V_t^T = U^T B_t A_t``, the V_t are never formed:
    ``D(phi) = U [phi_1 * (U^T B_1) .. phi_T * (U^T B_T)] A_cat``.

    Args:
      initial: every coefficient at the start; 0.4 in the paper.

    Returns:
      Learned. ``apply`` gives a LowRank of rank R.

    Deviation: the official code fails where K exceeds m; R is min(m, K) here.
    """

    def init(basis: SharedDirections) -> jax.Array:
        return jnp.full((basis.tasks, basis.u.shape[1]), initial, basis.u.dtype)

    def apply(phi: jax.Array, basis: SharedDirections) -> LowRank:
        _check_phi(phi, (basis.tasks, basis.u.shape[1]))
        core = basis.coordinates * phi[basis.owners].T
        return LowRank(b=basis.u, a=linalg.matmul(core, basis.a))

    return Learned(_shared_directions, init, apply, _squares_of_shared)


def compose(
    learned: Learned,
    *posts: Post,
    before: Callable[..., AdapterStack] | None = None,
) -> Learned:
    """A learned method on transformed adapters, with posts after its merge.

    ``compose(tara_b(), before=calibrate)`` learns on directions calibrated by Pico;
    ``compose(tara_a(), svc)`` learns through what SVC makes of the merge.

    Args:
      learned: the method.
      *posts: change the merged update, in this order; differentiated through. They get
        the original adapters as ``stack``.
      before: changes the adapters before ``prepare``; gets their ``stats`` too where a
        fit is given any, as `jaxmerge.regmean_adapters` needs.

    Returns:
      Learned, with the coefficients of ``learned``.

    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense, scale
    >>> halved = compose(tara_a(initial=1.0), lambda update, **_: scale(update, by=0.5))
    >>> basis = halved.prepare(stack_adapters([([[2.0]], [[3.0]])]))
    >>> print(dense(halved.apply(halved.init(basis), basis)))
    [[3.]]
    """

    def prepare(stack: AdapterStack, **extra: Any) -> Composed:
        changed = stack if before is None else before(stack, **extra)
        return Composed(basis=learned.prepare(changed, **extra), stack=stack)

    def init(composed: Composed) -> jax.Array:
        return learned.init(composed.basis)

    def apply(phi: jax.Array, composed: Composed) -> Update:
        update = learned.apply(phi, composed.basis)
        for post in posts:
            update = post(update, stack=composed.stack)
        return update

    def squares(composed: Composed, *given: jax.Array) -> Squares:
        assert learned.squares is not None
        return learned.squares(composed.basis, *given)

    linear = learned.squares is not None and not posts
    return Learned(prepare, init, apply, squares if linear else None)


# Not closures, so that `map_modules` compiles each of them once for all starts.


def _check_phi(phi: jax.Array, expected: tuple[int, ...]) -> None:
    if jnp.shape(phi) != expected:
        raise Refusal(f"coefficients {jnp.shape(phi)}, expected {expected}")


def _single_directions(stack: AdapterStack, **extra: Any) -> Directions:
    check_stack(tara_a, stack, extra)
    b, a = concatenate(stack)
    count = a.shape[0]
    return Directions(b=b, a=a, owners=jnp.arange(count), coefficients=count)


def _directions_of_tasks(stack: AdapterStack, **extra: Any) -> Directions:
    check_stack(adamerging, stack, extra)
    b, a = concatenate(stack)
    return Directions(b=b, a=a, owners=_owners(stack), coefficients=len(stack.ranks))


def _shared_directions(stack: AdapterStack, **extra: Any) -> SharedDirections:
    check_stack(tara_b, stack, extra)
    _, u = project_knots(stack)
    b, a = concatenate(stack)
    return SharedDirections(
        u=u,
        coordinates=linalg.matmul(u.T, b),
        a=a,
        owners=_owners(stack),
        tasks=len(stack.ranks),
    )


def _first_coefficients(initial: float) -> Callable[[Directions], jax.Array]:
    def init(basis: Directions) -> jax.Array:
        return jnp.full(basis.coefficients, initial, basis.a.dtype)

    return init


def _owners(stack: AdapterStack) -> jax.Array:
    ranks = [stack.ranks[t] for t in stack.present]
    return jnp.repeat(
        jnp.asarray(stack.present), jnp.asarray(ranks), total_repeat_length=sum(ranks)
    )


def _weigh_directions(phi: jax.Array, basis: Directions) -> LowRank:
    _check_phi(phi, (basis.coefficients,))
    return LowRank(b=basis.b * phi[basis.owners][None, :], a=basis.a)


def _squares_of_directions(
    basis: Directions, x: jax.Array, y: jax.Array, weights: jax.Array
) -> Squares:
    """``G_kl = (b_k . b_l) sum_i w_i (a_k . x_i) (a_l . x_i)``, K x K."""
    seen, told = linalg.matmul(x, basis.a.T), linalg.matmul(y, basis.b)
    weighted = weights[:, None] * seen
    gram = linalg.matmul(basis.b.T, basis.b) * linalg.matmul(weighted.T, seen)
    add = partial(
        jax.ops.segment_sum,
        segment_ids=basis.owners,
        num_segments=basis.coefficients,
    )
    return Squares(
        gram=add(add(gram).T)[..., None],
        moment=add(jnp.sum(weighted * told, axis=0))[:, None],
        energy=_energy(y, weights),
    )


def _squares_of_shared(
    basis: SharedDirections, x: jax.Array, y: jax.Array, weights: jax.Array
) -> Squares:
    """T x T for each of the R directions, which do not meet."""
    seen, told = linalg.matmul(x, basis.a.T), linalg.matmul(y, basis.u)
    own = jax.nn.one_hot(basis.owners, basis.tasks, dtype=seen.dtype)  # [K, T]
    parts = linalg.einsum("ik,rk,kt->itr", seen, basis.coordinates, own)
    weighted = weights[:, None, None] * parts
    return Squares(
        gram=linalg.einsum("itr,isr->tsr", weighted, parts),
        moment=linalg.einsum("itr,ir->tr", weighted, told),
        energy=_energy(y, weights),
    )


def _energy(y: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(weights * jnp.sum(y * y, axis=-1))
