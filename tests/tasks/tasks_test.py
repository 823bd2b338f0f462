"""Model folders as functions, and files of inputs as batches."""

import json
import math

import io_samples as samples
import jax
import learn_samples
import numpy as np
import pytest
import safetensors.numpy
from learn_samples import TASKS

from jaxmerge import io
from jaxmerge.models import load_vision, vision_apply
from jaxmerge.tasks import load_base, load_unlabeled, task_heads
from jaxmerge.tasks.texts import load_tokenizer, read_texts, tokenise

pytestmark = pytest.mark.usefixtures("standard_promotion")


def token_rows(folder, texts, **options):
    inputs, truncated = tokenise(texts, load_tokenizer(folder), **options)
    return {name: values.tolist() for name, values in inputs.items()}, truncated


def test_tokens_of_pairs_and_texts(tmp_path):
    learn_samples.save_tokenizer(tmp_path)
    pairs = [("w1 w2", "w3"), ("w4", "w5 w6 w7 nothing")]
    found, truncated = token_rows(tmp_path, pairs, length=20, token_types=True)
    assert truncated == 0
    rest = [0] * 10
    assert found["input_ids"] == [
        [2, 5, 6, 3, 7, 3, *rest],
        [2, 8, 3, 9, 10, 11, 1, 3, *rest[2:]],
    ]
    assert found["token_type_ids"] == [
        [0, 0, 0, 0, 1, 1, *rest],
        [0, 0, 0, 1, 1, 1, 1, 1, *rest[2:]],
    ]
    assert found["attention_mask"] == [[1] * 6 + rest, [1] * 8 + rest[2:]]
    found, truncated = token_rows(tmp_path, pairs, length=7, pad_id=49)
    assert truncated == 1
    assert found["input_ids"] == [[2, 5, 6, 3, 7, 3, 49], [2, 8, 3, 9, 10, 11, 3]]
    assert "token_type_ids" not in found
    found, _ = token_rows(tmp_path, [("w1 w2",), ("w3",)], length=4)
    assert found["input_ids"] == [[2, 5, 6, 3], [2, 7, 3, 0]]


def test_the_fields_of_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    for row, expected in (
        ({"text": "x", "label": 1}, ("x",)),
        ({"text_b": "y", "text_a": "x"}, ("x", "y")),
        ({"sentence1": "x", "sentence2": "y", "text_a": "alone"}, ("x", "y")),
        ({"premise": "x", "hypothesis": "y"}, ("x", "y")),
    ):
        path.write_text(json.dumps(row) + "\n\n" + json.dumps(row))
        assert read_texts(path) == [expected, expected]
    path.write_text(json.dumps({"text": "x", "premise": "x", "hypothesis": "y"}))
    with pytest.raises(ValueError, match="only one of these"):
        read_texts(path)
    path.rename(tmp_path / "a.jsonl.gz")
    with pytest.raises(ValueError, match="not readable as JSON lines"):
        read_texts(tmp_path / "a.jsonl.gz")


def test_batches_depend_on_the_seed_and_the_name_alone(tmp_path):
    base = load_base(learn_samples.bert(tmp_path / "base"))
    data = learn_samples.texts(tmp_path / "data")

    def stream(tasks, seed, count=6):
        batches = load_unlabeled(data, tasks, base).batches(size=8, seed=seed)
        return [next(batches) for _ in range(count)]

    first, again = stream(TASKS, 0), stream(TASKS[::-1], 0)
    for batch, other in zip(first, again, strict=True):
        assert batch.keys() == other.keys()
        jax.tree.map(np.testing.assert_array_equal, batch, other)
    ids = [np.concatenate([b[t]["input_ids"] for b in first]) for t in TASKS[:2]]
    for rows in ids:  # 24 inputs: three batches of 8 are one pass over all of them
        one, two = (
            sorted(map(tuple, part.tolist())) for part in (rows[:24], rows[24:])
        )
        assert one == two
        assert rows[:24].tolist() != rows[24:].tolist()
    other = stream(TASKS, 1)[0]["cars"]["input_ids"]
    assert not np.array_equal(first[0]["cars"]["input_ids"], other)


def test_pixels_are_normalised_as_the_folder_says(tmp_path):
    folder = learn_samples.clip(tmp_path / "base")
    base = load_base(folder)
    config, params = load_vision(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    statistics = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (np.float32(statistics[name]) for name in ("image_mean", "image_std"))
    floats = (pixels.astype(np.float32) / 255 - mean) / std
    expected = vision_apply(config)(params, floats)
    np.testing.assert_allclose(base.apply(base.params, pixels), expected, atol=1e-5)
    np.testing.assert_array_equal(base.apply(base.params, floats), expected)
    (folder / "preprocessor_config.json").unlink()
    bare = load_base(folder)
    np.testing.assert_array_equal(bare.apply(bare.params, floats), expected)
    with pytest.raises(ValueError, match="cannot be normalised"):
        bare.apply(bare.params, pixels)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(ValueError, match="no usable image_mean and image_std"):
        load_base(folder)


def test_the_logit_scale_of_clip(tmp_path):
    folder = learn_samples.clip(tmp_path / "base")
    with pytest.raises(ValueError, match="stores no logit_scale"):
        load_base(folder).scale()
    assert load_base(folder).scale(30.0) == 30
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite number above 0"):
            load_base(folder).scale(scale)
    path = folder / "config.json"
    sizes = json.loads(path.read_text())
    whole = {"model_type": "clip", "projection_dim": 12, "vision_config": sizes}
    path.write_text(json.dumps(whole))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["logit_scale"] = np.asarray(math.log(50), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert load_base(folder).scale() == pytest.approx(50, rel=1e-6)


def test_text_heads_are_finite_matrices_of_every_task(tmp_path):
    base = load_base(learn_samples.clip(tmp_path / "base"))
    module = "vision_model.encoder.layers.0.self_attn.q_proj"
    folders = learn_samples.adapters(tmp_path / "in", [module], head=None)
    adapters = io.load_peft(folders)
    path = learn_samples.text_vectors(tmp_path / "heads.safetensors")
    assert {
        t: head.shape for t, head in task_heads(base, adapters, path).items()
    } == dict.fromkeys(TASKS, (3, 12))
    good = safetensors.numpy.load_file(path)
    for change, message in (
        ({"dtd": np.zeros((3, 12), np.float32)}, "none of them zero"),
        ({"dtd": samples.random(12)}, "not a matrix"),
        ({"dtd": np.full((3, 12), np.nan, np.float32)}, "NaN"),
        ({"dtd": np.ones((3, 12), np.int32)}, "floating type"),
    ):
        safetensors.numpy.save_file(good | change, path)
        with pytest.raises(ValueError, match=message):
            task_heads(base, adapters, path)
    safetensors.numpy.save_file({"cars": good["cars"]}, path)
    with pytest.raises(ValueError, match="no array 'dtd'"):
        task_heads(base, adapters, path)


def test_saved_modules_that_the_base_lacks_are_refused(tmp_path):
    base = load_base(learn_samples.bert(tmp_path / "base"))
    (folder,) = learn_samples.bert_adapters(tmp_path / "in", tasks=("cars",))
    tensors = samples.tensors_of(folder)
    tensors["base_model.model.bert.pooler.dense.weight"] = samples.random(16, 16)
    config = {"r": 2, "lora_alpha": 2, "modules_to_save": ["classifier", "pooler"]}
    samples.write(folder, tensors, **config)
    with pytest.raises(ValueError, match=r"pooler.dense.weight.*beside its head"):
        task_heads(base, io.load_peft([folder], heads="keep"))
