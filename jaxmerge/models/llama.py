"""Llama's decoder as a sequence classifier, with the module names of Hugging Face.

Every linear layer is an ``nn.Dense`` whose path is its name in
``LlamaForSequenceClassification``, as in ``model.layers.0.self_attn.q_proj``, so that
updates from PEFT adapters reach it by name (`jaxmerge.models.adapt`); the head
``score`` is kept apart (`jaxmerge.models.linear_head`). Letters: B texts, S tokens, d
hidden size, D features of one attention head.

Inputs are a dict of integer arrays [B, S]: ``input_ids`` and ``attention_mask`` (0
marks padding, on either side).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmerge.models.rope import Llama3Scaling, frequencies, rotate
from jaxmerge.models.text_inputs import Inputs, read_inputs

LM_HEAD = "lm_head"  # layer of a causal language model that is apart from the decoder


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama, named as in ``config.json``.

    ``num_key_value_heads`` defaults to one for each attention head and ``head_dim`` to
    an equal share of the hidden size. ``pad_token_id`` says which token ends a text, as
    in transformers; where it is None, ``attention_mask`` does.
    """

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: Llama3Scaling | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size is not a multiple of num_attention_heads: {self}"
            )
        object.__setattr__(self, "num_key_value_heads", self.key_value_heads)
        object.__setattr__(self, "head_dim", self.head_size)
        if heads % self.key_value_heads:
            raise ValueError(
                f"num_attention_heads is not a multiple of num_key_value_heads: {self}"
            )
        if self.head_size % 2:
            raise ValueError(f"head_dim is odd, so it has no pairs to rotate: {self}")

    @property
    def key_value_heads(self) -> int:
        """``num_key_value_heads``, or its default."""
        given = self.num_key_value_heads
        return self.num_attention_heads if given is None else given

    @property
    def head_size(self) -> int:
        """``head_dim``, or its default."""
        given = self.head_dim
        return self.hidden_size // self.num_attention_heads if given is None else given


class LlamaOutput(NamedTuple):
    """What the decoder gives: every token, and the last one of each text."""

    hidden: jax.Array  # [B, S, d], of no meaning where attention_mask is 0
    last: jax.Array  # [B, d]


class RMSNorm(nn.Module):
    """Root-mean-square norm: float32 inside, rounded before the scale is applied."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        wide = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(square + self.epsilon)).astype(x.dtype)
        return normed * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


class SelfAttention(nn.Module):
    """Grouped-query attention to the past: [B, S, d] -> [B, S, d]."""

    config: LlamaConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        config, size = self.config, self.config.head_size
        dense = partial(nn.Dense, use_bias=config.attention_bias, dtype=self.dtype)

        def heads(count: int, name: str) -> jax.Array:
            projected = dense(count * size, name=name)(hidden)
            return projected.reshape(*hidden.shape[:-1], count, size)

        query = heads(config.num_attention_heads, "q_proj")
        key = heads(config.key_value_heads, "k_proj")
        value = heads(config.key_value_heads, "v_proj")
        speeds = frequencies(size, theta=config.rope_theta, scaling=config.rope_scaling)
        positions = jnp.arange(hidden.shape[1], dtype=jnp.float32)
        radians = positions[:, None] * jnp.asarray(speeds)[None, :]
        mixed = jax.nn.dot_product_attention(
            rotate(query, radians),
            rotate(key, radians),
            value,
            mask=visible[:, None, None, :],
            is_causal=True,
        )
        joined = mixed.reshape(*hidden.shape[:-1], -1)
        return dense(config.hidden_size, name="o_proj")(joined)


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``, [B, S, d] -> [B, S, d]."""

    config: LlamaConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        config = self.config
        dense = partial(nn.Dense, use_bias=config.mlp_bias, dtype=self.dtype)
        gate = dense(config.intermediate_size, name="gate_proj")(hidden)
        up = dense(config.intermediate_size, name="up_proj")(hidden)
        return dense(config.hidden_size, name="down_proj")(jax.nn.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm transformer block: [B, S, d] -> [B, S, d]."""

    config: LlamaConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        norm = partial(RMSNorm, self.config.rms_norm_eps)
        attention = SelfAttention(self.config, self.dtype, name="self_attn")
        hidden = hidden + attention(norm(name="input_layernorm")(hidden), visible)
        feed_forward = FeedForward(self.config, self.dtype, name="mlp")
        return hidden + feed_forward(norm(name="post_attention_layernorm")(hidden))


class DecoderLayers(nn.Module):
    """The blocks, named "0", "1", ... as entries of torch's ModuleList are."""

    config: LlamaConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        for index in range(self.config.num_hidden_layers):
            layer = DecoderLayer(self.config, self.dtype, name=str(index))
            hidden = layer(hidden, visible)
        return hidden


class LlamaModel(nn.Module):
    """Embeddings, blocks and the final norm: -> [B, S, d]."""

    config: LlamaConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, ids: jax.Array, visible: jax.Array) -> jax.Array:
        config = self.config
        embed = nn.Embed(
            config.vocab_size, config.hidden_size, dtype=self.dtype, name="embed_tokens"
        )
        hidden = DecoderLayers(config, self.dtype, name="layers")(embed(ids), visible)
        return RMSNorm(config.rms_norm_eps, name="norm")(hidden)


class Llama(nn.Module):
    """Holds the model under the name ``model``, and picks the last token of a text."""

    config: LlamaConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Inputs) -> LlamaOutput:
        ids, visible = read_inputs(inputs)
        hidden = LlamaModel(self.config, self.dtype, name="model")(ids, visible)
        pad = self.config.pad_token_id
        counted = visible if pad is None else ids != pad
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        last = jnp.where(counted, positions, 0).max(axis=1)
        chosen = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        return LlamaOutput(hidden, chosen[:, 0])


def init_llama(config: LlamaConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters of a Llama, a nested dict with Hugging Face's names."""
    ids = jnp.zeros((1, 1), jnp.int32)
    inputs = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    variables = Llama(config).init(key, inputs)
    return dict(variables["params"])


def llama_apply(
    config: LlamaConfig,
    *,
    output: Literal["last", "hidden"] = "last",
    dtype: Any = None,
) -> Callable[[Any, Inputs], jax.Array]:
    """The decoder as a pure function of its parameters and a batch of texts.

    Args:
      config: sizes of the model.
      output: "last" for what the head ``score`` reads, the last token of each text;
        "hidden" for every token.
      dtype: in which linear layers compute; None is that of the parameters. Norms,
        rotations and attention weights are float32 inside.

    Returns:
      ``apply(params, inputs)`` from a dict of arrays [B, S] to [B, d] or [B, S, d].

    >>> config = LlamaConfig(vocab_size=10, hidden_size=8, intermediate_size=16,
    ...     num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    >>> params = init_llama(config, jax.random.key(0))
    >>> ids = jnp.ones((3, 5), jnp.int32)
    >>> inputs = {"input_ids": ids, "attention_mask": ids}
    >>> llama_apply(config)(params, inputs).shape
    (3, 8)
    """
    if output not in LlamaOutput._fields:
        raise ValueError(f"output {output!r} is not one of last, hidden")
    model = Llama(config, dtype)
    return lambda params, inputs: getattr(
        model.apply({"params": params}, inputs), output
    )


def vocabulary_of(params: Any) -> jax.Array:
    """The matrix [V, d] whose products with hidden states are logits of next tokens.

    That of ``lm_head`` where the parameters hold one, otherwise the embeddings, which
    are then tied to it.
    """
    layer = params[LM_HEAD] if LM_HEAD in params else params["model"]["embed_tokens"]
    return layer["embedding"]
