"""A tiny causal language model, adapters of it and texts that they complete."""

import json
from functools import partial
from pathlib import Path

import jax
import learn_samples
import numpy as np
import pytest
from learn_samples import SIZES, TASKS, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxmerge.models import DecoderConfig, init_decoder, save_decoder
from jaxmerge.tasks.next_tokens import counted_tokens
from jaxmerge.tasks.texts import OF_TOKENS

LAYER = "model.layers.0"
MODULES = (f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.o_proj")
SPECIAL = ("[PAD]", "[UNK]", "<s>", "</s>")
BEGIN, END, VOCABULARY = 2, 3, 50


def base(folder: Path, *, tied=False) -> Path:
    """A Llama with a head of its own or that of its embeddings, and a tokenizer."""
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        **SIZES,
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(init_decoder, config, head=True), jax.random.key(0))
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape, scale=0.4).astype(np.float32), shapes
    )
    save_decoder(folder, config, params)
    path = folder / "config.json"
    more = {"architectures": ["LlamaForCausalLM"], "eos_token_id": END}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, *, more=0) -> None:
    """Whole words, after a token that begins a text."""
    words = [*SPECIAL, *WORDS]
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


def loss_of_transformers(base: Path, adapter, inputs) -> float:
    """Nats per token, of the base or with an adapter, as transformers computes them."""
    oracle = pytest.importorskip("model_samples")
    net = oracle.with_adapter(base, adapter) if adapter else oracle.loaded(base)
    labels = np.full(inputs["input_ids"].shape, -100)
    for row, mask in enumerate(counted_tokens(inputs)):
        places, ids = inputs["places"][row][mask], inputs["next_ids"][row][mask]
        labels[row, places + 1] = ids
    tensors = {"labels": labels, **{k: inputs[k] for k in OF_TOKENS if k in inputs}}
    given = {k: oracle.torch.tensor(v).long() for k, v in tensors.items()}
    with oracle.torch.no_grad():
        return float(net(**given).loss)
