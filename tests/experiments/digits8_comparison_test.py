"""The digits in the common comparison, its curve over inputs, and other adapters."""

import dataclasses
import json
import shutil

import pytest
from tiny_suite import FEW_STEPS

pytest.importorskip("sklearn")

from experiments import adapter_seeds, inputs
from experiments.configs import digits8
from experiments.digits8.data import SIZES
from experiments.digits8.model import ADAPTERS, METRICS
from experiments.digits8.suite import load_suite
from experiments.digits8.tasks import TASKS
from experiments.evaluation import make_exam, own_hits
from experiments.methods import BY_NAME, ClosedForm
from experiments.records import Records
from experiments.run import Experiment
from jaxmerge.io import load_peft

pytest_plugins = ["experiment_fixtures"]
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("as_outside_of_tests")]

SMALL = {"validation": 20, "test": 100, "batch": 20, **FEW_STEPS}


def copied(folder, seed):
    """Adapters of another training: as they are, but for the first of the tasks."""
    first = next(iter(TASKS))
    for name in TASKS:
        other = list(TASKS)[seed] if name == first else name
        shutil.copytree(ADAPTERS / other, folder / name, dirs_exist_ok=True)


@pytest.fixture
def experiment(tmp_path):
    """A few steps and images, and the rows that curve and seeds begin with."""
    settings = dataclasses.replace(digits8.get_config(), **SMALL, retrain=copied)
    found = Experiment("digits8", settings, tmp_path / "results", tmp_path / "work")
    found.measure_references()
    taught = dataclasses.replace(BY_NAME[inputs.TAUGHT], rates=(1e-2,))
    found.compare(taught, seeds=2)
    return found


def compare_few(experiment, name):
    method = BY_NAME[name]
    few = ClosedForm(name, method.pipelines[:1], method.scales[:2])
    experiment.compare(few, seeds=1)


def test_the_own_adapters_are_as_right_as_where_they_were_made():
    suite = load_suite()
    stacks = load_peft([task.adapter for task in suite.tasks]).stacks
    right = own_hits(make_exam(suite, "test", batch=350), stacks)
    known = json.loads(METRICS.read_text())["tasks"]
    for task, hits in right.items():
        assert len(hits) == SIZES["test"]
        assert abs(hits.sum() - known[task]["test"]["adapter"]) <= 1


def test_the_curve_over_the_number_of_inputs(experiment, tmp_path, monkeypatch):
    few = inputs.Shown("validation", 2)
    everything = inputs.Shown("validation", None)
    curves = {
        inputs.TAUGHT: inputs.Curve(
            inputs.taught, (few, everything), everything, sampled=False
        ),
        inputs.REGMEAN: inputs.Curve(
            inputs.closed_form(inputs.REGMEAN), (few,), everything
        ),
    }
    monkeypatch.setattr(inputs, "CURVES", curves)
    monkeypatch.setattr(inputs, "COUNTS", (few, everything))
    records = Records(tmp_path / "results" / "inputs.jsonl")
    with pytest.raises(ValueError, match="no choice of 'RegMean'"):
        inputs.measure(experiment, records, 2, tuple(curves))
    assert len(records.rows) == 2  # what could be measured is kept
    compare_few(experiment, "RegMean")
    for _ in range(2):  # the second time from the file
        inputs.measure(experiment, records, 2, tuple(curves))
    assert len(records.rows) == 4  # those of all inputs are in the comparison
    samples = records.all(method=inputs.REGMEAN)
    assert samples[0]["accuracy"] != samples[1]["accuracy"]
    table = inputs.table(records, experiment).splitlines()
    assert len(table) == 2 + 2
    assert [row.count("±") for row in table[2:]] == [2, 1]
    assert all(cell.strip() for cell in table[3].split("|")[1:-1])
    assert table[3].count("|") == table[0].count("|")


def test_merges_of_adapters_that_were_trained_again(experiment, monkeypatch):
    monkeypatch.setattr(adapter_seeds, "METHODS", ("Task arithmetic", inputs.TAUGHT))
    compare_few(experiment, "Task arithmetic")
    for _ in range(2):  # the second time from the files
        sets = [experiment]
        for seed in adapter_seeds.SEEDS:
            sets.append(adapter_seeds.retrained(experiment, seed))
            adapter_seeds.measure(experiment, sets[-1])
    own = [one.records.find(kind="own", part="test")["accuracy"] for one in sets]
    assert own[0] != own[1] != own[2]
    for one in sets[1:]:
        row = one.records.find(kind="merge", method=inputs.TAUGHT, part="test")
        assert row["candidate"] == experiment.chosen(inputs.TAUGHT)
        assert len(one.records.all(kind="merge")) == 2  # nothing was chosen anew
    table = adapter_seeds.table(sets).splitlines()
    assert len(table) == 2 + 3
    assert all(line.count("|") == 6 for line in table)
    given = dataclasses.replace(experiment.settings, retrain=None)
    experiment.settings = given
    with pytest.raises(ValueError, match="digits8 does not train its adapters"):
        adapter_seeds.retrained(experiment, 1)
