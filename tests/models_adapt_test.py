"""Updates and taps by interception, on every kind of linear layer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.models import (
    VisionConfig,
    add_to_params,
    init_vision,
    layer_weights,
    linear_layers,
    vision_apply,
    with_taps,
    with_updates,
)
from jaxmerge.types import LowRank

F32 = jnp.float32

# layer, axes of its input, m, n
LAYERS = {
    "dense": (nn.Dense(6, name="layer"), (2, 3, 5), 6, 5),
    "dense, one axis": (nn.Dense(6, use_bias=False, name="layer"), (5,), 6, 5),
    "general, split heads": (nn.DenseGeneral((2, 3), name="layer"), (4, 5), 6, 5),
    "general, join heads": (
        nn.DenseGeneral(5, axis=(-2, -1), name="layer"),
        (4, 2, 3),
        5,
        6,
    ),
    "general, axes apart and unsorted": (
        nn.DenseGeneral((2, 2), axis=(-1, 1), name="layer"),
        (4, 5, 2, 3),
        4,
        15,
    ),
    "einsum, inputs first": (
        nn.Einsum((5, 2, 3), "bsd,dhk->bshk", name="layer"),
        (2, 4, 5),
        6,
        5,
    ),
    "einsum, inputs in the middle": (
        nn.Einsum((2, 5, 3), "bsd,hdk->bhsk", use_bias=False, name="layer"),
        (2, 4, 5),
        6,
        5,
    ),
    "einsum, inputs last, any leading axes": (
        nn.Einsum((5, 2, 3), "...hk,dhk->...d", use_bias=False, name="layer"),
        (2, 4, 2, 3),
        5,
        6,
    ),
    "einsum, an input axis that is summed": (
        nn.Einsum((5, 6), "bsd,df->bf", use_bias=False, name="layer"),
        (2, 4, 5),
        6,
        5,
    ),
}


class Wrapped(nn.Module):
    """A model with one layer."""

    layer: nn.Module

    def __call__(self, inputs):
        return self.layer(inputs)


def random_update(seed, m, n, rank=None):
    rng = np.random.default_rng(seed)
    if rank is None:
        return jnp.asarray(rng.normal(size=(m, n)), F32)
    b, a = rng.normal(size=(m, rank)), rng.normal(size=(rank, n))
    return LowRank(b=jnp.asarray(b, F32), a=jnp.asarray(a, F32))


def setup(case):
    layer, shape, m, n = LAYERS[case]
    model = Wrapped(layer)
    inputs = jax.random.normal(jax.random.key(1), shape, F32)
    return model.apply, model.init(jax.random.key(0), inputs), inputs, m, n


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


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("case", LAYERS)
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


CONFIG = VisionConfig(
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=4,
    patch_size=2,
    num_channels=1,
    projection_dim=5,
)
SHAPES = {
    "vision_model.encoder.layers.0.self_attn.q_proj": (8, 8),
    "vision_model.encoder.layers.1.mlp.fc1": (12, 8),
    "vision_model.encoder.layers.1.mlp.fc2": (8, 12),
    "visual_projection": (5, 8),
}


def tower():
    images = jax.random.normal(jax.random.key(5), (3, 4, 4, 1), F32)
    return vision_apply(CONFIG), init_vision(CONFIG, jax.random.key(0)), images


def tower_updates(seed):
    return {
        name: random_update(seed + i, *shape, rank=i)
        for i, (name, shape) in enumerate(SHAPES.items(), start=1)
    }


def test_vision_tower_with_updates_equals_folded_weights():
    apply, params, images = tower()
    updates = tower_updates(0)
    ours = with_updates(apply, updates)(params, images)
    folded = add_to_params(params, updates, apply=apply, batch=images)
    np.testing.assert_allclose(ours, apply(folded, images), rtol=1e-4, atol=1e-5)
    assert np.abs(ours - apply(params, images)).max() > 0.1
    assert params["visual_projection"]["kernel"] is not None
    untouched = folded["vision_model"]["encoder"]["layers"]["0"]["mlp"]["fc1"]["kernel"]
    assert (
        untouched
        is params["vision_model"]["encoder"]["layers"]["0"]["mlp"]["fc1"]["kernel"]
    )


def test_updates_jit_differentiate_and_vmap():
    apply, params, images = tower()

    def loss(updates):
        return jnp.mean(with_updates(apply, updates)(params, images) ** 2)

    several = [tower_updates(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    expected = jnp.stack([loss(updates) for updates in several])
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(stacked), expected, rtol=1e-4)

    name = "vision_model.encoder.layers.1.mlp.fc2"
    gradient = jax.grad(loss)(several[0])[name]
    step, direction = 1e-3, random_update(9, 8, 12, rank=3)

    def along(t):
        factors = jax.tree.map(lambda x, d: x + t * d, several[0][name], direction)
        return loss(several[0] | {name: factors})

    slope = (along(step) - along(-step)) / (2 * step)
    inner = sum(jnp.sum(g * d) for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(inner, slope, rtol=2e-2)


def test_gradients_equal_those_of_the_dense_update():
    apply, params, images = tower()
    low_rank = tower_updates(0)

    def loss(updates):
        return jnp.sum(jnp.sin(with_updates(apply, updates)(params, images)))

    dense = {name: update.b @ update.a for name, update in low_rank.items()}
    factored, whole = jax.grad(loss)(low_rank), jax.grad(loss)(dense)
    for name, (b, a) in low_rank.items():
        for ours, chained in (
            (factored[name].b, whole[name] @ a.T),
            (factored[name].a, b.T @ whole[name]),
        ):
            scale = float(jnp.abs(chained).max())
            np.testing.assert_allclose(ours, chained, rtol=0, atol=1e-4 * scale)


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


def test_taps_around_updates_see_the_updated_model():
    apply, params, images = tower()
    updates = tower_updates(0)
    name = "vision_model.encoder.layers.1.mlp.fc2"
    _, taps = with_taps(with_updates(apply, updates), [name])(params, images)
    folded = add_to_params(params, updates, apply=apply, batch=images)
    _, expected = with_taps(apply, [name])(folded, images)
    _, before = with_taps(apply, [name])(params, images)
    np.testing.assert_allclose(taps[name], expected[name], rtol=1e-4, atol=1e-5)
    assert taps[name].shape == (3, 5, 12)
    assert np.abs(taps[name] - before[name]).max() > 1e-2


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


def test_fold_in_again_with_other_updates():
    apply, params, images = tower()
    batch = jax.ShapeDtypeStruct(images.shape, F32)
    for seed in range(2):
        updates = tower_updates(seed)
        folded = add_to_params(params, updates, apply=apply, batch=batch)
        expected = with_updates(apply, updates)(params, images)
        np.testing.assert_allclose(
            apply(folded, images), expected, rtol=1e-4, atol=1e-5
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


def test_modules_that_the_model_does_not_run_are_refused_with_the_nearest_names():
    apply, params, images = tower()
    wrong = {"vision_model.encoder.layer.0.self_attn.q_proj": jnp.zeros((8, 8), F32)}
    nearest = r"layer\.0\.self_attn\.q_proj.*nearest.*layers\.0\.self_attn\.q_proj"
    with pytest.raises(ValueError, match=nearest):
        with_updates(apply, wrong)(params, images)
    with pytest.raises(ValueError, match=nearest):
        with_taps(apply, wrong)(params, images)
    with pytest.raises(ValueError, match=nearest):
        add_to_params(params, wrong, apply=apply, batch=images)


@pytest.mark.parametrize(
    ("name", "update", "message"),
    [
        (
            "vision_model.encoder.layers.1.mlp.fc1",
            jnp.zeros((8, 12), F32),
            r"fc1: the layer is \(12, 8\), the update \(8, 12\)",
        ),
        (
            "visual_projection",
            LowRank(b=jnp.zeros((5, 2), F32), a=jnp.zeros((2, 7), F32)),
            r"the layer is \(5, 8\), the update \(5, 7\)",
        ),
        (
            "vision_model.embeddings.patch_embedding",
            jnp.zeros((8, 4), F32),
            "patch_embedding is a Conv, not one of Dense",
        ),
    ],
)
def test_updates_that_do_not_fit_are_refused(name, update, message):
    apply, params, images = tower()
    with pytest.raises(ValueError, match=message):
        with_updates(apply, {name: update})(params, images)
    with pytest.raises(ValueError, match=message):
        add_to_params(params, {name: update}, apply=apply, batch=images)


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


def test_compiled_functions_are_refused_for_their_cache_would_keep_the_update():
    apply, params, images = tower()
    compiled = jax.jit(apply)
    for attempt in (
        lambda: with_updates(compiled, tower_updates(0)),
        lambda: with_taps(compiled, list(SHAPES)),
        lambda: add_to_params(params, {}, apply=compiled, batch=images),
    ):
        with pytest.raises(ValueError, match=r"before jax\.jit"):
            attempt()


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", LAYERS)
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
