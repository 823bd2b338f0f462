"""Routed cores in a model: the laws of their gates, and the Flax module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapt_samples import F32, LAYERS, SHAPES, Wrapped, setup, tower
from methods import random_stack

import jaxmerge as jm
from jaxmerge.models import (
    routed_module,
    routed_product,
    token_gates,
    with_updates,
)
from jaxmerge.types import LowRank, RoutedCores, Router

T, M, N = 3, 6, 5


route = jax.jit(jm.route_cores)


def sample(m=M, n=N, *, dtype=np.float32, ranks=(2, 1, 2)):
    stack = random_stack(ranks, m, n, dtype=dtype)
    return stack, route(stack)


def router(width, *, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    weights, biases = rng.normal(size=(T, width)), rng.normal(size=T)
    return Router(jnp.asarray(weights, dtype), jnp.asarray(biases, dtype))


def rows(*leading, n=N, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(4).normal(size=(*leading, n)), dtype)


QUICK = ("dense", "dense, one axis", "einsum, inputs in the middle")
CASES = [
    case if case in QUICK else pytest.param(case, marks=pytest.mark.thorough)
    for case in LAYERS
]


@pytest.mark.parametrize("case", CASES)
def test_one_gate_is_that_adapter_in_every_kind_of_layer(case):
    apply, variables, inputs, m, n = setup(case)
    stack, routed = sample(m, n)
    own = jm.task_updates({"layer": stack}, 1)
    routed = routed.replace(gates=jnp.array([0.0, 1.0, 0.0], F32))
    np.testing.assert_allclose(
        with_updates(apply, {"layer": routed}, merged=None)(variables, inputs),
        with_updates(apply, own)(variables, inputs),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_token_gets_the_mixture_of_its_gates(dtype):
    stack, routed = sample(dtype=dtype)
    routed, x = routed.replace(gates=router(N, dtype=dtype)), rows(2, 4, dtype=dtype)
    gates = token_gates(routed, x)
    z = np.asarray(x) @ np.asarray(routed.basis.a).T
    z = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)
    logits = z @ np.asarray(routed.gates.weights).T + np.asarray(routed.gates.biases)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(gates, expected, rtol=tolerance, atol=tolerance)
    own = jnp.einsum("tmr,trn->tmn", stack.b, stack.a)
    mixed = jnp.einsum("bst,tmn,bsn->bsm", gates, own, x)
    found = routed_product(routed, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, mixed, rtol=50 * tolerance, atol=50 * tolerance)


def test_gates_of_examples_are_those_of_each_alone():
    _, routed = sample()
    x, gates = rows(2, 4), jnp.asarray([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], F32)
    together = routed_product(routed.replace(gates=gates), x)
    alone = jax.vmap(lambda g, y: routed_product(routed.replace(gates=g), y))(gates, x)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert token_gates(routed.replace(gates=gates), x).shape == (2, 4, T)
    with pytest.raises(jm.Refusal, match=r"2 examples, the inputs are \(3, 4, 5\)"):
        routed_product(routed.replace(gates=gates), rows(3, 4))


def test_a_sure_router_is_one_adapter_and_a_new_one_the_average():
    stack, routed = sample()
    x, zero = rows(7), Router(jnp.zeros((T, N), F32), jnp.zeros(T, F32))
    sure = zero._replace(biases=jnp.array([0.0, 0.0, 200.0], F32))
    own = jnp.einsum("tmr,trn,bn->tbm", stack.b, stack.a, x)
    for gates, expected in ((sure, own[2]), (zero, own.mean(0))):
        found = routed_product(routed.replace(gates=gates), x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_differences_and_finite_for_zeros():
    stack, routed = sample(dtype=np.float64)
    routed = routed.replace(gates=router(N, dtype=np.float64))
    target = rows(2, 4, n=M, dtype=np.float64)

    @jax.jit
    def loss(given, x):
        return jnp.sum(routed_product(given, x) * target)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    x = rows(2, 4, dtype=np.float64)
    found = gradient(routed, x)
    step = jax.tree.map(
        lambda y: 1e-6 * jnp.cos(jnp.arange(y.size * 1.0)).reshape(y.shape), (routed, x)
    )
    ahead, behind = (
        loss(*jax.tree.map(lambda y, d, s=sign: y + s * d, (routed, x), step))
        for sign in (1.0, -1.0)
    )
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), found, step)))
    assert float(slope) == pytest.approx(float(ahead - behind) / 2, rel=1e-5)
    nothing = route(stack.replace(b=jnp.zeros_like(stack.b)))
    for given, inputs in ((nothing.replace(gates=routed.gates), x), (routed, 0 * x)):
        leaves = jax.tree.leaves(gradient(given, inputs))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)


def test_no_matrix_of_the_size_of_the_update_is_formed():
    _, routed = sample(64, 48, ranks=(2, 2, 2))
    routed = routed.replace(gates=router(6))
    program = jax.make_jaxpr(routed_product)(routed, rows(3, 7, n=48))
    made = [v.aval.shape for eqn in program.eqns for v in eqn.outvars]
    assert made
    assert all(sorted(shape)[-2:] != [48, 64] for shape in made)


@pytest.mark.thorough
def test_a_tower_runs_every_task_of_a_batch_by_its_own_adapter():
    apply, params, images = tower()
    stacks = {
        name: random_stack((2, 1, 2), *shape, seed=i, dtype=np.float32, scale=0.3)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    gates = jnp.eye(T, dtype=F32)
    routed = {name: route(s).replace(gates=gates) for name, s in stacks.items()}

    @jax.jit
    def run(updates, images):
        return with_updates(apply, updates)(params, images)

    together = run(routed, images)
    for task in range(T):
        alone = run(jm.task_updates(stacks, task), images)
        np.testing.assert_allclose(together[task], alone[task], rtol=2e-4, atol=2e-5)


def test_what_does_not_fit_a_model_is_refused():
    apply, variables, inputs, m, n = setup("dense")
    _, wide = sample(m + 1, n)
    with pytest.raises(ValueError, match=r"layer: the layer is \(6, 5\), the update"):
        with_updates(apply, {"layer": wide})(variables, inputs)
    _, routed = sample(m, n)
    with pytest.raises(jm.Refusal, match="fix their gates by"):
        jm.models.add_to_params(variables, {"layer": routed}, apply=apply, batch=inputs)


@pytest.mark.parametrize("trained", ["router", "cores", "all"])
def test_the_module_computes_the_same_and_trains_what_it_is_told(trained):
    _, routed = sample()
    routed = routed.replace(gates=router(N))
    module, variables = routed_module(routed, trained=trained)
    x = rows(2, 4)
    found = module.apply(variables, x)
    np.testing.assert_allclose(found, routed_product(routed, x), rtol=1e-6)
    trainable = {
        "router": {"weights", "biases"},
        "cores": {"weights", "biases", "cores"},
    }
    everything = {"weights", "biases", "cores", "u", "v"}
    names = trainable.get(trained, everything)
    assert variables["params"].keys() == names
    assert variables.get("constants", {}).keys() == everything - names
    begun = module.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_array_equal(module.apply(begun, x), 0)


@pytest.mark.thorough
def test_the_module_stands_beside_a_layer():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            added = jm.models.RoutedUpdate(M, T, (4, N), name="added")(x)
            return nn.Dense(M, name="layer")(x) + added

    x = rows(2)
    variables = Model().init(jax.random.key(0), x)
    assert variables["constants"]["added"]["u"].shape == (M, 4)
    plain = {"params": {"layer": variables["params"]["layer"]}}
    expected = Wrapped(nn.Dense(M, name="layer")).apply(plain, x)
    np.testing.assert_array_equal(Model().apply(variables, x), expected)


def test_what_a_module_cannot_be_made_of_is_refused():
    _, routed = sample()
    with pytest.raises(jm.Refusal, match="takes cores with a Router"):
        routed_module(routed)
    with pytest.raises(jm.Refusal, match="one of router, cores, all, not 'core'"):
        routed_module(routed.replace(gates=router(N)), trained="core")
    with pytest.raises(jm.Refusal, match="routed_product takes routed cores"):
        routed_product(routed.basis, rows(2))
    narrow = RoutedCores(
        LowRank(b=routed.basis.b, a=routed.basis.a[:2]), routed.cores, routed.gates
    )
    with pytest.raises(jm.Refusal, match=r"cores \[T, p, q\]"):
        routed_product(narrow, rows(2))
