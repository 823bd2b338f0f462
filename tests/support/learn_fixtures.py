"""Fixtures of the tests of learned merges: a base, adapters and their data."""

import shutil

import jax
import learn_samples
import pytest
from learn_samples import TASKS


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A base, three adapters and their data, written once."""
    place = tmp_path_factory.mktemp("written")
    with jax.numpy_dtype_promotion("standard"):
        learn_samples.bert(place / "base")
    learn_samples.bert_adapters(place / "in")
    learn_samples.texts(place / "data")
    return place


@pytest.fixture
def bert(written, tmp_path):
    """A copy of them, as arguments."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    folders = [tmp_path / "in" / task for task in TASKS]
    place = ["--base", tmp_path / "base", "--data", tmp_path / "data"]
    return [*folders, *place, "--batch", 4]
