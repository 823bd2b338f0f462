"""Updates and taps by interception, on every kind of linear layer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapt_samples import F32, LAYERS, Wrapped, random_update, setup
from tiers import in_turn

from jaxmerge.models import (
    add_to_params,
    layer_weights,
    linear_layers,
    with_taps,
    with_updates,
)
from jaxmerge.types import LowRank


def kernel_by_hand(case, update):
    """The update in the kernel's layout, written out for each case."""
    matrix = np.asarray(update.b @ update.a if isinstance(update, LowRank) else update)
    kernel = LAYERS[case][0]
    if case == "einsum, inputs in the middle":
        return matrix.reshape(2, 3, 5).transpose(0, 2, 1)
    if case == "einsum, inputs last, any leading axes":
        return matrix.reshape(5, 2, 3)
    shape = {
        "general, split heads": (5, 2, 3),
        "general, join heads": (2, 3, 5),
        "general, axes apart and unsorted": (5, 3, 2, 2),
    }.get(case, getattr(kernel, "shape", matrix.T.shape))
    return matrix.T.reshape(shape)


@pytest.mark.parametrize(("case", "rank"), in_turn([*LAYERS], [None, 2]))
def test_interception_equals_adding_to_the_kernel(case, rank):
    apply, variables, inputs, m, n = setup(case)
    updates = {"layer": random_update(2, m, n, rank)}
    folded = add_to_params(variables, updates, apply=apply, batch=inputs)
    kernel = variables["params"]["layer"]["kernel"]
    np.testing.assert_allclose(
        folded["params"]["layer"]["kernel"],
        kernel + kernel_by_hand(case, updates["layer"]),
        rtol=1e-6,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        with_updates(apply, updates)(variables, inputs),
        apply(folded, inputs),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("case", LAYERS)
def test_weights_are_what_an_update_is_added_to(case):
    apply, variables, inputs, m, n = setup(case)
    zero = jax.tree.map(jnp.zeros_like, variables)
    update = random_update(2, m, n)
    added = add_to_params(zero, {"layer": update}, apply=apply, batch=inputs)
    found = layer_weights(added, ["layer"], apply=apply, batch=inputs)
    np.testing.assert_array_equal(found["layer"], update)


@pytest.mark.parametrize("case", LAYERS)
def test_taps_are_the_inputs_that_updates_multiply(case):
    apply, variables, inputs, m, n = setup(case)
    outputs, taps = with_taps(apply, ["layer"])(variables, inputs)
    np.testing.assert_array_equal(outputs, apply(variables, inputs))
    update = random_update(2, m, n)
    added = with_updates(apply, {"layer": update})(variables, inputs) - outputs
    expected = taps["layer"] @ update.T
    if case == "einsum, inputs in the middle":
        expected = expected.reshape(2, 4, 2, 3).transpose(0, 2, 1, 3)
    assert taps["layer"].shape[-1] == n
    np.testing.assert_allclose(
        added, expected.reshape(added.shape), rtol=1e-4, atol=1e-5
    )


def test_a_low_rank_update_is_never_multiplied_out():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(64, use_bias=False, name="layer")(x)

    params = {"params": {"layer": {"kernel": jnp.zeros((48, 64), F32)}}}
    updates = {"layer": random_update(0, 64, 48, rank=2)}
    run = with_updates(Wide().apply, updates)
    program = jax.make_jaxpr(run)(params, jnp.ones((3, 48), F32))
    made = [v.aval.shape for eqn in program.eqns for v in eqn.outvars]
    assert made
    assert all(sorted(shape) != [48, 64] for shape in made)


def test_fold_in_rounds_once_to_the_dtype_of_the_kernel():
    model = Wrapped(nn.Dense(2, use_bias=False, name="layer"))
    kernel = jnp.full((3, 2), 1.0, jnp.bfloat16)
    update = jnp.full((2, 3), 2.0**-7 + 2.0**-8, F32)
    folded = add_to_params(
        {"params": {"layer": {"kernel": kernel}}},
        {"layer": update},
        apply=model.apply,
        batch=jax.ShapeDtypeStruct((1, 3), jnp.bfloat16),
    )
    result = folded["params"]["layer"]["kernel"]
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(result, np.float32), np.float32(1 + 2.0**-6)
    )


