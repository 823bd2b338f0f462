"""Adapters that change the head of a causal language model too."""

import causal_samples
import io_samples as samples
import pytest
from causal_samples import MODULES, VOCABULARY, loss_of_transformers
from cli_samples import document, refuse
from learn_samples import TASKS, WIDTH, ask

import jaxmerge as jm
from jaxmerge.models.decoder import LM_HEAD

pytest_plugins = ["causal_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    causal_samples.base(folder / "base")
    causal_samples.texts(folder / "data")
    for seed, task in enumerate(TASKS):
        sizes = {"n": WIDTH, "r": 2, "seed": 10 * seed}
        tensors = samples.linear(MODULES[0], m=WIDTH, **sizes)
        tensors |= samples.linear(LM_HEAD, m=VOCABULARY, **sizes)
        config = {"r": 2, "lora_alpha": 1, "task_type": "CAUSAL_LM"}
        config["target_modules"] = ["q_proj", LM_HEAD]
        samples.write(folder / "in" / task, tensors, **config)
    return folder


def test_nats_are_those_of_transformers_with_peft(place, folders):
    merged, where = place / "summed", {"base": place / "base", "data": place / "data"}
    jm.merge(folders, "concat|scale(0.5)", out=merged)
    found = jm.evaluate(merged, **where).to_json()["tasks"]["cars"]["nats"]
    base = jm.tasks.load_base(place / "base", "causal")
    inputs = jm.tasks.load_unlabeled(place / "data", TASKS, base).inputs["cars"]
    for name, adapter in (("base", None), ("own", folders[0]), ("merged", merged)):
        expected = loss_of_transformers(place / "base", adapter, inputs)
        assert found[name] == pytest.approx(expected, rel=1e-5), name
    assert found["own"] != pytest.approx(found["base"], rel=1e-3)


@pytest.mark.thorough
def test_its_likeliest_tokens_teach_the_merge(where, folders, tmp_path):
    """One adapter alone ends without a loss, from all words or from ten of fifty."""
    fit = {"loss": "distillation", "steps": 60, "rate": 0.05, "pipeline": "tara_a"}
    asked = [folders[0], *where, "--batch", 4]
    for top, kept in ((), VOCABULARY), ((("teacher_top", 10),), 10):
        found = document(*ask(asked, tmp_path / str(kept), **fit, **dict(top)))
        losses = found["distillation"]["cars"]
        assert 50 * losses["last"] < losses["first"]
        assert found["recipe"]["teacher_top"] == kept
    loss = jm.tune(
        *([folders[0]], "concat|scale({1.0})"),
        **{"base": where[1], "data": where[3], "search": "grid"},
    )
    assert loss.rows[0].scored.score == pytest.approx(0, abs=1e-6)


def test_what_looks_at_no_head_is_refused(where, folders, tmp_path):
    message = "the adapters change lm_head, which nothing here looks at; learn by"
    out = tmp_path / "out"
    assert message in refuse("collect", *folders, *where, "-o", out)
    learn = ["learn", *folders, *where, "-p", "tara_a", "-o", out]
    assert message in refuse(*learn, "--loss", "features")
    assert message in refuse(*learn, "--unit", "block")
    said = refuse(*learn, "--loss", "entropy", "--teacher-top", "4")
    assert "--loss entropy has no predictions of teachers; leave out --teacher-top" in (
        said
    )
    assert "expected 1 to 50, all tokens" in refuse(*learn, "--teacher-top", "51")
    tensors = samples.linear(LM_HEAD, m=VOCABULARY + 1, n=WIDTH, r=2)
    config = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": [LM_HEAD]}
    other = samples.write(tmp_path / "other" / "cars", tensors, **config)
    said = refuse("check", other, *where)
    assert "lm_head is (50, 16), its update (51, 16)" in said
