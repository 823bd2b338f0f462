"""The folder of a search: whole lines, one search at a time, the same settings."""

import json

import pytest

from jaxmerge.refusals import Refusal
from jaxmerge.tuning.families import Point
from jaxmerge.tuning.trace import SETTINGS_FILE, TRACE_FILE, Row, Scored, Trace

SETTINGS = {"score": "entropy", "pipelines": ["concat"]}
ROWS = (
    Row(Point("concat"), Scored(0.1 + 0.2, None, {"cars": 0.3}, 1.25)),
    Row(Point("concat", (1.0, 0.5), ("cars@h.0",)), Scored(1e-17, 0.5)),
    Row(Point("tsv_m"), Scored(None, error="not finite")),
)


def fill(folder):
    with Trace(folder, SETTINGS) as trace:
        for row in ROWS:
            trace.add(row)


def test_rows_come_back_as_they_were(tmp_path):
    fill(tmp_path / "work")
    with Trace(tmp_path / "work", SETTINGS) as trace:
        assert tuple(trace.rows) == ROWS
        assert trace.find(ROWS[1].point) == ROWS[1].scored
        assert trace.find(Point("average")) is None


def test_a_line_that_was_cut_off_is_as_if_it_had_not_begun(tmp_path):
    fill(tmp_path)
    path = tmp_path / TRACE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"pipeline": "ave')
    with Trace(tmp_path, SETTINGS) as trace:
        assert tuple(trace.rows) == ROWS
        assert path.read_bytes() == whole


def test_other_settings_and_other_folders_are_refused(tmp_path):
    fill(tmp_path / "work")
    with pytest.raises(Refusal, match=r"a search with other score \(entropy, now kl\)"):
        Trace(tmp_path / "work", SETTINGS | {"score": "kl"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(Refusal, match="not that of a search"):
        Trace(tmp_path / "mine", SETTINGS)
    (tmp_path / "work" / TRACE_FILE).write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(Refusal, match="not the trace of a search"):
        Trace(tmp_path / "work", SETTINGS)
    fill(tmp_path / "again")
    (tmp_path / "again" / SETTINGS_FILE).write_text("[]")
    with pytest.raises(Refusal):
        Trace(tmp_path / "again", SETTINGS)


def test_two_searches_do_not_share_a_folder(tmp_path):
    with (
        Trace(tmp_path, SETTINGS),
        pytest.raises(Refusal, match="another search is running"),
    ):
        Trace(tmp_path, SETTINGS)
    Trace(tmp_path, SETTINGS).close()
