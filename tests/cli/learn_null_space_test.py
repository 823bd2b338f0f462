"""``jaxmerge learn --loss null-space``: no heads, no predictions, the same folders."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import learn_samples
import numpy as np
import optax
import pytest
import safetensors.numpy
from cli_samples import document, everything, refuse, succeed
from learn_samples import TASKS

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.learning import identity
from jaxmerge.learning.objectives import linear_scalarisation
from jaxmerge.tasks import load_base, load_unlabeled

MODULES = ["bert.encoder.layer.0.attention.output.dense", "bert.pooler.dense"]


pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, adapters without heads of layers before and after the pooling, texts."""
    place = tmp_path_factory.mktemp("headless")
    with jax.numpy_dtype_promotion("standard"):
        learn_samples.bert(place / "base")
    learn_samples.adapters(place / "in", MODULES, head=None)
    learn_samples.texts(place / "data")
    return place


def arguments(place, *flags):
    folders = [place / "in" / task for task in TASKS]
    where = ["--base", place / "base", "--data", place / "data", "--batch", 4]
    return ["learn", *folders, *where, "-p", "adamerging", "--start", "method", *flags]


@pytest.mark.thorough
def test_it_is_the_fit_of_null_space_ratios(place, tmp_path):
    out = tmp_path / "out"
    flags = ["--loss", "null-space", "--rate", 0.05, "--steps", 12, "-o", out]
    found = document(*arguments(place, *flags))
    assert found["objective"]["last"] < found["objective"]["first"]
    assert set(found["null_space_ratio"]) == set(TASKS)
    assert found["recipe"]["loss"] == "null-space"
    assert "logit_scale" not in found["recipe"]

    adapters = io.load_peft([place / "in" / task for task in TASKS])
    base = load_base(place / "base")
    unlabeled = load_unlabeled(place / "data", TASKS, base)

    def mask(batch):
        return {MODULES[0]: batch["attention_mask"] != 0}  # the pooler sees no padding

    losses = jm.null_space_ratios(base.apply, TASKS, adapters.stacks, mask=mask)
    batches = lambda: unlabeled.batches(size=4, seed=0)  # noqa: E731
    anchors = jm.single_adapter_losses(
        TASKS,
        adapters.stacks,
        losses,
        itertools.islice(batches(), 8),
        params=base.params,
    )
    np.testing.assert_allclose(found["recipe"]["anchors"], anchors, rtol=1e-5)
    fitted = jm.fit(
        jm.adamerging(),
        TASKS,
        adapters.stacks,
        losses,
        batches(),
        optax.adam(0.05),
        steps=12,
        params=base.params,
        scalarise=lambda values, preference: linear_scalarisation(
            values, preference=preference, anchors=jnp.asarray(anchors)
        ),
        preference=jnp.full(3, 1 / 3, jnp.float32),
    )
    phis = safetensors.numpy.load_file(out / "phi.safetensors")
    assert phis.keys() == fitted.phis.keys()
    for module, phi in phis.items():
        np.testing.assert_allclose(phi, fitted.phis[module], rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_it_can_be_verified_and_says_what_it_did(place, tmp_path):
    out = tmp_path / "out"
    flags = ["--loss", "null-space", "--steps", 2, "-o", out]
    said = succeed(*arguments(place, *flags))
    assert "null-space of cars: 0." in said
    succeed("verify", out)


def test_entropy_needs_heads(place, tmp_path):
    flags = arguments(place, "-o", tmp_path / "out")
    assert "saves no head classifier.weight" in refuse(*flags)


@pytest.mark.parametrize("flag", ["--text-heads", "--logit-scale"])
def test_options_of_predictions_are_refused(flag, place, tmp_path):
    given = ["--loss", "null-space", "-o", tmp_path / "out", flag, "3"]
    said = refuse(*arguments(place, *given))
    assert f"--loss null-space needs no predictions; leave out {flag}" in said


def test_an_adapter_that_sees_nothing_is_refused_before_the_fit(place, tmp_path):
    folders = [place / "in" / task for task in TASKS]
    nothing = shutil.copytree(folders[1], tmp_path / "nothing" / "dtd")
    weights = nothing / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    zeros = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(zeros, weights)
    before = everything(tmp_path)
    flags = arguments(place, "--loss", "null-space", "--allow-zero")
    flags = [nothing if flag == folders[1] else flag for flag in flags]
    said = refuse(*flags, "-o", tmp_path / "out")
    assert "'dtd' has an adapter in none of 2 measured modules" in said
    assert everything(tmp_path) == before
    succeed(*flags, "--loss", "features", "--steps", "2", "-o", tmp_path / "out")


@pytest.mark.thorough
def test_checkpoints_that_another_version_left_are_refused(
    place, tmp_path, monkeypatch
):
    flags = ["--loss", "null-space", "--steps", 2, "--work", tmp_path / "work"]
    succeed(*arguments(place, *flags, "-o", tmp_path / "out"))
    monkeypatch.setattr(identity, "program_digest", lambda *_: "of another version")
    said = refuse(*arguments(place, *flags, "-o", tmp_path / "again"))
    assert "checkpoints of another fit, which differs in its method" in said
    assert str(tmp_path / "work") in said
