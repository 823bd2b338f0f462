"""A tiny causal language model, adapters of it and texts that they complete."""

import json
from functools import partial
from pathlib import Path

import jax
import learn_samples
import numpy as np
from learn_samples import SIZES, TASKS, WIDTH, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxmerge.models import LlamaConfig, hub, init_llama

LAYER = "model.layers.0"
MODULES = (f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.o_proj")
BEGIN, END, VOCABULARY = 2, 3, 50


def base(folder: Path, *, tied=False) -> Path:
    """A Llama with a head of its own or that of its embeddings, and a tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=1,
        max_position_embeddings=64,
        **SIZES,
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(init_llama, config), jax.random.key(0))

    def drawn(x: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(size=x.shape, scale=0.4).astype(np.float32)

    params = jax.tree.map(drawn, shapes)
    raw = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    raw |= {name: getattr(config, name) for name in ("vocab_size", *SIZES)}
    raw |= {"num_key_value_heads": 1, "max_position_embeddings": 64}
    raw |= {"rms_norm_eps": config.rms_norm_eps, "rope_theta": config.rope_theta}
    raw |= {"eos_token_id": END, "tie_word_embeddings": tied}
    tensors = {
        name if name.startswith("model.") else f"model.{name}": value
        for name, value in hub.from_flax(params).items()
    }
    if not tied:
        shape = jax.ShapeDtypeStruct((VOCABULARY, WIDTH), np.float32)
        tensors["lm_head.weight"] = drawn(shape)
    hub.write_folder(folder, raw, tensors)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, *, more=0) -> None:
    """Whole words, after a token that begins a text."""
    words = ["[PAD]", "[UNK]", "<s>", "</s>", *WORDS]
    words += [f"w{len(WORDS) + index}" for index in range(more)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def adapters(folder: Path, tasks=TASKS, **config) -> list[Path]:
    targets = [module.rpartition(".")[2] for module in MODULES]
    config = {"task_type": "CAUSAL_LM", "target_modules": targets, **config}
    return learn_samples.adapters(
        folder, list(MODULES), head=None, tasks=tasks, **config
    )


def texts(folder: Path, tasks=TASKS, *, rows=12) -> Path:
    """Prompts and completions of different lengths; whole texts for the last task."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def some(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    for place, task in enumerate(tasks):
        lines = [
            {"text": some(3, 12)}
            if place == 2
            else {"prompt": some(2, 9), "completion": f" {some(1, 5)}", "answer": "x"}
            for _ in range(rows)
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{task}.jsonl").write_text(content)
    return folder
