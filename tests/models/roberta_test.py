"""RoBERTa against transformers, stage by stage, its head of two layers, its files."""

from functools import partial

import jax
import numpy as np
import pytest
from models_torch import (
    as_torch,
    assert_close,
    kernels,
    linear_layers,
    randomise,
    save_torch,
)
from safetensors.numpy import load_file

from jaxmerge.models import (
    Bert,
    BertConfig,
    bert_apply,
    head_from_hub,
    head_logits,
    init_bert,
    load_bert,
    save_bert,
)
from jaxmerge.models.linear_head import TWO_LAYERS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2} | {
    "intermediate_size": 20,
    "vocab_size": 50,
    "max_position_embeddings": 14,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
FAMILIES = {"roberta": ("Roberta", 1), "xlm-roberta": ("XLMRoberta", 3)}  # padding


def random_reference(name, kind="ForSequenceClassification"):
    family, pad = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(
        **SIZES, pad_token_id=pad, num_labels=3
    )
    return randomise(getattr(transformers, family + kind)(config), seed=pad)


def texts_for(pad, length=10):
    """Padding on either side, and a hidden token that is no padding token."""
    rng = np.random.default_rng(0)
    mask = np.ones((4, length), np.int32)
    mask[1, 5:] = mask[2, 1:] = mask[3, :3] = 0
    ids = np.where(mask, rng.integers(4, 50, mask.shape), pad).astype(np.int32)
    ids[1, 6] = 30
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stage_equals_transformers(name, tmp_path, capfd):
    reference = random_reference(name)
    save_torch(reference, tmp_path, capfd)
    config, params = load_bert(tmp_path)
    inputs = texts_for(config.pad_token_id)
    with torch.no_grad():
        expected = reference(**as_torch(inputs), output_hidden_states=True)
    run = partial(Bert(config).apply, capture_intermediates=True)
    output, state = jax.jit(run)({"params": params}, inputs)
    inner = state["intermediates"]["roberta"]
    blocks = inner["encoder"]["layer"]
    stages = [inner["embeddings"], *(blocks[str(i)] for i in range(2))]
    mask = inputs["attention_mask"]
    for stage, theirs in zip(stages, expected.hidden_states, strict=True):
        assert_close(stage["__call__"][0], theirs, mask)
    assert_close(stages[0]["__call__"][0], expected.hidden_states[0])  # padding too
    stored = load_file(tmp_path / "model.safetensors")
    head = head_from_hub(stored, "classifier", layers=TWO_LAYERS)
    logits = head_logits(head, output.pooled)[:3]  # the fourth begins with padding
    assert_close(logits, expected.logits[:3])
    assert kernels(params) == {
        layer for layer in linear_layers(reference) if not layer.startswith("class")
    }


def test_longest_input_leaves_out_the_rows_before_the_first(tmp_path, capfd):
    save_torch(random_reference("xlm-roberta"), tmp_path, capfd)
    config, params = load_bert(tmp_path)
    assert config.longest_input == 10
    with pytest.raises(ValueError, match="11 tokens, the model has 10 positions"):
        bert_apply(config)(params, texts_for(3, length=11))


def test_poolers_and_heads_of_language_models_are_left_unread(tmp_path, capfd):
    reference = random_reference("roberta", "Model")
    save_torch(reference, tmp_path / "pooled", capfd)
    stored = load_file(tmp_path / "pooled" / "model.safetensors")
    assert "pooler.dense.weight" in stored
    config, params = load_bert(tmp_path / "pooled")
    language = random_reference("roberta", "ForMaskedLM")
    language.roberta.load_state_dict(reference.state_dict(), strict=False)
    save_torch(language, tmp_path / "language", capfd)
    again, loaded = load_bert(tmp_path / "language")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_written_folder_is_read_by_transformers(tmp_path):
    config = BertConfig(**SIZES, model_type="roberta", pad_token_id=1)
    params = init_bert(config, jax.random.key(3))
    save_bert(tmp_path, config, params)
    again, loaded = load_bert(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    inputs = texts_for(1)
    reference = transformers.RobertaModel.from_pretrained(
        tmp_path, add_pooling_layer=False
    )
    with torch.no_grad():
        expected = reference.eval()(**as_torch(inputs)).last_hidden_state
    hidden = jax.jit(bert_apply(config, output="hidden"))(params, inputs)
    assert_close(hidden, expected, inputs["attention_mask"])


def test_tokens_beyond_the_vocabulary_are_refused():
    config = BertConfig(**SIZES, model_type="roberta", pad_token_id=1)
    params = init_bert(config, jax.random.key(0))
    inputs = texts_for(1)
    inputs["input_ids"][0, 0] = 50
    with pytest.raises(ValueError, match="token 50, the model knows 0 to 49"):
        bert_apply(config)(params, inputs)
