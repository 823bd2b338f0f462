"""Domains of a language model: texts, training and the comparison, on a tiny one."""

import gzip
import json
from functools import partial

import causal_samples
import numpy as np
import pytest

import jaxmerge as jm
from experiments import report_memory
from experiments.domains4 import (
    data,
    inputs,
    memory,
    methods,
    report,
    results,
    run,
    train,
)
from experiments.domains4.data import LENGTH, ROWS, Place
from experiments.finetune import Recipe
from experiments.lora import Lora
from experiments.records import Records
from jaxmerge.io import load_peft
from jaxmerge.tasks import load_base, load_unlabeled

DOMAINS = ("one", "two")
LORA = Lora(rank=2, alpha=4, targets=("q_proj", "o_proj"))
RECIPE = Recipe(steps=60, rate=3e-2, batch=8)

pytestmark = pytest.mark.usefixtures("standard_promotion")


def rows(domain, count, rng):
    """A word that is known of a domain follows its prompts; some are far too long."""
    words = [str(x) for x in rng.choice(causal_samples.WORDS, 6)]
    known = causal_samples.WORDS[DOMAINS.index(domain)]
    long = " ".join(words * 9)
    for index in range(count):
        prompt = " ".join(rng.choice(words, 3)) if index % 8 else long
        yield {"prompt": prompt, "completion": f" {known} {known}", "answer": known}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base and texts as the shared folder has them."""
    folder = tmp_path_factory.mktemp("domains")
    causal_samples.base(folder / "trained" / "base", tied=True)
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        source = folder / "shared" / "data" / "generation" / domain
        source.mkdir(parents=True)
        for part, count in (("train", 48), ("validation", 40), ("test", 80)):
            with gzip.open(source / f"{part}.jsonl.gz", "wt") as file:
                file.writelines(
                    json.dumps(row) + "\n" for row in rows(domain, count, rng)
                )
    return Place(
        model=folder / "trained" / "base",
        trained=folder / "trained",
        work=folder / "work",
        results=folder / "results",
        domains=DOMAINS,
        lora=LORA,
    )


@pytest.fixture(autouse=True)
def small(place, monkeypatch):
    """Texts of 32 tokens; those of one domain are cut."""
    monkeypatch.setenv("JAXMERGE_SHARED", str(place.trained.parent / "shared"))
    monkeypatch.setattr(data, "LENGTH", 32)
    monkeypatch.setattr(data, "CUT", ("two",))


def test_texts_fit_and_lose_words_of_the_start_alone(place):
    base = load_base(place.base, "causal")
    for part in ROWS:
        texts = load_unlabeled(place.texts(part), DOMAINS, base, max_length=32)
        assert not texts.notes  # none is truncated
        for domain in DOMAINS:
            source = place.trained.parent / "shared" / "data" / "generation" / domain
            with gzip.open(source / f"{part}.jsonl.gz", "rt") as file:
                given = [json.loads(line) for line in file]
            written = (place.texts(part) / f"{domain}.jsonl").read_text().splitlines()
            assert len(written) <= (ROWS[part] or len(given))
            longest = max(written, key=len)
            for row in map(json.loads, written):
                assert any(
                    x["prompt"].endswith(row["prompt"])
                    and x["completion"] == row["completion"]
                    for x in given
                )
            whole = {x["prompt"] for x in given}
            assert (json.loads(longest)["prompt"] in whole) == (domain == "one")
    assert LENGTH == 128


@pytest.mark.thorough
def test_adapters_help_and_merges_keep_a_share(place, monkeypatch):
    train.train(place, RECIPE)
    found = train.measure(place)
    for domain in DOMAINS:
        config = json.loads(
            (place.trained / domain / "adapter_config.json").read_text()
        )
        assert config["task_type"] == "CAUSAL_LM"
        assert found[domain]["test"]["verdict"] == "helps"
    before = [path.stat().st_mtime_ns for path in place.adapters]
    train.train(place, RECIPE)  # keeps what is there
    assert [path.stat().st_mtime_ns for path in place.adapters] == before

    chosen = (
        methods.closed_form("Task arithmetic", ("concat",), 0.4, 0.6),
        methods.closed_form("RegMean", ("regmean(ridge=0.01)",), 1.0),
        methods.closed_form("IterIS", ("iteris(iterations=2)",), 0.7, 1.0),
        methods.taught("TARA-B, taught", "tara_b", 2e-2, steps=10, seeds=1),
        methods.taught(
            *("TARA-A on RegMean, taught", f"tara_a|{methods.ON_REGMEAN}", 2e-2),
            steps=4,
            seeds=2,
        ),
        methods.taught("By blocks", "tara_b", 2e-2, steps=2, unit="block", seeds=1),
        methods.by_layers("By layers", "tara_b"),
        methods.one_lora("One LoRA, taught", "distillation", 3e-2, steps=40),
        methods.one_lora(
            "One LoRA, joint training", "labels", 3e-2, steps=40, texts="train"
        ),
    )
    table = run.run(place, chosen)
    records = (place.results / "merging.jsonl").read_text()
    assert (place.results / "merging.png").stat().st_size > 1000
    assert all(f"| {method.name} |" in table for method in chosen)

    def measured(*_):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(run.Comparison, "merged", measured)
        assert run.run(place, chosen) == table
    assert (place.results / "merging.jsonl").read_text() == records

    comparison = run.Comparison(place)
    assert report.write_report(results.Results(comparison.records.path), place) == table
    assert [row["seed"] for row in comparison.tested()[chosen[4].name]] == [0, 1]
    assert comparison.shares(comparison.reference("own", "test")).tolist() == [1, 1]
    for method in chosen[-2:]:
        (one,) = comparison.tested()[method.name]
        assert comparison.kept(one) > 0.3
    row = comparison.records.find(method="TARA-B, taught", part="test")
    out = place.work / "merges" / "tara_b_10_validation_0.02"
    evaluated = jm.evaluate(
        out, place.adapters, base=place.base, data=place.texts("test")
    )
    kept = evaluated.to_json()["mean_kept"]
    assert comparison.kept(row) == pytest.approx(kept["value"], abs=1e-3)
    assert f"**{100 * kept['value']:.1f}**" in table
    assert load_peft([out]).stacks.keys() == comparison.adapters.stacks.keys()

    monkeypatch.setattr(inputs, "COUNTS", (("validation", 2),))
    monkeypatch.setattr(inputs, "UNSEEN", ("Task arithmetic", "RegMean"))
    asked = inputs.Inputs(comparison)
    asked.measure_unseen()
    asked.measure_counts()
    curve, unseen = asked.tables().strip().split("\n\n")
    assert curve.splitlines()[2].startswith("| 2 of validation | ")
    names = [line.split(" of ")[0] for line in unseen.splitlines()[2:]]
    assert names == ["| Task arithmetic", "| RegMean"]

    kept = Records(place.results / "memory.jsonl")
    ways = {way.name: way._replace(known={}) for way in memory.WAYS}
    ways["one merge"] = ways["TSV-M, rank 16"]._replace(
        keep=partial(memory.one_merge, "Task arithmetic", rank=1)
    )
    for name in ("base", "one merge", "adapters, rank 1", "all adapters"):
        kept.add(way=name, **memory.measure(ways[name], comparison))
    base, *_, everything = report_memory.table(kept).splitlines()[2:]
    assert base.startswith("| base | 0.00 | nothing | 0.0 |")
    assert everything.startswith("| all adapters | 2.00 | the domain | 100.0 |")
