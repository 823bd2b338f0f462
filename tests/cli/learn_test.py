"""``jaxmerge learn``: results, resuming, verification and refusals."""

import json

import learn_samples
import numpy as np
import pytest
import safetensors.numpy
from cli_samples import (
    close,
    document,
    everything,
    jaxmerge,
    refuse,
    succeed,
    updates_of,
    weighted_sum,
)
from io_samples import record_of
from learn_samples import QUERY, TASKS, ask, stopped_after

from jaxmerge import io
from jaxmerge.jobs import fit_recipe
from jaxmerge.models import with_updates
from jaxmerge.tasks import load_base
from jaxmerge.types import LowRank

PHI, WEIGHTS = "phi.safetensors", "adapter_model.safetensors"

pytest_plugins = ["learn_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")


def phis_of(out):
    return safetensors.numpy.load_file(out / PHI)


def test_a_fit_lowers_the_entropy_and_writes_all_about_it(bert, tmp_path):
    out = tmp_path / "out"
    options = {"rate": 0.05, "steps": 25, "preference": "5,3,2", "alpha": 0.5}
    found = document(*ask(bert, out, **options))
    assert found["objective"]["last"] < found["objective"]["first"]
    assert found["adapters"] == list(TASKS)
    assert found["rank"] == 6
    history = safetensors.numpy.load_file(out / "history.safetensors")
    assert history["objective"].shape == (25,)
    assert history["losses"].shape == (25, 3)
    recipe = record_of(out)["recipe"]
    assert recipe == found["recipe"]
    gaps = history["losses"] - np.asarray(recipe["anchors"])
    weighed = np.exp(gaps * recipe["preference"] / 0.5)
    np.testing.assert_allclose(
        history["objective"], 0.5 * np.log(weighed.sum(axis=1)), rtol=1e-5
    )
    wanted = {
        "learned": "tara_a", "objective": "tchebycheff", "alpha": 0.5,
        "optimizer": "adamw", "rate": 0.05, "steps": 25, "batch": 4, "seed": 0,
        "logit_scale": 1.0, "max_length": 32,
    }  # fmt: skip
    assert {name: recipe[name] for name in wanted} == wanted
    np.testing.assert_allclose(recipe["preference"], [0.5, 0.3, 0.2])
    for task, anchor in zip(TASKS, recipe["anchors"], strict=True):
        assert found["entropy"][task]["alone"] == anchor
    read = {file for entry in recipe["files"].values() for file in entry["sha256"]}
    assert read == {
        "config.json", "model.safetensors", "tokenizer.json",
        "cars.jsonl", "dtd.jsonl.gz", "svhn/validation.jsonl",
    }  # fmt: skip
    card = (out / "README.md").read_text()
    assert "learned through the base model" in card
    assert recipe["files"]["base"]["sha256"]["model.safetensors"] in card
    assert str(tmp_path) not in card
    for task in TASKS:
        assert (out / "heads" / f"{task}.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("base", "data", "in", "out")
    ]
    check_that_phi_gives_the_factors(out, [*bert[:3]])
    check_verification(out, bert[4])


