"""``jaxmerge inspect --base --data``: the task-direction Jacobian and what it says."""

import gzip
import itertools
import re
import shutil

import jax
import learn_samples
import numpy as np
import pytest
import safetensors.numpy
from cli_samples import document, refuse, succeed
from learn_samples import TASKS
from page_samples import Parsed, browse, needs_browser

from jaxmerge import io
from jaxmerge.models import add_to_params
from jaxmerge.tasks import load_base, load_unlabeled

PLOTS = {"anisotropy", "sensitivity", "sensitivity_by_layer", "misalignment"}
BATCH = {"batch": 3, "batches": 2}
pytestmark = pytest.mark.usefixtures("no_cache")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, three adapters and their data."""
    place = tmp_path_factory.mktemp("reactions")
    learn_samples.bert(place / "base")
    learn_samples.bert_adapters(place / "in")
    learn_samples.texts(place / "data")
    return place


def ask(place, *tasks, base=None, **options):
    flags = itertools.chain(*((f"--{k}", v) for k, v in {**BATCH, **options}.items()))
    folders = [place / "in" / task for task in tasks or TASKS]
    where = ["--base", base or place / "base", "--data", place / "data"]
    return ["inspect", *folders, *where, *flags]


@pytest.fixture(scope="module")
def report(place):
    """The document, with plots and a page beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMERGE_CACHE", "")
        outputs = {"plots": place / "plots", "html": place / "page.html"}
        return document(*ask(place, **outputs))


# --- numbers -----------------------------------------------------------------------


def entropies_of(place):
    """``coefficients by module [T, r] -> f [batches, T]``, in merged weights."""
    base = load_base(place / "base")
    folders = [place / "in" / task for task in TASKS]
    adapters = io.load_peft(folders, heads="keep")
    stream = load_unlabeled(place / "data", TASKS, base).batches(size=3, seed=0)
    batches = list(itertools.islice(stream, 2))
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), base.params)
    run = jax.jit(base.apply)

    def losses(phis):
        updates = {
            module: np.einsum(
                "tmr,tr,trn->mn",
                *(np.asarray(stack.b, float), phis[module], np.asarray(stack.a, float)),
            )
            for module, stack in adapters.stacks.items()
        }
        options = {"apply": base.apply, "batch": batches[0]["cars"]}
        with jax.numpy_dtype_promotion("standard"):
            merged = add_to_params(params, updates, **options)
        found = []
        for task, head in zip(TASKS, adapters.heads, strict=True):
            each = []
            for batch in batches:
                with jax.numpy_dtype_promotion("standard"):  # of layer norms
                    features = np.asarray(run(merged, batch[task]))
                logits = features @ np.float64(head["classifier.weight"]).T
                p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                each.append(-(p * np.log(p)).sum(axis=1).mean())
            found.append(each)
        return np.array(found).T

    return losses, sorted(adapters.stacks)


