"""Tiny base models, adapters with heads and unlabeled data for ``jaxmerge learn``."""

import contextlib
import gzip
import json
from pathlib import Path

import io_samples as samples
import jax
import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxmerge.learning.checkpoint import Checkpoints
from jaxmerge.models import (
    BertConfig,
    DecoderConfig,
    VisionConfig,
    init_bert,
    init_decoder,
    init_vision,
    save_bert,
    save_decoder,
    save_vision,
)

WORDS = [f"w{index}" for index in range(40)]
TASKS = ("cars", "dtd", "svhn")
WIDTH = 16
QUERY = "bert.encoder.layer.0.attention.self.query"
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words with the special tokens of BERT."""
    vocabulary = {
        word: index
        for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def bert(folder: Path) -> Path:
    config = BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES)
    save_bert(folder, config, init_bert(config, jax.random.key(0)))
    save_tokenizer(folder)
    return folder


def llama(folder: Path) -> Path:
    config = DecoderConfig(vocab_size=50, num_key_value_heads=1, **SIZES)
    save_decoder(folder, config, init_decoder(config, jax.random.key(0)))
    save_tokenizer(folder)
    return folder


def clip(folder: Path) -> Path:
    config = VisionConfig(image_size=8, patch_size=4, projection_dim=12, **SIZES)
    save_vision(folder, config, init_vision(config, jax.random.key(0)))
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return folder


def adapters(
    folder: Path, modules: list[str], *, head: str | None, tasks=TASKS, **options
) -> list[Path]:
    """Adapters of square layers, each with a head of its own."""
    made = []
    for seed, name in enumerate(tasks):
        tensors = {}
        for place, module in enumerate(modules):
            sizes = {"m": WIDTH, "n": WIDTH, "r": 2, "seed": 10 * seed + place}
            tensors |= samples.linear(module, **sizes)
        config = {"r": 2, "lora_alpha": 2, **options}
        if head is not None:
            key = f"base_model.model.{head}.weight"
            tensors[key] = samples.random(2 + seed, WIDTH, seed=seed)
            config["modules_to_save"] = [head]
        made.append(samples.write(folder / name, tensors, **config))
    return made


def bert_adapters(folder: Path, **options) -> list[Path]:
    layer = "bert.encoder.layer.0.attention"
    modules = [f"{layer}.self.query", f"{layer}.output.dense"]
    return adapters(folder, modules, head="classifier", **options)


def texts(folder: Path, tasks=TASKS) -> Path:
    """Files of three kinds, with labels that nothing may read."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for place, task in enumerate(tasks):
        rows = []
        for _ in range(24):
            first, second = (
                " ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(2)
            )
            pairs = [
                {"text_a": first, "text_b": second},
                {"text": first},
                {"premise": first, "hypothesis": second},
            ]
            rows.append(pairs[place % 3] | {"label": 0})
        content = "".join(json.dumps(row) + "\n" for row in rows)
        if place == 1:
            with gzip.open(folder / f"{task}.jsonl.gz", "wt") as file:
                file.write(content)
        elif place == 2:
            (folder / task).mkdir()
            (folder / task / "validation.jsonl").write_text(content)
        else:
            (folder / f"{task}.jsonl").write_text(content)
    return folder


def images(folder: Path, tasks=TASKS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for task in tasks:
        pixels = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
        np.savez(folder / f"{task}.npz", images=pixels, labels=np.zeros(12, int))
    return folder


def text_vectors(path: Path, tasks=TASKS) -> Path:
    vectors = {task: samples.random(3, 12, seed=i) for i, task in enumerate(tasks)}
    safetensors.numpy.save_file(vectors, path)
    return path


def ask(inputs, out, pipeline="tara_a", **options):
    """Arguments of a fit, by entropy from the method's start unless given."""
    options = {"loss": "entropy", "start": "method"} | options
    flags = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, value]
    return ["learn", *inputs, "-p", pipeline, "-o", out, *flags]


@contextlib.contextmanager
def stopped_after(step, monkeypatch):
    """Fits in this process are stopped as by Ctrl-C once this step is saved."""
    save = Checkpoints.save

    def stop(self, saved, *state):
        save(self, saved, *state)
        if saved == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", stop)
        yield
