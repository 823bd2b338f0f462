"""The freedom in the factors: ``(B C, C^-1 A)`` is the same update as ``(B, A)``.

Mergers that look at factors (Pico, LoRA-LEGO, RobustMerge, entrywise rules in core
space) depend on it. `balanced` fixes it, so that they depend on the updates alone.
"""

from typing import Any

import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.doors import check_stack
from jaxmerge.types import AdapterStack, Calibration, Merger
from jaxmerge.updates import calibrated


def balance(stack: AdapterStack, **extra: Any) -> AdapterStack:
    """Canonical factors ``B_t = U_t sqrt(S_t)``, ``A_t = sqrt(S_t) V_t^T``.

    From the singular value decomposition of every ``B_t A_t``; unique up to joint
    signs of the directions where the singular values differ. Updates and ranks stay.

    Cost: O((m + n) R^2) for each task.
    """
    check_stack(balance, stack, extra)
    k = min(stack.b.shape[1], stack.a.shape[1], stack.a.shape[2])
    u, s, vt = linalg.svd_of_product(stack.b, stack.a)
    root = linalg.root(s)
    return stack.replace(
        b=jnp.zeros_like(stack.b).at[..., :k].set(u * root[:, None, :]),
        a=jnp.zeros_like(stack.a).at[:, :k, :].set(root[..., None] * vt),
    )


BALANCED = Calibration(before=balance)


def balanced(merger: Merger) -> Merger:
    """A merger that gets canonical factors (`balance`) of the same updates.

    >>> from jaxmerge.mergers.linear import concat
    >>> from jaxmerge.mergers.pico import pico
    >>> merge = balanced(pico(concat))
    """
    return calibrated(merger, BALANCED)
