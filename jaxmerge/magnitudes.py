"""Very small and very large adapters, merged at an ordinary scale: exactly.

Squares and products of what is far from 1 leave the range of float32, and XLA takes
what is below 1e-38 for zero. Every step of a pipeline but those that run a model
multiplies its result by c when the adapters are multiplied by c, and a power of two is
a factor without rounding. So factors, weights and scales that are far from 1 are
brought near to 1 by powers of two, merged, and brought back. All others stay as they
are, to the bit.

This happens on the host, in NumPy, which computes with denormal numbers.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmerge.linalg import ORDINARY
from jaxmerge.refusals import Refusal
from jaxmerge.streamed import described, each
from jaxmerge.types import AdapterStack, LowRank, ModelMerger, Update

_COMFORT = 90  # exponents of a factor whose small entries are not denormal
_LOST = 2.0**-20  # of the norm of an array; more is refused


def at_ordinary_scale(merger: ModelMerger, *, together: bool) -> ModelMerger:
    """A merger of whole models that sees adapters of ordinary magnitude.

    Args:
      merger: multiplies its result by c when all B, all A, the ``weights`` or the
        ``factor`` of a call are multiplied by c.
      together: it compares modules with each other, so that they need one scale.

    Raises:
      Refusal: from the merger, a result that float32 cannot hold.
    """

    def merge(stacks: Mapping[str, AdapterStack], **extra: Any) -> dict[str, Update]:
        leaves = jax.tree.leaves(dict(described(stacks)))
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return merger(stacks, **extra)
        moved = 0
        for name in ("weights", "factor"):
            leaves = jax.tree.leaves(extra.get(name))
            if leaves and not any(isinstance(leaf, Tracer) for leaf in leaves):
                extra[name], exponent = _ordinary_number(extra[name])
                moved += exponent
        common = _exponents(stacks.values()) if together else None
        found: dict[str, tuple[int, int]] = {}

        def near(module: str, stack: AdapterStack) -> AdapterStack:
            found[module] = common or _exponents([stack])
            return _scaled(stack, *found[module])

        def back(module: str, update: Update) -> Update:
            left, right = found[module]
            return restored(update, -left, -right + moved, module=module)

        return each(merger(each(stacks, near), **extra), back)

    return merge


def ordinary(update: Update) -> tuple[Update, int, int]:
    """An update of ordinary magnitude, and what `restored` needs to undo it."""
    if not isinstance(update, LowRank):
        exponent = _exponent(update)
        return (_times(update, exponent) if exponent else update), -exponent, 0
    left, right = _exponent(update.b), _exponent(update.a)
    if (left, right) == (0, 0):
        return update, 0, 0
    return LowRank(_times(update.b, left), _times(update.a, right)), -left, -right


def restored(update: Update, left: int, right: int, *, module: str) -> Update:
    """An update times ``2 ** (left + right)``, ``left`` on b and ``right`` on a.

    Where a factor would leave the range, both share the exponent alike.

    Raises:
      Refusal: the result is too small for its dtype.
    """
    if left == right == 0:
        return update
    if not isinstance(update, LowRank):
        return jnp.asarray(_kept(np.asarray(update), left + right, module))
    found = restored_factors(
        *(np.asarray(update.b), np.asarray(update.a), left, right), module=module
    )
    return LowRank(*map(jnp.asarray, found))


def restored_factors(
    b: np.ndarray, a: np.ndarray, left: int, right: int, *, module: str
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of an update times powers of two, as `restored` gives them."""
    if left == right == 0:
        return b, a
    size_b, size_a = _binary(b), _binary(a)
    if max(abs(size_b + left), abs(size_a + right)) > _COMFORT:
        total = left + right
        left = (size_a - size_b + total) // 2
        right = total - left
    return _kept(b, left, module), _kept(a, right, module)


def weighted_sum(weights: np.ndarray, rows: jax.Array) -> jax.Array:
    """``sum_t w_t rows_t`` in the dtype of the rows, whatever their magnitude."""
    if _exponent(weights) or _exponent(rows):
        exact = np.asarray(weights, np.float64) @ np.asarray(rows, np.float64)
        return jnp.asarray(exact.astype(rows.dtype))
    return jnp.asarray(weights, rows.dtype) @ rows


def peak(values: Any, *, axis: int | None = None) -> Any:
    """The largest magnitude along an axis, or of all; 0 of nothing, NaN if any is NaN.

    No array of the size of the values is formed.
    """
    values = np.asarray(values)
    ends = values.max(axis=axis, initial=0), -values.min(axis=axis, initial=0)
    return np.maximum(*ends)


def lost_by_rounding(exact: np.ndarray, rounded: np.ndarray) -> float:
    """``||rounded - exact|| / ||exact||``; 0 where nothing is lost."""
    peak = np.max(np.abs(exact), initial=0.0)
    if not peak or np.array_equal(exact, rounded):
        return 0.0
    exact, rounded = exact / peak, rounded / peak
    return float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))


def _kept(values: np.ndarray, exponent: int, module: str) -> np.ndarray:
    """Values times a power of two, if they are still told apart from zero."""
    exact = np.ldexp(values.astype(np.float64), exponent)
    with np.errstate(over="ignore"):
        result = exact.astype(values.dtype)
    if np.isfinite(result).all() and lost_by_rounding(exact, result) > _LOST:
        peak = np.max(np.abs(exact))
        raise Refusal(
            f"module {module!r}: the merge is too small for {result.dtype} (at most "
            f"{peak:.1e} in one of its arrays); multiply it by a larger scale, or "
            "merge it as factors, in core or knots space"
        )
    return result


def _exponents(stacks: Iterable[AdapterStack]) -> tuple[int, int]:
    """Powers of two that bring all B and all A near to 1; 0 where they are."""
    sizes = [(_binary(stack.b), _binary(stack.a)) for stack in stacks]
    largest = (max((size[k] for size in sizes), default=0) for k in (0, 1))
    left, right = map(_moving, largest)
    return left, right


def _scaled(stack: AdapterStack, left: int, right: int) -> AdapterStack:
    if (left, right) == (0, 0):
        return stack
    return stack.replace(b=_times(stack.b, left), a=_times(stack.a, right))


def _times(values: Any, exponent: int) -> jax.Array:
    return jnp.asarray(np.ldexp(np.asarray(values), exponent))


def _ordinary_number(value: Any) -> tuple[Any, int]:
    """Numbers, or module -> numbers, near to 1, and the power of two that is missing.

    The power is one for all modules.
    """
    if not isinstance(value, Mapping):
        exponent = _exponent(value)
        return (np.ldexp(value, exponent), -exponent) if exponent else (value, 0)
    exponent = _moving(max(map(_binary, value.values()), default=0))
    if not exponent:
        return value, 0
    return {name: np.ldexp(x, exponent) for name, x in value.items()}, -exponent


def _exponent(values: Any) -> int:
    return _moving(_binary(values))


def _moving(exponent: int) -> int:
    return -exponent if abs(exponent) > ORDINARY else 0


def _binary(values: Any) -> int:
    """Exponent of the largest magnitude; 0 for zeros and what is not finite."""
    largest = float(peak(values))
    return math.frexp(largest)[1] - 1 if largest and math.isfinite(largest) else 0
