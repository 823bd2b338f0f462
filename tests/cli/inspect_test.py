"""``jaxmerge inspect`` on several adapters: numbers, verdict, plots and the page."""

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


def pair(b, a, *, names=("x", "y"), random=0.01):
    return Pair(names, b, random, a, random, sign_conflict=0.5, cosine=0.0)


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


# --- verdict -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "says", "harm"),
    [
        (
            [pair(0.31, 0.12)],
            "B is more shared than A: x + y (0.31 against 0.12); calibrate task "
            "arithmetic and learned merges with pico; TSV-M has gained nothing from it",
            "some",
        ),
        (
            [pair(0.12, 0.31)],
            "A is more shared than B: x + y (0.31 against 0.12); "
            "not the case that pico is made for",
            "some",
        ),
        (
            [pair(0.22, 0.2)],
            "B and A are about equally shared: x + y (0.22 and 0.20); pico is worth a "
            "try with task arithmetic and learned merges, not with TSV-M",
            "some",
        ),
        (
            [pair(0.021, 0.019), pair(0.01, 0.02, names=("x", "z"))],
            "B and A overlap hardly more than random subspaces: x + y (0.02 and 0.02), "
            "x + z (0.01 and 0.02); a sum (concat) loses little to interference",
            "none",
        ),
        (
            [pair(0.1, 0.9), pair(0.2, 0.8, names=("y", "z"))],
            "x, y and z share their initial A (overlap of A 0.80 to 0.90, of B 0.10 to "
            "0.20): not the case that pico is made for",
            "some",
        ),
    ],
)
def test_the_verdict_follows_its_rule(pairs, says, harm):
    assert verdict.of_all(pairs, {}) == (verdict.Said(says, harm),)


def test_every_pair_is_named_and_none_is_averaged_across_a_shared_start():
    same = [pair(0.3, 0.9, names=("a", "b")), pair(0.3, 0.8, names=("c", "d"))]
    others = [
        *(pair(0.3, 0.02, names=("a", "c")), pair(0.01, 0.01, names=("a", "d"))),
        *(pair(0.2, 0.02, names=("b", "c")), pair(0.01, 0.01, names=("b", "d"))),
    ]
    said = [text for text, _ in verdict.of_all([*same, *others], {})]
    assert said[0].startswith("a and b share their initial A (overlap of A 0.90, of")
    assert said[1].startswith("c and d share their initial A (overlap of A 0.80, of")
    assert "a + c (0.30 against 0.02), b + c (0.20 against 0.02); calibrate" in said[2]
    assert "a + d (0.01 and 0.01), b + d (0.01 and 0.01); a sum" in said[3]
    many = [pair(0.3, 0.02, names=("x", str(other))) for other in range(9)]
    assert "x + 5 (0.30 against 0.02) and 3 more;" in verdict.of_all(many, {})[0].text


@pytest.mark.parametrize(
    ("norms", "says"),
    [
        (
            {"a": 2.0, "b": 20.0, "c": 2.2, "d": 1.8},
            "b is 10 times as large as the others (norm 20 against 1.8 to 2.2) and "
            "outweighs them; weights 1, 0.1, 1, 1 make all alike",
        ),
        (
            {"a": 5.0, "b": 1e-9},
            "a is 5e+09 times as large as b (norm 5 against 1e-09) and outweighs it; "
            "weights 2e-10, 1 make both alike",
        ),
        (
            {"a": 2.0, "b": 2.0, "c": 0.2},
            "c is 10 times as small as the others (norm 0.2 against 2) and is drowned; "
            "weights 1, 1, 10 make all alike",
        ),
        ({"a": 1.0, "b": 2.9}, None),
        ({"a": 0.0, "b": 2.9}, None),
    ],
)
def test_an_adapter_of_another_size_comes_first(norms, says):
    said = verdict.of_all([pair(0.31, 0.12)], norms)
    assert len(said) == 1 + (says is not None)
    assert says is None or said[0] == verdict.Said(says, "high")


def test_the_sizes_of_real_folders_are_compared(tmp_path):
    folders = []
    for seed, scale in ((0, 1), (50, 10), (90, 1)):
        tensors = samples.linear("h.0.fc", m=64, n=64, r=4, seed=seed)
        tensors[samples.KEY_B] = tensors[samples.KEY_B] * np.float32(scale)
        folders.append(samples.write(tmp_path / f"t{seed}", tensors))
    found = document("inspect", *folders)["diagnostics"]
    assert found["verdict"].startswith("t50 is ")
    assert found["statements"][0]["harm"] == "high"
    said = succeed("inspect", *folders).splitlines()
    assert next(x for x in said if "verdict" in x).startswith("verdict: t50 is ")


def test_overlaps_count_above_random():
    """Random subspaces of rank 8 in 20 dimensions overlap by 0.4: no sharing."""
    assert verdict.of_pair(pair(0.4, 0.4, random=0.4)) == "as if random"
    assert verdict.of_pair(pair(0.5, 0.41, random=0.4)) == "B more shared"
    assert verdict.of_pair(pair(0.41, 0.5, random=0.4)) == "A more shared"
    assert verdict.of_pair(pair(0.5, 0.5, random=0.4)) == "B and A alike"
    assert verdict.of_pair(pair(0.1, 0.9)) == "same initial A"


def test_adapters_with_a_common_b_or_a_common_a_are_told_apart(tmp_path):
    folders = []
    for seed in (0, 50):
        tensors = samples.linear("h.0.fc", m=64, n=64, r=4, seed=seed)
        folders.append(samples.write(tmp_path / f"{seed}", tensors))
    key_a, key_b = samples.KEY_A, samples.KEY_B
    first, second = (samples.linear("h.0.fc", m=64, n=64, r=4, seed=s) for s in (0, 50))
    same_b = samples.write(tmp_path / "b", {key_a: second[key_a], key_b: first[key_b]})
    same_a = samples.write(tmp_path / "a", {key_a: first[key_a], key_b: second[key_b]})
    verdicts = [
        document("inspect", folders[0], other)["diagnostics"]["verdict"]
        for other in (folders[1], same_b, same_a)
    ]
    assert "calibrate" not in verdicts[0]
    assert verdicts[1].startswith("B is more shared than A: 0 + b (1.00 against 0.")
    assert verdicts[2].startswith("0 and a share their initial A (overlap of A 1.00")


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


# --- real adapters -----------------------------------------------------------------


@pytest.mark.thorough
def test_real_adapters_agree_with_what_is_known_of_them(shared):
    """Medical and sports began with the same A; legal and tigrinya did not."""
    names = ("legal", "medical", "sports", "tigrinya")
    folders = [shared / "adapters" / "gpt2_domains" / name for name in names]
    found = document("inspect", *folders)["diagnostics"]
    pairs = {tuple(p["tasks"]): p for p in found["pairs"]}
    assert pairs["medical", "sports"]["overlap_a"] == pytest.approx(0.98, abs=0.005)
    for first in ("legal", "tigrinya"):
        assert all(p["overlap_a"] < 0.03 for k, p in pairs.items() if first in k)
    assert pairs["legal", "medical"]["overlap_b"] == pytest.approx(0.203, abs=0.002)
    assert found["verdict"].startswith("tigrinya is 9.75 times as large as the others")
    assert (
        "medical and sports share their initial A (overlap of A 0.98"
        in (found["verdict"])
    )
    assert "legal + medical (0.20 against 0.02), legal + sports" in found["verdict"]
    assert found["total"]["updates"] <= 4
