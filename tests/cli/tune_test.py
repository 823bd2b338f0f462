"""``jaxmerge tune``: scores against the losses of the library, and what it writes."""

import json
import shlex
import sys

import jax
import jax.numpy as jnp
import learn_samples
import numpy as np
import pytest
from cli_samples import close, document, jaxmerge, refuse, succeed, updates_of
from learn_samples import TASKS

import jaxmerge as jm
from jaxmerge.jobs import tuning
from jaxmerge.tuning.trace import TRACE_FILE

pytestmark = pytest.mark.usefixtures("as_a_user")
LAYER = "vision_model.encoder.layers.0"
MODULES = [f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.v_proj"]
SCALE = 20.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small tower, adapters, text vectors, and labeled images."""
    place = tmp_path_factory.mktemp("tune")
    with jax.numpy_dtype_promotion("standard"):
        learn_samples.clip(place / "base")
    learn_samples.adapters(place / "in", MODULES, head=None)
    learn_samples.text_vectors(place / "heads.safetensors")
    rng = np.random.default_rng(1)
    (place / "data").mkdir()
    for task in TASKS:
        pixels = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
        labels = rng.integers(0, 3, 12)
        np.savez(place / "data" / f"{task}.npz", images=pixels, labels=labels)
    return place


def folders_of(place):
    return [place / "in" / task for task in TASKS]


def options_of(place, *, heads=True):
    vectors = {"text_heads": place / "heads.safetensors", "logit_scale": SCALE}
    where = {"base": place / "base", "data": place / "data"}
    return {**where, "batch": 12, **(vectors if heads else {})}


def ask(place, *more, model=True):
    flags = []
    for name, value in (options_of(place) if model else {}).items():
        flags += [f"--{name.replace('_', '-')}", value]
    return ["tune", *folders_of(place), *flags, *more]


def reference(place, score, pipeline):
    """The score of one merge by the losses that `jaxmerge.fit` takes."""
    adapters = jm.io.load_peft(folders_of(place))
    base = jm.tasks.load_base(place / "base")
    images = {t: np.load(place / "data" / f"{t}.npz")["images"] for t in TASKS}
    vectors = place / "heads.safetensors"
    heads = jm.tasks.task_heads(base, adapters, vectors)
    teachers = {t: jm.task_updates(adapters.stacks, i) for i, t in enumerate(TASKS)}
    model = (base.apply, base.logits, heads)
    losses = {
        "distillation": lambda: jm.distillation(
            *model, teachers=teachers, logit_scale=SCALE
        ),
        "null-space": lambda: jm.null_space_ratios(
            base.apply, adapters.names, adapters.stacks
        ),
    }[score]()
    updates = jm.parse(pipeline).run(adapters.stacks)
    found = losses(base.params, updates, {t: jnp.asarray(x) for t, x in images.items()})
    return {task: float(value) for task, value in found.items()}


@pytest.mark.parametrize(
    "score",
    ["distillation", pytest.param("null-space", marks=pytest.mark.thorough)],
)
def test_scores_without_labels_are_the_losses_of_learn(place, score):
    options = options_of(place, heads=score == "distillation")
    found = tuning.tune(
        folders_of(place),
        "tsv_m|scale({0.5:8})",
        score=score,
        search="grid",
        points=2,
        **options,
    )
    assert [row.point.pipeline for row in found.rows] == [
        "tsv_m|scale(0.5)",
        "tsv_m|scale(8.0)",
    ]
    row = found.rows[1]
    expected = reference(place, score, row.point.pipeline)
    assert row.scored.tasks == pytest.approx(expected, rel=2e-4, abs=1e-6)
    assert row.scored.score == pytest.approx(np.mean(list(expected.values())), rel=2e-4)
    assert found.best.scored.score == min(x.scored.score for x in found.rows)


def test_accuracy_is_that_of_evaluate_and_the_merge_is_repeated(place, tmp_path):
    """Two pipelines, choices and weights; what is written verifies."""
    out = tmp_path / "out"
    found = document(
        *ask(place, "-p", "elect|trim(density={0.3, 0.6})|core|scale({0.5:4})"),
        *("-p", "concat|scale({3.0})", "--score", "accuracy", "--points", 3),
        *("--refinements", 0, "--weights", "1,2,0.5", "--out", out),
    )
    assert found["searched"] == [
        "elect|trim(density=0.3)|core|scale({0.5:4.0})",
        "elect|trim(density=0.6)|core|scale({0.5:4.0})",
        "concat|scale(3.0)",
    ]
    assert len(found["tried"]) == 3 + 3 + 1
    best = found["best"]
    assert best["score"] == max(row["score"] for row in found["tried"])
    told = jm.evaluate(out, heads="error", **only(place, "base", "data", "text_heads"))
    ratios = {t: x.normalised.value for t, x in told.evaluation.tasks.items()}
    assert best["tasks"] == pytest.approx(ratios)
    assert document("verify", out)["identical"]
    again = jm.merge(
        folders_of(place), best["pipeline"], weights=best["weights"], out=tmp_path / "m"
    )
    close(updates_of(tmp_path / "m"), updates_of(out), tolerance=0)
    assert again.recipe.weights == (1.0, 2.0, 0.5)


def only(place, *names):
    return {name: options_of(place)[name] for name in names}


def without_seconds(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_search_that_is_stopped_goes_on_to_the_same_trace(
    place, tmp_path, monkeypatch
):
    """Stopped after some merges, in the middle of a line of the file."""
    asked = (folders_of(place), "concat|scale({0.5:8})")
    options = {**options_of(place), "points": 4, "refinements": 3}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tuning.tune(*asked, work=whole, **options)
    added, add = [], tuning.Trace.add

    def stopping(trace, row):
        if len(added) == 5:
            with (parts / TRACE_FILE).open("a") as file:
                file.write('{"pipeline": "con')
            raise KeyboardInterrupt
        added.append(row)
        add(trace, row)

    monkeypatch.setattr(tuning.Trace, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(*asked, work=parts, **options)
    monkeypatch.undo()
    found = tuning.tune(*asked, work=parts, **options)
    expected = without_seconds(whole / TRACE_FILE)
    assert without_seconds(parts / TRACE_FILE) == expected
    assert len(expected) == len(found.rows) == 4 + 4
    with pytest.raises(jm.Refusal, match="a search with other refinements"):
        tuning.tune(*asked, work=parts, **{**options, "refinements": 1})


SCRIPT = """
import json, pathlib, sys
record = json.loads((pathlib.Path(sys.argv[1]) / "jaxmerge.json").read_text())
recipe = record["recipe"]
scale = float(recipe["pipeline"].split("scale(")[1][:-1])
print("scoring", recipe["pipeline"])
print((scale - 2) ** 2 + recipe.get("seed", 0))
"""


def test_a_script_scores_merged_folders(place, tmp_path):
    """It reads the folder; random merges are scored with every seed."""
    script = tmp_path / "my script.py"
    script.write_text(SCRIPT)
    command = f"{sys.executable} '{script}' {{merged}}"
    out, plot = tmp_path / "out", tmp_path / "plot.png"
    found = document(
        *ask(place, "-p", "total|dare(density=0.5)|core|scale({0.5:8})", model=False),
        *("--command", command, "--minimise", "--seed", 3, "--seeds", 2),
        *("--points", 3, "--refinements", 1, "--out", out, "--plot", plot),
    )
    for row in found["tried"]:
        scale = float(row["pipeline"].split("scale(")[1][:-1])
        assert row["score"] == pytest.approx((scale - 2) ** 2 + 3.5)
        assert row["spread"] == pytest.approx(0.5**0.5)
    assert found["best"]["pipeline"].endswith("scale(2.0)")
    assert found["best"]["seed"] == 3
    assert json.loads((out / "jaxmerge.json").read_text())["recipe"]["seed"] == 3
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out.tuning" / "candidate").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo no number {merged}", "expected a number in the last line"),
        ("ls {merged}/missing", "ended with exit code"),
    ],
)
def test_a_command_that_fails_ends_the_search(place, tmp_path, command, said):
    asked = ask(place, "-p", "tsv_m", "--work", tmp_path / "work", model=False)
    assert said in refuse(*asked, "--command", command, "--maximise")


@pytest.mark.thorough
def test_masks_leave_tasks_out_of_blocks(place, tmp_path):
    """A left out adapter is absent; what is found is what merge repeats."""
    pytest.importorskip("cmaes")
    found = tuning.tune(
        *(folders_of(place), "tsv_m|scale({2.0, 4.0})"),
        search="cma",
        masks=1.0,
        population=4,
        evaluations=8,
        out=tmp_path / "out",
        **options_of(place),
    )
    masked = [row for row in found.rows if row.point.left_out]
    assert masked
    assert found.rows[0].point.left_out in ((), masked[0].point.left_out)
    names = {f"{task}@{LAYER}" for task in TASKS}
    assert all(set(row.point.left_out) <= names for row in masked)
    assert jm.verify(tmp_path / "out").serious == ()
    one = masked[0]
    merged = jm.merge(
        folders_of(place),
        one.point.pipeline,
        leave_out=one.point.left_out,
        out=tmp_path / "one",
    )
    kept = [
        f for f in folders_of(place) if f"{f.name}@{LAYER}" not in one.point.left_out
    ]
    if kept:  # the merge of those that are left
        jm.merge(kept, one.point.pipeline, out=tmp_path / "kept")
        close(updates_of(tmp_path / "one"), updates_of(tmp_path / "kept"))
    assert merged.recipe.left_out == one.point.left_out


def test_what_is_shown_and_the_command_that_repeats_it(place, tmp_path):
    asked = ask(place, "-p", "concat|scale({4.0, 0.5})", "--limit", 6)
    read = ["--strip-prefix", "vision_model.", "--add-prefix", "vision_model."]
    said = succeed(*asked, *read, "--weight-file", "safetensors", "--dtype", "float16")
    assert "searched  concat|scale(4.0)" in said
    assert "distillation (lower is better)" in said
    (line,) = (x for x in said.splitlines() if x.startswith("repeat"))
    program, *words = shlex.split(line.removeprefix("repeat "))
    assert (program, words[0], words[-2:]) == ("jaxmerge", "merge", ["--out", "OUT"])
    out = tmp_path / "out"
    succeed(*words[:-1], out)
    record = json.loads((out / "jaxmerge.json").read_text())
    assert record["output"]["dtype"] == "float16"
    options = record["read_options"]
    assert options["strip_prefix"] == options["add_prefix"] == "vision_model."
    assert options["weight_file"] == "safetensors"
    assert options["heads"] == "keep"


def test_a_stopped_search_tells_what_it_tried(place, tmp_path, monkeypatch):
    add = tuning.Trace.add

    def stopping(trace, row):
        add(trace, row)
        if len(trace.rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tuning.Trace, "add", stopping)
    asked = ask(place, "-p", "concat|scale({4.0, 2.0, 0.5})", "--limit", 6)
    result = jaxmerge(*asked, "--work", tmp_path / "work", "--json")
    assert result.exit_code == 130
    found = json.loads(result.stdout)
    assert (len(found["tried"]), found["finished"]) == (2, False)
    assert found["best"] in found["tried"]
    assert "stopped after 2 merges; the same command goes on" in result.stderr
    result = jaxmerge(*asked)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "error: stopped after 2 merges\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-p", "concat|scale({2:1})"], "a range rises"),
        (["-p", "ties(density={0:1})|core"], "expected a number in (0, 1], got 0"),
        (["-p", "tara_b"], "has coefficients to learn"),
        (["-p", "concat", "--masks", 0.2], "--masks are searched by CMA-ES alone"),
        (["-p", "concat", "--weights", "1,{0.5:2}"], "expected 3 numbers or ranges"),
        (["-p", "concat", "--maximise"], "--maximise is for --command"),
        (["-p", "concat", "--points", 1], "--points 1: expected at least 2"),
        (["-p", "concat", "--evaluations", 0], "--evaluations 0: expected at least 1"),
        (["-p", "concat", "--command", "x {merged}"], "leave out --base"),
        (["-p", "elect|full", "--out", "x"], "truncate(rank=..)"),
        (["-p", "concat", "--preference", "1,2"], "--preference 1.0,2.0: expected 3"),
        (["-p", "iteris"], "runs the model in every round"),
    ],
)
def test_what_cannot_be_searched_is_refused(place, flags, said):
    assert said in refuse(*ask(place, *flags))


def test_a_way_to_score_is_needed(place):
    said = refuse(*ask(place, "-p", "concat", model=False))
    assert "give --base and --data, or a shell --command" in said
    one = ask(place, "-p", "concat", "--command", "score {merged}", model=False)
    assert "give --maximise or --minimise" in refuse(*one)
    assert "{merged}" in refuse(
        *ask(place, "-p", "concat", "--command", "score", "--minimise", model=False)
    )
