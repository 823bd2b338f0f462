"""Coefficients in closed form: least squares at the outputs of every linear layer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.folders import Folder
from jaxmerge.learning.blockwise import Bases, Method, Told, in_blocks
from jaxmerge.learning.fit import Fitted, Progress
from jaxmerge.learning.identity import tree_digest
from jaxmerge.learning.loop import History
from jaxmerge.learning.objectives import wide
from jaxmerge.learning.program import program_digest
from jaxmerge.learning.step import Phis, Updates, check_preference
from jaxmerge.learning.streams import Visit, row_chunks
from jaxmerge.models.adapt import Apply, Tap, with_taps, with_updates
from jaxmerge.models.blocks import Blocks, Stream
from jaxmerge.models.kernels import linear_layers
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.stats.moments import counted_rows
from jaxmerge.types import AdapterStack, Learned, LowRank, Squares

RIDGE = 1e-5  # the noise of sums in float32


def solve_blocks(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    model: Blocks,
    inputs: Mapping[str, Any],
    *,
    params: Any,
    stats: Told = None,
    batch: int = 16,
    preference: ArrayLike | None = None,
    ridge: float = RIDGE,
    checkpoint: Folder | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Solves for the coefficients of a learned merge, one linear layer after the other.

    With x the inputs of a layer in the merged model and y its outputs in the model with
    the task's own adapter, phi minimises ``sum_t rho_t mean(||(W + D(phi)) x - y||^2 /
    ||y||^2)`` over the tokens of task t. Layers are solved in the order in
    which they run, each on what those before it make of the inputs; so errors of
    earlier layers are seen by later ones, which can make up for them.

    Args:
      learned: linear in its coefficients: `tara_a`, `tara_b`, `adamerging` without
        clamp, or what `compose` makes of them without posts.
      tasks: see `fit_blocks`, and so ``stacks``, ``model``, ``inputs``, ``params``,
        ``stats``, ``checkpoint`` and ``report``.
      batch: inputs of a task that go through a block at a time.
      preference: rho [T]; 1/T for each task unless given.
      ridge: draws phi to the method's own start, in units of the diagonal of the normal
        equations; directions that change nothing stay there.

    Returns:
      Fitted; objective [L, 2] and losses [L, 2, T] of the L blocks that have adapters,
      means over their layers at the method's start and at the solution.

    Raises:
      ValueError: a method that is not linear, or as for `fit_blocks`.

    Cost: for M layers in a block each input goes ``M + 3`` times through it, forward;
    normal equations of K x K for TARA-A, R of T x T for TARA-B.

    Memory: as for `fit_blocks`, and on the host the outputs of the layers of one block
    that are not yet solved for, of every token in the models with own adapters.

    Source: own. RegMean (arXiv 2212.09849) and IterIS (arXiv 2411.15231) solve for
    whole matrices so, here the unknowns are the coefficients of directions.
    """
    if learned.squares is None:
        raise Refusal(
            "solve_blocks: the merge is not linear in its coefficients, so that they "
            "have no closed form; learn them by gradients, or take tara_a, tara_b or "
            "adamerging(clamp=False), without steps after them"
        )
    squares = learned.squares
    rho = np.ones(len(tasks)) if preference is None else np.asarray(preference)
    check_preference(tasks, rho)
    shares: list[float] = (rho / rho.sum()).tolist()

    def solve(visit: Visit, bases: Bases, phis: Phis) -> tuple[Phis, History]:
        apply, weights = visit.block.apply, visit.params
        shapes = jax.tree.map(lambda x: x[:1], visit.merged[tasks[0]])
        order = [x for x in linear_layers(apply, weights, shapes) if x in bases]
        taught = {
            task: _outputs(
                *(apply, tuple(order), weights, task_updates(visit.stacks, index)),
                *(visit.own[task], batch),
            )
            for index, task in enumerate(tasks)
        }
        merged: Updates = {}
        found, losses = {}, []
        for name in order:
            each = [
                _of_task(
                    *(squares, apply, name, weights, bases[name], merged),
                    *(taught[task].pop(name), visit.merged[task], batch),
                )
                for task in tasks
            ]
            total = jax.tree.map(
                lambda *x: sum(r * y for r, y in zip(shares, x, strict=True)), *each
            )
            found[name] = _solution(total, phis[name], ridge)
            both = (phis[name], found[name])
            losses.append([[float(_value(x, phi)) for x in each] for phi in both])
            update = learned.apply(found[name], bases[name])
            merged = {**merged, name: update}
        mean = np.mean(losses, axis=0)
        return found, History(mean @ np.asarray(shares), mean)

    def identity(visit: Visit, bases: Bases, phis: Phis, told: Told) -> dict[str, str]:
        del told  # bases hold what was made of them
        name, basis = next(iter(bases.items()))
        b, a = visit.stacks[name].b, visit.stacks[name].a
        of = a[:1, 0], b[:1, :, 0], a[0, 0, :1]  # x, y and w of one token
        return {
            "tasks": ", ".join(tasks),
            "coefficients": tree_digest(phis),
            "method": program_digest(learned.apply, phis[name], basis)
            + program_digest(squares, basis, *of),
            "settings": str((batch, ridge, shares)),
        }

    return in_blocks(
        *(learned, tasks, stacks, model, inputs, Method(solve, identity)),
        params=params,
        stats=stats,
        size=batch,
        checkpoint=checkpoint,
        report=report,
    )


