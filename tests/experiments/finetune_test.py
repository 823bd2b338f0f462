"""LoRA fine-tuning of a suite: what is trained, saved, skipped and refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_suite import image_suite

from experiments.evaluation import accuracies, make_exam
from experiments.finetune import Recipe, finetune, fit, train_adapter
from experiments.lora import Lora, initial_factors, lora_shapes, save_adapter, scaled
from experiments.suite import Split, Suite, Task
from jaxmerge.io import load_peft
from jaxmerge.types import LowRank

LORA = Lora(rank=2, alpha=6)
RECIPE = Recipe(steps=40, rate=2e-2, batch=16)

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """One base for all tests, so that they share programs."""
    return image_suite(tmp_path_factory.mktemp("tiny"), ("one", "two"), count=256)


@pytest.fixture
def suite(tiny, tmp_path):
    return tiny.with_adapters_in(tmp_path)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_training_lowers_the_loss_and_raises_accuracy(suite):
    losses, task = [], suite.tasks[0]
    recipe = Recipe(steps=100, rate=2e-2, batch=16)
    factors = train_adapter(
        suite, task, LORA, recipe, report=lambda _, loss: losses.append(loss)
    )
    assert losses[-1] < 0.85 * losses[0]
    exam, only = make_exam(suite, "test"), (task.name,)
    base, own = (
        accuracies(exam, updates, only)[task.name]
        for updates in ({}, scaled(factors, LORA))
    )
    assert own >= base + 0.1


def updates_of(folder):
    """One adapter as it is read."""
    stacks = load_peft([folder]).stacks
    return {name: LowRank(b=stack.b[0], a=stack.a[0]) for name, stack in stacks.items()}


def test_saved_adapters_are_the_trained_factors(suite):
    finetune(suite, LORA, RECIPE, base="tiny", report=lambda _: None)
    read = load_peft([task.adapter for task in suite.tasks])
    assert read.names == ("one", "two")
    for task in suite.tasks:
        factors = train_adapter(suite, task, LORA, RECIPE)
        assert set(read.stacks) == set(factors)
        updates = updates_of(task.adapter)
        for name, (b, a) in factors.items():
            np.testing.assert_array_equal(updates[name].a, a)
            np.testing.assert_allclose(updates[name].b, 3 * b, rtol=1e-6)
    first, second = (updates_of(task.adapter) for task in suite.tasks)
    assert any((first[name].a != second[name].a).any() for name in first)


def test_only_named_tasks_are_augmented(suite):
    recipe = Recipe(steps=3, rate=1e-2, batch=4)
    augment = {"two": lambda _, images: jnp.zeros_like(images)}
    finetune(suite, LORA, recipe, base="tiny", augment=augment, report=lambda _: None)
    plain = [train_adapter(suite, task, LORA, recipe) for task in suite.tasks]
    found = [updates_of(task.adapter) for task in suite.tasks]
    name = "vision_model.encoder.layers.0.self_attn.v_proj"
    np.testing.assert_array_equal(found[0][name].a, plain[0][name].a)
    assert (found[1][name].a != plain[1][name].a).any()


def test_rank_stabilised_scale_survives_saving(suite, tmp_path):
    lora = Lora(rank=4, alpha=6, rslora=True, targets=("q_proj", "fc1"))
    shapes = lora_shapes(suite.base.params, lora.targets)
    factors = initial_factors(shapes, lora.rank, jax.random.key(0))
    factors = {k: v._replace(b=jnp.ones_like(v.b)) for k, v in factors.items()}
    save_adapter(tmp_path / "adapter", factors, lora, base="tiny")
    updates = updates_of(tmp_path / "adapter")
    assert {u.b.shape for u in updates.values()} == {(8, 4), (16, 4)}
    for update in updates.values():
        np.testing.assert_allclose(update.b, 3.0, rtol=1e-6)


def test_same_seed_same_factors(suite):
    task = suite.tasks[1]
    first, again = (train_adapter(suite, task, LORA, RECIPE) for _ in range(2))
    assert_equal(first, again)
    other = train_adapter(suite, task, LORA, RECIPE, seed=1)
    assert all((first[name].a != other[name].a).any() for name in first)


def test_results_do_not_depend_on_the_chunk():
    def loss(weights, inputs, labels):
        return jnp.mean((jnp.matmul(inputs, weights) - labels) ** 2)

    rng = np.random.default_rng(0)
    examples = (rng.normal(size=(20, 3)).astype(np.float32), np.ones(20, np.float32))
    settings = {"key": jax.random.key(0), "steps": 7, "rate": 0.1, "decay": 0.0}
    start, seen = jnp.zeros(3, jnp.float32), []
    whole = fit(loss, start, examples, **settings)
    report = lambda done, _: seen.append(done)  # noqa: E731
    parts = fit(loss, start, examples, chunk=3, report=report, **settings)
    np.testing.assert_array_equal(whole, parts)
    assert seen == [3, 6, 7]


def test_a_stopped_fit_goes_on_to_the_same_result(tmp_path):
    def loss(weights, inputs, labels):
        return jnp.mean((jnp.matmul(inputs, weights) - labels) ** 2)

    rng = np.random.default_rng(0)
    examples = (rng.normal(size=(20, 3)).astype(np.float32), np.ones(20, np.float32))
    settings = {"key": jax.random.key(0), "steps": 7, "rate": 0.1, "decay": 0.0}
    start, path, seen = jnp.zeros(3, jnp.float32), tmp_path / "state.safetensors", []
    whole = fit(loss, start, examples, chunk=2, **settings)

    def stop(done, _):
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    how = {"chunk": 2, "checkpoint": path, "report": stop}
    with pytest.raises(KeyboardInterrupt):
        fit(loss, start, examples, **how, **settings)
    again = fit(loss, start, examples, **how, **settings)
    assert seen == [2, 4, 6, 7]
    np.testing.assert_array_equal(whole, again)
    for other in ({"rate": 0.2}, {"key": jax.random.key(1)}):
        with pytest.raises(ValueError, match="of another model or other steps"):
            fit(loss, start, examples, **how, **settings | other)


def test_augmentation_is_drawn_anew_in_every_step():
    def loss(weights, inputs, labels):
        return jnp.sum(weights * inputs.mean(0)) + 0 * labels.mean()

    def noise(key, inputs):
        return jax.random.normal(key, inputs.shape, inputs.dtype)

    examples = (np.ones((4, 2), np.float32), np.ones(4, np.float32))
    losses = []
    fit(
        loss,
        jnp.ones(2, jnp.float32),
        examples,
        key=jax.random.key(0),
        steps=5,
        rate=0.0,
        decay=0.0,
        augment=noise,
        chunk=1,
        report=lambda _, value: losses.append(value),
    )
    assert len(set(losses)) == 5


def test_a_given_a_is_where_training_starts(suite):
    task, shapes = suite.tasks[0], lora_shapes(suite.base.params, LORA.targets)
    given = {
        name: np.full((2, n), 0.01 * i, np.float32)
        for i, (name, (_, n)) in enumerate(shapes.items(), start=1)
    }
    still = Recipe(steps=2, rate=0.0, batch=4)
    factors = train_adapter(suite, task, LORA, still, initial_a=given)
    assert_equal({name: np.asarray(factors[name].a) for name in given}, given)
    assert not any(factors[name].b.any() for name in given)
    moved = train_adapter(suite, task, LORA, RECIPE, initial_a=given)
    default = train_adapter(suite, task, LORA, RECIPE)
    assert all((moved[name].b != default[name].b).any() for name in given)


def test_the_first_factors_are_those_of_peft():
    factors = initial_factors({"one": (3, 100)}, 50, jax.random.key(0))["one"]
    assert not factors.b.any()
    assert factors.b.shape == (3, 50)
    assert 0.09 < np.abs(factors.a).max() <= 0.1
    assert abs(float(factors.a.mean())) < 0.003


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"two": np.ones((2, 4))}, "exactly the target modules: one, two"),
        ({"one": np.ones((3, 4))}, r"one: A is \(3, 4\), expected \(2, 4\)"),
    ],
)
def test_an_a_that_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        initial_factors({"one": (3, 4)}, 2, jax.random.key(0), a=given)


def test_existing_adapters_are_kept_unless_forced(suite):
    lines = []
    settings = {"base": "tiny", "report": lines.append}
    finetune(suite, LORA, RECIPE, **settings)
    first = updates_of(suite.tasks[0].adapter)
    (suite.tasks[1].adapter / "adapter_config.json").unlink()  # as a kill leaves it
    lines.clear()
    finetune(suite, LORA, RECIPE, seed=5, **settings)
    assert lines[0] == "one: exists, kept"
    assert lines[-1].startswith("two: 40 of 40, loss ")
    assert_equal(updates_of(suite.tasks[0].adapter), first)
    finetune(suite, LORA, RECIPE, seed=5, force=True, **settings)
    forced = updates_of(suite.tasks[0].adapter)
    assert all((forced[name].a != first[name].a).any() for name in first)


def test_shapes_of_unknown_or_unusual_layers_are_refused(suite):
    with pytest.raises(ValueError, match=r"named missing_proj$"):
        lora_shapes(suite.base.params, ("q_proj", "missing_proj"))
    with pytest.raises(ValueError, match=r"patch_embedding: its kernel \(2, 2, 3, 8\)"):
        lora_shapes(suite.base.params, ("patch_embedding",))
    shapes = lora_shapes({"params": suite.base.params}, ("fc1",))
    assert shapes == {"vision_model.encoder.layers.0.mlp.fc1": (16, 8)}


class Reader(nn.Module):
    """The mean of embedded tokens."""

    @nn.compact
    def __call__(self, inputs):
        tokens = nn.Embed(9, 4, name="embed")(inputs["input_ids"])
        mask = inputs["attention_mask"][..., None].astype(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1)
        return nn.Dense(4, name="query")(mean)


def test_texts_have_one_length_and_the_longest_are_left_out(suite, tmp_path):
    widths = []

    def apply(params, inputs):
        widths.append(inputs["input_ids"].shape[1])
        return Reader().apply({"params": params}, inputs)

    def load(part):
        rng = np.random.default_rng(0)
        mask = (np.arange(40)[None] < rng.integers(1, 6, (40, 1))).astype(np.int32)
        mask[0] = 1
        ids = rng.integers(1, 9, mask.shape).astype(np.int32) * mask
        inputs = {"input_ids": ids, "attention_mask": mask}
        return Split(inputs, (ids[:, 0] > 4).astype(np.int32))

    params = Reader().init(jax.random.key(0), load("train").inputs)["params"]
    head = {"kernel": jnp.eye(4, 2, dtype=jnp.float32)}
    task = Task("first", tmp_path / "first", head, load)
    base = suite.base._replace(inputs="texts", apply=apply, params=params)
    suite = Suite("texts", base, (task,))
    losses = []
    lora = Lora(rank=2, alpha=4, targets=("query",))
    recipe = Recipe(steps=100, rate=5e-2, batch=16)
    report = lambda _, loss: losses.append(loss)  # noqa: E731
    train_adapter(suite, task, lora, recipe, report=report)
    assert set(widths) == {16}
    assert losses[-1] < losses[0]
