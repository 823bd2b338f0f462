"""Decoders against transformers, stage by stage."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_samples import (
    MODELS,
    SCALED,
    TINY,
    mixed_dtypes,
    random_reference,
    texts_for,
)
from models_torch import (
    add_updates,
    as_torch,
    assert_close,
    kernels,
    linear_layers,
    save_torch,
)
from safetensors.numpy import load_file

from jaxmerge.models import (
    Decoder,
    DecoderConfig,
    Llama3Scaling,
    decoder_apply,
    head_from_hub,
    head_logits,
    init_decoder,
    load_decoder,
    vocabulary_head,
    with_updates,
)
from jaxmerge.models.rope import frequencies

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def stages_of(reference, inputs):
    """Outputs of the embeddings, of every block and of the norm, and the logits."""
    stages = []
    model = reference.model
    for layer in (model.embed_tokens, *model.layers, model.norm):
        layer.register_forward_hook(lambda *call: stages.append(call[2]))
    with torch.no_grad():
        logits = reference(**as_torch(inputs)).logits
    return stages, logits


def stages_here(config, params, inputs):
    """The same of the Flax model, with what it gives."""
    run = partial(Decoder(config).apply, capture_intermediates=True)
    output, state = jax.jit(run)({"params": params}, inputs)
    inner = state["intermediates"]["model"]
    blocks = [inner["layers"][str(i)] for i in range(config.num_hidden_layers)]
    stages = [inner["embed_tokens"], *blocks, inner["norm"]]
    return [stage["__call__"][0] for stage in stages], output


def compare_stages(reference, folder, capfd, tolerance=1e-5):
    """Up to the logits of every token of the vocabulary."""
    save_torch(reference, folder, capfd)
    config, params = load_decoder(folder, head=True)
    assert ("lm_head" in params) != config.tie_word_embeddings
    inputs = texts_for(config)
    expected, logits = stages_of(reference, inputs)
    ours, output = stages_here(config, params, inputs)
    assert len(ours) == len(expected)
    ours.append(
        jnp.einsum("bsd,vd->bsv", output.hidden, vocabulary_head(config)(params))
    )
    dtype = jax.tree.leaves(params)[0].dtype
    for stage, theirs in zip(ours, [*expected, logits], strict=True):
        assert stage.dtype == dtype
        assert_close(stage, theirs, inputs["attention_mask"], tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_equals_transformers(name, tmp_path, capfd):
    compare_stages(random_reference(name, "ForCausalLM"), tmp_path, capfd)


def test_in_float64_only_what_is_float32_in_both_differs(tmp_path, capfd):
    reference = random_reference("qwen3 with windows", "ForCausalLM").double()
    with mixed_dtypes():
        compare_stages(reference, tmp_path, capfd, tolerance=1e-6)


def test_a_classifier_reads_the_last_token(tmp_path, capfd):
    reference = random_reference("llama")
    save_torch(reference, tmp_path, capfd)
    config, params = load_decoder(tmp_path)
    inputs = texts_for(config)
    expected, logits = stages_of(reference, inputs)
    features = jax.jit(decoder_apply(config))(params, inputs)
    last = expected[-1][torch.arange(4), torch.tensor([10, 4, 0, 10])]
    assert_close(features, last)
    head = head_from_hub(load_file(tmp_path / "model.safetensors"), "score")
    assert set(head) == {"kernel"}
    assert_close(head_logits(head, features), logits)


def test_scaling_has_its_three_bands():
    """Fast rotations stay, slow ones are divided, one between is in between."""
    scaling = Llama3Scaling(**{k: v for k, v in SCALED.items() if "rope" not in k})
    plain = frequencies(6, theta=100.0)
    ratio = frequencies(6, theta=100.0, scaling=scaling) / plain
    assert ratio[0] == 1
    assert 1 / 8 < ratio[1] < 1
    assert ratio[2] == pytest.approx(1 / 8)


def test_end_of_a_text(tmp_path):
    """The last token that is not the padding token; the mask decides without one."""
    config = DecoderConfig(
        **(TINY | {"num_hidden_layers": 1, "intermediate_size": 4}),
        vocab_size=50,
        pad_token_id=7,
    )
    params = init_decoder(config, jax.random.key(0))
    inputs = texts_for(config)
    inputs["input_ids"][:, :] = np.where(inputs["attention_mask"], 3, 7)
    inputs["input_ids"][1, 4] = 7  # the padding token as the last one of a text
    hidden = jax.jit(decoder_apply(config, output="hidden"))(params, inputs)
    rows = np.arange(4)
    by_token = jax.jit(decoder_apply(config))(params, inputs)
    np.testing.assert_array_equal(by_token, hidden[rows, np.array([10, 3, 0, 10])])
    without = dataclasses.replace(config, pad_token_id=None)
    by_mask = jax.jit(decoder_apply(without))(params, inputs)
    np.testing.assert_array_equal(by_mask, hidden[rows, np.array([10, 4, 0, 10])])


def test_linear_layers_carry_the_names_that_peft_gives(tmp_path, capfd):
    reference = random_reference("llama")
    save_torch(reference, tmp_path, capfd)
    _, params = load_decoder(tmp_path)
    named, ours = linear_layers(reference), kernels(params)
    assert ours == named - {"score"}
    assert "model.layers.0.self_attn.q_proj" in ours


def test_updates_reach_every_linear_layer(tmp_path, capfd):
    reference = random_reference("llama with biases")
    save_torch(reference, tmp_path, capfd)
    config, params = load_decoder(tmp_path)
    inputs = texts_for(config)
    updates = add_updates(reference.model, "model.")
    with torch.no_grad():
        expected = reference.model(**as_torch(inputs)).last_hidden_state
    assert len(updates) == 7 * config.num_hidden_layers
    apply = with_updates(decoder_apply(config, output="hidden"), updates)
    hidden = jax.jit(apply)(params, inputs)
    assert_close(hidden, expected, inputs["attention_mask"], tolerance=1e-4)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[3, 9, 1]], "token 9, the model knows 0 to 8; it belongs to another"),
        ([[3, -1, 1]], "token -1, the model knows"),
        ([[3, 4, 1, 2, 2]], "5 tokens, the model has 4 positions; truncate"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused(ids, message):
    config = DecoderConfig(
        **(TINY | {"num_hidden_layers": 1, "intermediate_size": 4}),
        vocab_size=9,
        max_position_embeddings=4,
    )
    params = jax.eval_shape(partial(init_decoder, config), jax.random.key(0))
    inputs = {"input_ids": np.array(ids), "attention_mask": np.ones_like(ids)}
    with pytest.raises(ValueError, match=message):
        decoder_apply(config)(params, inputs)


def test_unknown_outputs_are_refused():
    with pytest.raises(ValueError, match="'pooled' is not one of last"):
        decoder_apply(DecoderConfig(), output="pooled")
