"""Saved modules beside the adapter: kept apart, chosen, averaged or refused."""

import dataclasses

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io


def test_heads_policies(tmp_path):
    one = samples.write(
        tmp_path / "one", samples.with_head(), modules_to_save=["classifier"]
    )
    two = samples.write(
        tmp_path / "two", samples.with_head(seed=1)
    )  # not listed: also a head
    plain = samples.write(tmp_path / "plain")
    with pytest.raises(io.AdapterError, match=r"classifier.*heads='keep'"):
        io.load_peft([plain, one, two])
    adapters = io.load_peft([plain, one, two], heads="keep")
    assert [sorted(heads) for heads in adapters.heads] == [
        [], *[["classifier.bias", "classifier.weight"]] * 2
    ]  # fmt: skip
    np.testing.assert_array_equal(
        adapters.heads[2]["classifier.weight"],
        samples.with_head(seed=1)["base_model.model.classifier.weight"],
    )
    assert adapters.options.heads == "keep"
    wide = samples.write(tmp_path / "wide", samples.with_head((4, 6)))
    with pytest.raises(io.AdapterError, match="no mean"):
        io.load_peft([one, wide], heads="mean")
    with pytest.raises(io.AdapterError, match="expected one of"):
        io.load_peft([one], heads="average")


def test_wrapped_modules_to_save_are_unwrapped(tmp_path):
    tensors = samples.linear() | {
        "base_model.model.score.modules_to_save.default.running_mean": samples.random(3)
    }
    folder = samples.write(tmp_path / "a", tensors, modules_to_save=["score"])
    assert list(samples.load_one(folder, heads="keep").heads[0]) == [
        "score.running_mean"
    ]


def heads_inputs(tmp_path):
    folders = []
    for seed, name in enumerate(("one", "two words", "..three")):
        tensors = samples.linear(seed=seed)
        if seed:
            tensors["base_model.model.score.weight"] = samples.random(3, 6, seed=seed)
            tensors["base_model.model.score.steps"] = np.array([7])
        folders.append(
            samples.write(tmp_path / name, tensors, modules_to_save=["score", "other"])
        )
    return io.load_peft(folders, heads="keep")


def test_heads_kept_apart_are_files_of_their_own(tmp_path):
    adapters = heads_inputs(tmp_path)
    updates = samples.summed(adapters)
    report = io.save_peft(tmp_path / "out", updates, like=adapters)
    kept = sorted(name for name in report.files if name.startswith("heads/"))
    assert kept == ["heads/task1.safetensors", "heads/task2.safetensors"]
    found = safetensors.numpy.load_file(tmp_path / "out" / kept[0])
    np.testing.assert_array_equal(found["score.weight"], samples.random(3, 6, seed=1))
    assert "modules_to_save" not in samples.config_of(tmp_path / "out")


@pytest.mark.parametrize("policy", ["first", "mean"])
def test_heads_inside_the_adapter(tmp_path, policy):
    adapters = heads_inputs(tmp_path)
    updates = samples.summed(adapters)
    io.save_peft(tmp_path / "out", updates, like=adapters, heads=policy)
    assert samples.config_of(tmp_path / "out")["modules_to_save"] == ["score"]
    found = samples.tensors_of(tmp_path / "out")
    heads = [samples.random(3, 6, seed=seed) for seed in (1, 2)]
    expected = heads[0] if policy == "first" else np.mean(heads, 0)
    np.testing.assert_allclose(
        found["base_model.model.score.weight"], expected, rtol=1e-6
    )
    assert found["base_model.model.score.steps"] == 7


def test_heads_given_by_the_caller_or_refused(tmp_path):
    adapters = heads_inputs(tmp_path)
    updates = samples.summed(adapters)
    with pytest.raises(io.AdapterError, match=r"score.*heads='keep'"):
        io.save_peft(tmp_path / "out", updates, like=adapters, heads="error")
    own = {"lm.head.weight": np.ones((2, 6), np.float32)}
    io.save_peft(tmp_path / "out", updates, like=adapters, heads=own)
    assert samples.config_of(tmp_path / "out")["modules_to_save"] == ["lm.head"]
    counts = dataclasses.replace(
        adapters,
        heads=tuple({"score.steps": np.array([i])} for i in range(3)),
    )
    with pytest.raises(io.AdapterError, match="integers that differ"):
        io.save_peft(tmp_path / "x", updates, like=counts, heads="mean")
