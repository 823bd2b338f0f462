"""The types of jaxmerge: the page to read first.

A *module* is one adapted linear layer, named by its PEFT path. Letters, everywhere:
T tasks, m outputs, n inputs, R padded rank, K = sum of ranks, k directions, p x q the
space in which a rule works, L modules of one shape.

There are three levels, each a function type, and they compose as ``jax.vmap`` and
``jax.grad`` do:

* a `Rule` merges T matrices, in whatever space they live;
* a `Merger` merges the T adapters of one module (a space makes one of a rule);
* a `Post` changes a merged update.

What a call needs beside its matrices, adapters or update is a keyword. Whoever needs
one declares it, everyone else takes ``**extra`` and forwards it. These exist:

* ``key``, a key of ``jax.random``, and ``weights`` [T], given by the caller;
* ``stats``, statistics of the inputs of the module, given by the caller;
* ``ranks`` and ``size``, given to a rule by its space;
* ``stack``, the adapters of the module, given to a post by `jaxmerge.then`.

A keyword of a call reaches every function of the composition that declares it, and one
that nobody declares is ignored, as extra arguments are in optax. So bind
hyper-parameters with ``functools.partial``, each to its own function:
``then(full_space(partial(cart, by=0.1)), partial(scale, by=0.5))``. Given in the call,
``by=0.5`` would be that of `scale` and of `cart`, and a misspelled name would be lost.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@flax.struct.dataclass
class AdapterStack:
    """T adapters of one module; the update of task t is ``b[t] @ a[t]``.

    Ranks may differ: factors are padded with zeros to R columns (layout), while the
    static ``ranks`` keep the true sizes (meaning). No result depends on the padding.

    Attributes:
      a: [T, R, n]; rows from ``ranks[t]`` on are zero.
      b: [T, m, R]; columns from ``ranks[t]`` on are zero; the LoRA scale (alpha/r) is
        already folded in.
      ranks: true rank of each task; 0 means that the task has no adapter here.
    """

    a: jax.Array
    b: jax.Array
    ranks: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of the tasks that adapt this module."""
        return tuple(t for t, rank in enumerate(self.ranks) if rank > 0)


class LowRank(NamedTuple):
    """A matrix ``b @ a`` kept as its factors."""

    b: jax.Array  # [m, k]
    a: jax.Array  # [k, n]


Update = jax.Array | LowRank  # a dense update is just an array [m, n]


class Rule(Protocol):
    """Merges T matrices: [T, p, q] -> [p, q]."""

    def __call__(self, matrices: jax.Array, **extra: Any) -> jax.Array: ...


class Merger(Protocol):
    """Merges the T adapters of one module into one update."""

    def __call__(self, stack: AdapterStack, **extra: Any) -> Update: ...


class Post(Protocol):
    """Changes a merged update; ``stack`` holds the adapters it came from."""

    def __call__(self, update: Update, **extra: Any) -> Update: ...


class Space(NamedTuple):
    """Coordinates in which rules work.

    ``project`` gives the coordinates of every present task, ``[T, p, q]``, and what
    ``rebuild`` needs to map one matrix of coordinates back to an update.

    Shapes are static, so null directions (of deficient, duplicate or zero adapters)
    keep their rows and columns, filled with zeros. ``size`` counts the entries of one
    matrix without them; rules get it as ``size``, and densities are shares of it. None
    where every entry counts.
    """

    project: Callable[[AdapterStack], tuple[jax.Array, Any]]
    rebuild: Callable[[jax.Array, Any], Update]
    size: Callable[[jax.Array, Any], jax.Array] | None = None


class Learned(NamedTuple):
    """A merger with coefficients phi that are fitted through a model.

    ``prepare`` runs once for each module and holds every decomposition; ``init`` gives
    the first phi; ``apply`` merges, differentiable in phi.
    """

    prepare: Callable[[AdapterStack], Any]
    init: Callable[[Any], jax.Array]
    apply: Callable[[jax.Array, Any], Update]


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
    return AdapterStack(a=jnp.asarray(stacked_a), b=jnp.asarray(stacked_b), ranks=ranks)


def _precision(dtype, name):
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{name}: no decompositions in {dtype.name}; leave dtype out, then factors "
            "of any dtype are computed in float32, or give float64"
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name}: for adapters in float64 set jax_enable_x64")
    return dtype
