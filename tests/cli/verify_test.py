"""``jaxmerge verify``: a merge is found again, and whatever was changed is named."""

import json
import shutil

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy
from cli_samples import document, everything, jaxmerge, refuse, succeed, three
from io_samples import edit

from jaxmerge import io
from jaxmerge.io.files import sha256
from jaxmerge.jobs.compare import differences
from jaxmerge.spec import parse

WEIGHTS = "adapter_model.safetensors"
Q_B = "base_model.model.h.0.q.lora_B.weight"
Q_A = "base_model.model.h.0.q.lora_A.weight"
pytestmark = pytest.mark.usefixtures("no_cache")


def merged(tmp_path, *options, **tensors):
    out = tmp_path / "out"
    folders = three(tmp_path / "in", **tensors)
    options = options or ("-p", "elect|trim(density=0.5)|core|scale(0.3)")
    succeed("merge", *folders, "-o", out, *options)
    return out


def rewrite(path, change):
    """Changes the tensors of a file in place."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def accept_output(out):
    """Makes the record agree with the files, as a careful forger would."""

    def change(record):
        for name in record["output"]["sha256"]:
            record["output"]["sha256"][name] = sha256(out / name)

    edit(out / "jaxmerge.json", change)


def failed(*arguments):
    """Verifies something that must fail; gives the text and the document."""
    said = jaxmerge("verify", *arguments)
    found = jaxmerge("verify", *arguments, "--json")
    assert said.exit_code == found.exit_code == 1, said.stderr
    assert said.stderr == found.stderr
    assert said.stderr.startswith("error: ")
    assert "not verified" in said.stderr
    assert jaxmerge("verify", *arguments, "--quiet").stdout == ""
    report = json.loads(found.stdout)
    assert report["ok"] is False
    assert "NOT verified" in said.stdout
    return said.stdout, report


@pytest.mark.parametrize(
    "options",
    [
        ("-p", "elect|trim(density=0.5)|core|scale(0.3)"),
        ("-p", "concat", "--weights", "0.5,-1,2", "--energy", "0.9", "--ragged"),
        ("-p", "total|dare(density=0.5)|core", "--seed", "7", "--dtype", "bfloat16"),
        ("-p", "knots_ties", "--rank", "auto"),
        ("-p", "elect|trim(density=0.5)|full", "--dense", "full"),
    ],
)
def test_every_kind_of_output_is_computed_again_bit_by_bit(options, tmp_path):
    out = merged(tmp_path, *options)
    before = everything(tmp_path)
    assert "bit by bit" in succeed("verify", out)
    report = document("verify", out)
    assert report["ok"] is report["identical"] is report["recomputed"] is True
    assert report["differences"] == []
    assert report["versions"]["then"] == report["versions"]["now"]
    assert everything(tmp_path) == before


def test_biases_and_heads_are_verified_too(tmp_path):
    head = {"base_model.model.classifier.weight": samples.random(2, 5)}
    folders = []
    for seed, name in enumerate("ab"):
        tensors = samples.linear(seed=seed, bias=True) | head
        folders.append(samples.write(tmp_path / name, tensors, lora_bias=True))
    out = tmp_path / "out"
    ask = ("merge", *folders, "-p", "tsv_m", "-o", out)
    succeed(*ask, "--heads", "keep")
    assert document("verify", out)["identical"]
    kept = out / "heads" / "b.safetensors"
    rewrite(kept, lambda tensors: tensors["classifier.weight"].__imul__(2))
    text, report = failed(out)
    assert "heads/b.safetensors: classifier.weight differs by 1" in text
    succeed(*ask, "--heads", "mean", "--force")
    assert document("verify", out)["identical"]
    bias = "base_model.model.h.0.fc.lora_B.bias"
    rewrite(out / WEIGHTS, lambda tensors: tensors[bias].__iadd__(1))
    accept_output(out)
    text, report = failed(out)
    assert [d["where"] for d in report["differences"]] == [f"{WEIGHTS}: {bias}"]


def test_a_changed_output_is_named_by_module_and_size(tmp_path):
    out = merged(tmp_path)
    rewrite(out / WEIGHTS, lambda tensors: tensors[Q_B].__imul__(1.5))
    text, report = failed(out)
    assert f"{out / WEIGHTS} is not the file that was written" in text
    assert "module h.0.q differs by 0.5" in text
    assert "h.0.o" not in text
    accept_output(out)  # the hash alone does not protect a folder
    text, report = failed(out)
    assert "is not the file" not in text
    assert report["largest_difference"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(Q_A), "cannot be read"),
        (lambda t: (t.pop(Q_A), t.pop(Q_B)), "module h.0.q is zero or missing"),
        (lambda t: t.update({Q_A: t[Q_A][:, :3]}), "module h.0.q has another shape"),
        (lambda t: t.update({Q_A: t[Q_A] * np.float32("nan")}), "cannot be read"),
        (
            lambda t: t.update({"base_model.model.head.weight": t[Q_A]}),
            "base_model.model.head.weight is not in the result",
        ),
    ],
)
def test_changed_tensors(change, message, tmp_path):
    out = merged(tmp_path)
    rewrite(out / WEIGHTS, change)
    assert message in failed(out)[0]


def test_other_changed_files(tmp_path):
    out = merged(tmp_path)
    config = out / "adapter_config.json"
    good = config.read_text()
    edit(config, lambda values: values.update(lora_alpha=12, sparkle=1))
    text, _ = failed(out)
    assert "adapter_config.json: lora_alpha is 12, expected 6" in text
    assert "adapter_config.json: sparkle is 1, expected absent" in text
    config.write_text("{")
    assert "adapter_config.json is not JSON" in failed(out)[0]
    config.write_text(good)
    (out / WEIGHTS).write_bytes(b"garbage")
    assert "cannot be read" in failed(out)[0]
    (out / WEIGHTS).unlink()
    assert f"{WEIGHTS} is missing" in failed(out)[0]


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


def test_everything_in_the_folder_is_compared_or_named(tmp_path):
    out = merged(tmp_path)
    (out / "adapter_model.bin").write_bytes(b"another adapter")
    (out / "empty").mkdir()
    (out / ".gitattributes").write_text("*.safetensors filter=lfs")
    text, report = failed(out)
    assert "adapter_model.bin is not part of the merge" in text
    assert "empty/ is not part of the merge" in text
    assert "not compared: .gitattributes" in text
    (out / "adapter_model.bin").unlink()
    (out / "empty").rmdir()
    report = document("verify", out)
    assert report["identical"]
    assert report["notes"] == ["not part of the merge and not compared: .gitattributes"]


def test_a_changed_card_is_named_by_its_line(tmp_path):
    out = merged(tmp_path, "-p", "concat", "--energy", "0.9")
    card = out / "README.md"
    good = card.read_text()
    card.write_text(good.replace("| dtd |", "| cars |", 1))
    text, report = failed(out)
    assert "README.md: line" in text
    assert len(report["differences"]) == 1
    card.write_text(good + "\nbetter than all others")
    assert "better than all others" in failed(out)[0]
    share = next(line for line in good.splitlines() if "| h.0" in line)
    card.write_text(good.replace(share, share[:-8] + "000000 |"))
    assert "README.md: line" in failed(out)[0]
    card.write_text(good)
    edit(
        out / "jaxmerge.json", lambda record: record["inputs"][0].update(name="trucks")
    )
    text, report = failed(out)
    assert "README.md: line" in text
    assert any("only the record gives" in note for note in report["notes"])


def test_the_header_of_weights_and_the_dtype_of_factors_are_compared(tmp_path):
    out = merged(tmp_path)
    tensors = safetensors.numpy.load_file(out / WEIGHTS)
    safetensors.numpy.save_file(tensors, out / WEIGHTS, metadata={"format": "tf"})
    accept_output(out)
    assert "metadata 'format' is 'tf', expected 'pt'" in failed(out)[0]
    rewrite(out / WEIGHTS, lambda t: t.update({Q_A: t[Q_A].astype(np.float64)}))
    accept_output(out)
    assert f"{Q_A} is float64, expected float32" in failed(out)[0]


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


@pytest.mark.parametrize(("factor", "rounding"), [(-1, False), (3, True)])
def test_other_factors_of_the_same_product_are_the_same_merge(
    factor, rounding, tmp_path
):
    out = merged(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)

    def rescale(tensors):
        tensors[Q_A] *= np.float32(factor)
        tensors[Q_B] /= np.float32(factor)

    rewrite(copy / WEIGHTS, rescale)
    found = differences(copy, out, [WEIGHTS, "adapter_config.json"])
    assert [difference.where for difference in found] == ["module h.0.q"] * rounding
    assert all(difference.size < 1e-6 for difference in found)
