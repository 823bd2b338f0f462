"""The examples in the docstrings of the experiments run."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import experiments

HERE = Path(experiments.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(HERE.parent).with_suffix("").parts)
    for path in HERE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples():
    assert "experiments.choosing" in WITH_EXAMPLES


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    found = doctest.testmod(import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
