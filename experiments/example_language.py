"""A causal language model of one layer with two adapters, to try the commands on."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from experiments import word_tokenizer
from experiments.word_tokenizer import special_token, text
from jaxmerge.models import DecoderConfig, init_decoder, save_decoder

TASKS = {"math": 4, "code": 2}  # ranks
ROWS, WIDTH, SCALE = 48, 16, 0.3
WORDS = [f"word{number}" for number in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "<s>", "</s>"]
BEGIN, END = 2, 3
MODULES = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qo")


def write(out: Path) -> None:
    """Writes ``base``, ``runs`` and ``data`` into a folder; the same bytes each time.

    All weights and words are drawn at random.
    """
    rng = np.random.default_rng(0)
    _write_base(out / "base", rng)
    for task, rank in TASKS.items():
        _write_adapter(out / "runs" / task, rank, rng)
        _write_texts(out / "data" / f"{task}.jsonl", rng)


def _write_base(folder: Path, rng: np.random.Generator) -> None:
    config = DecoderConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    shapes = jax.eval_shape(partial(init_decoder, config), jax.random.key(0))
    params = jax.tree.map(lambda x: _drawn(x.shape, rng), shapes)
    save_decoder(folder, config, params)
    path = folder / "config.json"
    of_head = {"architectures": ["LlamaForCausalLM"]}
    of_head |= {"bos_token_id": BEGIN, "eos_token_id": END}
    path.write_text(json.dumps(json.loads(path.read_text()) | of_head, indent=2))
    word_tokenizer.write(
        folder,
        [*SPECIAL, *WORDS],
        single=[special_token("<s>"), text("A")],
        pair=[text("A"), text("B")],
        special={"<s>": BEGIN},
    )


def _write_adapter(folder: Path, rank: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    tensors = {}
    for module in MODULES:
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = _drawn((rank, WIDTH), rng)
        tensors[f"{key}.lora_B.weight"] = _drawn((WIDTH, rank), rng)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "language/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "o_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _write_texts(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    def some(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    rows = [{"prompt": some(2, 9), "completion": f" {some(1, 5)}"} for _ in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _drawn(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=shape, scale=SCALE).astype(np.float32)
