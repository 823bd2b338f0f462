"""``jaxmerge learn`` by distillation, which is its default."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from cli_samples import document, refuse, succeed
from learn_samples import TASKS, ask

from jaxmerge import divergence, io, parse, task_updates
from jaxmerge.jobs.fit_recipe import Outcome, Said, warnings
from jaxmerge.jobs.learn_recipe import LearnRecipe
from jaxmerge.learning.fit import History
from jaxmerge.tasks import load_base, load_unlabeled, predictor, task_heads

pytest_plugins = ["learn_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")


def test_each_adapter_teaches_the_merge_by_default(bert, tmp_path):
    """Without a word on the loss: answers of the own adapters, a start by search."""
    out = tmp_path / "out"
    options = {"loss": "distillation", "start": "auto", "steps": 40}
    found = document(*ask(bert, out, "tara_b", **options))
    recipe = json.loads((out / "jaxmerge.json").read_text())["recipe"]
    wanted = {
        "loss": "distillation",
        "start": "auto",
        "rate": 0.02,
        "schedule": "cosine",
    }
    assert {name: recipe[name] for name in wanted} == wanted
    assert recipe["anchors"] == [0.0] * 3
    losses = found["distillation"]
    assert all(0 < one["last"] < one["first"] for one in losses.values())
    assert found["start"] > 0
    for task, said in found["predictions"].items():
        assert 0 < said["after"]["mean_entropy"] <= np.log(4)
        assert 0 < said["after"]["largest_share"] <= 1, task
    assert "bit by bit" in succeed("verify", out)
    base = load_base(tmp_path / "base")
    adapters = io.load_peft(bert[:3], heads="keep")
    unlabeled = load_unlabeled(tmp_path / "data", TASKS, base)
    predict = predictor(base, task_heads(base, adapters), unlabeled)
    merged = io.load_peft([out], heads="keep")
    for index, task in enumerate(TASKS):
        teacher = predict(task, task_updates(adapters.stacks, index))
        apart = {
            name: float(divergence(jnp.asarray(teacher), jnp.asarray(predict(task, u))))
            for name, u in (
                ("learned", task_updates(merged.stacks, 0)),
                ("sum", parse("concat|scale(0.4)").run(adapters.stacks)),
            )
        }
        assert apart["learned"] < apart["sum"], task


@pytest.mark.thorough
def test_features_teach_where_there_are_no_heads(bert, tmp_path):
    out = tmp_path / "out"
    options = {"loss": "features", "start": "auto", "steps": 20, "rate": 0.02}
    found = document(*ask(bert, out, **options))
    assert all(one["last"] < one["first"] for one in found["features"].values())
    assert found["predictions"] == {}
    said = refuse(*ask(bert, tmp_path / "x", loss="features", logit_scale=2))
    assert "--loss features needs no predictions; leave out --logit-scale" in said


def test_a_collapse_is_told_without_labels():
    recipe = LearnRecipe(pipeline=parse("tara_a"), loss="entropy")
    history = History(np.zeros(1), np.array([[0.5, 0.9]]))
    sure, even = Said(0.3, 0.9), Said(0.69, 0.5)
    outcome = Outcome(
        *({}, {}, history, [0.6, 0.8], None),
        before={"cars": even, "dtd": even},
        after={"cars": sure, "dtd": even},
    )
    below, collapsed = warnings(recipe, outcome, ("cars", "dtd"))
    assert "the entropy of cars was below that of the own adapter" in below
    assert "more of the inputs of cars" in collapsed
    taught = LearnRecipe(pipeline=parse("tara_a"))
    assert len(list(warnings(taught, outcome, ("cars", "dtd")))) == 1
