"""The committed table of scales that are found without labels."""

import numpy as np
import pytest
from documented import DOCS

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from experiments.digits8.tune import METHODS, RESULTS, table
from experiments.records import Records


def test_a_scale_without_labels_is_within_a_point_of_a_grid_with_labels():
    records = Records(RESULTS / "tune.jsonl")
    rows = [records.find(method=method)["test"] for method in METHODS]
    assert len(rows) == 6
    assert all(row["tuned"] > row["labels"] - 1 for row in rows)
    published, tuned = (
        np.mean([row[k] for row in rows]) for k in ("published", "tuned")
    )
    assert tuned > published


def test_the_table_of_the_page_is_that_of_the_records():
    made = table(Records(RESULTS / "tune.jsonl"))
    assert (RESULTS / "tune.md").read_text() == made
    assert made in (DOCS / "results.md").read_text()
