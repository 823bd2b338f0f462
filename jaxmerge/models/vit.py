"""CLIP's vision tower, in Flax, with the module names of Hugging Face.

Every linear layer is an ``nn.Dense`` whose path is its PEFT module name, as in
``vision_model.encoder.layers.0.self_attn.q_proj``, so that merged updates reach it by
name (`jaxmerge.models.adapt`). Letters: B images, H x W x C pixels, S tokens (one
class token and one per patch), d hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a vision tower, named as in ``config.json``.

    ``projection_dim`` None leaves out the visual projection: the output is the pooled
    class token [B, d] instead of [B, projection_dim].
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = 512

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {known}")
        for whole, part in (
            ("hidden_size", "num_attention_heads"),
            ("image_size", "patch_size"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} is not a multiple of {part}: {self}")


class Embeddings(nn.Module):
    """Patches and the class token, with their positions: [B, H, W, C] -> [B, S, d]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        config = self.config
        expected = (config.image_size, config.image_size, config.num_channels)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images {images.shape}, expected (batch, *{expected})")
        width, side = config.hidden_size, config.image_size // config.patch_size
        class_token = self.param(
            "class_embedding", nn.initializers.normal(), (width,), jnp.float32
        )
        patches = nn.Conv(
            width,
            kernel_size=(config.patch_size, config.patch_size),
            strides=(config.patch_size, config.patch_size),
            padding="VALID",
            use_bias=False,
            name="patch_embedding",
        )(images)
        batch = images.shape[0]
        patches = patches.reshape(batch, side * side, width)
        class_token = jnp.broadcast_to(
            class_token.astype(patches.dtype), (batch, 1, width)
        )
        tokens = jnp.concatenate([class_token, patches], axis=1)
        positions = nn.Embed(side * side + 1, width, name="position_embedding")
        return tokens + positions(jnp.arange(side * side + 1))[None]


class SelfAttention(nn.Module):
    """Full attention between the tokens of an image: [B, S, d] -> [B, S, d]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        split = (*hidden.shape[:-1], heads, width // heads)
        query, key, value = (
            nn.Dense(width, name=name)(hidden).reshape(split)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return nn.Dense(width, name="out_proj")(mixed.reshape(hidden.shape))


class FeedForward(nn.Module):
    """Two linear layers around the activation: [B, S, d] -> [B, S, d]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        config = self.config
        inner = nn.Dense(config.intermediate_size, name="fc1")(hidden)
        inner = ACTIVATIONS[config.hidden_act](inner)
        return nn.Dense(config.hidden_size, name="fc2")(inner)


class EncoderLayer(nn.Module):
    """Pre-norm transformer block: [B, S, d] -> [B, S, d]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=self.config.layer_norm_eps)
        attention = SelfAttention(self.config, name="self_attn")
        hidden = hidden + attention(norm(name="layer_norm1")(hidden))
        feed_forward = FeedForward(self.config, name="mlp")
        return hidden + feed_forward(norm(name="layer_norm2")(hidden))


class EncoderLayers(nn.Module):
    """The blocks, named "0", "1", ... as entries of torch's ModuleList are."""

    config: VisionConfig
    remat: bool = False

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        kind = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        for index in range(self.config.num_hidden_layers):
            hidden = kind(self.config, name=str(index))(hidden)
        return hidden


class Encoder(nn.Module):
    """Holds the blocks under the name ``layers``."""

    config: VisionConfig
    remat: bool = False

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        return EncoderLayers(self.config, self.remat, name="layers")(hidden)


class VisionModel(nn.Module):
    """Images to the normalised class token: [B, H, W, C] -> [B, d]."""

    config: VisionConfig
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=self.config.layer_norm_eps)
        hidden = Embeddings(self.config, name="embeddings")(images)
        hidden = norm(name="pre_layrnorm")(hidden)  # the checkpoints' own spelling
        hidden = Encoder(self.config, self.remat, name="encoder")(hidden)
        return norm(name="post_layernorm")(hidden[:, 0])


class VisionTower(nn.Module):
    """The vision model and, where the config has one, its projection."""

    config: VisionConfig
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        pooled = VisionModel(self.config, self.remat, name="vision_model")(images)
        size = self.config.projection_dim
        if size is None:
            return pooled
        return nn.Dense(size, use_bias=False, name="visual_projection")(pooled)


def init_vision(config: VisionConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters of a vision tower, a nested dict with Hugging Face's names."""
    shape = (1, config.image_size, config.image_size, config.num_channels)
    return dict(_init(config, key, jnp.zeros(shape, jnp.float32))["params"])


@partial(jax.jit, static_argnums=0)
def _init(config: VisionConfig, key: jax.Array, images: jax.Array) -> Any:
    return VisionTower(config).init(key, images)


def vision_apply(
    config: VisionConfig, *, remat: bool = False
) -> Callable[[Any, jax.Array], jax.Array]:
    """The tower as a pure function of its parameters and a batch of images.

    Args:
      config: sizes of the tower.
      remat: keep the inputs of each block for the backward pass, and compute what is
        inside of it again: one more forward pass, and the memory of one block beside
        these inputs. What is inside cannot be tapped then.

    Returns:
      ``apply(params, images)`` from [B, H, W, C] to [B, projection_dim], or to [B, d]
      without a projection.

    >>> config = VisionConfig(hidden_size=8, intermediate_size=16,
    ...     num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2,
    ...     projection_dim=5)
    >>> params = init_vision(config, jax.random.key(0))
    >>> images = jnp.ones((3, 4, 4, 3), jnp.float32)
    >>> jax.jit(vision_apply(config))(params, images).shape
    (3, 5)
    """
    tower = VisionTower(config, remat)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        features = tower.apply({"params": params}, images)
        return cast(jax.Array, features)  # a pair only where something is mutable

    return apply
