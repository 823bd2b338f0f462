"""The main jobs on causal language models, with transformers and PEFT beside them."""

import io
import json
import shutil

import causal_samples
import io_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from causal_samples import MODULES, loss_of_transformers
from cli_samples import document, everything, jaxmerge, refuse, succeed
from learn_samples import TASKS, ask, stopped_after
from rich.console import Console

import jaxmerge as jm
from jaxmerge.diagnostics.likelihood import Likelihoods
from jaxmerge.diagnostics.text_evaluation import evaluate_texts
from jaxmerge.jobs import fit_recipe
from jaxmerge.reports.scores import evaluation
from jaxmerge.reports.standings import standings
from jaxmerge.tasks.next_tokens import counted_tokens

pytest_plugins = ["causal_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")
THOROUGH = pytest.mark.thorough


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, three adapters and their texts, written once and never changed."""
    folder = tmp_path_factory.mktemp("causal")
    causal_samples.base(folder / "base")
    causal_samples.adapters(folder / "in")
    causal_samples.texts(folder / "data")
    return folder


@pytest.fixture(scope="module")
def model(place):
    """Base and texts, as the jobs read them."""
    base = jm.tasks.load_base(place / "base", "causal")
    return base, jm.tasks.load_unlabeled(place / "data", TASKS, base)


def shown(*lines):
    """What a terminal shows."""
    console = Console(width=200, file=io.StringIO())
    for line in lines:
        console.print(line)
    return console.file.getvalue()


def test_nats_are_the_loss_of_transformers_with_peft(place, folders, model):
    out, where = place / "summed", {"base": place / "base", "data": place / "data"}
    jm.merge(folders, "concat|scale(0.5)", out=out)
    evaluated = jm.evaluate(out, **where, plot=place / "plot.png")
    found = evaluated.to_json()["tasks"]
    checked = jm.check(folders, **where)
    for task, folder in zip(TASKS, folders, strict=True):
        inputs, nats = model[1].inputs[task], found[task]["nats"]
        for name, adapter in (("base", None), ("own", folder), ("merged", out)):
            expected = loss_of_transformers(place / "base", adapter, inputs)
            assert nats[name] == pytest.approx(expected, rel=1e-5), (task, name)
        assert found[task]["tokens"] == counted_tokens(inputs).sum()
        told = checked.to_json()["adapters"][task]
        assert told["nats"] == pytest.approx(nats["own"], rel=1e-6)
        assert told["gain"] == pytest.approx(nats["base"] - nats["own"], abs=1e-6)
        assert told["verdict"] == "no clear difference"
    said = shown(*evaluation(evaluated.evaluation), standings(checked.standings))
    for word in (*TASKS, "gain kept", "nats per token", "likelier"):
        assert word in said
    assert "does not clearly gain over the base" in evaluated.notes[0]
    assert (place / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_tied_head_is_that_of_the_embeddings(tmp_path):
    oracle = pytest.importorskip("model_samples")
    net = oracle.llama(tied=True)
    net.save_pretrained(tmp_path)
    base = jm.tasks.load_base(tmp_path, "causal")
    ids = oracle.TOKENS.numpy().astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    inputs["places"] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    inputs["next_ids"] = np.roll(ids, -1, axis=1)
    hidden = base.apply(base.params, inputs)
    logits = hidden @ base.vocabulary(base.params).T
    np.testing.assert_allclose(logits, oracle.outputs(net), rtol=2e-4, atol=2e-4)


@THOROUGH
def test_each_adapter_teaches_the_merge(where, folders, tmp_path):
    fit = {"loss": "distillation", "steps": 20, "batch": 4}
    found = document(*ask([*folders, *where], tmp_path / "out", "tara_b", **fit))
    assert all(one["last"] > 0 for one in found["distillation"].values())
    assert found["objective"]["last"] < found["objective"]["first"]


@pytest.mark.thorough
def test_a_fit_that_was_stopped_ends_with_the_same_bytes(
    where, folders, tmp_path, monkeypatch
):
    """Of one adapter alone, whose loss in the end is none."""
    fit = {"pipeline": "tara_a(initial=0.5)", "loss": "distillation", "steps": 60}
    fit["rate"] = 0.05
    asked = [folders[0], *where, "--batch", 2]
    found = document(*ask(asked, tmp_path / "whole", **fit))
    losses = found["distillation"]["cars"]
    assert 10 * losses["last"] < losses["first"]
    assert found["recipe"]["task_type"] == "causal"
    assert found["recipe"]["anchors"] == [0.0]
    assert found["predictions"] == {}
    with stopped_after(10, monkeypatch):
        assert jaxmerge(*ask(asked, tmp_path / "out", **fit)).exit_code == 130
    succeed(*ask(asked, tmp_path / "out", **fit))
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert "bit by bit" in succeed("verify", tmp_path / "out")


@pytest.mark.thorough
def test_the_start_is_searched_for_once_from_a_few_inputs(
    where, folders, tmp_path, monkeypatch
):
    fit = {"loss": "distillation", "start": "auto", "steps": 1, "limit": 3}
    asked = [folders[0], *where, "--batch", 2, "--work", tmp_path / "work"]
    found = document(*ask(asked, tmp_path / "out", **fit))
    assert found["recipe"]["limit"] == 3
    monkeypatch.setattr(fit_recipe, "search_start", None)
    again = document(*ask(asked, tmp_path / "again", **fit))
    assert again["start"] == found["start"]
    said = refuse(*ask(asked, tmp_path / "more", **fit | {"limit": 4}))
    assert "checkpoints of a fit with other limit (3, now 4)" in said


@pytest.mark.thorough
@pytest.mark.parametrize(
    "loss",
    ["entropy", *(pytest.param(x, marks=THOROUGH) for x in ("features", "null-space"))],
)
def test_other_losses_fall(loss, where, folders, tmp_path):
    options = {"loss": loss, "steps": 6, "rate": 0.02, "objective": "linear"}
    found = document(*ask([*folders, *where], tmp_path / "out", "tara_a", **options))
    assert found["objective"]["last"] < found["objective"]["first"]


def test_statistics_are_of_the_tokens_that_count(
    place, where, folders, model, tmp_path
):
    found = document("collect", *folders, *where, "-o", tmp_path / "stats")
    base, unlabeled = model
    for task in TASKS:
        tokens = int(counted_tokens(unlabeled.inputs[task]).sum())
        assert found["tasks"][task]["tokens"] == tokens
    adapters = jm.io.load_peft(folders)
    own = jm.task_updates(adapters.stacks, 0)
    inputs = unlabeled.inputs["cars"]
    apply = jm.models.with_updates(base.apply, own)
    _, taps = jax.jit(jm.models.with_taps(apply, MODULES))(base.params, inputs)
    mask = counted_tokens(inputs)
    chosen = np.take_along_axis(
        np.asarray(taps[MODULES[1]]), inputs["places"][..., None], axis=1
    )[mask]
    stored = jm.io.open_statistics(tmp_path / "stats").of(("cars",))
    gram = stored.load([MODULES[1]])[MODULES[1]].gram[0]
    np.testing.assert_allclose(gram, chosen.T @ chosen, rtol=1e-4, atol=1e-5)
    out = tmp_path / "out"
    flags = ["--stats", tmp_path / "stats", "-o", out]
    succeed("merge", *folders, "-p", "regmean(ridge=0.01)", *flags)
    assert "bit by bit" in succeed("verify", out)


def test_iteris_runs_the_language_model(where, folders, tmp_path):
    out = tmp_path / "out"
    succeed("merge", *folders, "-p", "iteris(iterations=1)", *where, "-o", out)
    recipe = json.loads((out / "jaxmerge.json").read_text())["recipe"]
    assert recipe["sample"]["task_type"] == "causal"
    assert "bit by bit" in succeed("verify", out)


@pytest.mark.thorough
def test_a_search_scores_by_the_divergence_of_tokens(where, folders, model, tmp_path):
    search = ["--search", "grid", "--points", "2", "--batch", "5"]
    found = document(
        *("tune", *folders, *where, "-p", "concat|scale({0.2:0.8})", *search)
    )
    base, unlabeled = model
    adapters = jm.io.load_peft(folders)
    hidden = jm.tasks.predictor(base, {}, unlabeled)
    head = base.vocabulary(base.params).T
    for row in found["tried"]:
        updates, each = jm.parse(row["pipeline"]).run(adapters.stacks), []
        for index, task in enumerate(TASKS):
            own = jm.task_updates(adapters.stacks, index)
            pair = (jnp.matmul(hidden(task, x), head) for x in (own, updates))
            mask = counted_tokens(unlabeled.inputs[task])
            each.append(jm.divergence(*pair, mask=mask))
        assert row["score"] == pytest.approx(np.mean(each), rel=1e-4)


@THOROUGH
def test_reactions_are_of_the_entropies_of_tokens(where, folders):
    found = document("inspect", *folders, *where, "--batch", 4, "--batches", 2)
    entropies = [x["entropy"] for x in found["reactions"]["tasks"].values()]
    assert all(0 < x < np.log(causal_samples.VOCABULARY) for x in entropies)


def test_what_is_refused(place, where, folders, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(folders[1], mixed / "dtd")
    samples.edit(
        mixed / "dtd" / "adapter_config.json", lambda c: c.update(task_type="SEQ_CLS")
    )
    pair = [folders[0], mixed / "dtd"]
    said = refuse("check", *pair, *where)
    assert "'cars' are of a causal language model (task_type CAUSAL_LM), 'dtd'" in said
    assert "--task-type causal" in said
    assert document("check", *pair, *where, "--task-type", "causal", "--limit", 2)
    said = refuse("check", *folders, *where, "--task-type", "classification")
    assert "found answer, completion, prompt; of a causal language model" in said
    out = tmp_path / "out"
    for flags, message in (
        (("--loss", "information"), "--loss information is for classes"),
        (("--logit-scale", "2"), "a causal language model has its own"),
        (("--text-heads", "x"), "a causal language model brings its own head"),
    ):
        asked = ["learn", *folders, *where, "-p", "tara_a", "-o", out, *flags]
        assert message in refuse(*asked)
    tune = ["tune", *folders, *where, "-p", "concat", "--score", "accuracy"]
    assert "--score accuracy is for classes" in refuse(*tune)
    tensors = samples.linear(MODULES[0], m=16, n=16, r=2)
    words = (causal_samples.VOCABULARY, 16)
    tensors["base_model.model.model.embed_tokens.weight"] = samples.random(*words)
    config = {"r": 2, "task_type": "CAUSAL_LM", "modules_to_save": ["embed_tokens"]}
    folder = samples.write(tmp_path / "saved" / "cars", tensors, **config)
    assert "saves 'model.embed_tokens.weight'" in refuse("check", folder, *where)
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert"}')
    said = refuse("check", *folders, "--base", bert, "--data", place / "data")
    assert "model_type 'bert' is not read as a causal language model, only" in said


def test_the_share_of_the_gain_and_its_bootstrap():
    """A merge that keeps half, one that keeps all, an adapter that gains nothing."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, 200)
    base = 3.0 * tokens + rng.normal(size=200)
    gains = tokens * rng.uniform(0.2, 1.8, 200)
    kept = gains * rng.uniform(0, 1, 200)
    said = {"half": (gains, kept), "all": (gains, gains), "none": (-gains, kept)}
    merged = {"w": np.ones((1, 1))}

    def assess(task, updates):
        own, of_merge = said[task]
        gain = of_merge if updates is merged else own if updates else 0
        return Likelihoods(base - gain, tokens, None)

    own = {task: {"v": np.zeros((1, 1))} for task in said}
    found = evaluate_texts(assess, own, merged)
    half = found.tasks["half"].kept
    assert half.value == pytest.approx(kept.sum() / gains.sum())
    draws = rng.integers(200, size=(4000, 200))
    ratios = kept[draws].sum(1) / gains[draws].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert (half.low, half.high) == pytest.approx((low, high), abs=0.01)
    assert found.tasks["all"].kept == (1.0, 1.0, 1.0)
    assert found.tasks["none"].kept is None
    assert found.mean_kept.value == pytest.approx((1 + half.value) / 2)
    assert "the adapter of none does not clearly gain" in found.notes[0]
    assert json.loads(json.dumps(found.to_json()))["tasks"]["none"]["kept"] is None
    nats = found.tasks["half"].nats
    assert nats.base == pytest.approx(base.sum() / tokens.sum())
    assert nats.merged == pytest.approx((base - kept).sum() / tokens.sum())
