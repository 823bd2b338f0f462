"""The decoder of Llama, Mistral, Qwen2 and Qwen3, with Hugging Face's module names.

One model; fields of its config say what differs. Every linear layer is an ``nn.Dense``
whose path is its name in ``LlamaForSequenceClassification`` and its like, as in
``model.layers.0.self_attn.q_proj``, so that updates from PEFT adapters reach it by name
(`jaxmerge.models.adapt`). Heads are kept apart: ``score`` of a classifier in
`jaxmerge.models.linear_head`, that of a language model in `vocabulary_head`. Letters: B
texts, S tokens, d hidden size, D features of one attention head, V tokens known.

Inputs are a dict of integer arrays [B, S]: ``input_ids`` and ``attention_mask`` (0
marks padding, on either side).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmerge.models.decoder_config import DecoderConfig
from jaxmerge.models.rope import frequencies, rotate
from jaxmerge.models.text_inputs import Inputs, read_inputs

LM_HEAD = "lm_head"  # output layer of a language model, apart from the decoder


class DecoderOutput(NamedTuple):
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
    """Grouped-query attention to the past, or to a window of it: [B, S, d] -> itself.

    A window is a band of the mask: exact, at the cost of attention to all of the past.
    """

    config: DecoderConfig
    window: int | None
    dtype: Any = None

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        config, size = self.config, self.config.head_size
        dense = partial(nn.Dense, dtype=self.dtype)

        def heads(count: int, name: str) -> jax.Array:
            biased = config.attention_bias
            projected = dense(count * size, use_bias=biased, name=name)(hidden)
            return projected.reshape(*hidden.shape[:-1], count, size)

        query = heads(config.num_attention_heads, "q_proj")
        key = heads(config.key_value_heads, "k_proj")
        value = heads(config.key_value_heads, "v_proj")
        if config.head_norm:
            query = RMSNorm(config.rms_norm_eps, name="q_norm")(query)
            key = RMSNorm(config.rms_norm_eps, name="k_norm")(key)
        speeds = frequencies(size, theta=config.rope_theta, scaling=config.rope_scaling)
        positions = jnp.arange(hidden.shape[1], dtype=jnp.float32)
        radians = positions[:, None] * jnp.asarray(speeds)[None, :]
        mixed = jax.nn.dot_product_attention(
            rotate(query, radians),
            rotate(key, radians),
            value,
            mask=visible[:, None, None, :],
            is_causal=True,
            local_window_size=None if self.window is None else (self.window - 1, 0),
        )
        joined = mixed.reshape(*hidden.shape[:-1], -1)
        biased = config.output_bias
        return dense(config.hidden_size, use_bias=biased, name="o_proj")(joined)


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``, [B, S, d] -> [B, S, d]."""

    config: DecoderConfig
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

    config: DecoderConfig
    window: int | None
    dtype: Any = None

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        norm = partial(RMSNorm, self.config.rms_norm_eps)
        attention = SelfAttention(
            self.config, self.window, self.dtype, name="self_attn"
        )
        hidden = hidden + attention(norm(name="input_layernorm")(hidden), visible)
        feed_forward = FeedForward(self.config, self.dtype, name="mlp")
        return hidden + feed_forward(norm(name="post_attention_layernorm")(hidden))


class DecoderLayers(nn.Module):
    """The blocks, named "0", "1", ... as entries of torch's ModuleList are."""

    config: DecoderConfig
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        kind = nn.remat(DecoderLayer) if self.remat else DecoderLayer
        for index in range(self.config.num_hidden_layers):
            window = self.config.window(index)
            layer = kind(self.config, window, self.dtype, name=str(index))
            hidden = layer(hidden, visible)
        return hidden


class DecoderModel(nn.Module):
    """Embeddings, blocks and the final norm: -> [B, S, d]."""

    config: DecoderConfig
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, ids: jax.Array, visible: jax.Array) -> jax.Array:
        config = self.config
        embed = nn.Embed(
            config.vocab_size, config.hidden_size, dtype=self.dtype, name="embed_tokens"
        )
        layers = DecoderLayers(config, self.dtype, self.remat, name="layers")
        hidden = layers(embed(ids), visible)
        return RMSNorm(config.rms_norm_eps, name="norm")(hidden)


