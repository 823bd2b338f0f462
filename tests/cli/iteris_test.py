"""``jaxmerge merge -p iteris``: the base runs in every round."""

import json

import pytest
from cli_samples import close, document, jaxmerge, refuse, succeed, updates_of
from learn_samples import TASKS
from statistics_samples import merge

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.models import layer_weights
from jaxmerge.tasks import load_base, load_unlabeled, read_sample

pytest_plugins = ["statistics_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")
PIPELINE = "iteris(iterations=2, ridge=0.01)"


def ask(place, pipeline=PIPELINE, **options):
    where = {"base": place / "base", "data": place / "data", "limit": 8, "batch": 3}
    return merge(place, pipeline, **({"stats": None} | where | options))


@pytest.mark.thorough
def test_the_command_is_the_function(place):
    found = document(*ask(place, f"{PIPELINE}|scale(0.5)", weights="1,0.5,2"))
    recipe = found["recipe"]
    assert recipe["sample"] == {"batch": 3, "limit": 8, "max_length": 32}
    assert recipe["files"].keys() == {"base", "data"}
    card = (place / "out" / "README.md").read_text()
    assert "Made by running the base model on inputs without labels" in card
    assert recipe["files"]["data"]["sha256"]["cars.jsonl"] in card
    assert str(place) not in card
    folders = [place / "in" / task for task in TASKS]
    adapters = io.load_peft(folders, heads="keep")
    base = load_base(place / "base")
    texts = load_unlabeled(place / "data", TASKS, base, limit=8).inputs
    batches = [[texts[task]] for task in TASKS]  # one of all, with all their padding
    sample = jm.ModelSample(
        *(base.apply, base.params, batches),
        mask=lambda batch: batch["attention_mask"].astype(bool),
        base=layer_weights(
            base.params, adapters.stacks, apply=base.apply, batch=batches[0][0]
        ),
    )
    options = {"iterations": 2, "ridge": 0.01, "weights": [1, 0.5, 2]}
    merged = jm.iteris(adapters.stacks, sample=sample, **options)
    expected = {name: 0.5 * jm.dense(update) for name, update in merged.items()}
    close(updates_of(place / "out"), expected, 1e-4)
    check_verification(place)


def check_verification(place):
    out = place / "out"
    assert "bit by bit" in succeed("verify", out)
    now = place / "elsewhere"
    (place / "base").rename(now)
    assert "where it is now by --base base" in refuse("verify", out)
    assert document("verify", out, "--base", now)["identical"]
    path = place / "data" / "cars.jsonl"
    path.write_text(path.read_text().replace("w1 ", "w2 "))
    result = jaxmerge("verify", out, "--base", now)
    assert result.exit_code == 1
    assert "cars.jsonl of the data has changed" in result.stdout
    record = json.loads((out / "jaxmerge.json").read_text())
    for change in ({"sample": {"sparkle": 1}}, {"files": {}}):
        changed = record | {"recipe": record["recipe"] | change}
        (out / "jaxmerge.json").write_text(json.dumps(changed))
        refuse("verify", out)


def test_refusals(place):
    said = refuse(*ask(place, stats=place / "stats"))
    assert "runs the model in every round" in said
    assert "statistics cannot stand for the inputs" in said
    for lacking in ("base", "data"):
        said = refuse(*ask(place, **{lacking: None}))
        assert "give --base and --data" in said
    said = refuse(*ask(place, "concat"))
    assert "runs no model; leave --base and --data out" in said
    said = refuse(*ask(place, "concat", base=None, data=None))
    assert "--limit, --batch, --max-length and --task-type are for pipelines" in said
    (place / "data" / "cars.jsonl").unlink()
    assert "no texts of task 'cars'" in refuse(*ask(place))
    assert "no texts of task 'vans'" in refuse(*ask(place, names="vans,dtd,svhn"))
    assert not (place / "out").exists()


def test_a_dry_run_reads_no_model(place):
    found = document(*ask(place), "--dry-run")
    assert found["recipe"] == {"pipeline": PIPELINE}
    assert "give --base and --data" in refuse(*ask(place, data=None), "--dry-run")


def test_samples_are_in_the_order_of_the_adapters(place):
    folders = [place / "in" / task for task in ("svhn", "cars")]
    adapters = io.load_peft(folders, heads="keep")
    sample = read_sample(adapters, place / "base", place / "data", batch=24)
    batches = sample.of(adapters).batches
    lengths = [int(batch["attention_mask"].sum()) for (batch,) in batches]
    tasks = io.open_statistics(place / "stats").record["tasks"]
    assert lengths == [tasks[task]["tokens"] for task in ("svhn", "cars")]
