"""The image experiment: data, pretraining, heads, and the committed accuracies."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("sklearn")

from experiments.evaluation import accuracies, make_exam, own_accuracies
from experiments.suite import Suite
from experiments.vision8 import pretrain, suite
from experiments.vision8.data import (
    OTHERS,
    TASKS,
    load_pixels,
    load_split,
    normalise,
)
from experiments.vision8.heads import class_means, fit_probe
from experiments.vision8.suite import (
    BASE,
    HEADS,
    METRICS,
    TRAINED,
    load_base,
    load_suite,
)
from jaxmerge.io import load_peft
from jaxmerge.models import (
    VisionConfig,
    head_logits,
    init_vision,
    save_vision,
    vision_apply,
)

pytestmark = pytest.mark.thorough

PARTS = ("train", "validation", "test")
SMALL = VisionConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=32,
    patch_size=16,
    projection_dim=None,
)
WIDER = dataclasses.replace(SMALL, hidden_size=16)


@pytest.mark.parametrize("name", TASKS + OTHERS)
def test_parts_of_a_set_share_no_image(name, shared):
    parts = [load_pixels(name, part) for part in PARTS]
    seen = [{image.tobytes() for image in images} for images, _ in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    with np.load(shared / "data" / "images" / f"{name}.npz") as file:
        published, classes = len(file["y_train"]), len(file["label_names"])
    for images, labels in parts:
        assert images.shape == (len(labels), 32, 32, 3)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert set(labels) == set(range(classes))
    (_, train), (_, validation), _ = parts
    assert len(train) == published - min(500, published // 10)
    assert len(validation) >= 0.98 * min(500, published // 10)
    shares = [np.bincount(labels) / len(labels) for labels in (train, validation)]
    assert abs(shares[0] - shares[1]).max() < 0.01


def test_images_are_framed_in_three_channels_and_normalised(shared):
    pixels, labels = load_pixels("mnist", "validation")
    assert not pixels[:, :2].any()
    assert not pixels[:, :, -2:].any()
    assert (pixels[..., :1] == pixels).all()
    split = load_split("mnist", "validation")
    assert split.inputs.dtype == np.float32
    np.testing.assert_array_equal(split.labels, labels)
    assert (split.inputs.min(), split.inputs.max()) == (-2.0, 2.0)
    colours = load_pixels("cifar10", "validation")[0]
    assert (colours[..., 0] != colours[..., 2]).any()


def test_unknown_sets_and_parts_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no set 'svhn'; there are mnist, "):
        load_split("svhn", "train")
    with pytest.raises(ValueError, match="no part 'dev'; there are train, "):
        load_split("mnist", "dev")
    monkeypatch.setenv("JAXMERGE_SHARED", str(tmp_path))
    with pytest.raises(ValueError, match=r"images/mnist.npz: no such file"):
        load_split("mnist", "test")


def images_of(seed, count=4):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return jnp.asarray(normalise(pixels))


def test_descriptor_tells_direction_and_colour_not_contrast():
    ramp = jnp.broadcast_to(jnp.arange(32, dtype=jnp.float32)[None, :], (32, 32))
    image = jnp.stack([ramp, ramp, 0 * ramp], -1)[None]
    found = pretrain.describe(image)[0]
    rises = found[:512].reshape(8, 8, 8)
    assert (rises[1:-1, 1:-1].argmax(-1) == 0).all()  # brighter to the right
    assert (rises[..., 3:6] < 1e-6).all()  # the directions to the left
    colours = found[512:].reshape(8, 8, 3)
    np.testing.assert_allclose(colours[0, :, 0], np.arange(8) * 4 + 1.5, rtol=1e-6)
    assert not colours[..., 2].any()
    faint = pretrain.describe(0.5 * image + 1)[0]
    np.testing.assert_allclose(faint[:512], found[:512], atol=5e-3)
    upward = pretrain.describe(jnp.swapaxes(image, 1, 2))[0, :512].reshape(8, 8, 8)
    assert (upward[1:-1, 1:-1].argmax(-1) == 2).all()


@pytest.fixture(scope="module")
def params():
    """Of a small tower."""
    return init_vision(SMALL, jax.random.key(0))


def test_reading_all_patches_is_the_tower(params):
    images = images_of(0)
    order = jnp.asarray([[2, 0, 3, 1]] * 4)
    found = pretrain.read_patches(SMALL, params, images, order)
    expected = vision_apply(SMALL)(params, images)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_unseen_patches_do_not_matter(params):
    images = images_of(0)
    order = jnp.asarray([[0, 3]] * 4)
    changed = images.at[:, :16, 16:].set(7.0)  # patch 1
    found = pretrain.read_patches(SMALL, params, images, order)
    again = pretrain.read_patches(SMALL, params, changed, order)
    np.testing.assert_array_equal(found, again)
    other = pretrain.read_patches(SMALL, params, changed, order.at[:, 1].set(1))
    assert np.abs(other - found).max() > 1e-3


def test_images_are_moved_each_by_its_own_way():
    images = jnp.tile(images_of(3, count=1), (16, 1, 1, 1))
    moved = pretrain.vary(jax.random.key(0), images)
    assert moved.shape == images.shape
    assert len({image.tobytes() for image in np.asarray(moved)}) > 8
    inner = np.asarray(images[0, 10:20, 10:20])
    for image in np.asarray(moved):
        found = [
            np.array_equal(image[10 + i : 20 + i, 10 + j : 20 + j], inner)
            for i in range(-3, 4)
            for j in range(-3, 4)
        ]
        assert sum(found) == 1


def test_pretraining_learns_and_continues_after_a_stop(params, tmp_path, monkeypatch):
    made = {SMALL: params, WIDER: jax.tree.map(lambda x: jnp.stack([x, x]), params)}
    monkeypatch.setattr(pretrain, "init_vision", lambda config, _: made[config])
    pixels = np.random.default_rng(0).integers(0, 256, (32, 2, 2, 3), np.uint8)
    pool = pretrain.Pool(pixels.repeat(16, 1).repeat(16, 2), np.full(32, 1 / 32))
    monkeypatch.setattr(pretrain, "load_pool", lambda: pool)
    monkeypatch.setattr(pretrain, "SAMPLE", 64)
    monkeypatch.setattr(pretrain, "CHUNK", 20)
    monkeypatch.setattr(pretrain, "RATE", 1e-2)
    monkeypatch.setattr(pretrain, "BATCH", 8)
    lines = []

    def train(name, report):
        path = tmp_path / f"{name}.safetensors"
        with jax.numpy_dtype_promotion("standard"):
            return pretrain.pretrain(SMALL, path, steps=40, report=report)

    whole = train("whole", lines.append)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert [line.split(" of")[0] for line in lines] == ["20", "40"]
    assert losses[-1] < 0.97 * losses[0]

    def stop(line):
        if line.startswith("20 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("parts", stop)
    lines.clear()
    again = train("parts", lines.append)
    assert lines[0] == "continues after 20 steps"
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    with pytest.raises(ValueError, match=r"whole.safetensors: of another model"):
        pretrain.pretrain(WIDER, tmp_path / "whole.safetensors", steps=40)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", ["means", "probe"])
def test_heads_separate_what_is_separable(kind, classes):
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(classes, 6)) + 100

    def draw(count):
        labels = rng.integers(0, classes, count)
        features = centres[labels] + rng.normal(size=(count, 6))
        return features.astype(np.float32), labels

    if kind == "means":
        kernel, bias = class_means(*draw(300))
    else:
        kernel, bias, score = fit_probe(draw(300), draw(100))
        assert score == 1.0
    assert (kernel.shape, bias.shape) == ((6, classes), (classes,))
    assert (kernel.dtype, bias.dtype) == (np.float32, np.float32)
    features, labels = draw(200)
    head = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    found = jnp.argmax(head_logits(head, jnp.asarray(features)), -1)
    np.testing.assert_array_equal(found, labels)


def test_class_means_are_the_nearest_in_standardised_features():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(60, 5)) * [1, 5, 2, 9, 1] + 3, np.arange(60) % 3
    kernel, bias = class_means(features, labels)
    standard = (features - features.mean(0)) / features.std(0)
    means = np.stack([standard[labels == c].mean(0) for c in range(3)])
    distances = np.square(standard[:, None] - means[None]).sum(-1)
    np.testing.assert_array_equal(
        (features @ kernel + bias).argmax(1), distances.argmin(1)
    )


def test_missing_or_other_bases_are_refused(params, tmp_path):
    with pytest.raises(ValueError, match=r"base: no such folder; run: python -m"):
        load_suite(tmp_path)
    save_vision(tmp_path / BASE, SMALL, params)
    with pytest.raises(ValueError, match="its config is not that of"):
        load_base(tmp_path)


def test_a_base_without_heads_is_refused(params, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "CONFIG", SMALL)
    save_vision(tmp_path / BASE, SMALL, params)
    assert load_base(tmp_path).tasks == ()
    with pytest.raises(ValueError, match=r"heads.safetensors: no such file; run: "):
        load_suite(tmp_path)


@pytest.fixture(scope="module")
def metrics():
    return json.loads(METRICS.read_text())["tasks"]


def test_adapters_are_above_base_and_probes_and_their_sum_below(metrics):
    assert tuple(metrics) == TASKS
    base, probe, adapter, everything = (
        np.array([found["test"][kind] for found in metrics.values()])
        for kind in ("base", "probe", "adapter", "sum")
    )
    assert (adapter >= base + 0.05).all()
    assert (adapter >= probe + 0.01).all()
    assert (adapter - probe).mean() >= 0.05
    assert (everything < adapter).all()


@pytest.fixture(scope="module")
def trained() -> Suite:
    if not METRICS.is_file() or not (TRAINED / HEADS).is_file():
        pytest.skip("no weights; run: python -m experiments.vision8.train")
    return load_suite()


def test_weights_reach_the_committed_accuracies(trained, metrics, shared):
    exam = make_exam(trained, "validation")
    base, stacks = accuracies(exam, {}), load_peft([t.adapter for t in trained.tasks])
    own = own_accuracies(exam, stacks.stacks)
    for name in TASKS:
        expected = metrics[name]["validation"]
        assert base[name] == pytest.approx(expected["base"], abs=0.006)
        assert own[name] == pytest.approx(expected["adapter"], abs=0.006)
