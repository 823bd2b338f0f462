"""Decoders against transformers, stage by stage, and their files."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_torch import (
    add_updates,
    as_torch,
    assert_close,
    kernels,
    linear_layers,
    randomise,
    save_torch,
)
from safetensors.numpy import load_file, save_file

from jaxmerge.models import (
    Decoder,
    DecoderConfig,
    Llama3Scaling,
    decoder_apply,
    head_from_hub,
    head_logits,
    init_decoder,
    load_decoder,
    save_decoder,
    vocabulary_head,
    with_updates,
)
from jaxmerge.models.decoder_hub import config_from_hub
from jaxmerge.models.rope import frequencies

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SCALED = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0} | {
    "low_freq_factor": 0.2,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
MODELS = {  # architecture, and what its config says beside DEFAULTS
    "llama": ("Llama", {}),
    "llama with biases": (
        "Llama",
        {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 1}
        | {"head_dim": 6, "attention_bias": True, "mlp_bias": True}
        | {"rope_parameters": SCALED},
    ),
    "smollm": (
        "Llama",
        {"hidden_size": 12, "num_attention_heads": 3, "num_key_value_heads": 3}
        | {"num_hidden_layers": 3, "intermediate_size": 5, "rms_norm_eps": 1e-3}
        | {"tie_word_embeddings": True},
    ),
    "mistral": ("Mistral", {"sliding_window": 4, "head_dim": 6}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
    "qwen3 with windows": (
        "Qwen3",
        {"head_dim": 4, "attention_bias": True, "use_sliding_window": True}
        | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
DEFAULTS = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 50,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
TINY = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}


def random_reference(name, kind="ForSequenceClassification"):
    """A model with large weights, so that no layer is near the identity."""
    family, sizes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**DEFAULTS | sizes, num_labels=3)
    return randomise(getattr(transformers, family + kind)(config), seed=len(name))


def texts_for(config, length=11):
    """Random tokens: one text whole, others padded on the right and on the left."""
    rng = np.random.default_rng(0)
    mask = np.ones((4, length), np.int32)
    mask[1, 5:] = mask[2, 1:] = mask[3, :4] = 0
    ids = rng.integers(1, config.vocab_size, mask.shape, np.int32)
    return {"input_ids": ids * mask, "attention_mask": mask}


def stages_of(reference, inputs):
    """Outputs of the embeddings, of every block and of the norm, and the logits."""
    stages = []
    model = reference.model
    for layer in (model.embed_tokens, *model.layers, model.norm):
        layer.register_forward_hook(lambda *call: stages.append(call[2]))
    with torch.no_grad():
        logits = reference(**as_torch(inputs)).logits
    return stages, logits


@pytest.fixture
def mixed_dtypes():
    """Lets jax.nn.dot_product_attention go from bf16 to float32 by itself."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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
    ours.append(jnp.einsum("bsd,vd->bsv", output.hidden, vocabulary_head(params)))
    dtype = jax.tree.leaves(params)[0].dtype
    for stage, theirs in zip(ours, [*expected, logits], strict=True):
        assert stage.dtype == dtype
        assert_close(stage, theirs, inputs["attention_mask"], tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_equals_transformers(name, tmp_path, capfd):
    compare_stages(random_reference(name, "ForCausalLM"), tmp_path, capfd)


@pytest.mark.usefixtures("mixed_dtypes")
def test_in_float64_only_what_is_float32_in_both_differs(tmp_path, capfd):
    reference = random_reference("qwen3 with windows", "ForCausalLM").double()
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


@pytest.mark.parametrize("name", MODELS)
def test_configs_say_what_transformers_takes_by_default(name):
    """A config of sizes alone, and one whose variants transformers wrote."""
    family, sizes = MODELS[name]
    kind = getattr(transformers, f"{family}Config")
    counts = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 32}
    few = counts | {"vocab_size": 50, "intermediate_size": 20}
    for given in (few, few | sizes):
        theirs = kind(**given)
        ours = config_from_hub(given | {"model_type": theirs.model_type})
        assert ours == config_from_hub(theirs.to_dict())
        for field in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        window = getattr(theirs, "sliding_window", None)
        assert ours.sliding_window == window
        types = getattr(theirs, "layer_types", None)
        everywhere = "full_attention" if window is None else "sliding_attention"
        assert ours.layer_types == tuple(types or [everywhere] * len(ours.layer_types))
        assert ours.head_dim == getattr(theirs, "head_dim", 64 // 32)


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
    hidden = apply(params, inputs)
    assert_close(hidden, expected, inputs["attention_mask"], tolerance=1e-4)


@pytest.mark.usefixtures("mixed_dtypes")
def test_bf16_weights_in_several_files_stay_bf16(tmp_path, capfd):
    narrow = random_reference("llama with biases").to(torch.bfloat16)
    save_torch(narrow, tmp_path, capfd, max_shard_size="5KB")
    assert not (tmp_path / "model.safetensors").exists()
    config, params = load_decoder(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    inputs = texts_for(config)
    mask = inputs["attention_mask"]
    outputs = {}
    for dtype, tolerance in (("bfloat16", 0.02), ("float32", 1e-5)):
        # read anew, for .to() rounds the frequencies of the rotations too
        reference = type(narrow).from_pretrained(tmp_path, dtype=dtype).eval()
        expected, _ = stages_of(reference, inputs)
        apply = decoder_apply(config, output="hidden", dtype=jnp.dtype(dtype))
        outputs[dtype] = apply(params, inputs)
        assert outputs[dtype].dtype == jnp.dtype(dtype)
        assert_close(outputs[dtype], expected[-1], mask, tolerance=tolerance)

    stored = decoder_apply(config, output="hidden")(params, inputs)
    np.testing.assert_array_equal(stored, outputs["bfloat16"])
    _, wide = load_decoder(tmp_path, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
    hidden = decoder_apply(config, output="hidden")(wide, inputs)
    np.testing.assert_array_equal(hidden, outputs["float32"])


def test_checkpoints_of_other_kinds_and_ages(tmp_path, capfd):
    """A bare LlamaModel, and a language model whose config has the old spelling."""
    reference = random_reference("llama with biases")
    save_torch(reference, tmp_path / "classifier", capfd)
    config, params = load_decoder(tmp_path / "classifier")
    save_torch(reference.model, tmp_path / "bare", capfd)
    stored = load_file(tmp_path / "bare" / "model.safetensors")
    assert not any(key.startswith("model.") for key in stored)

    raw = json.loads((tmp_path / "classifier" / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = rope
    old = tmp_path / "language"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(raw))
    tensors = {f"model.{key}": value for key, value in stored.items()}
    tensors["lm_head.weight"] = np.zeros((50, 24), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    save_file(tensors, old / "model.safetensors")

    for folder in ("bare", "language"):
        again, loaded = load_decoder(tmp_path / folder)
        assert again == config
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("scaled", [False, True])
def test_written_folder_is_read_by_transformers(scaled, tmp_path):
    scaling = Llama3Scaling(**{k: v for k, v in SCALED.items() if "rope" not in k})
    config = DecoderConfig(
        **(TINY | {"num_hidden_layers": 1, "intermediate_size": 6}),
        vocab_size=50,
        rope_theta=200.0,
        rope_scaling=scaling if scaled else None,
        pad_token_id=0,
    )
    params = init_decoder(config, jax.random.key(3))
    save_decoder(tmp_path, config, params)
    again, loaded = load_decoder(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    inputs = texts_for(config)
    reference = transformers.LlamaModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = reference(**as_torch(inputs)).last_hidden_state
    hidden = decoder_apply(config, output="hidden")(params, inputs)
    assert_close(hidden, expected, inputs["attention_mask"])


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, r"missing .*layers\.1"),
        ({"model_type": "gemma"}, "'gemma' is not one of llama, mistral, qwen2, qwen3"),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' cannot"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* cannot"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' is not one of"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 cannot"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"head_dim": 3}, "head_dim is odd"),
        ({"head_dim": None, "num_attention_heads": 6}, "multiple of num_attention"),
    ],
)
def test_unreadable_folders_are_refused_by_name(changes, message, tmp_path):
    config = DecoderConfig(
        **(TINY | {"num_hidden_layers": 1, "intermediate_size": 4}), vocab_size=9
    )
    save_decoder(tmp_path, config, init_decoder(config, jax.random.key(0)))
    change_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_decoder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_unknown_outputs_are_refused():
    with pytest.raises(ValueError, match="'pooled' is not one of last"):
        decoder_apply(DecoderConfig(), output="pooled")
