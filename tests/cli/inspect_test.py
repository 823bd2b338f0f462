"""``jaxmerge inspect`` on several adapters: numbers, plots and the page."""

import re
import shutil
import sys
from io import BytesIO, StringIO

import io_samples as samples
import numpy as np
import pytest
from cli_samples import document, refuse, succeed, three, updates_of
from page_samples import Parsed, browse, needs_browser

from jaxmerge import io
from jaxmerge.diagnostics import verdict
from jaxmerge.diagnostics.findings import Pair
from jaxmerge.reports.drawing import DARK, heat_map, render
from jaxmerge.reports.plots import layers, plots_of

PLOTS = {
    *("effective_rank", "overlap", "overlap_b", "overlap_a", "spectrum", "energy"),
    *("sign_conflict", "cosine"),
}
pytestmark = pytest.mark.usefixtures("no_cache")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return three(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory):
    """The page of three adapters, with plots beside it."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMERGE_CACHE", "")
        found = document(
            "inspect", *folders, "--plots", out / "plots", "--html", out / "page.html"
        )
    return out, found


# --- numbers -----------------------------------------------------------------------


def test_pairs_and_total_are_those_of_the_dense_updates(folders, report):
    found = report[1]["diagnostics"]
    updates = [updates_of(folder) for folder in folders]
    whole = [
        np.concatenate([np.zeros(m) if u is None else u.ravel() for m, u in parts])
        for parts in ([(30, u.get("h.0.q")), (35, u.get("h.0.o"))] for u in updates)
    ]
    assert [p["tasks"] for p in found["pairs"]] == [
        ["cars", "dtd"],
        ["cars", "svhn"],
        ["dtd", "svhn"],
    ]
    first, second = found["pairs"][0], found["pairs"][1]
    x, y = whole[0], whole[1]
    cosine = x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    assert first["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert first["sign_conflict"] == pytest.approx(np.mean(x * y < 0), rel=1e-5)
    q, z = updates[0]["h.0.q"].ravel(), updates[2]["h.0.q"].ravel()
    assert second["sign_conflict"] == pytest.approx(np.mean(q * z < 0), rel=1e-5)
    assert second["cosine"] == pytest.approx(
        q @ z / (np.linalg.norm(q) * np.linalg.norm(z)), rel=1e-5
    )
    ratio = np.linalg.norm(sum(whole)) / np.mean([np.linalg.norm(w) for w in whole])
    assert found["total"]["norm_ratio"] == pytest.approx(ratio, rel=1e-5)
    modules = found["modules"]
    assert modules["h.0.o"]["shape"] == [5, 7]
    assert modules["h.0.o"]["by_pair"]["overlap_b"][0][2] == 0
    expected = np.mean([m["overlap_b"] for m in modules.values()])
    assert found["total"]["overlap_b"] == pytest.approx(expected)
    said = verdict.of_all(
        [Pair(**{**p, "tasks": tuple(p["tasks"])}) for p in found["pairs"]],
        {task["name"]: task["norm"] for task in report[1]["tasks"]},
    )
    assert found["verdict"] == "; ".join(text for text, _ in said)


def test_the_terminal_shows_kinds_pairs_and_the_verdict(folders):
    said = succeed("inspect", *folders)
    assert "cars: 2 modules, norm" in said
    assert "3 adapters together" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["q", "6x5", "1"] in [row[:3] for row in rows]
    assert ["all", "2"] in [row[:2] for row in rows]
    assert re.search(r"cars \+ dtd +\d\.\d{3} +\d\.\d{3}", said)
    assert said.splitlines()[-1].startswith("verdict: ")
    assert "h.0.q 6x5" in succeed("inspect", *folders, "--modules")


def test_one_adapter_has_nothing_to_be_compared_with(folders, tmp_path):
    assert document("inspect", folders[0])["diagnostics"] is None
    assert "together" not in succeed("inspect", folders[0])
    said = refuse("inspect", folders[0], "--html", tmp_path / "page.html")
    assert "need at least two adapters" in said
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_of_several_adapters_is_compared(folders, tmp_path):
    adapters = io.load_peft(folders)
    io.save_orbax(tmp_path / "adapters", adapters)
    io.save_orbax(tmp_path / "stacks", adapters.stacks)
    expected = document("inspect", *folders)["diagnostics"]
    assert document("inspect", tmp_path / "adapters")["diagnostics"] == expected
    found = document("inspect", tmp_path / "stacks")["diagnostics"]
    assert found["total"] == expected["total"]
    assert found["pairs"][0]["tasks"] == ["task 0", "task 1"]
    said = refuse("inspect", tmp_path / "adapters", folders[0])
    assert "look at one at a time" in said


@pytest.mark.thorough
def test_a_zero_adapter_and_adapters_that_never_meet(folders, tmp_path):
    tensors = {
        key: 0 * value if "lora_B" in key else value
        for key, value in samples.linear("h.0.q").items()
    }
    zero = samples.write(tmp_path / "zero", tensors)
    found = document("inspect", folders[0], zero, "--allow-zero", "--heads", "keep")
    assert found["diagnostics"]["pairs"] == []
    other = samples.write(tmp_path / "other", samples.linear("h.9.k"))
    html = tmp_path / "page.html"
    found = document("inspect", folders[2], other, "--html", html)["diagnostics"]
    assert found["total"]["overlap_b"] is found["total"]["cosine"] is None
    assert "no two adapters change a module of one name" in found["verdict"]
    assert "exact" not in found["verdict"]
    assert html.stat().st_size > 0


# --- in a narrow terminal ----------------------------------------------------------


def test_no_column_is_hidden_and_no_title_cut_at_60_columns(folders, monkeypatch):
    from rich.console import Console

    from jaxmerge.diagnostics.inspection import inspect_adapters
    from jaxmerge.reports import inspection
    from jaxmerge.reports.comparison import CELLS

    found = inspect_adapters(io.load_peft(folders))
    said = shown_in(Console, inspection(found), width=60)
    assert max(map(len, said.splitlines())) <= 60
    words = set(said.split())
    assert all(set(title.split()) <= words for title, _ in CELLS)
    assert "…" not in said
    wide = shown_in(Console, inspection(found), width=300)
    assert all(title in wide for title, _ in CELLS)
    assert len(re.findall(r"^modules ", wide, re.M)) == 4  # once for each table


def shown_in(console, parts, *, width):
    """What a terminal of a width shows."""
    screen = console(width=width, file=StringIO(), color_system=None, highlight=False)
    for part in parts:
        screen.print(part, markup=False)
    return screen.file.getvalue()


# --- plots -------------------------------------------------------------------------


def test_plots_are_png_and_the_same_each_time(folders, report, tmp_path):
    out, found = report
    written = {path.stem: path for path in (out / "plots").iterdir()}
    assert written.keys() == PLOTS
    assert set(found["plots"]) == {str(path) for path in written.values()}
    for path in written.values():
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
    succeed("inspect", *folders, "--plots", tmp_path / "again", "--quiet")
    for name, path in written.items():
        assert (tmp_path / "again" / f"{name}.png").read_bytes() == path.read_bytes()


def test_results_are_not_replaced_unless_told(folders, report, tmp_path):
    out, _ = report
    assert "pass --force" in refuse("inspect", *folders, "--plots", out / "plots")
    assert "pass --force" in refuse("inspect", *folders, "--html", out / "page.html")
    assert "takes a file" in refuse("inspect", *folders, "--html", tmp_path)
    for flag, name in (("--plots", "plots"), ("--html", "adapter_config.json")):
        place = folders[0] / name
        said = refuse("inspect", *folders, flag, place, "--force")
        assert f"{flag} {place} is or lies in the input {folders[0]}" in said
    assert "takes a folder" in refuse("inspect", *folders, "--plots", out / "page.html")
    page = tmp_path / "page.html"
    page.write_text("old")
    succeed("inspect", *folders, "--html", page, "--force", "--quiet")
    assert page.read_text() == (out / "page.html").read_text()


def test_without_matplotlib_the_remedy_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refuse("inspect", *folders, "--html", tmp_path / "page.html")
    assert "pip install 'jaxmerge[demo]'" in said
    succeed("inspect", *folders)


def test_layers_are_in_the_order_of_their_numbers():
    names = ["up.1.q", "up.0.q", "down.10.q", "down.2.q", "down.2.v", "head"]
    found = layers(names)
    assert list(found) == ["down.2", "down.10", "head", "up.0", "up.1"]
    assert found["down.2"] == ["down.2.q", "down.2.v"]


# --- page --------------------------------------------------------------------------


def test_the_page_is_complete_and_needs_no_network(report):
    out, found = report
    text = (out / "page.html").read_text(encoding="utf-8")
    page = Parsed(text)
    assert page.open == []  # every element is closed
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|@import|url\(", rest)
    images = page.all("img")
    assert len(images) == len(page.all("source")) == len(PLOTS)
    for image in images:
        assert image["src"].startswith("data:image/png;base64,")
        assert re.search(r"\d\.\d\d", image["alt"])
    assert all("prefers-color-scheme" in s["media"] for s in page.all("source"))
    adapters, pairs, modules = page.tables
    assert [row[0] for row in adapters[1:]] == ["cars", "dtd", "svhn"]
    assert [row[0] for row in pairs[1:]] == ["cars + dtd", "cars + svhn", "dtd + svhn"]
    assert modules[0][0] == "module of h.0"
    assert {row[0] for row in modules[1:]} == {"o", "q"}
    value = found["diagnostics"]["pairs"][0]["overlap_b"]
    assert pairs[1][1] == f"{value:.3f}"
    assert all(head["scope"] == "col" for head in page.all("th"))
    assert [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)] == [
        "h1",
        *["h2"] * 7,
    ]
    assert page.all("html") == [{"lang": "en"}]
    for said in found["diagnostics"]["statements"]:
        assert f'<p class="harm-{said["harm"]}">{said["text"]}</p>' in text


@pytest.mark.thorough
def test_names_cannot_inject_markup(folders, tmp_path):
    bad = tmp_path / '<b onload="x">&'
    shutil.copytree(folders[0], bad)
    html = tmp_path / "page.html"
    succeed("inspect", bad, folders[1], "--html", html, "--quiet")
    page = Parsed(html.read_text(encoding="utf-8"))
    assert page.all("b") == []
    assert page.tables[0][1][0] == bad.name


def test_dark_plots_differ_from_light_ones(folders):
    from jaxmerge.diagnostics.findings import find

    adapters = io.load_peft(folders)
    plot = plots_of(find(adapters.names, adapters.stacks))[0]
    assert render(plot.draw) != render(plot.draw, DARK)


def test_colours_of_pairs_follow_harm_and_not_the_largest_value():
    little = heat_map(np.array([[np.nan, 0.02], [0.02, np.nan]]), "xy", harm=True)
    much = heat_map(np.array([[np.nan, -0.9], [0.9, np.nan]]), "xy", harm=True)
    colours = []
    for draw in (little, much):
        image = decoded(render(draw))
        colours.append(image[image.shape[0] // 8, image.shape[1] * 2 // 3])
    (red, green, blue), strong = colours[0][:3], colours[1][:3]
    assert min(red, green, blue) > 0.85
    assert strong[0] > 2 * strong[1]


def decoded(png):
    from matplotlib.image import imread

    return imread(BytesIO(png))


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_at_any_width(report, tmp_path, width):
    seen = browse(report[0] / "page.html", tmp_path, width)
    assert seen["width"] == width
    assert seen["needed"] <= width
    assert width > 400 or seen["hidden"] == 0  # on a phone nothing lies to the right
    assert seen["tables"] == 3
    assert len(seen["images"]) == len(PLOTS)
    assert all(natural == 800 and shown > 300 for natural, shown in seen["images"])
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] == sorted(seen["up"], reverse=True)
    assert seen["sort"] == "descending"
