"""Batches of a suite, and its exams."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluation import Exam, accuracies, make_exam
from experiments.suite import HELD_BACK, SHOWN, Split, Suite, Task, batches
from experiments.unlabeled import learning_examples, shuffled_batches
from jaxmerge.tasks import Base


def make_suite():
    """A suite of one task on 30 texts, whose tokens are their numbers."""
    rng = np.random.default_rng(0)
    sizes, rows = rng.integers(2, 40, 30), np.arange(30)
    mask = (np.arange(48)[None] < sizes[:, None]).astype(np.int32)
    inputs = {"attention_mask": mask, "input_ids": mask * rows[:, None]}
    split = Split(inputs, np.zeros(30, int))
    base = Base(**dict.fromkeys(Base._fields) | {"inputs": "texts"})
    return Suite("texts", base, (Task("only", None, None, lambda _: split),)), split


def test_batches_by_length_hold_every_example_once():
    suite, split = make_suite()
    seen = []
    for inputs in batches(suite, split.inputs, 8):
        rows, mask = inputs["input_ids"][:, 0], inputs["attention_mask"]
        assert mask.shape[1] % 16 == 0
        assert mask.sum() == split.inputs["attention_mask"][rows].sum()
        seen += rows.tolist()
    assert sorted(seen) == list(range(30))


def test_unlabeled_batches_repeat_under_a_seed_and_keep_their_shape():
    suite, split = make_suite()

    def first(seed):
        examples = learning_examples(suite)
        inputs = {task: found.inputs for task, found in examples.items()}
        source = shuffled_batches(inputs, size=7, seed=seed)
        return [next(source)["only"] for _ in range(12)]

    one, same, other = first(0), first(0), first(1)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    rows, others = ([x["input_ids"][:, 0] for x in found] for found in (one, other))
    assert any((x != y).any() for x, y in zip(rows, others, strict=True))
    assert len({x["attention_mask"].shape for x in one}) == 1
    lengths = split.inputs["attention_mask"].sum(1)
    usable = np.unique(np.concatenate(rows))
    assert lengths[usable].max() <= one[0]["attention_mask"].shape[1]


def test_padding_of_a_batch_is_not_counted():
    split = Split(
        np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]], np.array([0, 1, 2, 0, 0])
    )
    given = {
        "inputs": "images",
        "params": {},
        "apply": lambda _, inputs: inputs,
        "logits": lambda _, features: jnp.asarray(features),
    }
    base = Base(**dict.fromkeys(Base._fields) | given)
    suite = Suite("identity", base, (Task("only", None, None, lambda _: split),))
    exam = make_exam(suite, "test", batch=4)
    assert isinstance(exam, Exam)
    assert accuracies(exam, {}) == {"only": 0.8}


def test_what_is_held_back_was_not_shown():
    """Together the two are validation, in its order; other parts are read as asked."""
    suite, split = make_suite()
    rows = {part: suite.tasks[0].read(part) for part in (SHOWN, HELD_BACK, "test")}
    found = {part: x.inputs["input_ids"].max(1) for part, x in rows.items()}
    assert found[HELD_BACK].tolist() == [3, 7, 11, 15, 19, 23, 27]
    assert sorted([*found[SHOWN], *found[HELD_BACK]]) == list(range(30))
    np.testing.assert_array_equal(found["test"], split.inputs["input_ids"].max(1))
