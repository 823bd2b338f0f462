"""Folders of decoders: configs, dtypes, heads, and what is refused."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_samples import (
    DEFAULTS,
    MODELS,
    SCALED,
    TINY,
    mixed_dtypes,
    random_reference,
    texts_for,
)
from models_torch import (
    as_torch,
    assert_close,
    save_torch,
)
from safetensors.numpy import load_file, save_file

from jaxmerge.models import (
    DecoderConfig,
    Llama3Scaling,
    decoder_apply,
    init_decoder,
    load_decoder,
    save_decoder,
    vocabulary_head,
)
from jaxmerge.models.decoder_hub import config_from_hub

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


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


def hidden_of(config, params, inputs, **options):
    """Every token, also where dtypes are mixed."""
    apply = decoder_apply(config, output="hidden", **options)
    with mixed_dtypes():
        return jax.jit(apply)(params, inputs)


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
        with torch.no_grad():
            expected = reference.model(**as_torch(inputs)).last_hidden_state
        outputs[dtype] = hidden_of(config, params, inputs, dtype=jnp.dtype(dtype))
        assert outputs[dtype].dtype == jnp.dtype(dtype)
        assert_close(outputs[dtype], expected, mask, tolerance=tolerance)

    stored = hidden_of(config, params, inputs)
    np.testing.assert_array_equal(stored, outputs["bfloat16"])
    _, wide = load_decoder(tmp_path, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
    hidden = hidden_of(config, wide, inputs)
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
    hidden = hidden_of(config, params, inputs)
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
        ({"model_type": "mistral", "sliding_window": 0}, "sees at least itself"),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"]},
            "'sliding_attention' without a sliding_window",
        ),
        ({"model_type": "qwen3", "layer_types": []}, "layer_types .*each of 1 layers"),
        ({"rope_parameters": {"full_attention": {}}}, "of full_attention alone"),
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


def stored_otherwise(folder, **tensors):
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path)


def test_output_layers_that_are_not_what_the_config_says(tmp_path):
    """None where one is needed, and one of its own where the embeddings serve."""
    config = DecoderConfig(
        **(TINY | {"num_hidden_layers": 1, "intermediate_size": 4}), vocab_size=9
    )
    params = init_decoder(config, jax.random.key(0))
    save_decoder(tmp_path, config, params)
    with pytest.raises(
        ValueError, match=r"without lm_head\.weight.*AutoModelForCausal"
    ):
        load_decoder(tmp_path, head=True)
    with pytest.raises(ValueError, match=r"without lm_head.*head=True"):
        vocabulary_head(config)(params)
    change_config(tmp_path, tie_word_embeddings=True)
    words = load_file(tmp_path / "model.safetensors")["embed_tokens.weight"]
    stored_otherwise(tmp_path, **{"lm_head.weight": words})
    _, loaded = load_decoder(tmp_path, head=True)
    assert "lm_head" not in loaded
    stored_otherwise(tmp_path, **{"lm_head.weight": words + 1})
    with pytest.raises(ValueError, match=r"tie_word_embeddings is set, but lm_head"):
        load_decoder(tmp_path, head=True)


def test_variants_that_no_architecture_has_are_not_written(tmp_path):
    config = DecoderConfig(**TINY, output_bias=True, num_hidden_layers=1)
    with pytest.raises(ValueError, match="none of llama, mistral, qwen2, qwen3 has"):
        save_decoder(tmp_path, config, {})


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_as_the_same(name, tmp_path):
    """As a language model, by the same family."""
    family, sizes = MODELS[name]
    theirs = getattr(transformers, f"{family}Config")(**DEFAULTS | sizes)
    config = config_from_hub(theirs.to_dict())
    shapes = jax.eval_shape(partial(init_decoder, config, head=True), jax.random.key(0))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    save_decoder(tmp_path, config, params)
    again, loaded = load_decoder(tmp_path, head=True)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == theirs.model_type
