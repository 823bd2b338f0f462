"""Models of flax nnx: the same numbers as linen on the same weights."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapt_samples import F32, LAYERS, random_update, setup
from fit_problem import adamw
from flax import nnx

import jaxmerge as jm
from jaxmerge.models import (
    add_to_params,
    layer_weights,
    linear_layers,
    nnx_apply,
    with_taps,
    with_updates,
)

RNGS = nnx.Rngs(0)


def of_nnx(case):
    """The layer of a case, in a model that has the weights of linen's."""
    layer, shape = LAYERS[case][:2]
    options = {"use_bias": layer.use_bias, "rngs": RNGS}
    if isinstance(layer, nn.Einsum):
        equation, sizes = layer.einsum_str, tuple(layer.shape)
        bias = None
        if layer.use_bias:
            outputs = equation.split("->")[1]
            kernel = dict(
                zip(equation.split("->")[0].split(",")[1], sizes, strict=True)
            )
            bias = tuple(kernel[axis] for axis in outputs if axis in kernel)
        made = nnx.Einsum(equation, sizes, bias, rngs=RNGS)
    elif isinstance(layer, nn.DenseGeneral):
        axis = layer.axis if isinstance(layer.axis, tuple) else (layer.axis,)
        sizes = tuple(shape[i] for i in sorted(i % len(shape) for i in axis))
        made = nnx.LinearGeneral(sizes, layer.features, axis=axis, **options)
    else:
        made = nnx.Linear(shape[-1], layer.features, **options)
    return Holder(made)


class Holder(nnx.Module):
    """A model with one layer."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, inputs):
        return self.layer(inputs)


@pytest.mark.parametrize("case", LAYERS)
def test_nnx_and_linen_give_the_same_numbers(case):
    """Outputs, taps, weights, sums with updates, and gradients in these, both ways."""
    apply, variables, inputs, m, n = setup(case)
    functional = nnx_apply(of_nnx(case))
    assert functional.params.keys() == {"layer"}
    params = jax.tree.map(jnp.asarray, dict(variables["params"]))
    np.testing.assert_array_equal(
        *(
            jax.tree.leaves(jax.tree.map(jnp.shape, x))
            for x in (functional.params, params)
        )
    )
    updates = {"layer": random_update(2, m, n, 2)}

    def everything(apply, params, merged):
        def total(updates):
            return jnp.sum(
                jnp.sin(with_updates(apply, updates, merged=merged)(params, inputs))
            )

        tapped = with_taps(with_updates(apply, updates), ["layer"], outputs=True)
        return (
            tapped(params, inputs),
            jax.value_and_grad(total)(updates),
            layer_weights(params, ["layer"], apply=apply, batch=inputs),
            add_to_params(params, updates, apply=apply, batch=inputs),
        )

    def of_linen(params, inputs):
        return apply({"params": params}, inputs)

    assert linear_layers(functional.apply, params, inputs) == ("layer",)
    for merged in (False, True):
        found, expected = (
            jax.jit(partial(everything, f), static_argnums=1)(params, merged)
            for f in (functional.apply, of_linen)
        )
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected
        )


class Block(nnx.Module):
    """Two layers, the second one computed again in the backward pass."""

    def __init__(self, rngs):
        self.first = nnx.Linear(5, 7, rngs=rngs)
        self.second = nnx.LoRALinear(7, 5, lora_rank=2, rngs=rngs)

    def __call__(self, x):
        hidden = jnp.tanh(self.first(x))
        return nnx.remat(lambda layer, x: layer(x))(self.second, hidden)


class Net(nnx.Module):
    """Blocks in a list, and dropout, whose keys are among the arrays."""

    def __init__(self):
        rngs = nnx.Rngs(params=0, dropout=1)
        self.blocks = nnx.List([Block(rngs) for _ in range(11)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + self.dropout(block(x))
        return x


@pytest.mark.thorough
def test_a_model_of_nnx_is_learned_and_is_not_changed():
    model = Net()
    model.eval()
    apply, params = nnx_apply(model)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(apply(params, x), model(x))
    names = linear_layers(apply, params, x)
    assert names[:3] == ("blocks.0.first", "blocks.0.second", "blocks.1.first")
    assert len(names) == 22
    rng = np.random.default_rng(1)
    shapes = {"blocks.10.first": (7, 5), "blocks.2.second": (5, 7)}
    stacks = {
        name: jm.stack_adapters(
            [(0.3 * rng.normal(size=(m, 2)), rng.normal(size=(2, n))) for _ in "ab"],
            dtype=np.float32,
        )
        for name, (m, n) in shapes.items()
    }
    own = {task: jm.task_updates(stacks, i) for i, task in enumerate("ab")}
    losses = jm.feature_distillation(apply, distance=jm.squared_distance, teachers=own)
    given = {"a": x[:2], "b": x[2:]}
    fitted = jm.fit(
        *(jm.tara_a(), ("a", "b"), stacks, losses, [given] * 20, adamw(0.05)),
        steps=20,
        params=params,
    )
    assert fitted.history.objective[-1] < fitted.history.objective[0]
    changed = add_to_params(params, fitted.updates, apply=apply, batch=x)
    np.testing.assert_allclose(
        apply(changed, x),
        with_updates(apply, fitted.updates)(params, x),
        rtol=1e-4,
        atol=1e-5,
    )
    assert type(model.blocks[0].first) is nnx.Linear
    assert not hasattr(model.blocks[0].first, "jaxmerge_name")


def test_what_does_not_fit_is_refused():
    apply, params = nnx_apply(of_nnx("dense"))
    x = jnp.ones((2, 3, 5), F32)
    with pytest.raises(ValueError, match="of that name; nearest: layer"):
        with_updates(apply, {"layr": random_update(0, 6, 5)})(params, x)
    with pytest.raises(ValueError, match=r"layer: the layer is \(6, 5\)"):
        with_updates(apply, {"layer": random_update(0, 5, 6)})(params, x)
    general = nnx.LinearGeneral(5, 6, axis=-1, batch_axis={0: 2}, rngs=RNGS)
    apply, params = nnx_apply(Holder(general))
    with pytest.raises(ValueError, match="its update is not one matrix"):
        with_updates(apply, {"layer": random_update(0, 6, 5)})(params, x)
