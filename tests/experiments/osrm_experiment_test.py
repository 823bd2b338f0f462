"""The comparison of starts on a tiny suite: complete, resumed, and reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_suite import image_suite

from experiments.finetune import Recipe
from experiments.lora import Lora
from experiments.osrm import CURVE, Start, Study, leakage
from experiments.records import Records
from experiments.report_osrm import draw, leaked, markdown
from experiments.settings import Settings, Training
from jaxmerge.io import load_peft
from jaxmerge.stacks import stack_adapters
from jaxmerge.stats.moments import moments_of

STARTS = (
    Start("Kaiming", None, seeds=(0, 1), merges=(CURVE, "TSV-M")),
    Start("OSRM", 20, seeds=(0, 1), merges=(CURVE, "TSV-M")),
    Start("OSRM, own energy", 20, own=True, seeds=(0,), merges=(CURVE,)),
)


pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    suite = image_suite(tmp_path_factory.mktemp("suite"), ("a", "b", "c"), count=48)
    return Settings(
        load=lambda: suite,
        validation=48,
        test=48,
        batch=24,
        longest_fit=4,
        training=Training(
            lora=Lora(rank=2, alpha=4, targets=("q_proj", "v_proj")),
            recipe=Recipe(steps=10, rate=1e-2, batch=8),
            validation=24,
            test=48,
        ),
    )


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("osrm")
    study = Study(settings, folder / "results", folder / "work")
    with jax.numpy_dtype_promotion("standard"):
        for start in STARTS:
            for seed in start.seeds:
                study.run(start, seed)
    return study


def test_every_set_is_measured(finished):
    records = finished.records
    assert len(records.all(kind="own")) == 2 * 5
    for kind, count in (("", 5), (" of A", 5), (" of the first A", 3)):
        assert len(records.all(kind=f"leakage{kind}")) == count
    merges = {"kind": "merge", "method": CURVE}
    assert len(records.all(**merges, part="validation")) == 8 * 5
    assert len(records.all(**merges, part="test")) == 5
    tsv_m = records.all(kind="merge", method="TSV-M", part="validation")
    assert len(tsv_m) == 8 * 2  # chosen with the first seed
    for start in ("Kaiming", "OSRM"):
        rows = records.all(kind="merge", method="TSV-M", part="test", start=start)
        assert len({row["pipeline"] for row in rows}) == 1


def test_a_second_run_adds_nothing(finished, settings):
    path = finished.records.path
    before = path.read_text()
    again = Study(settings, path.parent, finished.work)
    for seed in (0, 1):
        again.run(STARTS[1], seed)
    assert path.read_text() == before


def test_training_starts_orthogonal_to_the_other_tasks(finished):
    first = finished.first_a(STARTS[1])
    for module, (_, n) in finished.shapes.items():
        a = np.asarray(first["a"][module])
        np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-6)
        grams = [finished.moments(20)[task][module].gram for task in "bc"]
        total = np.asarray(sum(grams, jnp.zeros((n, n), jnp.float32)))
        least = np.linalg.eigvalsh(total)[:2].sum()
        np.testing.assert_allclose(np.trace(a @ total @ a.T), least, rtol=1e-3)
    rows = {"start": "OSRM", "seed": 0}
    (first,) = finished.records.all(kind="leakage of the first A", **rows)
    (trained,) = finished.records.all(kind="leakage of A", **rows)
    assert leaked(first) < leaked(trained)


def test_adapters_are_trained_from_the_first_a(settings, tmp_path):
    still = dataclasses.replace(settings.training.recipe, rate=1e-6)
    training = dataclasses.replace(settings.training, recipe=still)
    study = Study(
        dataclasses.replace(settings, training=training), tmp_path, tmp_path / "work"
    )
    start = STARTS[1]._replace(merges=())
    study.run(start, 0)
    first = study.first_a(start)
    for task in "abc":
        stacks = load_peft([tmp_path / "work" / "OSRM" / "0" / task]).stacks
        assert stacks.keys() == first[task].keys()
        for module, stack in stacks.items():
            np.testing.assert_allclose(stack.a[0], first[task][module], atol=1e-4)


def test_leakage_is_the_size_of_the_change():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(3, 2)), rng.normal(size=(2, 4))) for _ in "ab"]
    inputs = {task: rng.normal(size=(7, 4)) for task in "ab"}
    moments = {t: {"q": moments_of(jnp.asarray(x))} for t, x in inputs.items()}
    found = leakage("ab", {"q": stack_adapters(pairs)}, moments)
    expected = [
        [
            np.sqrt(np.mean(np.sum((x @ (b @ a).T) ** 2, axis=1)))
            for x in inputs.values()
        ]
        for b, a in pairs
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert leaked({"values": [[2.0, 1.0], [3.0, 4.0]]}) == 62.5


def test_an_experiment_with_given_adapters_is_refused(settings, tmp_path):
    given = dataclasses.replace(settings, training=None)
    with pytest.raises(ValueError, match="does not train its adapters"):
        Study(given, tmp_path, tmp_path)


def test_report(finished, tmp_path):
    lines = markdown(finished.records).splitlines()
    assert lines[0].endswith("| Kaiming | OSRM | OSRM, own energy |")
    assert [line.split(" | ")[0] for line in lines[2:5]] == [
        "| own adapters",
        f"| {CURVE}",
        "| TIES",
    ]
    assert "±" in lines[2]
    assert "±" in lines[3]
    draw(tmp_path / "plot.png", finished.records)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no results"):
        markdown(Records(tmp_path / "osrm.jsonl"))
