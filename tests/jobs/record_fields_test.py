"""Every field of a record may have been changed: each wrong one is named."""

import copy
import json

import pytest

from jaxmerge import io
from jaxmerge.jobs.merge_record import read_record

DIGEST = "0" * 64
RECORD = {
    "format": 1,
    "versions": {"jaxmerge": "0.1.0", "jax": "0.10.2"},
    "recipe": {
        "pipeline": "total|dare(density=0.7)|core|scale(0.8)",
        "weights": [1.0, 0.5],
        "seed": 3,
    },
    "read_options": {
        "heads": "error",
        "assume_alpha": None,
        "strip_prefix": "",
        "allow_zero": False,
        "weights": None,  # the name that version 0.1.0 gave to weight_file
        "ignore_config_keys": [],
        "vera_inputs": None,
    },
    "inputs": [
        {
            "name": name,
            "path": f"runs/{name}",
            "base_model": "org/base",
            "revision": None,
            "weight_file": "adapter_model.safetensors",
            "sha256": {"adapter_config.json": DIGEST},
        }
        for name in ("cars", "dtd")
    ],
    "output": {
        "rank": None,
        "energy": None,
        "ragged": False,
        "dense": "error",
        "dtype": "float32",
        "heads": "error",
        "kind": "adapter",
        "sha256": {"adapter_model.safetensors": DIGEST},
    },
}
FILES = {"path": "stats", "sha256": {"statistics.json": DIGEST}}
LEARNED = {"learned": "tara_b(initial=0.3)|svc", "loss": "entropy", "steps": 3}
ODD = [None, True, -1, 1.5, 10**400, 2**70, "x", "", [], {}, [[1]], {"a": 1}]


@pytest.fixture
def read(tmp_path):
    def reads(record):
        text = record if isinstance(record, str) else json.dumps(record)
        (tmp_path / "jaxmerge.json").write_text(text)
        return read_record(tmp_path)

    return reads


def changed(field, value, record=RECORD):
    """The record with another value in a field, which is given as in a message."""
    record = copy.deepcopy(record)
    place = record
    *above, last = field.replace("[", ".[").split(".")
    for name in above:
        place = place[int(name[1:-1]) if name.startswith("[") else name]
    place[int(last[1:-1]) if last.startswith("[") else last] = value
    return record


def fields(value, above=""):
    """Every field of a record, as messages name them."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, below in pairs:
        dot = "." if above else ""
        field = f"{above}[{name}]" if isinstance(value, list) else f"{above}{dot}{name}"
        if "." not in str(name):  # a file is no field of its own here
            yield field
            if isinstance(below, dict | list):
                yield from fields(below, field)


def test_a_good_record_is_read(read):
    assert read(RECORD) == RECORD
    learned = {**RECORD, "recipe": LEARNED}
    assert read(learned) == learned


@pytest.mark.parametrize("recipe", [RECORD["recipe"], LEARNED])
def test_whatever_a_field_holds_it_is_read_or_named(read, recipe):
    record = {**RECORD, "recipe": recipe}
    refused = []
    for field in fields(record):
        for value in ODD:
            try:
                read(changed(field, value, record))
            except io.AdapterError as error:
                refused.append((field.partition(".")[0].partition("[")[0], str(error)))
    assert len(refused) > 200
    for top, said in refused:
        assert f"jaxmerge.json: field {top}" in said or "not say how" in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", True),
        ("versions", ["jax"]),
        ("versions.numpy", "2"),
        ("versions.jax", None),
        ("recipe.pipeline", 7),
        ("recipe.pipeline", "total|cor"),
        ("recipe.pipeline", "tara_b"),
        ("recipe.seed", "x"),
        ("recipe.seed", None),
        ("recipe.seed", 2**64),
        ("recipe.weights", "1,2"),
        ("recipe.weights", [1.0]),
        ("recipe.weights[1]", "0.5"),
        ("recipe.files", {"statistics": FILES}),
        ("recipe.files", {"elsewhere": FILES}),
        ("recipe.sample", {"batch": 0}),
        ("read_options", None),
        ("read_options.zzz", 1),
        ("read_options.heads", ["keep"]),
        ("read_options.strip_prefix", 3),
        ("read_options.allow_zero", "yes"),
        ("read_options.assume_alpha", "x"),
        ("read_options.ignore_config_keys", "key"),
        ("read_options.ignore_config_keys", [1]),
        ("read_options.vera_inputs", {"q": "8"}),
        ("inputs", {}),
        ("inputs", []),
        ("inputs[0]", "runs/cars"),
        ("inputs[0].path", 1),
        ("inputs[0].path", "a\0b"),
        ("inputs[0].sha256", [DIGEST]),
        ("inputs[0].sha256", {"../../etc/passwd": DIGEST}),
        ("inputs[0].sha256", {"/etc/passwd": DIGEST}),
        ("inputs[0].sha256", {"adapter_config.json": DIGEST[1:]}),
        ("inputs[1].name", ""),
        ("inputs[1].name", "cars"),
        ("output.rank", 0),
        ("output.rank", True),
        ("output.energy", 2),
        ("output.ragged", 1),
        ("output.dense", None),
        ("output.dtype", "int8"),
        ("output.heads", "table"),
        ("output.sparkle", 1),
        ("output.sha256", None),
    ],
)
def test_a_wrong_field_is_named(read, field, value):
    with pytest.raises(io.AdapterError) as caught:
        read(changed(field, value))
    said = str(caught.value).partition("jaxmerge.json: field ")[2]
    top, _, name = field.partition(".")
    assert said.startswith(top.partition("[")[0])
    assert name.partition("[")[0] in said


@pytest.mark.parametrize(
    "field", ["format", "recipe", "inputs[0].sha256", "output.kind"]
)
def test_a_missing_field_is_named(read, field):
    record = copy.deepcopy(RECORD)
    place = record
    *above, last = field.replace("[0]", ".0").split(".")
    for name in above:
        place = place[0 if name == "0" else name]
    del place[last]
    with pytest.raises(io.AdapterError, match=r"field .*: is missing"):
        read(record)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "", "{", "7"])
def test_what_is_no_object_is_refused(read, text):
    with pytest.raises(io.AdapterError, match=r"jaxmerge\.json"):
        read(text)


def test_two_values_of_one_field_are_refused(read):
    with pytest.raises(io.AdapterError, match="twice"):
        read(json.dumps(RECORD)[:-1] + ', "format": 1}')
