"""--force: nothing that a command reads or keeps is ever replaced by it."""

import io_samples as samples
import learn_samples
import pytest
from cli_samples import everything, refuse
from learn_samples import ask
from statistics_samples import collect, folders, merge

from jaxmerge import io
from jaxmerge.io.replaceable import ADAPTER, STATISTICS, Replaceable

pytest_plugins = ["learn_fixtures", "statistics_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture
def nothing_is_foreign(monkeypatch):
    """Every entry of a folder may be replaced, so that only inputs protect it."""
    monkeypatch.setattr(Replaceable, "foreign", lambda *_: [])


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Adapters must not be read: the refusal comes before any work."""
    monkeypatch.setattr(io, "load_peft", None)


def spared(place, kept, *arguments):
    before = everything(place)
    said = refuse(*arguments)
    assert f"is or holds the input {kept}" in said
    assert everything(place) == before


@pytest.mark.usefixtures("nothing_is_foreign", "nothing_is_read")
@pytest.mark.parametrize("option", ["base", "data", "stats"])
def test_merge(option, place):
    out = samples.write(place / "out")
    kept = out / option
    (place / option).rename(kept)
    given = {"base": place / "base", "data": place / "data", "stats": None}
    pipeline = "iteris"
    if option == "stats":
        given, pipeline = {}, "regmean"
    spared(
        place, kept, *merge(place, pipeline, **given | {option: kept, "force": True})
    )


@pytest.mark.usefixtures("nothing_is_read")
def test_merge_refuses_what_it_would_not_replace_before_any_work(place):
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("precious")
    said = refuse(*merge(place, "concat", stats=None, force=True))
    assert "holds files that are not an adapter: 'thesis.tex'" in said


@pytest.mark.usefixtures("nothing_is_foreign", "nothing_is_read")
@pytest.mark.parametrize("option", ["text_heads", "work"])
def test_learn(option, bert, tmp_path):
    out = samples.write(tmp_path / "out")
    kept = learn_samples.text_vectors(out / "kept")
    spared(tmp_path, kept, *ask(bert, out, force=True, **{option: kept}))


@pytest.mark.usefixtures("nothing_is_foreign", "nothing_is_read")
@pytest.mark.parametrize("kept", ["base", "data", "in"])
def test_collect(kept, place):
    arguments = collect(place, kept, *folders(place), force=True)
    spared(place, place / kept, *arguments)


@pytest.mark.parametrize("work", ["out", "out/work", "."])
@pytest.mark.usefixtures("nothing_is_read")
def test_the_checkpoints_of_a_fit_lie_apart_from_its_output(work, bert, tmp_path):
    before = everything(tmp_path)
    said = refuse(*ask(bert, tmp_path / "out", work=tmp_path / work))
    assert f"--work {tmp_path / work} is, holds or lies in --out" in said
    assert everything(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_the_writers_differ_in_what_they_own(place):
    assert ADAPTER.foreign(place / "stats")
    assert not STATISTICS.foreign(place / "stats")
    assert not ADAPTER.foreign(place / "in" / "cars")
