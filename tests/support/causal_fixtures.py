"""Fixtures of tests that give commands a causal model, texts and adapters."""

import pytest
from learn_samples import TASKS


@pytest.fixture(scope="module")
def where(place):
    return ["--base", place / "base", "--data", place / "data"]


@pytest.fixture(scope="module")
def folders(place):
    return [place / "in" / task for task in TASKS]
