"""The encoder of BERT and RoBERTa, in Flax, with Hugging Face's module names.

Every linear layer is an ``nn.Dense`` whose path is its name in
``BertForSequenceClassification`` and its like, as in
``bert.encoder.layer.0.attention.self.query``, so that updates from PEFT adapters reach
it by name (`jaxmerge.models.adapt`). Letters: B texts, S tokens, d hidden size.

Inputs are a dict of integer arrays [B, S]: ``input_ids``, ``attention_mask`` (0 marks
padding, on either side) and, optionally, ``token_type_ids`` (default: zeros).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmerge.models.text_inputs import Inputs, read_inputs

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


PREFIXES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta"}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT or, by ``model_type``, a RoBERTa, named as in ``config.json``.

    A RoBERTa numbers tokens from ``pad_token_id + 1`` on, leaving out those with that
    id, and has no pooler: its heads read the first token as it is.
    """

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if self.model_type not in PREFIXES:
            known = ", ".join(PREFIXES)
            raise ValueError(f"model_type {self.model_type!r} is not one of {known}")
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {known}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is not a multiple of num_attention_heads: {self}"
            )

    @property
    def longest_input(self) -> int:
        """Largest number of tokens of an input."""
        return self.max_position_embeddings - self.first_position

    @property
    def first_position(self) -> int:
        """Row of the position embeddings that the first token gets."""
        return 0 if self.has_pooler else self.pad_token_id + 1

    @property
    def has_pooler(self) -> bool:
        """Whether heads read the first token through a pooler, as BERT's do."""
        return self.model_type == "bert"


class BertOutput(NamedTuple):
    """What the encoder gives: every token, and what heads read of the first one."""

    hidden: jax.Array  # [B, S, d], of no meaning where attention_mask is 0
    pooled: jax.Array  # [B, d], in BERT after the pooler's tanh


def _norm(config: BertConfig) -> nn.LayerNorm:
    # E[x^2] - E[x]^2 loses digits that an epsilon of 1e-12 does not hide
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps, use_fast_variance=False, name="LayerNorm"
    )


