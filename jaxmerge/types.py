"""The types of jaxmerge: the page to read first.

A *module* is one adapted linear layer, named by its PEFT path. Letters, everywhere:
T tasks, m outputs, n inputs, R padded rank, K = sum of ranks, k directions, p x q the
space in which a rule works, L modules of one shape.

There are four levels, each a function type, and they compose as ``jax.vmap`` and
``jax.grad`` do:

* a `Rule` merges T matrices, in whatever space they live;
* a `Merger` merges the T adapters of one module (a space makes one of a rule);
* a `Post` changes a merged update;
* a `ModelMerger` merges all modules of a model (`jaxmerge.each_module` makes one of a
  merger).

A `Calibration` changes the adapters before a merge and the update after it, around any
merger. A `Learned` is a merger with coefficients; with fitted ones it merges a whole
model (`jaxmerge.apply_learned`).

What a call needs beside its matrices, adapters or update is a keyword. Whoever needs
one declares it, everyone else takes ``**extra`` and forwards it. These exist:

* ``key``, a key of ``jax.random``, given by the caller;
* ``weights`` [T], and ``densities`` [T] for steps that trim or drop entries and have no
  density of their own, given by the caller, for all modules or module -> [T];
* ``stats``, statistics of the inputs of the module, given by the caller;
* ``sample``, the base model and inputs of every task, given by the caller;
* ``ranks`` and ``size``, given to a rule by its space;
* ``stack``, the adapters of the module, given to a post by `jaxmerge.then`.

A keyword of a call reaches every function of the composition that declares it. So bind
hyper-parameters with ``functools.partial``, each to its own function:
``then(full_space(partial(cart, by=0.1)), partial(scale, by=0.5))``. Given in the call,
``by=0.5`` would be that of `scale` and of `cart`.

A name that is almost one of these, or almost a keyword of the function that gets it, is
a misspelling and raises. Where a model is merged, `jaxmerge.map_modules` also refuses
names that nobody is known to take; ``extras=["mine"]`` says that a part takes ``mine``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("a", "b"),
    meta_fields=("ranks",),
)
@dataclass(frozen=True)
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
    ranks: tuple[int, ...]

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of the tasks that adapt this module."""
        return tuple(t for t, rank in enumerate(self.ranks) if rank > 0)

    def replace(
        self,
        *,
        a: jax.Array | None = None,
        b: jax.Array | None = None,
        ranks: tuple[int, ...] | None = None,
    ) -> "AdapterStack":
        """The same stack with other values in the given fields."""
        return AdapterStack(
            a=self.a if a is None else a,
            b=self.b if b is None else b,
            ranks=self.ranks if ranks is None else ranks,
        )


class LowRank(NamedTuple):
    """A matrix ``b @ a`` kept as its factors."""

    b: jax.Array  # [m, k]
    a: jax.Array  # [k, n]


Update = jax.Array | LowRank  # a dense update is just an array [m, n]


class Router(NamedTuple):
    """Gates of a token from its coordinates z: ``softmax(weights z' + biases)``.

    z' is z with a mean square of 1, so that the size of a module's inputs has no say.
    """

    weights: jax.Array  # [T, q]
    biases: jax.Array  # [T]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RoutedCores:
    """T updates in common bases, of which every token x gets a mixture of its own.

    ``U (sum_t g_t M_t) V^T x``. It is no `Update`, as no one matrix does the same:
    `jaxmerge.models.with_updates` runs it in a model.

    Attributes:
      basis: b = U [m, p], a = V^T [q, n].
      cores: M [T, p, q]; zeros where a task has no adapter.
      gates: g [T] for all tokens, [B, T] with a row for each example of a batch, or the
        `Router` that finds them for each token from ``z = V^T x``.
    """

    basis: LowRank
    cores: jax.Array
    gates: "jax.Array | Router"

    def replace(
        self,
        *,
        cores: jax.Array | None = None,
        gates: "jax.Array | Router | None" = None,
    ) -> "RoutedCores":
        """The same with other values in the given fields."""
        return RoutedCores(
            basis=self.basis,
            cores=self.cores if cores is None else cores,
            gates=self.gates if gates is None else gates,
        )


RealLike = float | np.integer[Any] | np.floating[Any] | np.ndarray | jax.Array


class Rule(Protocol):
    """Merges T matrices: [T, p, q] -> [p, q]."""

    def __call__(self, matrices: jax.Array, /, **extra: Any) -> jax.Array: ...


class Merger(Protocol):
    """Merges the T adapters of one module into one update."""

    def __call__(self, stack: AdapterStack, /, **extra: Any) -> Update: ...


class Post(Protocol):
    """Changes a merged update; ``stack`` holds the adapters it came from."""

    def __call__(self, update: Update, /, **extra: Any) -> Update: ...


class ModelMerger(Protocol):
    """Merges the T adapters of every module of a model: module -> update.

    Beside the inputs of a merger it takes ``chunk``, ``mesh`` and ``gather``, see
    `jaxmerge.map_modules`; ``stats`` are then those of every module. Adapters that are
    `jaxmerge.streamed.Streamed` give updates that are.
    """

    def __call__(
        self, stacks: Mapping[str, AdapterStack], /, **extra: Any
    ) -> dict[str, Update]: ...


class Calibration(NamedTuple):
    """What surrounds a merge: a change of the adapters, and a post that may undo it.

    ``before`` gets the adapters and the inputs of the call, such as ``stats``;
    ``after`` the adapters as they were before ``before`` changed them. None leaves
    things as they are, so that a post alone is a calibration too. It surrounds a
    `Merger` (`jaxmerge.calibrated`), a `ModelMerger` (`jaxmerge.calibrated_model`) or a
    `Learned` (`jaxmerge.compose`).
    """

    before: Callable[..., AdapterStack] | None = None
    after: Post | None = None


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

    ``prepare`` runs once for each module and holds every decomposition; it is called
    with the adapters, and with their ``stats`` where a fit is given any. ``init`` gives
    the first phi; ``apply`` merges, differentiable in phi. Where ``apply`` is linear in
    phi, ``squares`` may give the `Squares` of (basis, inputs [N, n], outputs [N, m],
    weights [N]), so that phi can be found in closed form.
    """

    prepare: Callable[..., Any]
    init: Callable[[Any], jax.Array]
    apply: Callable[[jax.Array, Any], Update]
    squares: Callable[[Any, jax.Array, jax.Array, jax.Array], "Squares"] | None = None


class Squares(NamedTuple):
    """Weighted least squares in coefficients phi, a sum over inputs x and outputs y.

    ``sum_i w_i ||D(phi) x_i - y_i||^2 = phi^T G phi - 2 phi^T g + e``, where phi is
    taken as [P, S]: its S columns do not meet in any output.
    """

    gram: jax.Array  # [P, P, S]
    moment: jax.Array  # [P, S]
    energy: jax.Array  # []
