"""``jaxmerge learn``: what is refused, before any computation."""

import json
import shutil

import io_samples as samples
import learn_samples
import pytest
from cli_samples import everything, jaxmerge, refuse
from learn_samples import QUERY, ask
from reference import ROOT

from jaxmerge.learning.work import Work

pytest_plugins = ["learn_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")


def drop_head(place):
    learn_samples.adapters(place / "in", [QUERY], head=None, tasks=("cars",))


def another_head(place):
    learn_samples.adapters(place / "in", [QUERY], head="score", tasks=("cars",))


def unknown_module(place):
    module = QUERY.replace("bert.", "")
    learn_samples.adapters(place / "in", [module], head="classifier")


def lora_bias(place):
    head = {"base_model.model.classifier.weight": samples.random(2, 16)}
    tensors = samples.linear(QUERY, m=16, n=16, bias=True) | head
    samples.write(place / "in" / "cars", tensors, lora_bias=True)


def another_base(place):
    (place / "base" / "config.json").write_text('{"model_type": "t5"}')


def larger_vocabulary(place):
    path = place / "base" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["w1"] = 99
    path.write_text(json.dumps(content))


def rewrite_data(text):
    return lambda place: (place / "data" / "cars.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (drop_head, ["cars: saves no head classifier.weight", "modules_to_save"]),
        (another_head, ["cars: saves no head classifier.weight"]),
        (unknown_module, ["encoder.layer.0", "nearest", "--add-prefix"]),
        (lora_bias, ["LoRA bias"]),
        (
            another_base,
            ["model_type 't5'", "bert, roberta", "llama, mistral"],
        ),
        (lambda place: shutil.rmtree(place / "base"), ["base: no config.json"]),
        (
            lambda place: (place / "base" / "tokenizer.json").unlink(),
            ["tokenizer.json: no such file"],
        ),
        (larger_vocabulary, ["up to 99", "has 50"]),
        (
            lambda place: (place / "data" / "cars.jsonl").unlink(),
            ["no texts of task 'cars'", "cars.jsonl or cars.jsonl.gz"],
        ),
        (
            lambda place: (place / "data" / "svhn.jsonl").write_text("{}"),
            ["'svhn' has svhn.jsonl and validation.jsonl"],
        ),
        (rewrite_data(""), ["cars.jsonl: holds no texts"]),
        (rewrite_data("no json"), ["cars.jsonl: not readable"]),
        (rewrite_data('{"label": 1}'), ["text_a and text_b", "found label"]),
        (rewrite_data('{"text": "w1"}\n{"text": 3}'), ["line 2 has no text in text"]),
    ],
)
def test_bad_inputs(damage, messages, bert, tmp_path):
    damage(tmp_path)
    before = everything(tmp_path)
    said = refuse(*ask(bert, tmp_path / "out"))
    for message in messages:
        assert message in said
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preference": "1,2"}, "2 numbers for 3 adapters"),
        ({"preference": "1,-2,3"}, "from 0 on"),
        ({"alpha": 0}, "--alpha 0.0: expected a number above 0"),
        ({"rate": "nan"}, "rate nan"),
        ({"names": "a,b"}, "3 different names"),
        ({"names": "a,b,../c"}, "'../c' cannot be"),
        ({"max_length": 33}, "32 positions"),
        ({"shared": True}, "or learn adamerging"),
        ({"text_heads": "x"}, "--text-heads x are for CLIP"),
        ({"heads": "error"}, "pass --heads keep"),
        ({"work": "tests"}, "not that of a fit"),
        ({"work": "pyproject.toml/work"}, "cannot be made"),
    ],
)
def test_bad_options(options, message, bert, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert message in refuse(*ask(bert, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_one_fit_at_a_time(bert, tmp_path):
    with Work(tmp_path / "out.learning", {}):
        said = refuse(*ask(bert, tmp_path / "out"))
    assert "out.learning: another fit is running in it" in said
    assert "pass another --work <folder>" in said


@pytest.mark.thorough
def test_an_existing_folder_is_replaced_on_demand_but_never_an_input(bert, tmp_path):
    said = refuse(*ask(bert, bert[0]))
    assert "exists already" in said
    said = refuse(*ask(bert, bert[0], force=True))
    assert "is or holds the input" in said
    out = samples.write(tmp_path / "out")
    (tmp_path / "data" / "cars.jsonl").rename(tmp_path / "data" / "vans.jsonl")
    names = "vans,dtd,svhn"
    fit = {"steps": 1, "force": True, "names": names, "quiet": True}
    result = jaxmerge(*ask(bert, out, **fit))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    record = json.loads((out / "jaxmerge.json").read_text())
    assert [entry["name"] for entry in record["inputs"]] == names.split(",")
    assert (out / "heads" / "vans.safetensors").is_file()
