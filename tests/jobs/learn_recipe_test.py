"""How a learned merge is asked for, recorded and read back."""

import json

import pytest

from jaxmerge import Refusal, parse
from jaxmerge.jobs.learn_recipe import LearnRecipe
from jaxmerge.spec.steps import names_of


@pytest.mark.parametrize("method", names_of("learned merger"))
def test_a_recipe_is_recorded_whole(method):
    pipeline = parse(f"{method}|calibrate|svc")
    recipe = LearnRecipe(pipeline=pipeline, preference=(3, 1), seed=4, rate=0.1)
    assert recipe.preference == (0.75, 0.25)
    record = json.loads(json.dumps(recipe.to_record()))
    assert LearnRecipe.from_record(record | {"anchors": [0.1], "files": {}}) == recipe
    assert record["learned"] == f"{method}|calibrate|svc"
    assert recipe.objective == pipeline.published.objective
    assert record["optimizer"] == pipeline.published.optimizer


@pytest.mark.parametrize(
    ("method", "objective", "optimizer"),
    [
        ("tara_a", "tchebycheff", "adamw"),
        ("tara_b", "tchebycheff", "adamw"),
        ("adamerging", "linear", "adam"),
    ],
)
def test_a_method_is_fitted_as_its_source_says(method, objective, optimizer):
    recipe = LearnRecipe(pipeline=parse(method))
    record = recipe.to_record()
    assert (record["objective"], record["optimizer"]) == (objective, optimizer)


def test_records_of_the_first_version_name_a_method_and_its_options():
    old = {"learned": "tara-b", "pico": True, "initial": 0.3, "shared": False}
    recipe = LearnRecipe.from_record(old)
    assert recipe.pipeline.text == "tara_b(initial=0.3)|calibrate"
    old |= {"learned": "adamerging", "pico": False, "initial": 0.3, "shared": True}
    recipe = LearnRecipe.from_record(old)
    assert (recipe.pipeline.text, recipe.shared) == ("adamerging", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline": parse("concat")}, "has no coefficients to learn; begin with"),
        ({"objective": "sum"}, "objective='sum': expected one of tchebycheff"),
        ({"loss": "labels"}, "loss='labels': expected one of distillation"),
        ({"alpha": 0.0}, "alpha=0.0: expected a number above 0"),
        ({"rate": float("inf")}, "rate=inf: expected a number above 0"),
        ({"shared": True}, "which cannot be shared; leave out shared"),
        ({"preference": (0.0, 0.0)}, "numbers from 0 on that are not all 0"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, message):
    with pytest.raises(Refusal) as caught:
        LearnRecipe(**{"pipeline": parse("tara_a"), **options})
    assert message in str(caught.value)