def test_updates_reach_layers_that_are_recomputed_in_the_backward_pass():
    class Rematerialised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(nn.Dense)(3, use_bias=False, name="layer")(x)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, use_bias=False, name="layer")(x)

    x, updates = jnp.ones((2, 5), F32), {"layer": random_update(0, 3, 5, rank=1)}
    variables = Plain().init(jax.random.key(0), x)

    def loss(updates, apply):
        return jnp.sum(with_updates(apply, updates)(variables, x) ** 2)

    ours = jax.value_and_grad(loss)(updates, Rematerialised().apply)
    expected = jax.value_and_grad(loss)(updates, Plain().apply)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected
    )


def test_layer_that_runs_twice_gets_the_update_twice_and_cannot_be_tapped():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(3, use_bias=False, name="layer")
            return layer(layer(x))

    x = jnp.ones((1, 3), F32)
    variables = Twice().init(jax.random.key(0), x)
    updates = {"layer": random_update(0, 3, 3)}
    folded = add_to_params(variables, updates, apply=Twice().apply, batch=x)
    np.testing.assert_allclose(
        with_updates(Twice().apply, updates)(variables, x),
        Twice().apply(folded, x),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="layer: runs more than once"):
        with_taps(Twice().apply, ["layer"])(variables, x)


def test_kernels_with_batch_axes_are_refused():
    layers = (
        nn.DenseGeneral(3, batch_dims=(0,), name="layer"),
        nn.Einsum((2, 5, 3), "bsd,bdk->bsk", use_bias=False, name="layer"),
    )
    x = jnp.ones((2, 4, 5), F32)
    for layer in layers:
        model = Wrapped(layer)
        variables = model.init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=r"layer: .* not one matrix"):
            with_updates(model.apply, {"layer": jnp.zeros((3, 5), F32)})(variables, x)


@pytest.mark.parametrize(("name", "rank"), in_turn([*LAYERS], [None, 2]))
def test_merged_weights_give_the_same_values_and_gradients(name, rank):
    layer, shape, m, n = LAYERS[name]
    model, update = Wrapped(layer), random_update(1, m, n, rank)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=shape), F32)
    params = model.init(jax.random.key(0), inputs)

    @partial(jax.jit, static_argnums=3)
    def outcome(update, inputs, params, merged):
        def loss(update, inputs, params):
            adapted = with_updates(model.apply, {"layer": update}, merged=merged)
            outputs, taps = with_taps(adapted, ["layer"])(params, inputs)
            return jnp.sum(jnp.sin(outputs)) + jnp.sum(taps["layer"])

        return jax.value_and_grad(loss, (0, 1, 2))(update, inputs, params)

    plain, merged, chosen = (
        outcome(update, inputs, params, way) for way in (False, True, None)
    )
    for other in (merged, chosen):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5),
            plain,
            other,
        )


def test_gradients_of_merged_weights_form_no_weight_gradient():
    """Beside the products with the weights only thin ones are left."""
    m, n, tokens, rank = 24, 20, 50, 3
    model, update = Wrapped(nn.Dense(m, name="layer")), random_update(0, m, n, rank)
    inputs = jnp.ones((tokens, n), F32)
    params = model.init(jax.random.key(0), inputs)

    def loss(update):
        return jnp.sum(
            with_updates(model.apply, {"layer": update}, merged=True)(params, inputs)
            ** 2
        )

    text = jax.jit(jax.grad(loss)).lower(update).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    weight_sized = [p for p in products if f"f32[{m},{n}]" in p.split("=")[1][:30]]
    weight_sized += [p for p in products if f"f32[{n},{m}]" in p.split("=")[1][:30]]
    assert len(weight_sized) == 1, products  # b @ a; the gradient would be a second


def test_linear_layers_are_named_in_the_order_in_which_they_run():
    model = nn.Sequential([nn.Dense(3), nn.LayerNorm(), nn.Conv(2, (1,)), nn.Dense(4)])
    x = jnp.ones((2, 5, 3), F32)
    params = model.init(jax.random.key(0), x)
    names = linear_layers(model.apply, params, x)
    assert names == ("layers_0", "layers_3")
    _, taps = with_taps(model.apply, names)(params, x)
    assert taps.keys() == set(names)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert linear_layers(model.apply, params, shape) == names
