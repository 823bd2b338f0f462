"""Small folders to try every command on: ``python -m experiments.example``.

Three adapters of classifiers, their base, a BERT of one layer, and inputs of each. All
weights and words are drawn at random, so the commands run in seconds and their scores
mean nothing; real adapters are in ``experiments/digits8``. ``styles`` holds two LoRA
files of Stable Diffusion 1.5 with a few modules, as kohya's sd-scripts write them,
``language`` a causal language model of one layer with two adapters and their texts.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from experiments import example_language, word_tokenizer
from experiments.word_tokenizer import special_token, text
from jaxmerge.models import BertConfig, init_bert, save_bert

TASKS = {"cars": 4, "dtd": 2, "svhn": 3}  # ranks
ROWS, CLASSES, WIDTH = 48, 3, 16
WORDS = [f"word{number}" for number in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ATTENTION = "bert.encoder.layer.0.attention"
FOLDERS = ("runs", "base", "data", "styles", "language")
STYLES = {"ink": 4, "wash": 2}  # ranks
STYLE_MODULES = {  # outputs and inputs
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (1280, 1280),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (1280, 768),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
}
MODULES = (f"{ATTENTION}.self.query", f"{ATTENTION}.output.dense")
RECIPE = """\
adapters:
  - adapter: runs/cars
    parameters: {weight: 0.8, density: 0.3}
  - adapter: runs/dtd
    parameters: {weight: [0.2, 0.6], density: 0.2}  # over the layers
  - adapter: runs/svhn
    parameters:
      weight:
        - {filter: self.query, value: 1.0}
        - {value: 0.5}  # all other modules
      density: 0.2
pipeline: ties(density=each)|core|pico|scale(0.8)
heads: keep
"""


def main() -> None:
    """Writes small folders and a recipe into a folder."""
    parser = argparse.ArgumentParser(description="Write small folders to try on.")
    parser.add_argument("--out", type=Path, default=Path(), help="folder; by default .")
    out = parser.parse_args().out
    for name in (*FOLDERS, "recipe.yaml"):
        if (out / name).exists():
            parser.error(f"{out / name} exists already")
    write(out)
    print(f"wrote {', '.join(FOLDERS)} and recipe.yaml into {out.resolve()}")


def write(out: Path) -> None:
    """Writes everything; the same bytes each time."""
    rng = np.random.default_rng(0)
    _write_base(out / "base")
    for task, rank in TASKS.items():
        _write_adapter(out / "runs" / task, rank, rng)
        _write_inputs(out / "data" / f"{task}.jsonl", rng)
    (out / "recipe.yaml").write_text(RECIPE)
    for style, rank in STYLES.items():
        _write_style(out / "styles" / f"{style}.safetensors", rank, rng)
    example_language.write(out / "language")


def _write_base(folder: Path) -> None:
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    save_bert(folder, config, init_bert(config, jax.random.key(0)))
    first = [special_token("[CLS]"), text("A"), special_token("[SEP]")]
    word_tokenizer.write(
        folder,
        [*SPECIAL, *WORDS],
        single=first,
        pair=[*first, text("B", 1), special_token("[SEP]", 1)],
        special={"[CLS]": 2, "[SEP]": 3},
    )


def _write_adapter(folder: Path, rank: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    tensors = {"base_model.model.classifier.weight": (CLASSES, WIDTH)}
    for module in MODULES:
        tensors[f"base_model.model.{module}.lora_A.weight"] = (rank, WIDTH)
        tensors[f"base_model.model.{module}.lora_B.weight"] = (WIDTH, rank)
    drawn = {key: rng.normal(size=shape, scale=0.3) for key, shape in tensors.items()}
    save_file(
        {key: value.astype(np.float32) for key, value in drawn.items()},
        folder / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["query", "attention.output.dense"],
        "modules_to_save": ["classifier"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _write_style(path: Path, rank: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(exist_ok=True)
    tensors = {}
    for module, (outputs, inputs) in STYLE_MODULES.items():
        down = rng.standard_normal((rank, inputs)) / inputs
        up = rng.standard_normal((outputs, rank)) / rank
        tensors[f"{module}.lora_down.weight"] = down.astype(np.float16)
        tensors[f"{module}.lora_up.weight"] = up.astype(np.float16)
        tensors[f"{module}.alpha"] = np.asarray(1, np.float16)
    save_file(tensors, path, metadata={"ss_network_dim": str(rank)})


def _write_inputs(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "text": " ".join(rng.choice(WORDS, rng.integers(2, 9))),
            "label": int(rng.integers(CLASSES)),
        }
        for _ in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
