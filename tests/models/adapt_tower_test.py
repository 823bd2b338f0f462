"""Updates and taps in a whole model: a small vision tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapt_samples import F32, SHAPES, random_update, tower, tower_updates

from jaxmerge.models import add_to_params, with_taps, with_updates
from jaxmerge.types import LowRank


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


@pytest.mark.thorough
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
