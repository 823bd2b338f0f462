"""From fitted coefficients to merged updates."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmerge.mapping import map_modules
from jaxmerge.refusals import Refusal
from jaxmerge.stats.moments import Statistics
from jaxmerge.types import AdapterStack, Learned, ModelMerger, Update

SHARED = "every module"  # the only key of phis that all modules share


def apply_learned(learned: Learned, phis: Mapping[str, Any]) -> ModelMerger:
    """A learned method with known coefficients, as a merger of whole models.

    Args:
      learned: the method.
      phis: module -> coefficients, or one entry `SHARED` for all modules.

    Returns:
      ModelMerger; what `jaxmerge.fit` gives as ``updates`` for the same coefficients.

    Raises:
      ValueError: from the merger, coefficients of other modules or shapes.

    >>> from jaxmerge.learning.coefficients import tara_a
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stacks = {"q": stack_adapters([([[2.0]], [[3.0]]), ([[1.0]], [[4.0]])])}
    >>> merged = apply_learned(tara_a(), {"q": jnp.array([1.0, 0.5])})(stacks)
    >>> print(dense(merged["q"]))
    [[8.]]
    """

    def merger(
        stacks: Mapping[str, AdapterStack],
        *,
        chunk: int | None = None,
        mesh: Mesh | None = None,
        stats: Mapping[str, Statistics] | None = None,
        **extra: Any,
    ) -> dict[str, Update]:
        devices = {"chunk": chunk, "mesh": mesh, "gather": True}
        bases = prepared(learned, stacks, stats, **devices)
        check_coefficients(learned, bases, phis)
        return merge(learned, phis, bases)

    return merger


def prepared(
    learned: Learned,
    stacks: Mapping[str, AdapterStack],
    stats: Mapping[str, Statistics] | None = None,
    **devices: Any,
) -> dict[str, Any]:
    """What a learned method decomposes of every module, once for all coefficients.

    Args:
      learned: the method.
      stacks: module -> adapters.
      stats: module -> statistics of the inputs of all tasks, where it needs them.
      **devices: see `jaxmerge.map_modules`.
    """
    given = {} if stats is None else {"stats": stats}
    return map_modules(learned.prepare, stacks, **given, **devices)


def merge(
    learned: Learned, phis: Mapping[str, jax.Array], bases: Mapping[str, Any]
) -> dict[str, Update]:
    """The merged update of every module."""
    return {
        name: learned.apply(phis[SHARED if SHARED in phis else name], basis)
        for name, basis in bases.items()
    }


def check_coefficients(
    learned: Learned, bases: Mapping[str, Any], phis: Mapping[str, Any]
) -> None:
    """Refuses coefficients of other modules or shapes than the adapters have."""
    shared = SHARED in phis
    if not shared and phis.keys() != bases.keys():
        odd = sorted(phis.keys() ^ bases.keys())
        raise Refusal(f"{odd[0]}: in the adapters or the coefficients only")
    for name, basis in bases.items():
        expected = jax.eval_shape(learned.init, basis).shape
        found = jnp.shape(phis[SHARED if shared else name])
        if found != expected:
            raise Refusal(f"{name}: coefficients {found}, expected {expected}")
