"""The committed digits, adapters and demonstration."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from experiments.digits8 import demo, learning
from experiments.digits8.data import SIZES, augment, load_splits
from experiments.digits8.learning import LEARNED
from experiments.digits8.methods import METHODS, SCALES, Method
from experiments.digits8.model import (
    ADAPTERS,
    BASE,
    METRICS,
    apply,
    correct_answers,
    load_base,
    logits,
    make_exam,
)
from experiments.digits8.results import Result
from experiments.digits8.score import accuracies
from experiments.digits8.tasks import TASKS
from experiments.digits8.train import ADAPTATION, cross_entropy, layer_shapes
from experiments.finetune import fit
from experiments.lora import initial_factors
from jaxmerge.io import load_peft
from jaxmerge.models import with_updates
from jaxmerge.spec import parse
from jaxmerge.types import LowRank

pytestmark = pytest.mark.thorough

METRICS_FOUND = json.loads(METRICS.read_text())
ROUNDING = 1  # images whose two best classes may tie to the last bit on some machines


@pytest.fixture(scope="module")
def adapters():
    return load_peft([ADAPTERS / name for name in TASKS])


def updates_of(adapters, name):
    """One adapter by itself; modules that it lacks, and missing ranks, are zeros."""
    t = adapters.names.index(name)
    return {
        module: LowRank(b=stack.b[t], a=stack.a[t])
        for module, stack in adapters.stacks.items()
    }


@jax.jit
def answers(params, updates, exam):
    """Correct answers of the base with LoRA in its forward pass."""
    model = with_updates(apply, updates)
    return correct_answers(model(params, exam.images), exam)


def test_splits_share_no_image_and_keep_the_proportions():
    splits = load_splits()
    assert {name: len(split.digits) for name, split in splits.items()} == SIZES
    images = np.concatenate([split.images for split in splits.values()])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1797
    for split in splits.values():
        assert np.ptp(np.bincount(split.digits) / len(split.digits)) < 0.02
        assert split.images.min() == 0
        assert split.images.max() == 1


def test_augmentation_repeats_and_keeps_labels():
    split = load_splits()["validation"]
    first, again = (augment(split, copies=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.digits, np.tile(split.digits, 2))
    assert np.abs(first.images[: len(split.images)] - split.images).mean() > 0.02


@pytest.mark.parametrize("split", ["validation", "test"])
def test_adapters_reach_the_committed_counts_and_the_base_is_clearly_below(
    split, adapters
):
    base, size = load_base(), SIZES[split]
    for name, task in TASKS.items():
        exam = make_exam({name: task}, load_splits()[split], base.heads)
        expected = METRICS_FOUND["tasks"][name][split]
        updates = updates_of(adapters, name)
        found = int(answers(base.params, updates, exam)[0])
        zeros = jax.tree.map(jnp.zeros_like, updates)
        plain = int(answers(base.params, zeros, exam)[0])
        assert abs(found - expected["adapter"]) <= ROUNDING
        assert abs(plain - expected["base"]) <= ROUNDING
        assert found - plain >= 0.15 * size
        assert found >= {"validation": 0.8, "test": 0.85}[split] * size


def test_adapters_are_of_mixed_ranks_scales_and_modules(adapters):
    ranks = {task.lora.rank for task in TASKS.values()}
    assert len(ranks) >= 3
    assert any(task.lora.rslora for task in TASKS.values())
    assert any(task.lora.alpha != task.lora.rank for task in TASKS.values())
    for source, task in zip(adapters.sources, TASKS.values(), strict=True):
        assert set(source.scales.values()) == {task.lora.scale}
    assert any(0 in stack.ranks for stack in adapters.stacks.values())


def test_all_committed_files_are_small():
    files = [path for folder in (BASE, ADAPTERS) for path in folder.rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 4 * 2**20


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_and_transformers_compute_the_same_embeddings(adapters, capfd):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    images, _ = TASKS["swapped"].examples(load_splits()["validation"])
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(BASE)
    model = peft.PeftModel.from_pretrained(tower, str(ADAPTERS / "swapped")).eval()
    capfd.readouterr()  # a progress bar
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        expected = model(pixel_values=pixels).image_embeds.numpy()
    ours = with_updates(apply, updates_of(adapters, "swapped"))(
        load_base().params, jnp.asarray(images)
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_an_adapter_can_be_trained_from_zero():
    """A few steps of the committed recipe already lower the loss of a task."""
    base, task = load_base(), TASKS["barred"]
    images, labels = task.examples(load_splits()["train"])

    def loss(factors, images, labels):
        embeddings = with_updates(apply, factors)(base.params, images)
        return cross_entropy(embeddings, base.heads[task.head], labels)

    shapes = layer_shapes(task.lora)
    start = initial_factors(shapes, task.lora.rank, jax.random.key(0))
    assert all(not factors.b.any() for factors in start.values())
    settings = ADAPTATION | {"steps": 20}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its counts in
        end = fit(loss, start, (images, labels), key=jax.random.key(1), **settings)
    before, after = (jax.jit(loss)(x, images, labels) for x in (start, end))
    assert after < 0.8 * before


def test_scores_of_a_grid_are_those_of_each_scale_by_interception(adapters):
    base = load_base()
    exam = make_exam(TASKS, load_splits()["validation"], base.heads)
    updates = parse("average").run(adapters.stacks)
    found = accuracies(base.params, updates, [0.0, 1.5], exam)
    for row, by in zip(found, (0.0, 1.5), strict=True):
        scaled = {m: LowRank(b=by * u.b, a=u.a) for m, u in updates.items()}
        expected = answers(base.params, scaled, exam) / SIZES["validation"]
        np.testing.assert_allclose(
            row, expected, atol=1.5 * ROUNDING / SIZES["validation"]
        )


def test_an_exam_ignores_classes_that_a_head_lacks():
    base, split = load_base(), load_splits()["validation"]
    exam = make_exam({"parity": TASKS["parity"]}, split, base.heads)
    both = make_exam(TASKS, split, base.heads)
    place = list(TASKS).index("parity")
    run = jax.jit(apply)
    embeddings = run(base.params, exam.images)
    scores = logits(embeddings, base.heads["parity"])
    expected = np.sum(np.argmax(scores, 1) == split.digits % 2)
    everything = run(base.params, both.images)
    assert correct_answers(embeddings, exam)[0] == expected
    assert correct_answers(everything, both)[place] == expected


def test_every_method_of_the_demonstration_is_a_pipeline():
    assert len({method.name for method in METHODS}) == len(METHODS) >= 12
    for method in METHODS:
        for text in method.pipelines:
            assert parse(f"{text}|scale({SCALES[0]})").scale == SCALES[0]


METHODS_OF_A_RUN = (
    Method("Task arithmetic", ("concat",)),
    Method("DARE", ("total|dare(density=0.7)|full",)),
)
SCALES_OF_A_RUN = (0.1, 0.3, 1.0)
LEARNED_IN_A_RUN = tuple(m for m in LEARNED if m.name == "AdaMerging, taught")
STEPS_OF_A_RUN = 5
RUNNER = CliRunner()


def invoke(*arguments):
    """``python -m experiments.digits8.demo`` with three methods and few scales."""
    command = typer.Typer()
    command.command()(demo.main)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMERGE_CACHE", "")
        patch.setattr(demo, "METHODS", METHODS_OF_A_RUN)
        patch.setattr(demo, "SCALES", SCALES_OF_A_RUN)
        patch.setattr(demo, "LEARNED", LEARNED_IN_A_RUN)
        patch.setattr(demo, "STEPS", STEPS_OF_A_RUN)
        patch.setattr(learning, "FIRST_BATCHES", 1)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its counts in
            return RUNNER.invoke(command, [str(argument) for argument in arguments])


class Demonstration(NamedTuple):
    """A run with one fixed, one random and one learned method."""

    out: Path
    results: list[Result]
    printed: str
    progress: list[str]


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "results"
    done = invoke("--out", out)
    assert done.exit_code == 0, done.output
    rows = (out / demo.RESULTS).read_text().splitlines()
    results = [Result(**json.loads(row)) for row in rows]
    return Demonstration(out, results, done.stdout, done.stderr.splitlines())


def test_demonstration_writes_one_line_for_each_model(demonstration):
    results = demonstration.results
    assert [(r.method, r.seed) for r in results] == [
        ("Base, no adapter", None),
        ("Task arithmetic", None),
        ("DARE", 0),
        ("DARE", 1),
        ("DARE", 2),
        ("AdaMerging, taught", 0),
    ]
    for result in results:
        for name, accuracy in result.accuracy.items():
            own = METRICS_FOUND["tasks"][name]["test"]["adapter"] / SIZES["test"]
            assert result.normalised[name] == pytest.approx(accuracy / own, abs=0.005)
        mean = np.mean(list(result.normalised.values()))
        assert result.mean_normalised == pytest.approx(mean)
    base, arithmetic, *_, taught = results
    assert arithmetic.mean_normalised > base.mean_normalised + 0.05
    assert taught.mean_normalised > arithmetic.mean_normalised


def test_scale_is_the_best_of_the_grid_on_validation(demonstration, adapters):
    results = demonstration.results
    base, splits = load_base(), load_splits()
    exam = make_exam(TASKS, splits["validation"], base.heads)
    updates = parse("concat").run(adapters.stacks)
    metrics = METRICS_FOUND["tasks"]
    own = [metrics[name]["validation"]["adapter"] for name in TASKS]
    own = np.array(own) / SIZES["validation"]
    scales = SCALES_OF_A_RUN
    means = (accuracies(base.params, updates, scales, exam) / own).mean(axis=1)
    assert results[1].validation == pytest.approx(means.max(), abs=0.005)
    assert results[1].pipeline == f"concat|scale({scales[means.argmax()]})"


def test_demonstration_saves_a_plot_and_an_adapter(demonstration, adapters):
    out, results = demonstration.out, demonstration.results
    assert (out / demo.PLOT).read_bytes().startswith(b"\x89PNG")
    saved = load_peft([out / demo.MERGED])
    assert set(saved.stacks) == set(adapters.stacks)
    record = json.loads((out / demo.MERGED / "jaxmerge.json").read_text())
    best = max(results[1:2] + results[-1:], key=lambda result: result.validation)
    assert record["recipe"]["pipeline"] == best.pipeline
    assert record["recipe"]["method"] == best.method
    exam = make_exam(TASKS, load_splits()["test"], load_base().heads)
    found = accuracies(
        load_base().params, parse("concat").run(saved.stacks), [1.0], exam
    )
    expected = list(best.accuracy.values())
    np.testing.assert_allclose(found[0], expected, atol=1.5 * ROUNDING / SIZES["test"])


def test_demonstration_prints_all_tasks_and_methods(demonstration):
    names = ("Task arithmetic", "DARE", "AdaMerging, taught")
    for word in [*TASKS, *names, "3 seeds", "on validation is saved: "]:
        assert word in demonstration.printed


def test_demonstration_says_what_it_does_and_how_far_it_is(demonstration):
    plan, *progress = demonstration.progress
    assert "3 methods: 2 merges, each at 3 scales on 1,600 validation images" in plan
    assert "on 5,600 test images, 1 of the methods learned without labels" in plan
    assert "About 3 minutes" in plan
    assert [line.split(":")[0].split("s  ")[1] for line in progress] == [
        "base, no adapter",
        "Task arithmetic",
        "DARE",
        "AdaMerging, taught",
    ]


def test_demonstration_refuses_unknown_methods_and_earlier_results(demonstration):
    out = demonstration.out
    with pytest.raises(ValueError, match="no method 'Magic'; there are Task arith"):
        demo.run(out / "new", methods=["Magic"])
    before = (out / demo.RESULTS).read_bytes()
    refused = invoke("--out", out)
    assert refused.exit_code == 1
    assert "remove it, choose another folder with --out (make demo" in refused.stderr
    assert (out / demo.RESULTS).read_bytes() == before