def _of_task(
    squares: Callable[..., Squares],
    apply: Apply,
    name: str,
    params: Any,
    basis: Any,
    merged: Updates,
    taught: Sequence[np.ndarray],
    stream: Stream,
    size: int,
) -> Squares:
    """Least squares of one layer on all inputs of a task, by the mean over tokens."""
    total, count = None, 0.0
    for y, (some, counted) in zip(taught, row_chunks(stream, size), strict=True):
        given = (params, basis, merged, y, some, counted)
        found, tokens = _squares(squares, apply, name, *given)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        count += float(tokens)
    return jax.tree.map(lambda x: x / max(count, 1.0), total)


def _outputs(
    apply: Apply,
    names: tuple[str, ...],
    params: Any,
    own: Mapping[str, LowRank],
    stream: Stream,
    size: int,
) -> dict[str, list[np.ndarray]]:
    """What layers of the model with the own adapter give, chunk by chunk of inputs."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for some, _ in row_chunks(stream, size):
        outputs = jax.device_get(_taught(apply, names, params, own, some))
        for name in names:
            found[name].append(outputs[name])
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _taught(
    apply: Apply,
    names: tuple[str, ...],
    params: Any,
    own: Mapping[str, LowRank],
    stream: Stream,
) -> dict[str, jax.Array]:
    def whole(tap: Tap, update: LowRank) -> jax.Array:
        seen, made = (wide(x) for x in tap)
        return made + linalg.matmul(linalg.matmul(seen, update.a.T), update.b.T)

    taps = _taps(apply, names, own, params, stream)
    return {name: whole(taps[name], own[name]) for name in names}


def _taps(
    apply: Apply, names: tuple[str, ...], updates: Updates, params: Any, stream: Stream
) -> dict[str, Tap]:
    """Inputs of layers in an updated model, and what their weights alone make of them.

    Taps inside of the updates see outputs before these are added.
    """
    tapped = with_taps(apply, names, outputs=True)
    return with_updates(tapped, updates, merged=None)(params, stream)[1]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _squares(
    squares: Callable[..., Squares],
    apply: Apply,
    name: str,
    params: Any,
    basis: Any,
    merged: Updates,
    taught: jax.Array,
    stream: Stream,
    counted: jax.Array,
) -> tuple[Squares, jax.Array]:
    """The sums of those inputs that count, and their tokens."""
    x, given = _taps(apply, (name,), merged, params, stream)[name]
    keep = counted.reshape(-1, *[1] * (x.ndim - 2))
    keep = jnp.broadcast_to(keep, x.shape[:-1])
    if stream.visible is not None and stream.visible.shape == keep.shape:
        keep = keep & stream.visible
    x, given, made = (counted_rows(part, keep)[0] for part in (x, given, taught))
    weights = linalg.divide(1.0, jnp.sum(made * made, axis=-1))
    count = jnp.sum(keep, dtype=weights.dtype)
    return squares(basis, x, made - given, weights), count


def _value(of: Squares, phi: jax.Array) -> jax.Array:
    phi = phi.reshape(of.moment.shape)
    pulled = linalg.einsum("pqs,qs->ps", of.gram, phi) - 2 * of.moment
    return jnp.sum(phi * pulled) + of.energy


def _solution(of: Squares, start: jax.Array, ridge: float) -> jax.Array:
    """The phi with the least squares; of several that which is nearest to the start."""
    phi = start.reshape(of.moment.shape)
    size = linalg.root(jnp.einsum("pps->ps", of.gram))
    unit = linalg.divide(1.0, size)
    rest = unit * (of.moment - linalg.einsum("pqs,qs->ps", of.gram, phi))
    values, vectors = linalg.eigh(
        jnp.moveaxis(of.gram * unit[:, None] * unit[None, :], -1, 0)
    )
    along = linalg.einsum("spk,ps->sk", vectors, rest)
    along = along / (jnp.maximum(values, 0) + ridge)
    moved = unit * linalg.einsum("spk,sk->ps", vectors, along)
    return (phi + moved).reshape(start.shape)
