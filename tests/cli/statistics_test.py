"""``jaxmerge merge --stats``: results, refusals and verification."""

import json
import shutil

import learn_samples
import pytest
from cli_samples import (
    close,
    document,
    everything,
    jaxmerge,
    refuse,
    succeed,
    updates_of,
)
from learn_samples import TASKS
from statistics_samples import OUTPUT, QUERY, collect, folders, load, merge

import jaxmerge as jm
from jaxmerge import io

pytest_plugins = ["statistics_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.parametrize("pipeline", ["ssr|scale(0.5)", "regmean(ridge=0.1)|pico"])
def test_the_command_is_the_functions(pipeline, place):
    succeed(*merge(place, pipeline, weights="1,0.5,2"))
    adapters = io.load_peft(folders(place), heads="keep")
    stats = load(place)
    merged = jm.parse(pipeline).run(adapters.stacks, stats=stats, weights=[1, 0.5, 2])
    close(updates_of(place / "out"), {m: jm.dense(u) for m, u in merged.items()}, 1e-5)


def test_some_tasks_in_another_order_use_their_own_files(place):
    tasks = ("svhn", "cars")
    found = document(*merge(place, "regmean", tasks=tasks))
    stats = found["recipe"]["files"]["statistics"]
    names = {"statistics.json", "svhn.safetensors", "cars.safetensors"}
    assert stats["sha256"].keys() == names
    stacks = io.load_peft(folders(place, tasks), heads="keep").stacks
    merged = jm.parse("regmean").run(stacks, stats=load(place, tasks))
    close(updates_of(place / "out"), {m: jm.dense(u) for m, u in merged.items()})
    (place / "stats" / "dtd.safetensors").unlink()  # plays no part
    assert document("verify", place / "out")["identical"]
    card = (place / "out" / "README.md").read_text()
    assert stats["sha256"]["svhn.safetensors"] in card
    assert str(place) not in card


def test_few_modules_at_a_time_change_nothing(place, monkeypatch):
    succeed(*merge(place, "ssr"))
    monkeypatch.setattr("jaxmerge.spec.memory.BYTES_AT_A_TIME", 1)
    assert document("verify", place / "out")["identical"]


def test_a_dry_run_checks_the_statistics_by_headers(place):
    before = everything(place)
    plan = ("--dry-run",)
    found = document(*merge(place, "regmean"), *plan)
    assert found["recipe"]["files"]["statistics"]["path"] == str(place / "stats")
    said = refuse(*merge(place, "regmean", names="a,b,c"), *plan)
    assert "no statistics of task 'a', only of 'cars', 'dtd', 'svhn'" in said
    assert everything(place) == before


def test_names_of_adapters_that_lie_elsewhere(place):
    shutil.move(place / "in" / "dtd", place / "in" / "textures")
    tasks = ("cars", "textures", "svhn")
    said = refuse(*merge(place, "regmean", tasks=tasks))
    assert "no statistics of task 'textures'" in said
    assert "--names <name,...>" in said
    succeed(*merge(place, "regmean", tasks=tasks, names="cars,dtd,svhn"))
    assert document("verify", place / "out")["identical"]


def other_adapter(place):
    learn_samples.bert_adapters(place / "new")
    path = place / "in" / "dtd"
    shutil.rmtree(path)
    shutil.move(place / "new" / "svhn", path)


def other_base(place):
    for task in TASKS:
        path = place / "in" / task / "adapter_config.json"
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = "org/other"
        path.write_text(json.dumps(config))


def edit_record(change):
    def damage(place):
        path = place / "stats" / "statistics.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def without_alpha(place):
    path = place / "in" / "dtd" / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["lora_alpha"]
    path.write_text(json.dumps(config))


def test_scales_that_were_assumed_are_those_of_the_measurement(place):
    """The files are the same; only the caller knows lora_alpha."""
    without_alpha(place)
    succeed(*collect(place, "stats", *folders(place), assume_alpha=2, force=True))
    said = refuse(*merge(place, "regmean", assume_alpha=200))
    assert f"'dtd' was measured with scale 1.0 of module '{OUTPUT}'" in said
    assert "is read with 100.0; pass the --assume-alpha <number> of the coll" in said
    succeed(*merge(place, "regmean", assume_alpha=2))
    assert document("verify", place / "out")["identical"]
    path = place / "out" / "jaxmerge.json"
    record = json.loads(path.read_text())
    record["read_options"]["assume_alpha"] = 200
    path.write_text(json.dumps(record))
    assert "was measured with scale 1.0" in refuse("verify", place / "out")


def test_statistics_that_do_not_say_their_scales(place):
    """Files with lora_alpha settle them."""

    def forget(record):
        for entry in record["measured"]["adapters"].values():
            del entry["scales"]

    edit_record(forget)(place)
    succeed(*merge(place, "regmean"))
    without_alpha(place)
    succeed(*collect(place, "stats", *folders(place), assume_alpha=2, force=True))
    edit_record(forget)(place)
    said = refuse(*merge(place, "regmean", assume_alpha=2, force=True))
    assert "does not say with which scale" in said
    assert "collect again" in said


def rewrite(place):
    path = place / "stats" / "cars.safetensors"
    values = io.load_moments(path)
    values[QUERY] = values[QUERY]._replace(gram=2 * values[QUERY].gram)
    io.save_moments(path, values)


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (
            lambda place: shutil.rmtree(place / "stats"),
            ["no statistics.json", "collect"],
        ),
        (
            lambda place: (place / "stats" / "dtd.safetensors").unlink(),
            ["dtd.safetensors: cannot be read"],
        ),
        (rewrite, ["cars.safetensors: is not the file that was collected"]),
        (other_adapter, ["'dtd' was measured with another adapter", "--names"]),
        (other_base, ["measured for adapters of 'org/base'", "of 'org/other'"]),
        (
            edit_record(lambda r: r["tasks"].pop("svhn")),
            ["no statistics of task 'svhn'"],
        ),
        (
            edit_record(lambda r: r["modules"].pop(QUERY)),
            [f"no statistics of module '{QUERY}'", "collect them again"],
        ),
        (
            edit_record(lambda r: r["modules"].update({QUERY: [24, 24]})),
            [f"'{QUERY}' was measured with 24 input features", "have 16"],
        ),
        (edit_record(lambda r: r.clear()), ["not a record of statistics"]),
        (edit_record(lambda r: r.update(format="2")), ["not a record of statistics"]),
        (edit_record(lambda r: r["modules"].update(q=[0, 3])), ["not a record"]),
        (
            edit_record(lambda r: r["tasks"].update({"../x": r["tasks"]["cars"]})),
            ["'../x' cannot be the name"],
        ),
    ],
)
def test_statistics_that_do_not_fit(damage, messages, place):
    damage(place)
    before = everything(place)
    said = refuse(*merge(place, "regmean"))
    for message in messages:
        assert message in said
    assert everything(place) == before


