"""``jaxmerge evaluate``: a merge beside the base and the own adapters, by numpy."""

import json

import learn_samples
import numpy as np
import pytest
from cli_samples import document, jaxmerge, refuse, succeed
from learn_samples import TASKS

from jaxmerge import io, parse, stack_adapters, task_updates
from jaxmerge.diagnostics.evaluation import evaluate_merge
from jaxmerge.models import add_to_params
from jaxmerge.tasks import load_base, load_unlabeled, task_heads

pytestmark = pytest.mark.usefixtures("as_a_user")


def label(folder):
    """Labels that are classes of the smallest head."""
    rng = np.random.default_rng(3)
    for task in TASKS:
        (path,) = [*folder.glob(f"{task}.jsonl*"), *folder.glob(f"{task}/*.jsonl")]
        opened = __import__("gzip").open if path.suffix == ".gz" else open
        with opened(path, "rt") as file:
            rows = [json.loads(line) for line in file]
        text = "".join(
            json.dumps(row | {"label": int(rng.integers(2))}) + "\n" for row in rows
        )
        with opened(path, "wt") as file:
            file.write(text)


@pytest.fixture
def place(tmp_path):
    learn_samples.bert(tmp_path / "base")
    learn_samples.bert_adapters(tmp_path / "in")
    label(learn_samples.texts(tmp_path / "data"))
    folders = [tmp_path / "in" / task for task in TASKS]
    succeed(
        "merge", *folders, "-p", "concat|scale(3)", "--heads", "keep",
        "-o", tmp_path / "out",
    )  # fmt: skip
    return tmp_path


def ask(place, *more):
    where = ["--base", place / "base", "--data", place / "data"]
    return ["evaluate", place / "out", *where, *more]


def test_accuracies_are_those_of_models_with_added_weights(place):
    found = document(*ask(place))
    adapters = io.load_peft([place / "in" / task for task in TASKS], heads="keep")
    base = load_base(place / "base")
    unlabeled = load_unlabeled(place / "data", TASKS, base)
    heads = task_heads(base, adapters)
    merged = parse("concat|scale(3)").run(adapters.stacks)
    for index, task in enumerate(TASKS):
        rng = np.random.default_rng(3)
        labels = {t: rng.integers(2, size=24) for t in TASKS}[task]
        inputs = unlabeled.inputs[task]
        own = task_updates(adapters.stacks, index)
        for name, updates in (("base", {}), ("own", own), ("merged", merged)):
            params = add_to_params(base.params, updates, apply=base.apply, batch=inputs)
            logits = base.logits(heads[task], base.apply(params, inputs))
            right = np.mean(np.asarray(logits).argmax(axis=1) == labels)
            assert found["tasks"][task][name] == pytest.approx(right)
        one = found["tasks"][task]
        assert one["rows"] == 24
        ratio = one["normalised"]
        assert ratio["value"] == pytest.approx(one["merged"] / one["own"])
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
    values = [one["normalised"]["value"] for one in found["tasks"].values()]
    assert found["mean_normalised"]["value"] == pytest.approx(np.mean(values))


@pytest.mark.thorough
def test_it_is_shown_as_a_table_and_a_plot(place):
    said = succeed(*ask(place, "--plot", place / "plot.png"))
    for word in (*TASKS, "merge / own", "95 % interval", "mean"):
        assert word in said
    assert (place / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "exists already" in refuse(*ask(place, "--plot", place / "plot.png"))
    succeed(*ask(place, "--plot", place / "plot.png", "--force", "--limit", 6))


@pytest.mark.thorough
def test_adapters_come_from_the_record_or_from_the_caller(place):
    moved = [place / "elsewhere" / task for task in TASKS]
    expected = document(*ask(place))
    (place / "in").rename(place / "elsewhere")
    assert "give the folders of all adapters" in refuse(*ask(place))
    assert document(*ask(place, *moved))["tasks"] == expected["tasks"]
    (place / "out" / "jaxmerge.json").write_text("{}")
    assert "does not say of which adapters" in refuse(*ask(place))


def test_data_without_labels_are_refused(place):
    rows = (place / "data" / "cars.jsonl").read_text().replace('"label"', '"other"')
    (place / "data" / "cars.jsonl").write_text(rows)
    assert "the data of cars have no labels" in refuse(*ask(place))
    result = jaxmerge(*ask(place, "--names", "cars"))
    assert result.exit_code == 2


def test_the_bootstrap_is_that_of_single_inputs():
    """Intervals against those of resampled rows, drawn one by one."""
    rng = np.random.default_rng(0)
    count = 400
    labels = {"one": np.zeros(count, int)}
    wrong = {"base": 0.7, "own": 0.1, "merged": 0.3}
    said = {
        k: (rng.uniform(size=count) < share).astype(int) for k, share in wrong.items()
    }
    stack = stack_adapters([([[1.0]], [[1.0]])], dtype=np.float64)
    own, merged = task_updates({"w": stack}, 0), {"w": np.ones((1, 1))}

    def predict(task, updates):
        name = "base" if not updates else "own" if updates is own else "merged"
        return np.eye(2)[said[name]]

    found = evaluate_merge(predict, {"one": own}, merged, labels).tasks["one"]
    right = {name: classes == 0 for name, classes in said.items()}
    draws = rng.integers(count, size=(4000, count))
    ratios = right["merged"][draws].mean(1) / right["own"][draws].mean(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert found.normalised.low == pytest.approx(low, abs=0.01)
    assert found.normalised.high == pytest.approx(high, abs=0.01)
    assert found.base == right["base"].mean()