def check_that_phi_gives_the_factors(out, folders):
    """``sum_t sum_j phi_tj b_tj a_tj`` with numpy."""
    phi = phis_of(out)[QUERY]
    assert phi.shape == (6,)
    assert np.ptp(phi) > 0.01
    expected = 0
    for task, folder in enumerate(folders):
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
        a, b = (
            tensors[f"base_model.model.{QUERY}.lora_{x}.weight"].astype(np.float64)
            for x in "AB"
        )
        expected = expected + b * phi[2 * task : 2 * task + 2] @ a
    close({"": updates_of(out)[QUERY]}, {"": expected})


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_reads_the_merge_as_the_model_that_was_learned(bert, tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import torch

    base, out = bert[4], tmp_path / "out"
    succeed(*ask(bert, out, steps=5, rate=0.05))
    model = transformers.BertForSequenceClassification.from_pretrained(base).eval()
    model = peft.PeftModel.from_pretrained(model, str(out))
    ids = np.random.default_rng(0).integers(4, 40, (3, 9), np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with torch.no_grad():
        features = model.base_model.model.bert(
            **{name: torch.from_numpy(values).long() for name, values in inputs.items()}
        ).pooler_output
    stacks = io.load_peft([out], heads="keep").stacks
    updates = {name: LowRank(stack.b[0], stack.a[0]) for name, stack in stacks.items()}
    loaded = load_base(base)
    ours = with_updates(loaded.apply, updates)(loaded.params, inputs)
    plain = loaded.apply(loaded.params, inputs)
    np.testing.assert_allclose(ours, features.numpy(), atol=2e-5)
    assert np.abs(plain - ours).max() > 0.01


def check_verification(out, base):
    assert "the fit is not repeated (base unchanged" in succeed("verify", out)
    found = document("verify", out)
    assert found["identical"] is found["recomputed"] is True
    (base / "tokenizer.json").rename(base / "elsewhere.json")
    assert document("verify", out)["read_by_fit"]["base"] == "missing"
    good = (out / PHI).read_bytes()
    for change, message in (
        (lambda phis: phis[QUERY].__imul__(1.5), f"module {QUERY} differs"),
        (lambda phis: phis.pop(QUERY), "cannot be used"),
        (lambda phis: phis.update({QUERY: phis[QUERY][:3]}), "expected (6,)"),
        (lambda phis: phis[QUERY].fill(np.nan), "NaN"),
    ):
        phis = phis_of(out)
        change(phis)
        safetensors.numpy.save_file(phis, out / PHI)
        result = jaxmerge("verify", out)
        assert result.exit_code == 1
        assert "is not the file that was written" in result.stdout
        assert message in result.stdout
        (out / PHI).write_bytes(good)
    record = record_of(out)
    for changes, code, message in (
        ({"learned": "guess"}, 2, "unknown step 'guess'"),
        ({"learned": "tara_a|calibrate"}, 1, "differs"),
        ({"files": {"base": {"path": "x"}}}, 2, "files.base.sha256: is missing"),
        ({"files": [1]}, 2, "field recipe.files"),
    ):
        changed = record | {"recipe": record["recipe"] | changes}
        (out / "jaxmerge.json").write_text(json.dumps(changed))
        result = jaxmerge("verify", out)
        assert result.exit_code == code, (changes, result.stdout, result.stderr)
        assert message in result.stdout + result.stderr


@pytest.mark.thorough
def test_resumed_after_an_interruption_is_the_same_to_the_byte(
    bert, tmp_path, monkeypatch
):
    fit = {"pipeline": "tara_b|calibrate", "steps": 24, "rate": 0.02}
    succeed(*ask(bert, tmp_path / "whole", **fit))
    out, work = tmp_path / "out", tmp_path / "out.learning"
    with stopped_after(10, monkeypatch):
        result = jaxmerge(*ask(bert, out, **fit))
    assert result.exit_code == 130
    assert f"goes on from {work}" in result.stderr
    assert not out.exists()
    said = refuse(*ask(bert, out, **(fit | {"rate": 0.5})))
    assert "other rate (0.02, now 0.5)" in said
    assert "--work <folder>" in said
    assert work.is_dir()
    assert document(*ask(bert, out, **fit))["recipe"]["steps"] == 24
    assert not work.exists()
    assert everything(out) == everything(tmp_path / "whole")


def test_what_is_known_by_position_is_not_used_for_other_tasks(
    bert, tmp_path, monkeypatch
):
    """A fit that stops after the anchors, before its first checkpoint."""
    out = tmp_path / "out"
    given = {"steps": 3, "preference": "5,3,2"}

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fit_recipe, "fit", stop)
        assert jaxmerge(*ask(bert, out, **given)).exit_code == 130
    said = refuse(*ask([*bert[2::-1], *bert[3:]], out, **given))
    assert "out.learning: holds checkpoints of a fit with other order of tasks" in said
    path = tmp_path / "out.learning" / "learn.json"
    content = json.loads(path.read_text())
    del content["identity"]["order of tasks"]  # as it was once written
    path.write_text(json.dumps(content))
    assert "other order of tasks" in refuse(*ask(bert, out, **given))


@pytest.mark.thorough
def test_a_kept_work_folder_lengthens_a_fit(bert, tmp_path):
    work = tmp_path / "work"
    succeed(*ask(bert, tmp_path / "short", steps=10, work=work))
    assert work.is_dir()
    succeed(*ask(bert, tmp_path / "long", steps=20, work=work))
    succeed(*ask(bert, tmp_path / "whole", steps=20))
    assert (tmp_path / "long" / PHI).read_bytes() == (
        tmp_path / "whole" / PHI
    ).read_bytes()
    said = refuse(*ask(bert, tmp_path / "less", steps=5, work=work))
    assert "other steps (20, now 5)" in said
    said = refuse(*ask(bert, tmp_path / "x", work=tmp_path / "in"))
    assert "not that of a fit" in said


@pytest.mark.thorough
def test_without_a_rate_to_speak_of_it_is_task_arithmetic(bert, tmp_path):
    """Coefficients that hardly move: what is written is what phi says."""
    for method, options in (
        ("tara_b(initial=0.25)", {}),
        ("adamerging(initial=0.25)", {"shared": True}),
    ):
        out = tmp_path / method
        succeed(*ask(bert, out, method, steps=1, rate=1e-9, **options))
        close(updates_of(out), weighted_sum(bert[:3], [0.25] * 3))


@pytest.mark.thorough
def test_a_fit_that_diverges_names_the_step_and_exits_with_1(bert, tmp_path):
    result = jaxmerge(*ask(bert, tmp_path / "out", "tara_a(initial=1e38)", steps=2))
    assert result.exit_code == 1
    assert "step 1: the loss of cars, dtd, svhn is not finite" in result.stderr
    assert "out.learning" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_llama_reads_texts_and_scores(tmp_path):
    base = learn_samples.llama(tmp_path / "base")
    layer = "model.layers.0.self_attn"
    modules = [f"{layer}.q_proj", f"{layer}.o_proj"]
    folders = learn_samples.adapters(tmp_path / "in", modules, head="score")
    data = learn_samples.texts(tmp_path / "data")
    inputs = [*folders, "--base", base, "--data", data, "--batch", 4]
    fit = {"steps": 10, "rate": 0.05, "accumulate": True, "max_length": 12}
    found = document(*ask(inputs, tmp_path / "out", **fit))
    assert found["recipe"]["max_length"] == 12
    assert any("truncated to 12 tokens" in note for note in found["notes"])
    assert updates_of(tmp_path / "out").keys() == set(modules)
    assert document("verify", tmp_path / "out")["identical"]


@pytest.mark.thorough
def test_clip_reads_images_and_needs_text_heads(tmp_path):
    base = learn_samples.clip(tmp_path / "base")
    layer = "vision_model.encoder.layers.0.self_attn"
    modules = [f"{layer}.q_proj", f"{layer}.v_proj"]
    folders = learn_samples.adapters(tmp_path / "in", modules, head=None)
    data = learn_samples.images(tmp_path / "data")
    inputs = [*folders, "--base", base, "--data", data, "--batch", 4]
    heads = learn_samples.text_vectors(tmp_path / "heads.safetensors")
    out = tmp_path / "out"
    assert "--text-heads <file>" in refuse(*ask(inputs, out))
    said = refuse(*ask(inputs, out, text_heads=heads))
    assert "--logit-scale <number>" in said
    fit = {"text_heads": heads, "logit_scale": 20, "steps": 20, "rate": 0.05}
    found = document(*ask(inputs, out, **fit))
    assert found["objective"]["last"] < found["objective"]["first"]
    assert "heads.safetensors" in found["recipe"]["files"]["text heads"]["sha256"]
    assert not (out / "heads").exists()
    np.savez(data / "cars.npz", images=np.zeros((3, 9, 9, 3), np.uint8))
    assert "resize them first" in refuse(*ask(inputs, out, **fit, force=True))
    np.savez(data / "cars.npz", x_train=np.zeros((3, 8, 8, 3), np.uint8))
    said = refuse(*ask(inputs, out, **fit, force=True))
    assert "no array 'images'" in said
    assert "x_train" in said
