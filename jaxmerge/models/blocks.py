"""Models as a row of blocks, each of which runs by itself.

What flows from block to block is a `Stream`. The linear layers of a block have the
names that they have in the model, without the prefix of the block: so blocks of one
shape share a program, and only one of them has to be on a device.
"""

from collections.abc import Callable
from functools import cache, reduce
from operator import getitem
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax

from jaxmerge.models import bert, decoder, vit
from jaxmerge.models.adapt import Apply
from jaxmerge.models.text_inputs import Inputs, read_inputs

_PROJECTION = "visual_projection"


class Stream(NamedTuple):
    """What a block reads and gives.

    Attributes:
      hidden: [B, S, d], or [B, d] after the last block of a model that pools.
      visible: bool [B, S], where there is no padding; None where all of it counts.
    """

    hidden: jax.Array
    visible: jax.Array | None


class Block(NamedTuple):
    """A part of a model.

    Attributes:
      prefix: in the names of its linear layers, as in "model.layers.3.".
      apply: pure function of its own parameters and a `Stream`, to a `Stream`, that
        runs Flax layers without this prefix. Blocks that differ in parameters alone
        have the same function.
      select: its parameters among those of the model.
    """

    prefix: str
    apply: Apply
    select: Callable[[Any], Any]


class Blocks(NamedTuple):
    """A model from its inputs to its last block; what follows has no linear layer.

    Attributes:
      first: from inputs to the first `Stream`; it has no linear layer either.
      rest: the blocks, in the order in which they run.
    """

    first: Block
    rest: tuple[Block, ...]


def decoder_blocks(config: decoder.DecoderConfig, *, dtype: Any = None) -> Blocks:
    """The blocks of `jaxmerge.models.decoder_apply`, before the final norm."""
    embed = nn.Embed(config.vocab_size, config.hidden_size, dtype=dtype)

    def first(params: Any, inputs: Inputs) -> Stream:
        ids, visible = read_inputs(
            inputs, words=config.vocab_size, longest=config.longest_input
        )
        return Stream(_run(embed, params, ids), visible)

    @cache
    def layer(window: int | None) -> Apply:
        return _with_mask(decoder.DecoderLayer(config, window, dtype))

    blocks = [
        _block(("model", "layers", str(index)), layer(config.window(index)))
        for index in range(config.num_hidden_layers)
    ]
    return Blocks(Block("", first, _at("model", "embed_tokens")), tuple(blocks))


def bert_blocks(config: bert.BertConfig) -> Blocks:
    """The blocks of `jaxmerge.models.bert_apply`, with its pooler as the last."""
    name = bert.PREFIXES[config.model_type]
    embeddings, pooler = bert.Embeddings(config), bert.Pooler(config)

    def first(params: Any, inputs: Inputs) -> Stream:
        ids, types, visible = bert.read_texts(config, inputs)
        return Stream(_run(embeddings, params, ids, types), visible)

    def pooled(params: Any, stream: Stream) -> Stream:
        return Stream(_run(pooler, params, stream.hidden), None)

    layer = _with_mask(bert.EncoderLayer(config))
    names, numbers = (name, "encoder", "layer"), config.num_hidden_layers
    blocks = [_block((*names, str(index)), layer) for index in range(numbers)]
    if config.has_pooler:
        blocks.append(_block((name, "pooler"), pooled))
    return Blocks(Block("", first, _at(name, "embeddings")), tuple(blocks))


def vision_blocks(config: vit.VisionConfig) -> Blocks:
    """The blocks of `jaxmerge.models.vision_apply`, with its projection as the last."""
    embeddings, encoder = vit.Embeddings(config), vit.EncoderLayer(config)
    norm = nn.LayerNorm(epsilon=config.layer_norm_eps)
    projection = _Projection(config)

    def first(params: Any, images: jax.Array) -> Stream:
        hidden = _run(embeddings, params["embeddings"], images)
        return Stream(_run(norm, params["pre_layrnorm"], hidden), None)

    def layer(params: Any, stream: Stream) -> Stream:
        return Stream(_run(encoder, params, stream.hidden), None)

    def last(params: Any, stream: Stream) -> Stream:
        return Stream(_run(projection, params, stream.hidden), None)

    def of_last(params: Any) -> Any:
        norm = params["vision_model"]["post_layernorm"]
        return {"post_layernorm": norm, _PROJECTION: params[_PROJECTION]}

    names, numbers = ("vision_model", "encoder", "layers"), config.num_hidden_layers
    blocks = [_block((*names, str(index)), layer) for index in range(numbers)]
    if config.projection_dim is not None:
        blocks.append(Block("", last, of_last))
    return Blocks(Block("", first, _at("vision_model")), tuple(blocks))


class _Projection(nn.Module):
    """What follows the last block of a vision tower: [B, S, d] -> [B, size]."""

    config: vit.VisionConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        config = self.config
        norm = nn.LayerNorm(epsilon=config.layer_norm_eps, name="post_layernorm")
        size = config.projection_dim or 0
        return nn.Dense(size, use_bias=False, name=_PROJECTION)(norm(hidden[:, 0]))


def _run(module: nn.Module, params: Any, *inputs: jax.Array | None) -> jax.Array:
    outputs = module.apply({"params": params}, *inputs)
    return cast(jax.Array, outputs)  # a pair only where something is mutable


def _with_mask(layer: nn.Module) -> Apply:
    """A layer of hidden states and where they are visible, from stream to stream."""

    def apply(params: Any, stream: Stream) -> Stream:
        return stream._replace(hidden=_run(layer, params, *stream))

    return apply


def _block(path: tuple[str, ...], apply: Apply) -> Block:
    return Block(f"{'.'.join(path)}.", apply, _at(*path))


def _at(*path: str) -> Callable[[Any], Any]:
    return lambda params: reduce(getitem, path, params)
