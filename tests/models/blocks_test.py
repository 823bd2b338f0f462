"""Models block by block are the models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import in_turn

from jaxmerge.models import (
    BertConfig,
    DecoderConfig,
    VisionConfig,
    bert_apply,
    bert_blocks,
    decoder_apply,
    decoder_blocks,
    init_bert,
    init_decoder,
    init_vision,
    linear_layers,
    vision_apply,
    vision_blocks,
)
from jaxmerge.models.decoder import RMSNorm

SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
SIZES |= {"num_hidden_layers": 2}
VISION = {"image_size": 4, "patch_size": 2, "projection_dim": 5}
RNG = np.random.default_rng(0)
WORDS = {
    "input_ids": RNG.integers(2, 20, (3, 6), np.int32),
    "attention_mask": np.array([[1] * 6, [1] * 4 + [0] * 2, [0] + [1] * 5], np.int32),
}
IMAGES = RNG.normal(size=(3, 4, 4, 3)).astype(np.float32)


def decoder_case():
    config = DecoderConfig(
        vocab_size=20,
        num_key_value_heads=1,
        sliding_window=2,
        layer_types=("sliding_attention", "full_attention"),
        **SIZES,
    )
    norm = RMSNorm(config.rms_norm_eps)

    def end(params, stream):
        return norm.apply({"params": params["model"]["norm"]}, stream.hidden)

    apply = decoder_apply(config, output="hidden")
    return config, init_decoder, apply, decoder_blocks(config), end, WORDS


def bert_case(kind="bert"):
    config = BertConfig(model_type=kind, vocab_size=20, type_vocab_size=2, **SIZES)

    def end(_, stream):
        return stream.hidden if config.has_pooler else stream.hidden[:, 0]

    return config, init_bert, bert_apply(config), bert_blocks(config), end, WORDS


def vision_case():
    config = VisionConfig(**VISION, **SIZES)

    def end(_, stream):
        return stream.hidden

    apply, blocks = vision_apply(config), vision_blocks(config)
    return config, init_vision, apply, blocks, end, IMAGES


CASES = {
    "decoder": decoder_case,
    "bert": bert_case,
    "roberta": lambda: bert_case("roberta"),
    "vision tower": vision_case,
}


@pytest.mark.parametrize("case", in_turn([*CASES], quick=2))
def test_block_by_block_is_the_model(case):
    """In its outputs, and in the names and the order of its linear layers."""
    config, init, apply, blocks, end, inputs = CASES[case]()
    shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    params = jax.tree.map(
        lambda x: RNG.normal(scale=0.3, size=x.shape).astype(np.float32), shapes
    )
    names = []

    def through(params, inputs):
        stream = blocks.first.apply(blocks.first.select(params), inputs)
        for block in blocks.rest:
            own = block.select(params)
            inside = linear_layers(block.apply, own, stream)
            names.extend(f"{block.prefix}{name}" for name in inside)
            stream = block.apply(own, stream)
        return end(params, stream), stream.visible

    (found, visible), expected = (jax.jit(f)(params, inputs) for f in (through, apply))
    counted = visible[..., None] if case == "decoder" else True
    for output in (found, expected):
        assert np.ptp(output) > 0.1
    np.testing.assert_allclose(
        jnp.where(counted, found, 0),
        jnp.where(counted, expected, 0),
        rtol=1e-5,
        atol=1e-5,
    )
    first = blocks.first.select(params)
    assert linear_layers(blocks.first.apply, first, inputs) == ()
    assert tuple(names) == linear_layers(apply, params, inputs)
    assert len({id(block.apply) for block in blocks.rest}) <= 2
