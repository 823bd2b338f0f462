"""Methods of PEFT and mergekit: the same thing here, never another method."""

import re

import pytest

from jaxmerge.spec import PipelineError, parse
from jaxmerge.spec.foreign_names import _LIKE, _NOT_OFFERED

PIPELINE = re.compile(r"(?<= is )\w+(?:\(\w+=\.\.\))?(?:\|\w+(?:\(\w+=\.\.\))?)*")
VALUES = {"density=..": "density=0.5", "rank=..": "rank=4"}


def refused(text: str) -> str:
    with pytest.raises(PipelineError) as error:
        parse(text)
    return str(error.value)


@pytest.mark.parametrize("name", _LIKE)
def test_every_suggestion_is_a_pipeline(name):
    said = refused(name)
    suggested = PIPELINE.findall(_LIKE[name])
    assert suggested
    for pipeline in suggested:
        assert pipeline in said
        for blank, value in VALUES.items():
            pipeline = pipeline.replace(blank, value)
        assert parse(pipeline).text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cat", "concat"),
        ("svd", "concat|truncate(rank=..)"),
        ("ties_svd", "elect|trim(density=..)|full|truncate(rank=..)"),
        ("dare_linear", "total|dare(density=..)|full"),
        ("DARE-linear", "total|dare(density=..)|full"),
        ("linear|scale(0.3)", "concat"),
        ("magnitude_prune(density=0.3)", "total|trim(density=..)|full"),
    ],
)
def test_names_of_other_tools(name, meant):
    said = refused(name)
    assert f" is {meant}" in said
    assert "did you mean" not in said


@pytest.mark.parametrize("name", sorted(_NOT_OFFERED))
def test_what_is_not_offered_is_not_taken_for_something_else(name):
    said = refused(name)
    assert "it is not offered here" in said
    assert "did you mean" not in said


@pytest.mark.parametrize("name", ["consensus", "sparta", "lossless", "gram"])
def test_an_unknown_method_is_no_misspelling(name):
    assert refused(name).endswith("see jaxmerge methods")


def test_task_arithmetic_is_concat():
    assert parse("task_arithmetic").text == parse("concat").text
