"""Layers of every kind and a small tower, to be adapted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.models import VisionConfig, init_vision, vision_apply
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
