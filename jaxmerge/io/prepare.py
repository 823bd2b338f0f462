"""What is to be written, checked before any file exists."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.typing import ArrayLike

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.errors import AdapterError, given, listing
from jaxmerge.refusals import Option
from jaxmerge.streamed import described, each
from jaxmerge.types import LowRank, Update

_DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def checked_updates(
    updates: Mapping[str, Update], like: Adapters
) -> Mapping[str, Update]:
    """The updates, if each is a finite update of a module of ``like``.

    Types narrower than float32 become float32, in which truncation computes. The values
    of streamed updates are checked when they are made.
    """
    if not updates:
        raise AdapterError("there are no updates to save")
    strange = sorted(updates.keys() - like.stacks.keys())
    if strange:
        raise AdapterError(f"updates of unknown modules: {listing(strange)}")
    stacks = described(like.stacks)
    for module, update in described(updates).items():
        stack = stacks[module]
        wanted = (stack.b.shape[1], stack.a.shape[2])
        low_rank = isinstance(update, LowRank)
        shapes = [np.shape(x) for x in update] if low_rank else [np.shape(update)]
        if any(len(s) != 2 for s in shapes) or (shapes[0][0], shapes[-1][1]) != wanted:
            raise AdapterError(f"module {module!r}: update {shapes}, expected {wanted}")
        if low_rank and shapes[0][1] != shapes[1][0]:
            raise AdapterError(f"module {module!r}: factors {shapes} do not fit")
    return each(updates, _finite)


def _finite(module: str, update: Update) -> Update:
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(update)):
        raise AdapterError(f"module {module!r}: the update holds NaN or Inf")
    return jax.tree.map(_at_least_float32, update)


def _at_least_float32(values: ArrayLike) -> jax.Array:
    values = jnp.asarray(values)
    wide = values.dtype in (jnp.float32, jnp.float64)
    return values if wide else values.astype(jnp.float32)


def checked_dtype(dtype: Any) -> np.dtype:
    """A dtype of outputs as numpy's; refuses all but float32, float16 and bfloat16."""
    try:
        found = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    except TypeError:
        found = None
    if found is None or found not in [np.dtype(allowed) for allowed in _DTYPES]:
        raise AdapterError(
            given("dtype", dtype), ": expected float32, float16 or bfloat16"
        )
    return found


def checked_biases(
    biases: Mapping[str, ArrayLike] | None, modules: Mapping[str, Any], like: Adapters
) -> dict[str, np.ndarray]:
    """Merged LoRA biases of every written module, or of none.

    PEFT's ``lora_bias`` is one switch for all modules, so those without get zeros.
    """
    if biases is None and like.biases:
        raise AdapterError(
            f"the adapters carry LoRA biases ({listing(like.biases)}); pass the ",
            "merged ones as ",
            Option("biases", "{module: [m], ...}"),
            ", such as weights @ adapters.biases[module], or ",
            Option("biases", "{}"),
            " to leave them out",
        )
    if not biases:
        return {}
    strange = sorted(biases.keys() - modules.keys())
    if strange:
        raise AdapterError(f"biases of modules without an update: {listing(strange)}")
    embeddings = [m for m in modules if like.layouts[m].kind == "embedding"]
    if embeddings:
        raise AdapterError(
            f"PEFT has no LoRA bias on embeddings ({listing(embeddings)}), and "
            "lora_bias is one switch for all modules; leave out these modules or the "
            "biases"
        )
    found = {}
    for module in modules:
        m = described(like.stacks)[module].b.shape[1]
        bias = np.asarray(biases.get(module, np.zeros(m, np.float32)))
        if bias.shape != (m,) or not np.isfinite(bias).all():
            raise AdapterError(f"module {module!r}: bias is not {m} finite numbers")
        found[module] = bias
    return found


def checked_rank(
    rank: int | str | None, energy: float | None, like: Adapters
) -> int | None:
    """The output rank as a number; "auto" is the largest rank among the inputs."""
    if rank is not None and energy is not None:
        raise AdapterError(
            Option("rank"),
            " and ",
            Option("energy"),
            " both decide the rank; give one of them",
        )
    if energy is not None and not 0 < energy <= 1:
        raise AdapterError(given("energy", energy), ": expected a share in (0, 1]")
    if rank == "auto":
        return max(max(stack.ranks) for stack in described(like.stacks).values())
    if rank is not None and (type(rank) is not int or rank < 1):
        raise AdapterError(
            given("rank", rank), ": expected a positive integer or 'auto'"
        )
    return rank
