"""Which candidate goes to test."""

import pytest

from experiments.choosing import CLOSE, best_candidate, last_choice, rows_on_test
from experiments.records import Records


def chosen(of_seeds, seeds):
    """The choice, and the scores that it asked for."""
    asked = []

    def score(candidate, count):
        asked.append((candidate, count))
        return sum(of_seeds[candidate][:count]) / count

    return best_candidate(list(of_seeds), score, seeds=seeds), asked


def test_seeds_choose_between_close_candidates_alone():
    of_seeds = {"a": (0.8, 0.7), "close": (0.8 - CLOSE / 2, 0.8), "far": (0.7, 2.0)}
    best, asked = chosen(of_seeds, seeds=2)
    assert best == "close"
    assert asked == [*((name, 1) for name in of_seeds), ("a", 2), ("close", 2)]


@pytest.mark.parametrize("others", [(0.5, 0.6), ()])
def test_one_ahead_of_all_needs_no_other_seed(others):
    of_seeds = {"best": (0.8, 0.1)} | {str(x): (x, 1.0) for x in others}
    best, asked = chosen(of_seeds, seeds=2)
    assert best == "best"
    assert {count for _, count in asked} == {1}


def test_of_equal_ones_the_first_is_taken():
    of_seeds = dict.fromkeys("abc", (0.5, 0.5))
    assert [chosen(of_seeds, seeds)[0] for seeds in (1, 2)] == ["a", "a"]


def test_the_last_choice_counts(tmp_path):
    """Also where it goes back to a candidate that was tested before."""
    records = Records(tmp_path / "rows.jsonl")
    assert last_choice(records, "a") is None
    of_test = {"kind": "merge", "method": "a", "part": "test"}
    for rate in (0.1, 0.2):
        records.add(kind="choice", method="a", candidate={"rate": rate})
        for seed in range(2):
            records.add(**of_test, candidate={"rate": rate}, seed=seed, mean=rate)
    assert [row["mean"] for row in rows_on_test(records, "a")] == [0.2, 0.2]
    records.add(kind="choice", method="a", candidate={"rate": 0.1})
    again = rows_on_test(Records(records.path), "a")
    assert [row["mean"] for row in again] == [0.1, 0.1]
