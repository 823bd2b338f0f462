"""The table and the plot of accuracy over memory."""

import numpy as np
import pytest

from experiments.memory import WAYS
from experiments.records import Records, packed
from experiments.report_memory import draw, family, tables


def row(records, way, right, numbers, told=""):
    hits = {"a": np.array(right, bool), "b": np.ones(2, bool)}
    accuracy = {task: float(found.mean()) for task, found in hits.items()}
    records.add(
        way=way, told=told, numbers=numbers, accuracy=accuracy, hits=packed(hits)
    )


@pytest.fixture
def records(tmp_path):
    found = Records(tmp_path / "memory.jsonl")
    row(found, "all adapters", [1, 1, 1, 1], 40, "the task")
    row(found, "cores, width 16", [1, 1, 1, 0], 10, "the task")
    row(found, "base", [1, 0, 0, 1], 0)
    found.add(kind="time", runs="the base", seconds=0.064, inputs=64)
    found.add(kind="time", runs="routed cores", seconds=0.096, inputs=64)
    return found


def test_the_table_goes_from_little_memory_to_much(records):
    ways, times = tables(records).strip().split("\n\n")
    base, cores, everything = ways.splitlines()[2:]
    assert base.startswith("| base | 0.00 | nothing | 75.0 | -25.0 [")
    assert cores.startswith("| cores, width 16 | 0.50 | the task | 87.5 | -12.5 [")
    assert everything == "| all adapters | 2.00 | the task | 100.0 |  |"
    assert times.splitlines()[2:] == [
        "| the base | 1000 | 1.00 |",
        "| routed cores | 1500 | 1.50 |",
    ]


def test_the_plot_is_drawn(records, tmp_path):
    draw(records, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_needs_all_adapters(tmp_path):
    with pytest.raises(ValueError, match="no row of all adapters"):
        tables(Records(tmp_path / "none.jsonl"))


def test_ways_have_names_of_their_own():
    names = [way.name for way in WAYS]
    assert len(set(names)) == len(names)
    assert len({family(name) for name in names}) < len(names)
