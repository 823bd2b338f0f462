"""What a checkpoint belongs to: digests of everything that determines a fit."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmerge.learning.apply import merge
from jaxmerge.learning.program import array_bytes, program_digest
from jaxmerge.learning.step import FitState, Phis, Problem, Updates, scalarised
from jaxmerge.stats.moments import Statistics
from jaxmerge.types import AdapterStack

_CORNER = 4  # along every axis of a parameter


def fit_identity(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    state: FitState,
    stacks: Mapping[str, AdapterStack],
    params: Any,
    batch: Mapping[str, Any],
    preference: jax.Array | None,
    *,
    stats: Mapping[str, Statistics] | None = None,
) -> dict[str, str]:
    """Digests by the name of the part that they belong to.

    Functions enter by what they compute (`program_digest`), adapters, preference and
    the first batch by their values, ``params`` by their shapes and some values.

    Args:
      problem: its functions and the names of the tasks.
      optimizer: of the fit.
      state: the first one, of a single fit.
      stacks: module -> adapters.
      params: as given to `fit`.
      batch: the first one.
      preference: [T], or [P, T] in a front.
      stats: module -> statistics, where the method needs them.
    """
    phis, single = state.phis, preference
    if preference is not None and preference.ndim == 2:
        single = preference[0]

    def method(phis: Phis, stacks: Mapping[str, AdapterStack], stats: Any) -> Updates:
        bases = {}
        for name, stack in stacks.items():
            given = {} if stats is None else {"stats": stats[name]}
            bases[name] = problem.learned.prepare(stack, **given)
        return merge(problem.learned, phis, bases)

    def objective(losses: Mapping[str, jax.Array], rho: jax.Array | None) -> jax.Array:
        return scalarised(problem, losses, rho)[0]

    updates = jax.eval_shape(method, phis, stacks, stats)
    found = jax.eval_shape(problem.losses, params, updates, batch)
    penalty = problem.penalty
    return {
        "tasks": hashlib.sha256("\0".join(problem.tasks).encode()).hexdigest(),
        "adapters": tree_digest(stacks if stats is None else (stacks, stats)),
        "preference": tree_digest(preference),
        "parameters": parameters_digest(params),
        "batches": tree_digest(batch),
        "method": program_digest(method, phis, stacks, stats),
        "coefficients": tree_digest(phis),
        "losses": program_digest(problem.losses, params, updates, batch),
        "objective": program_digest(objective, found, single),
        "penalty": "" if penalty is None else program_digest(penalty, phis, updates),
        "optimizer": program_digest(optimizer.update, phis, state.optimizer, phis),
    }


def parameters_digest(params: Any) -> str:
    """Digest of the shapes of arrays and of some of their values."""
    return tree_digest(jax.tree.map(_corner, params))


def tree_digest(tree: Any) -> str:
    """Digest of structure, shapes, types and values."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        digest.update(array_bytes(leaf))
    return digest.hexdigest()


def _corner(leaf: Any) -> tuple[Any, tuple[int, ...]]:
    """First values of an array along every axis, which tell models apart, and shape."""
    shape = jnp.shape(leaf)
    return (leaf[(slice(_CORNER),) * len(shape)] if shape else leaf), shape
