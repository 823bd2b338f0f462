"""Weights beside an adapter are left out, and every job says so."""

import cli_samples as cli
import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io


@pytest.mark.parametrize(
    "name",
    [
        "new_embeddings.safetensors",
        "new_embeddings.bin",
        "non_lora_trainables.bin",
        "mm_projector.bin",
        "value_head.safetensors",
        "vit.safetensors",
        "model.safetensors",
        "projector.pt",
    ],
)
def test_weights_beside_an_adapter_are_named(tmp_path, name):
    folder = samples.write(tmp_path / "a")
    (folder / name).write_bytes(b"x")
    adapters = samples.load_one(folder)
    (note,) = adapters.notes
    assert note.startswith(f"{folder}: left out '{name}'")
    assert note in map(str, io.plan_peft([folder]).notes)


@pytest.mark.parametrize(
    "name",
    [
        "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth",
        "optimizer.safetensors", "tokenizer.model", "adapter_0.pt", "README.md",
        "tokenizer.json", "trainer_state.json", "phi.safetensors",
    ],
)  # fmt: skip
def test_the_state_of_a_training_is_not(tmp_path, name):
    folder = samples.write(tmp_path / "a")
    (folder / name).write_bytes(b"x")
    assert samples.load_one(folder).notes == ()


def test_adapters_in_subfolders_are_named_unless_they_are_checkpoints(tmp_path):
    folder = samples.write(tmp_path / "a")
    for name in ("expert", "checkpoint-10"):
        samples.write(folder / name)
    (note,) = samples.load_one(folder).notes
    assert "left out 'expert': further adapters" in note


def test_saved_modules_that_are_not_there_are_named(tmp_path):
    """But not the other one of the two names that PEFT lists for every classifier."""
    for listed in (["classifier", "pooler"], ["classifier", "score", "pooler"]):
        folder = samples.write(
            tmp_path / "a", samples.with_head(), modules_to_save=listed
        )
        (note,) = samples.load_one(folder, heads="keep").notes
        assert "lists 'pooler' as saved modules, of which the file holds" in note
    for listed in (["score"], ["classifier", "score"]):
        folder = samples.write(tmp_path / "b", modules_to_save=listed)
        (note,) = samples.load_one(folder).notes
        assert all(repr(name) in note for name in listed)


def test_heads_of_our_own_merge_are_named(tmp_path):
    """A merge of a merge does not carry what lies beside it, and says so."""
    folders = [
        samples.write(tmp_path / f"in{seed}", samples.with_head(seed=seed))
        for seed in (1, 2)
    ]
    out, again = tmp_path / "out", tmp_path / "again"
    cli.succeed("merge", *folders, "-p", "concat", "--heads", "keep", "-o", out)
    assert (out / "heads" / "in1.safetensors").exists()
    plain = samples.write(tmp_path / "plain")
    said = cli.succeed("merge", out, plain, "-p", "concat", "-o", again)
    assert f"note: {out}: left out 'heads'" in said


def test_a_module_that_is_zero_everywhere_is_named(tmp_path):
    tensors = samples.linear() | samples.linear("h.1.fc", seed=3)
    tensors["base_model.model.h.1.fc.lora_B.weight"][:] = 0
    folders = [samples.write(tmp_path / name, tensors) for name in "ab"]
    notes = io.load_peft(folders).notes
    assert [f"{f}: left out 'h.1.fc': exactly zero" in n for f, n in zip(
        folders, notes, strict=True
    )] == [True, True]  # fmt: skip
    other = samples.write(tmp_path / "c", samples.linear("h.1.fc", seed=3))
    assert io.load_peft([folders[0], other]).notes == ()


def test_float64_says_what_was_rounded(tmp_path):
    wide = samples.write(tmp_path / "a", samples.linear(dtype=np.float64))
    out = tmp_path / "out"
    said = cli.succeed("merge", wide, wide, "-p", "concat", "-o", out)
    assert "1 of 1 modules are float64 and are rounded to float32" in said
    assert "exact" not in said
    adapters = samples.load_one(wide)
    assert (adapters.sources[0].dtype, adapters.dtype) == ("float64", np.float32)
    assert io.plan_peft([wide]).adapters[0].dtype == "float64"
    assert safetensors.numpy.load_file(out / samples.SAFE).keys()


def tiny(exponent):
    """A module whose update is ordinary and whose A is far below float32."""
    tensors = samples.linear(dtype=np.float64)
    tensors[samples.KEY_A] *= 10.0**exponent
    tensors[samples.KEY_B] *= 10.0**-exponent
    return tensors


@pytest.mark.parametrize("exponent", [-50, -41, 50])
def test_a_module_that_float32_cannot_hold_is_refused(tmp_path, exponent):
    tensors = samples.linear("h.1.fc", dtype=np.float64) | tiny(exponent)
    folder = samples.write(tmp_path / "a", tensors)
    with pytest.raises(io.AdapterError, match=r"h\.0\.fc.*float64 with values up to"):
        samples.load_one(folder)


def test_single_small_entries_are_rounded(tmp_path):
    tensors = samples.linear(dtype=np.float64)
    tensors[samples.KEY_A][0, 0] = 1e-60
    folder = samples.write(tmp_path / "a", tensors)
    assert samples.load_one(folder).stacks["h.0.fc"].a[0, 0, 0] == 0


def test_a_scale_that_makes_a_module_vanish_is_refused(tmp_path):
    folder = samples.write(tmp_path / "a", lora_alpha=1e-60)
    with pytest.raises(io.AdapterError, match="vanish in float32"):
        samples.load_one(folder)
