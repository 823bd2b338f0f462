"""Embeddings and output layers: copies of the base, tied weights, vocabularies."""

import io_samples as samples
import numpy as np
import pytest

from jaxmerge import io

COPIES = {"model.embed_tokens": (11, 6), "lm_head": (11, 5)}


def with_copy(module="lm_head", *, seed=0, vocabulary=11):
    """LoRA on an embedding or an output layer, and PEFT's copy of its base weight."""
    if module == "lm_head":
        tensors = samples.linear(module, m=vocabulary)
    else:
        tensors = samples.embedding(module, vocabulary=vocabulary)
    copy = samples.random(*COPIES[module], seed=seed)
    return tensors | {f"base_model.model.{module}.base_layer.weight": copy}


@pytest.mark.parametrize("module", COPIES)
def test_a_copy_of_the_frozen_base_is_left_out(tmp_path, module):
    folder = samples.write(tmp_path / "a", samples.linear() | with_copy(module))
    other = samples.write(tmp_path / "b", samples.linear(seed=7))
    adapters = io.load_peft([folder, other])
    assert adapters.heads == ({}, {})
    assert sorted(adapters.stacks) == sorted(["h.0.fc", module])
    (note,) = adapters.notes
    assert f"left out '{module}.base_layer.weight'" in note
    assert not io.plan_peft([folder, other]).conflicts


def test_a_copy_beside_a_classifier_leaves_the_classifier(tmp_path):
    folder = samples.write(tmp_path / "a", samples.with_head() | with_copy())
    with pytest.raises(
        io.AdapterError, match=r"\('classifier.bias', 'classifier.weight'\)"
    ):
        samples.load_one(folder)


def test_whoever_asks_for_saved_modules_gets_the_copy(tmp_path):
    folder = samples.write(tmp_path / "a", with_copy())
    (heads,) = samples.load_one(folder, heads="keep").heads
    assert list(heads) == ["lm_head.base_layer.weight"]


def test_a_base_weight_without_lora_on_it_is_a_saved_module(tmp_path):
    tensors = with_copy() | samples.linear()
    tensors = {key: x for key, x in tensors.items() if "lm_head.lora" not in key}
    with pytest.raises(io.AdapterError, match="saved modules besides LoRA"):
        samples.load_one(samples.write(tmp_path / "a", tensors))


def test_a_base_weight_of_another_layer_is_a_saved_module(tmp_path):
    copy = {"base_model.model.h.0.fc.base_layer.weight": samples.random(6, 5)}
    folder = samples.write(tmp_path / "a", samples.linear() | copy)
    with pytest.raises(io.AdapterError, match="saved modules besides LoRA"):
        samples.load_one(folder)


def test_copies_that_differ_are_of_different_bases(tmp_path):
    folders = [
        samples.write(tmp_path / name, with_copy(seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert io.load_peft(folders[:2]).stacks
    with pytest.raises(io.AdapterError, match=r"c: its copy .*allow_different_bases"):
        io.load_peft(folders)
    assert io.load_peft(folders, allow_different_bases=True).stacks


@pytest.mark.parametrize("module", COPIES)
def test_vocabularies_that_differ_are_named(tmp_path, module):
    folders = []
    for name, vocabulary in (("a", 11), ("b", 13)):
        tensors = with_copy(module, vocabulary=vocabulary)
        tensors = {key: x for key, x in tensors.items() if "base_layer" not in key}
        folders.append(samples.write(tmp_path / name, tensors))
    with pytest.raises(io.AdapterError, match=rf"'{module}'.* 11 and 13 tokens"):
        io.load_peft(folders)


@pytest.mark.parametrize(
    "tensors", [samples.linear(), samples.linear() | samples.with_head()]
)
def test_tying_does_nothing_where_nothing_tied_is_adapted(tmp_path, tensors):
    folder = samples.write(tmp_path / "a", tensors, ensure_weight_tying=True)
    plain = samples.write(tmp_path / "b", tensors)
    tied, free = (samples.load_one(f, heads="keep") for f in (folder, plain))
    np.testing.assert_array_equal(tied.stacks["h.0.fc"].b, free.stacks["h.0.fc"].b)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (samples.linear("lm_head"), "lm_head"),
        (samples.embedding("model.embed_tokens"), "model.embed_tokens"),
        (samples.embedding("model.odd"), "model.odd"),
        (samples.linear("gpt.wte"), "gpt.wte"),
        (samples.linear() | {"base_model.model.lm_head.weight": samples.random(3, 3)},
         "lm_head"),
    ],
)  # fmt: skip
def test_tied_layers_that_are_adapted_are_refused(tmp_path, tensors, named):
    folder = samples.write(tmp_path / "a", tensors, ensure_weight_tying=True)
    with pytest.raises(io.AdapterError, match=f"ensure_weight_tying .*'{named}'"):
        samples.load_one(folder, heads="keep")


def test_saved_modules_of_other_vocabularies_have_no_mean(tmp_path):
    folders = [
        samples.write(
            tmp_path / name,
            samples.linear()
            | {"base_model.model.lm_head.weight": samples.random(v, 3)},
            modules_to_save=["lm_head"],
        )
        for name, v in (("a", 11), ("b", 13))
    ]
    with pytest.raises(io.AdapterError, match="vocabularies or labels are 11 and 13"):
        io.load_peft(folders, heads="mean")
