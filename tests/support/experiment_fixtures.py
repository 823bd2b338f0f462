"""Fixtures that tests of the common comparison share, as a plugin of pytest."""

import gzip
import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny_comparisons import CLIP, CLIP_MODULES, LLAMA, name_places, write_adapter
from tokenizers import Tokenizer, models, pre_tokenizers

from experiments.configs import clip_vision8, llama_nli6
from jaxmerge.models import init_decoder, init_vision, save_decoder, save_vision


@pytest.fixture
def as_outside_of_tests():
    """Optimisers of optax mix Python and array types."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def few(monkeypatch):
    """Few tasks and candidates: for each of them something is compiled anew."""
    for config in (clip_vision8, llama_nli6):
        monkeypatch.setattr(config, "TASKS", config.TASKS[:3])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP, and adapters, text vectors and images for three tasks."""
    tmp_path = tmp_path_factory.mktemp("clip")
    save_vision(tmp_path / "clip", CLIP, init_vision(CLIP, jax.random.key(0)))
    pixels = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(pixels))
    rng = np.random.default_rng(0)
    vectors = {}
    for index, task in enumerate(clip_vision8.TASKS[:3]):
        write_adapter(tmp_path / "adapters" / task, CLIP_MODULES, index)
        vectors[task] = rng.normal(size=(2, 6)).astype(np.float32)
        for part in ("validation", "test"):
            for label in ("cat", "dog"):
                folder = tmp_path / "images" / task / part / label
                folder.mkdir(parents=True)
                for count in range(8):
                    pixels = rng.integers(0, 255, (10, 12, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{count}.png")
    save_file(vectors, tmp_path / "heads.safetensors")
    return tmp_path


@pytest.fixture
def clip(clip_folder, few, monkeypatch):
    places = {"HEADS": "heads.safetensors", "IMAGES": "images", "CLIP": "clip"}
    name_places(monkeypatch, clip_folder, places)
    return clip_vision8.get_config()


@pytest.fixture
def llama(tmp_path, few, monkeypatch):
    """A tiny Llama with its tokenizer, adapters with heads, and texts."""
    save_decoder(tmp_path / "llama", LLAMA, init_decoder(LLAMA, jax.random.key(0)))
    vocabulary = {str(number): number for number in range(20)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "llama" / "tokenizer.json"))
    rng = np.random.default_rng(0)
    for index, task in enumerate(llama_nli6.TASKS):
        head = rng.normal(size=(2, 8)).astype(np.float32)
        write_adapter(
            tmp_path / "adapters" / task,
            ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"],
            index,
            {"base_model.model.score.weight": head},
        )
        folder = tmp_path / "texts" / task
        folder.mkdir(parents=True)
        for part in ("validation", "test"):
            with gzip.open(folder / f"{part}.jsonl.gz", "wt") as file:
                for _ in range(24):
                    words = [" ".join(map(str, rng.integers(1, 20, 3))) for _ in "ab"]
                    row = {"text_a": words[0], "text_b": words[1]}
                    file.write(json.dumps(row | {"label": int(rng.integers(2))}) + "\n")
    name_places(monkeypatch, tmp_path, {"LLAMA": "llama", "TEXTS": "texts"})
    return llama_nli6.get_config()
