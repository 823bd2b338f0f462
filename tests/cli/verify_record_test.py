"""``jaxmerge verify`` believes no record: what is missing, changed or moved."""

import shutil

import io_samples as samples
import pytest
from cli_samples import document, refuse, succeed, three
from io_samples import edit
from verify_samples import Q_B, WEIGHTS, failed, merged, rewrite

from jaxmerge import io
from jaxmerge.spec import parse

pytestmark = pytest.mark.usefixtures("no_cache")


def test_a_record_that_lacks_a_file_is_a_difference(tmp_path):
    """A forger who empties the record does not hide what was changed."""
    out = merged(tmp_path)
    edit(out / "jaxmerge.json", lambda record: record["output"].update(sha256={}))
    assert f"{WEIGHTS} has no SHA-256 in the record" in failed(out)[0]
    rewrite(out / WEIGHTS, lambda tensors: tensors[Q_B].__imul__(2))
    assert "module h.0.q differs by 1" in failed(out)[0]


def test_a_record_that_lacks_a_file_of_an_input_is_a_difference(tmp_path):
    out = merged(tmp_path)

    def change(record):
        del record["inputs"][1]["sha256"][WEIGHTS]
        record["inputs"][2].update(base_model="org/other", weight_file="other.bin")

    edit(out / "jaxmerge.json", change)
    text, _ = failed(out)
    assert f"inputs[1].sha256 has no SHA-256 of {WEIGHTS}, which is read" in text
    assert "inputs[2].base_model is 'org/other', expected 'org/base'" in text
    assert "inputs[2].weight_file is 'other.bin'" in text


def test_options_of_reading_are_told(tmp_path):
    out = merged(tmp_path)

    def change(record):
        record["read_options"]["allow_zero"] = True
        del record["read_options"]["add_prefix"]

    edit(out / "jaxmerge.json", change)
    report = document("verify", out)
    assert report["identical"]
    said = " ".join(report["notes"])
    assert "allow_zero=True" in said
    assert "is the default: add_prefix" in said
    edit(out / "jaxmerge.json", lambda record: record["read_options"].update(zzz=1))
    assert "field read_options.zzz" in refuse("verify", out)


def test_a_changed_input_is_named_and_nothing_is_computed(tmp_path, monkeypatch):
    out = merged(tmp_path)
    weights = tmp_path / "in" / "dtd" / WEIGHTS
    rewrite(weights, lambda tensors: tensors[Q_B].__imul__(2))
    monkeypatch.setattr("jaxmerge.io.load_peft", None)
    text, report = failed(out)
    assert f"{weights} the input has changed" in text
    assert "not computed again" in text
    assert report["recomputed"] is False


def test_a_changed_recipe_does_not_give_this_result(tmp_path):
    out = merged(tmp_path)

    def change(record):
        record["recipe"]["pipeline"] = "elect|trim(density=0.5)|core|scale(0.4)"

    edit(out / "jaxmerge.json", change)
    text, report = failed(out)
    assert report["largest_difference"] == pytest.approx(0.25, rel=1e-3)
    assert "README.md: line" in text
    card = out / "README.md"
    card.write_text(card.read_text().replace("scale(0.3)", "scale(0.4)"))
    lenient = ("verify", out, "--tolerance", 0.3)
    assert "verified up to rounding" in succeed(*lenient)


def test_inputs_that_moved_are_asked_for(tmp_path):
    out = merged(tmp_path)
    moved = [tmp_path / f"elsewhere{name}" for name in ("1", "2", "3")]
    for old, new in zip(("cars", "dtd", "svhn"), moved, strict=True):
        shutil.move(tmp_path / "in" / old, new)
    said = refuse("verify", out)
    assert "the inputs are now, in this order: cars dtd svhn" in said
    assert document("verify", out, *moved)["identical"]
    assert "made of 3 adapters, 2 are given" in refuse("verify", out, *moved[:2])
    failed(out, *reversed(moved))


def test_folders_without_a_usable_record(tmp_path):
    plain = samples.write(tmp_path / "plain")
    assert "no jaxmerge.json" in refuse("verify", plain)
    assert "no such folder" in refuse("verify", tmp_path / "nothing")
    out = merged(tmp_path)
    record = out / "jaxmerge.json"
    good = record.read_text()
    for bad in ("", "{", "[]", "{}", good.replace('"format": 1', '"format": 2')):
        record.write_text(bad)
        assert str(record) in refuse("verify", out)
    record.write_text(good)
    edit(record, lambda values: values["recipe"].update(pipeline="elect|cor"))
    assert "did you mean 'core'?" in refuse("verify", out)
    record.write_text(good)
    edit(record, lambda values: values["output"].update(heads="table"))
    assert "cannot be computed again" in refuse("verify", out)


def test_folders_saved_from_python(tmp_path):
    """Those that were given their pipeline are verified, others say what is missing."""
    adapters = io.load_peft(three(tmp_path / "in"))
    pipeline = parse("elect|trim(density=0.5)|core|scale(0.3)")
    updates = pipeline.run(adapters.stacks)
    io.save_peft(tmp_path / "silent", updates, like=adapters)
    said = refuse("verify", tmp_path / "silent")
    assert "does not say how the merge was made" in said
    assert "card=" in said
    card = (tmp_path / "silent" / "README.md").read_text()
    assert "`jaxmerge verify` cannot repeat it" in card
    io.save_peft(tmp_path / "told", updates, like=adapters, card=pipeline.text)
    assert document("verify", tmp_path / "told")["identical"]
    assert "needs to compute" in (tmp_path / "told" / "README.md").read_text()