class Embeddings(nn.Module):
    """Words, positions and token types, summed and normalised: [B, S] -> [B, S, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, input_ids: jax.Array, token_types: jax.Array) -> jax.Array:
        config = self.config
        embed = partial(nn.Embed, features=config.hidden_size)
        words = embed(config.vocab_size, name="word_embeddings")(input_ids)
        types = embed(config.type_vocab_size, name="token_type_embeddings")
        positions = embed(config.max_position_embeddings, name="position_embeddings")
        summed = words + types(token_types) + positions(self._numbers(input_ids))
        return _norm(config)(summed)

    def _numbers(self, ids: jax.Array) -> jax.Array:
        """Rows of the position embeddings, [B, S]."""
        first = self.config.first_position
        if self.config.has_pooler:
            return jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        counted = ids != self.config.pad_token_id
        return jnp.where(counted, jnp.cumsum(counted, axis=1) + (first - 1), first - 1)


class SelfAttention(nn.Module):
    """Attention to every token that is not padding: [B, S, d] -> [B, S, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        split = (*hidden.shape[:-1], heads, width // heads)
        query, key, value = (
            nn.Dense(width, name=name)(hidden).reshape(split)
            for name in ("query", "key", "value")
        )
        mask = visible[:, None, None, :]
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask)
        return mixed.reshape(hidden.shape)


class AddAndNorm(nn.Module):
    """A linear layer, the residual and the norm: [B, S, n], [B, S, d] -> [B, S, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, inner: jax.Array, residual: jax.Array) -> jax.Array:
        projected = nn.Dense(self.config.hidden_size, name="dense")(inner)
        return _norm(self.config)(projected + residual)


class Attention(nn.Module):
    """Self-attention and what follows it: [B, S, d] -> [B, S, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        mixed = SelfAttention(self.config, name="self")(hidden, visible)
        return AddAndNorm(self.config, name="output")(mixed, hidden)


class Intermediate(nn.Module):
    """The widening half of the feed-forward network: [B, S, d] -> [B, S, inner]."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        inner = nn.Dense(self.config.intermediate_size, name="dense")(hidden)
        return ACTIVATIONS[self.config.hidden_act](inner)


class EncoderLayer(nn.Module):
    """Post-norm transformer block: [B, S, d] -> [B, S, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        hidden = Attention(self.config, name="attention")(hidden, visible)
        inner = Intermediate(self.config, name="intermediate")(hidden)
        return AddAndNorm(self.config, name="output")(inner, hidden)


class EncoderLayers(nn.Module):
    """The blocks, named "0", "1", ... as entries of torch's ModuleList are."""

    config: BertConfig
    remat: bool = False

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        kind = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        for index in range(self.config.num_hidden_layers):
            hidden = kind(self.config, name=str(index))(hidden, visible)
        return hidden


class Encoder(nn.Module):
    """Holds the blocks under the name ``layer``."""

    config: BertConfig
    remat: bool = False

    @nn.compact
    def __call__(self, hidden: jax.Array, visible: jax.Array) -> jax.Array:
        layers = EncoderLayers(self.config, self.remat, name="layer")
        return layers(hidden, visible)


class Pooler(nn.Module):
    """The first token through a linear layer and tanh: [B, S, d] -> [B, d]."""

    config: BertConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        return jnp.tanh(nn.Dense(self.config.hidden_size, name="dense")(hidden[:, 0]))


class BertModel(nn.Module):
    """Embeddings, encoder and, where there is one, the pooler."""

    config: BertConfig
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Inputs) -> BertOutput:
        config = self.config
        ids, types, visible = read_texts(config, inputs)
        hidden = Embeddings(self.config, name="embeddings")(ids, types)
        encoder = Encoder(self.config, self.remat, name="encoder")
        hidden = encoder(hidden, visible)
        if not config.has_pooler:
            return BertOutput(hidden, hidden[:, 0])
        return BertOutput(hidden, Pooler(config, name="pooler")(hidden))


def read_texts(
    config: BertConfig, inputs: Inputs
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Token ids, the number of the part of each, and where they are not padding."""
    ids, visible = read_inputs(
        inputs,
        words=config.vocab_size,
        longest=config.longest_input,
        optional=["token_type_ids"],
    )
    return ids, jnp.asarray(inputs.get("token_type_ids", jnp.zeros_like(ids))), visible


class Bert(nn.Module):
    """Holds the model under the name that it has in models with a head."""

    config: BertConfig
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Inputs) -> BertOutput:
        name = PREFIXES[self.config.model_type]
        return BertModel(self.config, self.remat, name=name)(inputs)


def init_bert(config: BertConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters of a BERT, a nested dict with Hugging Face's names."""
    ids = jnp.zeros((1, 1), jnp.int32)
    inputs = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    return dict(_init(config, key, inputs)["params"])


@partial(jax.jit, static_argnums=0)
def _init(config: BertConfig, key: jax.Array, inputs: Inputs) -> Any:
    return Bert(config).init(key, inputs)


def bert_apply(
    config: BertConfig,
    *,
    output: Literal["pooled", "hidden"] = "pooled",
    remat: bool = False,
) -> Callable[[Any, Inputs], jax.Array]:
    """The model as a pure function of its parameters and a batch of texts.

    Args:
      config: sizes of the model.
      output: "pooled" for what a classification head reads, "hidden" for every token.
      remat: keep the inputs of each block for the backward pass, and compute what is
        inside of it again: one more forward pass, and the memory of one block beside
        these inputs. What is inside cannot be tapped then.

    Returns:
      ``apply(params, inputs)`` from a dict of arrays [B, S] to [B, d] or [B, S, d]. It
      raises ValueError for inputs of unequal shapes, other names, or more tokens than
      the model has positions.

    >>> config = BertConfig(vocab_size=10, hidden_size=8, intermediate_size=16,
    ...     num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=6)
    >>> params = init_bert(config, jax.random.key(0))
    >>> ids = jnp.ones((3, 5), jnp.int32)
    >>> inputs = {"input_ids": ids, "attention_mask": ids}
    >>> jax.jit(bert_apply(config))(params, inputs).shape
    (3, 8)
    >>> jax.jit(bert_apply(config, output="hidden"))(params, inputs).shape
    (3, 5, 8)
    """
    if output not in BertOutput._fields:
        raise ValueError(f"output {output!r} is not one of pooled, hidden")
    model = Bert(config, remat)
    return lambda params, inputs: getattr(
        model.apply({"params": params}, inputs), output
    )
