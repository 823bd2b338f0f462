"""The runner, its configs for full-size models and the report, on tiny models."""

import dataclasses
from functools import partial
from importlib import import_module

import jax
import numpy as np
import pytest
import typer
from tiny_comparisons import CLIP_MODULES, SMALL, write_adapter

import jaxmerge as jm
from experiments import adapter_seeds, analyses, report, run
from experiments.configs import clip_vision8
from experiments.methods import BUDGET, BY_NAME, METHODS, ClosedForm, candidates
from experiments.records import Records
from experiments.run import CONFIGS, Experiment

pytest_plugins = ["experiment_fixtures"]
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("as_outside_of_tests")]

LEARNED = ("TARA-B, taught", "TARA-A, entropy", "One LoRA, taught", "One LoRA, labels")


def method_named(name):
    return next(method for method in METHODS if method.name == name)


def run_small(config, name, folder):
    settings = dataclasses.replace(config, **SMALL)
    experiment = Experiment(name, settings, folder / "results", folder / "work")
    experiment.measure_references()
    first = method_named("Task arithmetic")
    few = ClosedForm(first.name, first.pipelines, first.scales[:2])
    experiment.compare(few, seeds=2)
    for learned in LEARNED:
        one_rate = dataclasses.replace(method_named(learned), rates=(1e-2,))
        experiment.compare(one_rate, seeds=2)
    return experiment


def test_clip_from_start_to_table(clip, tmp_path):
    experiment = run_small(clip, "clip_vision8", tmp_path)
    rows = len(experiment.records.rows)
    again = run_small(clip, "clip_vision8", tmp_path)
    assert len(again.records.rows) == rows  # nothing is measured twice
    for fits, seen in ((again.choosing, 12), (again.fits, 16)):
        assert {len(images) for images in fits.learning.inputs.values()} == {seen}
        assert list(fits.work.glob("TARA-B*/4.npz"))
    parts = {row["part"] for row in again.records.all(method=LEARNED[0], kind="merge")}
    assert parts == {"held back", "test"}
    tasks, base, lines = report.read_lines(again.records)
    assert tuple(tasks) == clip_vision8.TASKS
    assert {line.method for line in lines} == {"Task arithmetic", *LEARNED}
    learned = next(line for line in lines if line.method == LEARNED[0])
    assert learned.spread is not None
    table = report.markdown(tasks, base, lines)
    assert table.count("\n") == 2 + 1 + 5
    report.draw(tmp_path / "plot.png", tasks, base, lines)
    assert (tmp_path / "plot.png").stat().st_size > 1000

    analysis = analyses.Analysis(again, tmp_path / "results" / "analyses.jsonl")
    preferences = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
    identity = {"analysis": "tradeoff", "method": LEARNED[0], "tasks": ["cars", "dtd"]}
    for _ in range(2):  # the second time from the file
        analysis.front_and_test(identity, ("cars", "dtd"), preferences)
    assert len(analysis.records.all(analysis="tradeoff")) == 2


def test_a_shorter_fit_is_the_beginning_of_the_longest(clip, tmp_path):
    """Also where the rate falls, and the shorter one is asked for first."""
    assert clip.schedule == "cosine"
    settings, method = dataclasses.replace(clip, **SMALL), method_named(LEARNED[0])
    found = []
    for name, orders in (("short", (2,)), ("long", (4, 2))):
        folder = tmp_path / name
        experiment = Experiment(name, settings, folder / "results", folder / "work")
        for steps in orders:
            merged = experiment.fits.merge(method, {"rate": 0.1, "steps": steps}, 1)
        found.append(jax.tree.map(np.asarray, merged))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_other_adapters_are_merged_as_the_first(clip, tmp_path, monkeypatch):
    trained, merge = [], dataclasses.replace(METHODS[0], scales=(0.3,))
    monkeypatch.setattr(adapter_seeds, "METHODS", (merge.name,))

    def retrain(folder, seed):
        for index, task in enumerate(clip_vision8.TASKS):
            if not (folder / task).is_dir():
                trained.append((task, seed))
                write_adapter(folder / task, CLIP_MODULES, 10 * seed + index)

    settings = dataclasses.replace(clip, **SMALL, retrain=retrain)
    first = Experiment("clip", settings, tmp_path / "results", tmp_path / "work")
    first.measure_references()
    first.compare(merge, seeds=1)
    for seed in (1, 2, 1, 2):  # the second time from the files
        adapter_seeds.measure(first, adapter_seeds.retrained(first, seed))
    sets = [first, *(adapter_seeds.retrained(first, seed) for seed in (1, 2))]
    assert trained == [(t, seed) for seed in (1, 2) for t in clip_vision8.TASKS]
    for one in sets[1:]:
        (row,) = one.records.all(kind="merge")
        assert (row["candidate"], row["part"]) == (first.chosen(merge.name), "test")
        assert not one.records.all(kind="choice")
        assert not np.allclose(*(x.stacks[CLIP_MODULES[0]].b for x in (one, first)))
    row = adapter_seeds.table(sets).splitlines()[3]
    assert (row.count(merge.name), row.count("|")) == (1, 6)
    first.settings = clip
    with pytest.raises(ValueError, match="does not train its adapters"):
        adapter_seeds.retrained(first, 1)


