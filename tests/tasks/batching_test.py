"""Batches of a task's inputs, and what a function says of every input."""

from types import SimpleNamespace

import numpy as np

from jaxmerge.tasks.batching import batches_of, outputs_of
from jaxmerge.tasks.unlabeled import task_batches

TEXTS, IMAGES = (SimpleNamespace(inputs=kind) for kind in ("texts", "images"))


def texts(count=30):
    """Their tokens are their numbers, from 1 on."""
    lengths = np.random.default_rng(0).integers(2, 40, count)
    mask = (np.arange(48)[None] < lengths[:, None]).astype(np.int32)
    return {
        "attention_mask": mask,
        "input_ids": mask * np.arange(1, count + 1)[:, None],
    }


def test_outputs_come_in_the_order_of_the_inputs():
    inputs, read = texts(), []
    outputs = outputs_of(
        TEXTS,
        inputs,
        8,
        lambda batch: batch["input_ids"][:, :1] * [1.0, 10.0],
        report=read.append,
    )
    numbers = np.arange(1.0, 31.0)
    np.testing.assert_array_equal(outputs, np.stack([numbers, 10 * numbers], 1))
    assert read == [8, 8, 8, 6]


def test_the_last_batch_is_filled_up():
    shapes = set()

    def run(batch):
        shapes.add(batch.shape)
        return batch.sum(axis=1)

    images = np.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(outputs_of(IMAGES, images, 3, run), images.sum(1))
    np.testing.assert_array_equal(outputs_of(IMAGES, images, 9, run), images.sum(1))
    assert shapes == {(3, 2), (7, 2)}


def test_texts_are_as_wide_as_the_given_crop_makes_them():
    def exact(batch):
        width = batch["attention_mask"].sum(axis=1).max()
        return {name: tokens[:, :width] for name, tokens in batch.items()}

    wide, narrow = (
        [batch["input_ids"].shape[1] for batch in batches_of(TEXTS, texts(), 8, **crop)]
        for crop in ({}, {"crop": exact})
    )
    assert set(wide) <= {16, 32, 48}
    assert narrow == sorted(narrow)
    assert max(narrow) < 40


def test_every_task_is_shuffled_by_its_own_seed():
    inputs = {"one": np.arange(5), "two": np.arange(5)}

    def drawn(seeds):
        source = task_batches(inputs, size=5, seeds=seeds)
        found = [next(source) for _ in range(3)]
        return {task: np.stack([batch[task] for batch in found]) for task in inputs}

    first = drawn({"one": (0, 0), "two": (0, 1)})
    again = drawn({"one": (0, 0), "two": (1, 1)})
    np.testing.assert_array_equal(first["one"], again["one"])
    assert (first["two"] != again["two"]).any()
    assert all((np.sort(epoch) == np.arange(5)).all() for epoch in first["two"])
