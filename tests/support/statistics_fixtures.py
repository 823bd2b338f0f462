"""Fixtures of the tests of statistics: a base, adapters, data, and their statistics."""

import shutil

import jax
import learn_samples
import pytest
from cli_samples import succeed
from statistics_samples import collect, folders


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """A base, three adapters, their data and the statistics of their inputs."""
    place = tmp_path_factory.mktemp("measured")
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMERGE_CACHE", "")
        learn_samples.bert(place / "base")
        learn_samples.bert_adapters(place / "in")
        learn_samples.texts(place / "data")
        succeed(*collect(place, "stats", *folders(place), batch=5))
    return place


@pytest.fixture
def place(measured, tmp_path):
    """A copy of them."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    return tmp_path
