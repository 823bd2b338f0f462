"""``jaxmerge verify``: a merge is found again, and whatever was changed is named."""

import shutil

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy
from cli_samples import document, everything, succeed
from io_samples import edit
from verify_samples import Q_A, Q_B, WEIGHTS, failed, merged, rewrite

from jaxmerge.io.files import sha256
from jaxmerge.jobs.compare import differences

pytestmark = pytest.mark.usefixtures("no_cache")


def accept_output(out):
    """Makes the record agree with the files, as a careful forger would."""

    def change(record):
        for name in record["output"]["sha256"]:
            record["output"]["sha256"][name] = sha256(out / name)

    edit(out / "jaxmerge.json", change)


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
