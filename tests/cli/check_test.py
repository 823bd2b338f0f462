"""``jaxmerge check``: verdicts on adapters alone, against numbers found another way."""

import json
import math

import io_samples as samples
import jax
import learn_samples
import numpy as np
import pytest
from check_samples import ask, entropy_of
from cli_samples import document, jaxmerge, refuse, succeed
from learn_samples import TASKS, WIDTH, WORDS

from jaxmerge import io
from jaxmerge.diagnostics.alone import Predictions, sign_test, standing
from jaxmerge.models import add_to_params
from jaxmerge.tasks import load_base, load_unlabeled
from jaxmerge.tasks.texts import cropped
from jaxmerge.types import LowRank

LAYER = "bert.encoder.layer.0"
MODULES = [f"{LAYER}.attention.self.value", f"{LAYER}.attention.output.dense"]
ROWS = 60
CLASSES = 3


pytestmark = pytest.mark.usefixtures("as_a_user")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def unlabeled_rows(task):
    rng = np.random.default_rng(TASKS.index(task))
    return [
        {"text": " ".join(rng.choice(WORDS, rng.integers(2, 25)))} for _ in range(ROWS)
    ]


def logits_of(place, task, *, adapted):
    """Logits [N, C] from weights that the update was added to, padded to one width."""
    base = load_base(place / "base")
    inputs = load_unlabeled(place / "data", (task,), base).inputs[task]
    adapter = io.load_peft([place / "in" / task], heads="keep", allow_zero=True)
    updates = {m: LowRank(s.b[0], s.a[0]) for m, s in adapter.stacks.items()}
    params = base.params
    if adapted:
        options = {"apply": base.apply, "batch": inputs}
        params = add_to_params(params, updates, **options)
    features = np.asarray(jax.jit(base.apply)(params, inputs), np.float64)
    saved = {k: np.asarray(v, np.float64) for k, v in adapter.heads[0].items()}
    return features @ saved["classifier.weight"].T


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An adapter that is right, one that spoils what the base got right, and a zero."""
    place = tmp_path_factory.mktemp("check")
    learn_samples.bert(place / "base")
    (place / "data").mkdir()
    for seed, task in enumerate(TASKS):
        tensors = {}
        for module in MODULES:
            tensors |= samples.linear(module, m=WIDTH, n=WIDTH, r=2, seed=7 * seed)
        if task == "svhn":
            tensors = {k: 0 * v if "lora_B" in k else v for k, v in tensors.items()}
        head = samples.random(CLASSES, WIDTH, seed=seed)
        tensors["base_model.model.classifier.weight"] = head
        config = {"r": 2, "lora_alpha": 2, "modules_to_save": ["classifier"]}
        samples.write(place / "in" / task, tensors, **config)
        rows = unlabeled_rows(task)
        write_rows(place / "data" / f"{task}.jsonl", rows)
        labels = logits_of(place, task, adapted=task == "cars").argmax(axis=1)
        labels[::9] = (labels[::9] + 1) % CLASSES  # nobody is right about these
        rows = [row | {"label": int(c)} for row, c in zip(rows, labels, strict=True)]
        write_rows(place / "data" / f"{task}.jsonl", rows)
    return place


def expected_of(place, task, labels):
    """The document of one adapter, with numpy from other logits."""
    adapted, plain = (logits_of(place, task, adapted=x) for x in (True, False))
    right, base_right = (x.argmax(axis=1) == labels for x in (adapted, plain))
    apart = right.astype(float) - base_right
    return {
        "rows": len(labels),
        "changes": task != "svhn",
        "entropy": entropy_of(adapted),
        "base_entropy": entropy_of(plain),
        "agreement": (adapted.argmax(axis=1) == plain.argmax(axis=1)).mean(),
        "accuracy": right.mean(),
        "base_accuracy": base_right.mean(),
        "most_frequent": max((labels == c).mean() for c in range(CLASSES)),
        "gained": (right & ~base_right).sum(),
        "lost": (base_right & ~right).sum(),
        "difference": right.mean() - base_right.mean(),
        "standard_error": apart.std(ddof=1) / np.sqrt(len(labels)),
    }


def labels_in(file):
    return np.array([json.loads(row)["label"] for row in file.read_text().splitlines()])


# --- verdicts and numbers ------------------------------------------------------------


def test_numbers_are_those_of_weights_with_the_update_added(place):
    found = document(*ask(place, batch=7))  # the last batch has 4 rows
    assert list(found["adapters"]) == list(TASKS)
    verdicts = {}
    for task, entry in found["adapters"].items():
        file = place / "data" / f"{task}.jsonl"
        expected = expected_of(place, task, labels_in(file))
        for name, value in expected.items():
            assert entry[name] == pytest.approx(value, rel=2e-5, abs=1e-9), name
        assert entry["p_value"] == sign_test(entry["gained"], entry["lost"])
        assert entry["path"] == str(place / "in" / task)
        assert entry["file"] == file.name
        verdicts[task] = entry["verdict"]
    assert verdicts == {
        "cars": "helps", "dtd": "WORSE than no adapter", "svhn": "does nothing",
    }  # fmt: skip
    zero = found["adapters"]["svhn"]
    assert zero["difference"] == zero["standard_error"] == 0
    assert zero["agreement"] == zero["p_value"] == 1
    assert found["verdict"] == (
        "helps: cars; WORSE than no adapter: dtd; does nothing: svhn"
    )
    assert found["logit_scale"] == 1
    assert found["max_length"] == 32


@pytest.mark.thorough
def test_the_terminal_shows_a_row_for_each_and_strict_fails(place):
    said = succeed(*ask(place))
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    rows = {line.split()[0]: line for line in lines}
    assert rows["adapter"].split()[:4] == ["adapter", "rows", "accuracy", "base"]
    entry = document(*ask(place))["adapters"]["cars"]
    shown = f"{100 * entry['difference']:+.1f} ± {100 * entry['standard_error']:.1f}"
    assert f"{entry['accuracy']:.1%}" in rows["cars"]
    assert shown in rows["cars"]
    assert rows["dtd"].endswith("WORSE than no adapter")
    assert rows["svhn"].endswith("does nothing")
    assert lines[-1].startswith("verdict: helps: cars; WORSE")
    failed = jaxmerge(*ask(place, strict=True))
    assert (failed.exit_code, failed.stdout) == (1, said)
    assert failed.stderr == "error: worse than no adapter: dtd\n"
    fine = jaxmerge(*ask(place, "cars", "svhn", strict=True, quiet=True))
    assert (fine.exit_code, fine.stdout, fine.stderr) == (0, "", "")


def test_a_zero_adapter_by_itself(place):
    (entry,) = document(*ask(place, "svhn", limit=8))["adapters"].values()
    assert (entry["verdict"], entry["changes"], entry["gained"]) == (
        *("does nothing", False, 0),
    )


def test_names_and_a_limit_of_rows_at_even_distances(place, tmp_path):
    (tmp_path / "a.jsonl").write_bytes((place / "data" / "dtd.jsonl").read_bytes())
    found = document(*ask(place, "dtd", data=tmp_path, names="a", limit=25))
    (entry,) = found["adapters"].values()
    chosen = np.arange(25) * ROWS // 25
    right = (
        logits_of(place, "dtd", adapted=True).argmax(axis=1)
        == labels_in(tmp_path / "a.jsonl")
    )[chosen]
    assert (entry["rows"], entry["accuracy"]) == (25, right.mean())


def test_without_labels_there_is_no_accuracy(place, tmp_path):
    write_rows(tmp_path / "cars.jsonl", unlabeled_rows("cars"))
    write_rows(
        tmp_path / "dtd.jsonl", [row | {"label": 0} for row in unlabeled_rows("dtd")]
    )
    found = document(*ask(place, "cars", "dtd", data=tmp_path))
    bare, labeled = found["adapters"].values()
    assert bare["verdict"] == "no labels"
    assert bare.keys() == {
        *("path", "file", "rows", "changes"),
        *("entropy", "base_entropy", "agreement", "verdict"),
    }
    known = document(*ask(place, "cars"))["adapters"]["cars"]
    assert {name: known[name] for name in bare.keys() - {"verdict"}} == {
        name: value for name, value in bare.items() if name != "verdict"
    }
    assert labeled["most_frequent"] == 1
    notes = " / ".join(found["notes"])
    assert "the data of cars have no labels" in notes
    assert "field label" in notes
    assert "dtd is right no more often than one answer for all" in notes
    assert "note: the data of cars have no labels" in succeed(
        *ask(place, "cars", "dtd", data=tmp_path)
    )
    said = refuse(*ask(place, "dtd", "cars", data=tmp_path, strict=True))
    assert "--strict: the data of cars have no labels" in said
    assert "or leave out --strict" in said


def test_the_standard_error_and_the_exact_test():
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in [(6, 0), (0, 6), (3, 9), (41, 60), (1200, 1100), (1, 1)]:
        expected = stats.binomtest(gained, gained + lost).pvalue
        assert sign_test(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert sign_test(0, 0) == 1
    assert sign_test(20000, 15000) < 1e-100
    labels = np.zeros(40, int)
    adapted, plain = np.ones(40, int), np.ones(40, int)
    adapted[:15], plain[10:19] = 0, 0  # 10 gained, 4 lost
    flat = np.zeros(40)
    found = standing(Predictions(adapted, flat), Predictions(plain, flat), labels)
    assert (found.score.gained, found.score.lost) == (10, 4)
    variance = (10 + 4 - (10 - 4) ** 2 / 40) / 39  # of McNemar's differences
    assert found.score.standard_error == pytest.approx(np.sqrt(variance / 40))
    assert found.verdict == "no clear difference"
    (one,) = (
        standing(Predictions(x[:1], flat[:1]), Predictions(plain[:1], flat[:1]), y)
        for x, y in [(adapted, labels[:1])]
    )
    assert math.isnan(one.score.standard_error)
    assert one.verdict == "no clear difference"  # one input proves nothing


def test_batches_are_cropped_to_few_widths():
    for tokens, width in [(1, 16), (16, 16), (17, 32), (33, 64), (65, 80)]:
        mask = np.zeros((2, 80), np.int32)
        mask[0, :tokens] = mask[1, 0] = 1
        inputs = {"input_ids": np.arange(160).reshape(2, 80), "attention_mask": mask}
        found = cropped(inputs)
        for name, whole in inputs.items():
            np.testing.assert_array_equal(found[name], whole[:, :width])


# --- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "line 2: label is 3; expected the number of a class of the head, 0 to 2"),
        (-1, "line 2: label is -1"),
        ("1", "line 2: label is '1'"),
        (1.0, "line 2: label is 1.0"),
        (True, "line 2: label is True"),
        (None, "line 2: label is None"),
        (..., "line 2 has no label, others have"),
    ],
)
def test_labels_that_are_no_class(label, message, place, tmp_path):
    rows = [row | {"label": 0} for row in unlabeled_rows("cars")[:3]]
    rows[1] = {**rows[1], "label": label}
    if label is ...:
        del rows[1]["label"]
    write_rows(tmp_path / "cars.jsonl", rows)
    said = refuse(*ask(place, "cars", data=tmp_path))
    assert f"cars.jsonl: {message}" in said


@pytest.mark.parametrize("scale", ["nan", "inf", 0, -1])
def test_scales_that_make_no_logits(scale, place):
    said = refuse(*ask(place, "cars", logit_scale=scale))
    assert f"--logit-scale {float(scale)}: expected a finite number above 0" in said


def test_what_does_not_belong_together_is_refused(place, tmp_path):
    assert "no texts of task 'cars'" in refuse(*ask(place, "cars", data=tmp_path))
    assert "3 different names" in refuse(*ask(place, names="a,b"))
    assert "32 positions" in refuse(*ask(place, max_length=33))
    tensors = samples.linear(MODULES[0], m=WIDTH, n=WIDTH)
    samples.write(tmp_path / "in" / "cars", tensors)
    bare = ask(tmp_path, "cars", base=place / "base", data=place / "data")
    assert "saves no head classifier.weight" in refuse(*bare)
    tensors["base_model.model.classifier.weight"] = np.full((3, WIDTH), 3e38, "f4")
    samples.write(tmp_path / "in" / "cars", tensors)
    said = refuse(*bare)
    assert "the logits of cars are not finite" in said