@pytest.mark.thorough
def test_numbers_are_those_of_finite_differences(place, report):
    losses, modules = entropies_of(place)
    found, step = report["reactions"], 1e-4
    start = {module: np.full((3, 2), 0.4) for module in modules}
    columns = []
    for module in modules:
        for place_of in np.ndindex(3, 2):
            ends = []
            for sign in (1, -1):
                phis = {name: phi.copy() for name, phi in start.items()}
                phis[module][place_of] += sign * step
                ends.append(losses(phis))
            columns.append((ends[0] - ends[1]) / (2 * step))
    jacobians = np.moveaxis(columns, 0, -1)  # of the batches
    jacobian = jacobians.mean(axis=0)
    own = [{m: np.eye(3)[t][:, None] * np.ones(2) for m in modules} for t in range(3)]
    each_f = losses(start)
    f = each_f.mean(axis=0)
    z = np.array([losses(phis)[:, t].mean() for t, phis in enumerate(own)])
    close = {"rtol": 2e-3, "atol": 1e-6}
    tasks = found["tasks"]
    np.testing.assert_allclose([tasks[t]["entropy"] for t in TASKS], f, **close)
    np.testing.assert_allclose([tasks[t]["alone"] for t in TASKS], z, **close)
    slopes = np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose([tasks[t]["slope"] for t in TASKS], slopes, **close)
    values = np.linalg.svd(jacobian, compute_uv=False)
    np.testing.assert_allclose(found["singular_values"], values, **close)
    assert found["condition"] == pytest.approx(values[0] / values[-1], rel=5e-3)
    rhos = np.vstack([np.eye(3), np.full(3, 1 / 3)])

    def sensitivities(jacobian, f):
        weights = rhos * np.exp(rhos * (f - z))
        weights /= np.exp(rhos * (f - z)).sum(axis=1, keepdims=True)
        return weights @ jacobian

    def apart(first, second):
        cosines = np.sum(first * second, axis=-1)
        sizes = (np.linalg.norm(x, axis=-1) for x in (first, second))
        return 1 - np.abs(cosines) / np.prod(np.broadcast_arrays(*sizes), axis=0)

    h = sensitivities(jacobian, f)
    sizes = np.linalg.norm(h, axis=1)
    names = [*TASKS, "all alike"]
    assert found["preferences"] == names
    np.testing.assert_allclose([found["sensitivity"][n] for n in names], sizes, **close)
    xi = apart(h[:, None], h[None])
    np.testing.assert_allclose(found["misalignment"], xi, rtol=5e-3, atol=1e-4)
    halves = apart(*map(sensitivities, jacobians, each_f))
    given = [found["repeat"][name] for name in names]
    np.testing.assert_allclose(given, halves, rtol=5e-3, atol=1e-4)
    tenth = np.sort(np.abs(h))[:, -2:].sum(axis=1) / np.abs(h).sum(axis=1)  # of twelve
    given = [found["largest_tenth"][name] for name in names]
    np.testing.assert_allclose(given, tenth, **close)
    for module, place_of in zip(modules, (slice(0, 6), slice(6, 12)), strict=True):
        norms = np.linalg.norm(h[:, place_of], axis=1)
        np.testing.assert_allclose(found["modules"][module], norms, **close)
    assert found["inputs"] == dict.fromkeys(TASKS, 6)
    assert found["rank"] == 3
    assert found["notes"] == []
    assert found["initial"] == 0.4


@pytest.mark.thorough
def test_the_rest_of_the_report_is_as_without_a_model(place, report):
    folders = [place / "in" / task for task in TASKS]
    alone = document("inspect", *folders)
    assert "reactions" not in alone
    assert {name: report[name] for name in alone} == alone


@pytest.mark.thorough
def test_the_terminal_shows_preferences_and_a_second_verdict(place):
    options = {"names": "a,b,c", "data": renamed(place)}
    report = document(*ask(place, **options))
    said = succeed(*ask(place, **options))
    lines = [line.rstrip() for line in said.splitlines()]
    assert lines[-1] == f"verdict: {report['reactions']['verdict']}"
    said = [entry["text"] for entry in report["diagnostics"]["statements"]]
    assert lines[-1 - len(said) : -1] == [f"verdict: {text}" for text in said]
    header = lines.index("misalignment of preferences") + 1
    rows = [line.split() for line in lines[header : header + 5]]
    assert rows[0] == ["preference", "a", "b", "c", "all", "alike"]
    assert all(row[column] == "-" for column, row in enumerate(rows[1:4], 1))
    assert rows[4][-1] == "-"
    assert any(re.match(r"a +\d\.\d+ +\d\.\d+ +\d\.\d+", line) for line in lines)


def renamed(place):
    data = place / "renamed"
    data.mkdir(exist_ok=True)
    for name, file in zip(
        "abc", ("cars.jsonl", "dtd.jsonl.gz", "svhn/validation.jsonl"), strict=True
    ):
        ending = ".jsonl.gz" if file.endswith(".gz") else ".jsonl"
        shutil.copy(place / "data" / file, data / f"{name}{ending}")
    return data


# --- inputs that say little ---------------------------------------------------------


def test_equal_tasks_have_one_direction_to_move_in(place, tmp_path):
    """The same adapter, head and inputs twice: rank 2 of 3, by measurement."""
    shutil.copytree(place / "in" / "cars", tmp_path / "again")
    data = shutil.copytree(place / "data", tmp_path / "data")
    shutil.copy(data / "cars.jsonl", data / "again.jsonl")
    with_copy = [place / "in" / "cars", tmp_path / "again", place / "in" / "dtd"]
    # batches are drawn by the name of a task: one that holds all inputs has no order
    flags = ["--base", place / "base", "--data", data, "--batch", 24, "--batches", 1]
    found = document("inspect", *with_copy, *flags)["reactions"]
    assert (found["rank"], found["condition"]) == (2, None)
    assert "J has rank 2 of 3: they do not move independently" in found["verdict"]


def shortened(place, folder, lines):
    """The data with fewer lines in the files of two tasks."""
    data = shutil.copytree(place / "data", folder)
    for task, count in lines.items():
        (path,) = [path for path in data.glob(f"{task}*") if path.is_file()]
        read = gzip.open if path.suffix == ".gz" else open
        with read(path, "rt") as file:
            kept = file.readlines()[:count]
        with read(path, "wt") as file:
            file.writelines(kept)
    return data