@pytest.mark.parametrize("method", ["CtM + TIES", "RegMean", "SSR-Merge", "IterIS"])
def test_merges_with_inputs(clip, tmp_path, method):
    """They are those of the functions, and scales of IterIS share its rounds."""
    settings = dataclasses.replace(clip, **SMALL)
    experiment = Experiment("clip", settings, tmp_path / "results", tmp_path / "work")
    chosen = method_named(method)
    text = chosen.pipelines[0]
    once, twice = (experiment.closed_form(f"{text}|scale({by})", 0) for by in (1, 2))
    assert once.keys() == experiment.stacks.keys()
    for module, update in once.items():
        whole = np.asarray(jm.dense(update))
        np.testing.assert_allclose(jm.dense(twice[module]), 2 * whole, atol=1e-6)
        assert np.abs(whole).max() > 1e-3
    if method == "RegMean":
        stats = experiment.stats("validation", settings.validation, 0)
        merger = jm.each_module(partial(jm.regmean, ridge=1e-4))
        direct = merger(experiment.stacks, stats=stats)
        assert all(value.count.shape == (3,) for value in stats.values())
        for module, update in direct.items():
            np.testing.assert_allclose(
                jm.dense(once[module]), jm.dense(update), atol=1e-5
            )


def test_llama_from_start_to_table(llama, tmp_path):
    experiment = run_small(llama, "llama_nli6", tmp_path)
    _, base, lines = report.read_lines(experiment.records)
    assert np.isfinite([line.mean for line in (base, *lines)]).all()


@pytest.mark.parametrize("name", ["clip_vision8", "llama_nli6"])
def test_a_config_says_what_it_needs(name, monkeypatch):
    config = import_module(f"experiments.configs.{name}")
    first, what = next(iter(config.FOLDERS.items()))
    for variable in config.FOLDERS:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=f"set {first} to {what}"):
        config.load_suite()
    monkeypatch.setenv(first, "/does/not/exist")
    with pytest.raises(ValueError, match="does not exist"):
        config.load_suite()


def test_another_scale_of_the_logits_has_a_folder_of_its_own(clip, tmp_path):
    for scale in (None, 1.0):
        found = run.open_experiment("clip_vision8", tmp_path, logit_scale=scale)
        assert found.settings.logit_scale == (scale or clip.logit_scale) != 0
    with pytest.raises(typer.BadParameter, match="a folder of its own"):
        run.main("clip_vision8", logit_scale=1.0)


def test_a_comparison_that_chooses_as_another_did(clip, tmp_path):
    made = Records(tmp_path / "made" / "results" / "merging.jsonl")
    candidate = {"pipeline": "concat|scale(0.123)"}  # of no grid
    made.add(kind="choice", method="Task arithmetic", candidate=candidate)
    given = {"out": tmp_path / "again", "choices": tmp_path / "made"}
    run.main("clip_vision8", only=["Task arithmetic"], **given)
    found = run.open_experiment("clip_vision8", tmp_path / "again")
    assert found.chosen("Task arithmetic") == candidate
    (row,) = found.records.all(kind="merge")  # nothing on validation
    assert (row["candidate"], row["part"]) == (candidate, "test")
    with pytest.raises(ValueError, match="no choice of 'RegMean'; run the comparison"):
        run.main("clip_vision8", only=["RegMean"], **given)


def test_every_config_is_listed():
    texts, images = ["llama_nli6", "nli6"], ["digits8", "vision8", "vision8_probes"]
    assert sorted([*texts, *images, "clip_vision8"]) == CONFIGS


# one is as its paper has it, one tries all rates but the lowest
FEWER = {"TARA-B, as published": 1, "TARA-B on RegMean, taught": 6}


def test_every_method_has_the_same_budget():
    settings = import_module("experiments.configs.vision8").get_config()
    for method in METHODS:
        tried = candidates(method, settings)
        different = {str(candidate) for candidate in tried}
        assert len(different) == FEWER.get(method.name, BUDGET), method.name
    assert FEWER.keys() < BY_NAME.keys()
    assert candidates(METHODS[0], settings)[0] == {"pipeline": "concat|scale(0.05)"}


def test_records_are_found_by_what_they_are_of(tmp_path):
    records = Records(tmp_path / "results" / "rows.jsonl")
    records.add(kind="merge", candidate={"rate": 0.1}, seed=0, accuracy={"a": 0.5})
    again = Records(records.path)
    assert again.find(kind="merge", candidate={"rate": 0.1})["accuracy"] == {"a": 0.5}
    assert again.find(kind="merge", candidate={"rate": 0.2}) is None
    assert again.all(seed=0) == records.rows


def test_a_report_without_references_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no references"):
        report.read_lines(Records(tmp_path / "none.jsonl"))
