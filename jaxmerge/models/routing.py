"""Routed cores in a model: the gates of a token, its mixture, and a Flax module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmerge.doors import check_routed
from jaxmerge.refusals import Refusal
from jaxmerge.types import LowRank, RoutedCores, Router

_LEAST_SQUARE = 1e-6  # of coordinates, so that those of a zero input have a derivative


def token_gates(routed: RoutedCores, rows: jax.Array) -> jax.Array:
    """How much of each adapter every token gets.

    Args:
      routed: T cores, and gates of any kind.
      rows: inputs x of the module, [..., n].

    Returns:
      g [..., T]; those of a router are positive with sum 1, others are as given.

    >>> router = Router(weights=jnp.array([[4.0], [-4.0]]), biases=jnp.zeros(2))
    >>> basis = LowRank(b=jnp.ones((1, 1)), a=jnp.ones((1, 1)))
    >>> routed = RoutedCores(basis, jnp.ones((2, 1, 1)), router)
    >>> print(token_gates(routed, jnp.array([[3.0], [0.0]])).round(3))
    [[1.  0. ]
     [0.5 0.5]]
    """
    check_routed(token_gates, routed)
    if isinstance(routed.gates, Router):
        return _router_gates(routed.gates, _inwards(routed, rows, None))
    gates = _given_gates(routed.gates, rows)
    between = (1,) * (rows.ndim - gates.ndim)
    spread = gates.reshape(*gates.shape[:-1], *between, gates.shape[-1])
    return jnp.broadcast_to(spread, (*rows.shape[:-1], gates.shape[-1]))


def routed_product(
    routed: RoutedCores, rows: jax.Array, *, precision: Any = None
) -> jax.Array:
    """``U (sum_t g_t M_t) V^T x`` for every token x.

    Args:
      routed: T cores, and gates of any kind.
      rows: x [..., n]; the products are in its dtype.
      precision: of the products, as for ``jnp.matmul``.

    Returns:
      [..., m].

    Raises:
      Refusal: gates of a batch of another size than that of ``rows``.

    Cost for each token, in multiplications: ``q n + m p + T p q`` and ``T q`` for the
    gates with a router; ``q n + m p + p q`` with gates that are given, whose mixture is
    formed once for all tokens, or once for each example.

    >>> basis = LowRank(b=jnp.eye(2), a=jnp.eye(2))
    >>> cores = jnp.stack([jnp.eye(2), 10 * jnp.eye(2)])
    >>> x, gates = jnp.ones((2, 2)), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(routed_product(RoutedCores(basis, cores, gates), x))
    [[ 1.  1.]
     [10. 10.]]
    """
    check_routed(routed_product, routed)
    small = _inwards(routed, rows, precision)
    cores, gates = routed.cores, routed.gates
    if isinstance(gates, Router):
        each = _router_gates(gates, small).astype(rows.dtype)
        spread = each[..., :, None] * small[..., None, :]
        flat = spread.reshape(*spread.shape[:-2], -1)  # [..., T q]
        together = jnp.moveaxis(cores, 1, 2).reshape(-1, cores.shape[1])
    else:
        gates = _given_gates(gates, rows).astype(cores.dtype)
        together = jnp.einsum("...t,tpq->...qp", gates, cores, precision=precision)
        flat = (
            small if gates.ndim == 1 else small.reshape(len(small), -1, cores.shape[2])
        )
    mixed = jnp.matmul(flat, together.astype(rows.dtype), precision=precision)
    mixed = mixed.reshape(*rows.shape[:-1], cores.shape[1])
    return jnp.matmul(mixed, routed.basis.b.astype(rows.dtype).T, precision=precision)


class RoutedUpdate(nn.Module):
    """Routed cores as a Flax module, to be added to the output of a linear layer.

    ``nn.Dense(m)(x) + RoutedUpdate(m, tasks, (p, q))(x)``. `routed_module` makes one of
    adapters; from its own initialiser it begins as a zero update.

    Attributes:
      features: m.
      tasks: T.
      widths: p and q, those of U and of V.
      trained: what is a parameter: the "router", its "cores" too, or "all". The rest is
        in the collection "constants", which no optimiser of parameters sees.
    """

    features: int
    tasks: int
    widths: tuple[int, int]
    trained: str = "router"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """From x [..., n] to its update [..., m]."""
        p, q = self.widths
        bases = jax.nn.initializers.orthogonal()
        zeros = jax.nn.initializers.zeros
        routed = RoutedCores(
            basis=LowRank(
                b=self._array("u", bases, (self.features, p)),
                a=self._array("v", bases, (q, inputs.shape[-1])),
            ),
            cores=self._array("cores", zeros, (self.tasks, p, q)),
            gates=Router(
                weights=self._array("weights", zeros, (self.tasks, q)),
                biases=self._array("biases", zeros, (self.tasks,)),
            ),
        )
        return routed_product(routed, inputs)

    def _array(self, name: str, init: Any, shape: tuple[int, ...]) -> jax.Array:
        if name in parameters_of(self.trained):
            return self.param(name, init, shape)

        def first() -> jax.Array:
            return init(self.make_rng("params"), shape)

        return self.variable("constants", name, first).value


def routed_module(
    routed: RoutedCores, *, trained: str = "router"
) -> tuple[RoutedUpdate, dict[str, Any]]:
    """A Flax module that computes what routed cores do, and its variables.

    Args:
      routed: with a `Router`.
      trained: see `RoutedUpdate`.

    Returns:
      The module, and its variables by collection.

    Raises:
      Refusal: gates that are given: a module has parameters, and there are none.

    >>> router = Router(weights=jnp.zeros((2, 1)), biases=jnp.zeros(2))
    >>> basis = LowRank(b=jnp.ones((1, 1)), a=jnp.ones((1, 1)))
    >>> routed = RoutedCores(basis, jnp.array([[[1.0]], [[3.0]]]), router)
    >>> module, variables = routed_module(routed)
    >>> print(module.apply(variables, jnp.ones((1, 1))), sorted(variables["params"]))
    [[2.]] ['biases', 'weights']
    """
    check_routed(routed_module, routed)
    if not isinstance(routed.gates, Router):
        raise Refusal(
            "routed_module takes cores with a Router; with_updates runs those whose "
            "gates are given"
        )
    tasks, *widths = routed.cores.shape
    names = parameters_of(trained)
    module = RoutedUpdate(
        routed.basis.b.shape[0], tasks, (widths[0], widths[1]), trained
    )
    arrays = {
        "u": routed.basis.b,
        "v": routed.basis.a,
        "cores": routed.cores,
        **routed.gates._asdict(),
    }
    params = {name: x for name, x in arrays.items() if name in names}
    constants = {name: x for name, x in arrays.items() if name not in names}
    return module, {"params": params, **({"constants": constants} if constants else {})}


def parameters_of(trained: str) -> tuple[str, ...]:
    """Names of the arrays that are trained."""
    router = ("weights", "biases")
    known = {
        "router": router,
        "cores": (*router, "cores"),
        "all": (*router, "cores", "u", "v"),
    }
    if trained not in known:
        raise Refusal(f"trained is one of {', '.join(known)}, not {trained!r}")
    return known[trained]


def _inwards(routed: RoutedCores, rows: jax.Array, precision: Any) -> jax.Array:
    """z = V^T x, [..., q]."""
    return jnp.matmul(rows, routed.basis.a.astype(rows.dtype).T, precision=precision)


def _router_gates(router: Router, small: jax.Array) -> jax.Array:
    """Gates [..., T] of coordinates z [..., q], in float32 at least."""
    wide = jnp.float32 if jnp.finfo(small.dtype).bits < 32 else small.dtype
    small = small.astype(wide)
    square = jnp.mean(small**2, axis=-1, keepdims=True)
    near = small * jax.lax.rsqrt(square + jnp.asarray(_LEAST_SQUARE, wide))
    logits = jnp.matmul(near, router.weights.astype(wide).T)
    biases = jnp.broadcast_to(router.biases.astype(wide), logits.shape)
    return jax.nn.softmax(logits + biases, axis=-1)


def _given_gates(gates: jax.Array, rows: jax.Array) -> jax.Array:
    """Gates [T] or [B, T]; refuses those of another batch."""
    if gates.ndim == 2 and (rows.ndim < 2 or len(gates) != len(rows)):
        raise Refusal(
            f"gates {gates.shape} are those of {len(gates)} examples, the inputs are "
            f"{rows.shape}; give [T] for all, or one row for each example"
        )
    return gates