def test_a_pipeline_gets_statistics_if_it_needs_them_and_only_then(place):
    said = refuse(*merge(place, "ssr|scale(0.3)", stats=None))
    assert "needs statistics of inputs (ssr)" in said
    assert "collect them, and give --stats <statistics>" in said
    assert "--stats" in said
    assert "uses no statistics" in refuse(*merge(place, "concat"))
    other_base(place)
    assert "--allow-different-bases" in refuse(*merge(place, "ssr"))


def test_changed_statistics_are_found(place):
    succeed(*merge(place, "regmean"))
    out = place / "out"
    assert "bit by bit" in succeed("verify", out)
    rewrite(place)
    result = jaxmerge("verify", out)
    assert result.exit_code == 1
    assert "cars.safetensors of the statistics has changed" in result.stdout
    assert "not computed again" in result.stdout
    (place / "stats" / "cars.safetensors").unlink()
    assert "cars.safetensors is missing" in jaxmerge("verify", out).stdout


def test_statistics_that_moved_are_asked_for(place):
    succeed(*merge(place, "regmean"))
    out, now = place / "out", place / "elsewhere"
    (place / "stats").rename(now)
    said = refuse("verify", out)
    assert "where it is now by --stats stats" in said
    assert document("verify", out, "--stats", now)["identical"]
    succeed(*merge(place, "concat", out="plain", stats=None))
    assert "leave out --stats" in refuse("verify", place / "plain", "--stats", now)