@pytest.mark.thorough
def test_no_input_counts_twice(place, tmp_path):
    data = shortened(place, tmp_path / "data", {"cars": 1, "dtd": 7})
    asked = ask(place, data=data, batch=4, batches=3)
    found = document(*asked)["reactions"]
    assert found["inputs"] == {"cars": 1, "dtd": 6, "svhn": 12}
    assert found["repeat"]["cars"] is None
    assert found["repeat"]["all alike"] is None
    assert found["repeat"]["dtd"] > 1e-3
    assert found["notes"] == [
        "cars has too few inputs: 1 instead of 12, without halves to compare",
        "dtd has too few inputs: 6 instead of 12",
    ]
    said = succeed(*asked)
    assert "reactions of the losses, 1 to 12 inputs of each task" in said
    assert all(f"note: {note}" in said for note in found["notes"])
    full = document(*ask(place, batch=4, batches=3))["reactions"]
    for key in ("entropy", "alone", "slope"):
        expected = full["tasks"]["svhn"][key]
        assert found["tasks"]["svhn"][key] == pytest.approx(expected, rel=1e-5)


# --- plots and page ------------------------------------------------------------------


def test_plots_and_page_show_the_same_numbers(place, report):
    written = {path.stem: path for path in (place / "plots").iterdir()}
    others = {"effective_rank", "overlap", "overlap_b", "overlap_a", "spectrum"}
    others |= {"energy", "sign_conflict", "cosine"}
    assert written.keys() == PLOTS | others
    assert set(report["plots"]) == {str(path) for path in written.values()}
    for name in PLOTS:
        assert written[name].read_bytes().startswith(b"\x89PNG\r\n")
    text = (place / "page.html").read_text(encoding="utf-8")
    page, found = Parsed(text), report["reactions"]
    assert page.open == []
    _, _, preferences, apart, _ = page.tables
    assert [row[0] for row in preferences[1:]] == found["preferences"]
    slope = found["tasks"]["dtd"]["slope"]
    assert float(preferences[2][3]) == pytest.approx(slope, rel=5e-3)
    assert apart[0] == ["preference", *found["preferences"]]
    for i, row in enumerate(apart[1:]):
        for j, value in enumerate(row[1:]):
            expected = "-" if i == j else f"{found['misalignment'][i][j]:.3f}"
            assert value == expected
    (image,) = [x for x in page.all("img") if x["alt"].startswith("Misalignment")]
    assert f"cars and dtd {found['misalignment'][0][1]:.3f}" in image["alt"]
    for said in (*found["statements"], *report["diagnostics"]["statements"]):
        assert f'<p class="harm-{said["harm"]}">{said["text"]}</p>' in text
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|@import|url\(", rest)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_at_any_width(place, report, tmp_path, width):
    seen = browse(place / "page.html", tmp_path, width)
    assert seen["needed"] <= seen["width"] == width
    assert seen["tables"] == 5
    assert len(seen["images"]) == 12
    assert all(natural == 800 and shown > 300 for natural, shown in seen["images"])


# --- refusals ------------------------------------------------------------------------


def test_what_cannot_be_differentiated_is_refused(place, tmp_path):
    folder = place / "in" / "cars"
    said = refuse("inspect", folder, folder, "--base", place / "base")
    assert "--base and --data go together" in said
    said = refuse("inspect", folder, folder, "--names", "a,b")
    assert "--names needs --base and --data" in said
    assert "at least two adapters" in refuse(*ask(place, "cars"))
    io.save_orbax(tmp_path / "stored", io.load_peft([folder], heads="keep"))
    where = ["--base", place / "base", "--data", place / "data"]
    said = refuse("inspect", tmp_path / "stored", folder, *where)
    assert "--base and --data need PEFT folders" in said
    layer = "bert.encoder.layer.0.attention.self.query"
    learn_samples.adapters(tmp_path / "in", [layer], head=None, tasks=("cars",))
    both = [tmp_path / "in" / "cars", place / "in" / "dtd"]
    said = refuse("inspect", *both, *where)
    assert "saves no head classifier.weight" in said


def test_derivatives_that_are_not_finite_name_the_task(place, tmp_path):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "in" / "dtd" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    tensors["base_model.model.classifier.weight"][:] = 3e38
    safetensors.numpy.save_file(tensors, weights)
    said = refuse(*ask(tmp_path))
    assert "the derivatives of the loss of dtd are not finite" in said