class Decoder(nn.Module):
    """Holds the model under the name ``model``, and picks the last token of a text."""

    config: DecoderConfig
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Inputs) -> DecoderOutput:
        config = self.config
        ids, visible = read_inputs(
            inputs, words=config.vocab_size, longest=config.longest_input
        )
        hidden = DecoderModel(config, self.dtype, self.remat, name="model")(
            ids, visible
        )
        pad = config.pad_token_id
        counted = visible if pad is None else ids != pad
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        last = jnp.where(counted, positions, 0).max(axis=1)
        chosen = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        return DecoderOutput(hidden, chosen[:, 0])


def init_decoder(
    config: DecoderConfig, key: jax.Array, *, head: bool = False
) -> dict[str, Any]:
    """Random parameters of a decoder, a nested dict with Hugging Face's names.

    Args:
      config: sizes of the model.
      key: of the random numbers.
      head: add the output layer of a language model, where it has one of its own.
    """
    ids = jnp.zeros((1, 1), jnp.int32)
    inputs = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    params = dict(_init(config, key, inputs)["params"])
    if head and not config.tie_word_embeddings:
        shape = (config.vocab_size, config.hidden_size)
        rows = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        params[LM_HEAD] = {"embedding": rows(key, shape, jnp.float32)}
    return params


@partial(jax.jit, static_argnums=0)
def _init(config: DecoderConfig, key: jax.Array, inputs: Inputs) -> Any:
    return Decoder(config).init(key, inputs)


def decoder_apply(
    config: DecoderConfig,
    *,
    output: Literal["last", "hidden"] = "last",
    dtype: Any = None,
    remat: bool = False,
) -> Callable[[Any, Inputs], jax.Array]:
    """The decoder as a pure function of its parameters and a batch of texts.

    Args:
      config: sizes of the model.
      output: "last" for what the head ``score`` reads, the last token of each text;
        "hidden" for every token, as `vocabulary_head` reads it.
      dtype: in which linear layers compute; None is that of the parameters. Norms,
        rotations and attention weights are float32 inside.
      remat: keep the inputs of each block for the backward pass, and compute what is
        inside of it again: one more forward pass, and the memory of one block beside
        these inputs. What is inside cannot be tapped then.

    Returns:
      ``apply(params, inputs)`` from a dict of arrays [B, S] to [B, d] or [B, S, d]. It
      raises ValueError for inputs of unequal shapes or other names, for more tokens
      than ``max_position_embeddings`` and, where inputs are not traced, for tokens
      beyond the vocabulary.

    >>> config = DecoderConfig(vocab_size=10, hidden_size=8, intermediate_size=16,
    ...     num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    >>> params = init_decoder(config, jax.random.key(0))
    >>> ids = jnp.ones((3, 5), jnp.int32)
    >>> inputs = {"input_ids": ids, "attention_mask": ids}
    >>> jax.jit(decoder_apply(config))(params, inputs).shape
    (3, 8)
    """
    if output not in DecoderOutput._fields:
        raise ValueError(f"output {output!r} is not one of last, hidden")
    model = Decoder(config, dtype, remat)
    return lambda params, inputs: getattr(
        model.apply({"params": params}, inputs), output
    )


def vocabulary_head(config: DecoderConfig) -> Callable[[Any], jax.Array]:
    """The output layer of a language model as a pure function of its parameters.

    Logits of the next token are ``hidden @ head.T``.

    Args:
      config: says whether the layer is tied to the embeddings.

    Returns:
      ``head(params)`` [V, d], a row for each token. It raises ValueError for parameters
      that were read without the layer.

    >>> config = DecoderConfig(vocab_size=10, hidden_size=8, intermediate_size=16,
    ...     num_hidden_layers=1, num_attention_heads=2)
    >>> params = init_decoder(config, jax.random.key(0), head=True)
    >>> vocabulary_head(config)(params).shape
    (10, 8)
    """

    def head(params: Any) -> jax.Array:
        if config.tie_word_embeddings:
            return params["model"]["embed_tokens"]["embedding"]
        if LM_HEAD not in params:
            raise ValueError(
                f"parameters without {LM_HEAD}, which is not tied to the embeddings; "
                "read them by load_decoder(folder, head=True)"
            )
        return params[LM_HEAD]["embedding"]

    return head
