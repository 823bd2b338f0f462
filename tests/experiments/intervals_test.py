"""Paired intervals of differences, and answers as they are stored."""

import json

import numpy as np
import pytest

from experiments.intervals import difference
from experiments.records import packed, unpacked


def answers(seed, share, rows=400):
    rng = np.random.default_rng(seed)
    return {task: rng.random(rows) < share for task in ("a", "b")}


def test_a_method_is_not_ahead_of_itself():
    right, own = answers(0, 0.6), answers(1, 0.8)
    assert difference([right], [right], own) == (0, 0, 0)


def test_the_interval_is_that_of_pairs():
    """Two methods that differ in few answers are told apart as two others are not."""
    own, one = answers(1, 0.8), answers(0, 0.6)
    near = {task: right.copy() for task, right in one.items()}
    for right in near.values():
        right[np.flatnonzero(right)[:6]] = False
    value, low, high = difference([one], [near], own)
    expected = np.mean([100 * 6 / 400 / right.mean() for right in own.values()])
    assert value == pytest.approx(expected)
    assert 0 < low < value < high < 2 * value
    apart = answers(7, 0.6)
    wide = difference([one], [apart], own)
    assert wide.high - wide.low > 3 * (high - low)


def test_the_level_is_kept():
    """95 % of intervals around the difference of two samples hold that of the whole."""
    held, rng = 0, np.random.default_rng(0)
    for _ in range(200):
        rows = rng.random(300)
        one, other = {"a": rows < 0.7}, {"a": rows < 0.6}
        own = {"a": np.ones(300, bool)}
        _, low, high = difference([one], [other], own, seed=1)
        held += low <= 10 <= high
    assert 180 <= held <= 199


def test_seeds_are_averaged():
    own, right, wrong = ({"a": np.full(4, x)} for x in (True, True, False))
    assert difference([right, wrong], [wrong], own).value == 50


def test_answers_are_found_as_they_were_stored():
    right = answers(3, 0.5, rows=13)
    again = unpacked(json.loads(json.dumps(packed(right))))
    for task, found in right.items():
        np.testing.assert_array_equal(again[task], found)
