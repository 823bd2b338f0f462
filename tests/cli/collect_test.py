"""``jaxmerge collect``: what is measured, and what cannot be."""

import shutil

import io_samples as samples
import jax
import jax.numpy as jnp
import learn_samples
import numpy as np
import pytest
from cli_samples import (
    close,
    document,
    everything,
    jaxmerge,
    refuse,
    succeed,
    updates_of,
)
from learn_samples import TASKS
from methods import distance
from statistics_samples import OUTPUT, QUERY, collect, folders, load, merge

import jaxmerge as jm
from jaxmerge import io, tasks
from jaxmerge.tasks import load_base, load_unlabeled

pytest_plugins = ["statistics_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")


def inputs_in_torch(place, task):
    """What transformers' model with one adapter feeds the layers, without padding."""
    transformers = pytest.importorskip("transformers")
    import torch

    base = load_base(place / "base")
    tokens = load_unlabeled(place / "data", (task,), base).inputs[task]
    model = transformers.BertForSequenceClassification.from_pretrained(place / "base")
    seen = {}
    for name, update in updates_of(place / "in" / task).items():
        layer = model.get_submodule(name)
        layer.weight.data += torch.from_numpy(update).float()
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0]})
        )
    with torch.no_grad():
        model.eval().bert(
            **{name: torch.from_numpy(values).long() for name, values in tokens.items()}
        )
    kept = tokens["attention_mask"].astype(bool)
    return {name: x.numpy().astype(np.float64)[kept] for name, x in seen.items()}


def solved(inputs, updates, ridge):
    """Least squares on all inputs, each task of weight one, in float64."""
    squares = sum(np.mean(x**2, axis=0) for x in inputs)
    drawn = np.diag((ridge * squares / len(inputs)) ** 0.5)
    rows = [np.concatenate([x / len(x) ** 0.5, drawn]) for x in inputs]
    targets = [x @ d.T for x, d in zip(rows, updates, strict=True)]
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets))[0].T


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_regmean_of_the_files_is_least_squares_on_the_inputs_in_torch(place):
    seen = {task: inputs_in_torch(place, task) for task in TASKS}
    statistics = load(place)
    for name in (QUERY, OUTPUT):
        for index, task in enumerate(TASKS):
            x = seen[task][name]
            assert statistics[name].count[index] == len(x)
            assert distance(statistics[name].gram[index], x.T @ x) < 1e-5
            assert distance(statistics[name].mean[index], x.mean(0)) < 1e-5
    succeed(*merge(place, "regmean(ridge=0.01)"))
    own = [updates_of(folder) for folder in folders(place)]
    expected = {
        name: solved([seen[t][name] for t in TASKS], [u[name] for u in own], 0.01)
        for name in (QUERY, OUTPUT)
    }
    close(updates_of(place / "out"), expected, 1e-4)


@pytest.mark.thorough
def test_batches_lengths_and_limits(place):
    """One batch is many, and a limit takes rows at even distances."""
    succeed(*collect(place, "one", *folders(place), batch=24))
    many, one = load(place), load(place, folder="one")
    for ours, theirs in zip(*map(jax.tree.leaves, (many, one)), strict=True):
        assert distance(ours, theirs) < 1e-5
    few = document(*collect(place, "few", *folders(place), limit=6, batch=4))
    assert few["measured"]["inputs"] == dict.fromkeys(TASKS, 6)
    lines = (place / "data" / "cars.jsonl").read_text().splitlines()
    (place / "data" / "cars.jsonl").write_text("\n".join(lines[::4]))
    whole = document(*collect(place, "rows", place / "in" / "cars", batch=4))
    assert whole["tasks"]["cars"]["tokens"] == few["tasks"]["cars"]["tokens"]
    for ours, theirs in zip(
        jax.tree.leaves(load(place, ("cars",), "few")),
        jax.tree.leaves(load(place, ("cars",), "rows")),
        strict=True,
    ):
        assert distance(ours, theirs) < 1e-6


@pytest.mark.thorough
def test_the_base_alone_with_named_layers_is_pretrained(place):
    """Before training: OSRM. Layer 0 reads the same with and without adapters."""
    named = {"modules": "self.query,attention.output.dense,pooler.dense"}
    said = succeed(*collect(place, "base_only", names="cars,dtd", **named))
    assert "measured  in the base" in said
    succeed(*collect(place, "pretrained", *folders(place), pretrained=True))
    alone = load(place, ("cars", "dtd"), "base_only")
    pretrained = load(place, ("cars", "dtd"), "pretrained")
    assert alone.keys() == {QUERY, OUTPUT, "bert.pooler.dense"}
    assert alone["bert.pooler.dense"].count.tolist() == [24, 24]  # one token of each
    adapted = load(place, ("cars", "dtd"))
    for name in (QUERY, OUTPUT):
        assert distance(alone[name].gram, pretrained[name].gram) < 1e-6
        changed = distance(adapted[name].gram, pretrained[name].gram)
        assert (changed > 1e-3) == (name == OUTPUT)
    a = jm.osrm_init(alone[QUERY], rank=2)
    assert distance(a @ a.T, jnp.eye(2)) < 1e-5
    shutil.rmtree(place / "stats")
    (place / "pretrained").rename(place / "stats")
    assert "note: the inputs were measured in the pretrained" in succeed(
        *merge(place, "regmean")
    )


def test_modules_that_a_task_lacks_are_measured_for_it_too(place):
    path = place / "in" / "svhn"
    tensors = samples.tensors_of(path)
    kept = {key: value for key, value in tensors.items() if OUTPUT not in key}
    saved = {"modules_to_save": ["classifier"]}
    samples.write(path, kept, r=2, lora_alpha=2, **saved)
    succeed(*collect(place, "new", *folders(place)))
    assert load(place, folder="new").keys() == {QUERY, OUTPUT}
    succeed(*merge(place, "regmean(ridge=0.01)", stats=place / "new"))
    two = {
        name: jax.tree.map(lambda x: x[:2], value)
        for name, value in load(place, folder="new").items()
    }
    stacks = io.load_peft(folders(place, TASKS[:2]), heads="keep").stacks
    exact = jm.regmean(stacks[OUTPUT], stats=two[OUTPUT], ridge=0.01)
    found = updates_of(place / "out")
    close({"": found[OUTPUT]}, {"": jm.dense(exact)}, 1e-4)


@pytest.mark.thorough
def test_sketches_of_images(place):
    base = learn_samples.clip(place / "clip")
    layer = "vision_model.encoder.layers.0.self_attn"
    modules = [f"{layer}.q_proj", f"{layer}.v_proj"]
    tasks = TASKS[:2]
    learn_samples.adapters(place / "images", modules, head=None, tasks=tasks)
    learn_samples.images(place / "data", tasks)
    adapters = [place / "images" / task for task in tasks]
    where = ["--base", base, "--data", place / "data"]
    ask = ["collect", *adapters, *where, "-o", place / "sketch", "--sketch", 16]
    found = document(*ask, "--batch", 5)
    assert found["tasks"]["cars"]["tokens"] == 12 * 5  # 2 x 2 patches and the class
    assert found["modules"] == {name: [16, 16] for name in modules}
    ask[ask.index(16)], ask[ask.index(place / "sketch")] = 5, place / "small"
    assert document(*ask)["modules"][modules[0]] == [5, 16]
    where = ["merge", *adapters, "-o", place / "out", "--stats"]
    assert "off_diagonal needs exact moments" in refuse(
        *where, place / "small", "-p", "regmean(off_diagonal=0.9)"
    )
    succeed(*where, place / "sketch", "-p", "regmean(ridge=0.01)")
    sketch = io.open_statistics(place / "sketch").load()
    exact = {
        m: jm.Moments(s.count, s.mean, jnp.einsum("tln,tlp->tnp", s.rows, s.rows))
        for m, s in sketch.items()
    }  # as many rows as features lose nothing
    assert all(np.all(np.asarray(s.lost) == 0) for s in sketch.values())
    stacks = io.load_peft(adapters).stacks
    merged = jm.parse("regmean(ridge=0.01)").run(stacks, stats=exact)
    close(updates_of(place / "out"), {m: jm.dense(u) for m, u in merged.items()}, 1e-4)


# --- refusals --------------------------------------------------------------


def lora_bias(place):
    path = place / "in" / "cars"
    tensors = samples.tensors_of(path)
    tensors[f"base_model.model.{QUERY}.lora_B.bias"] = np.ones(16, np.float32)
    samples.write(
        path, tensors, r=2, lora_alpha=2, lora_bias=True, modules_to_save=["classifier"]
    )


def another_pooler(place):
    path = place / "in" / "cars"
    tensors = samples.tensors_of(path)
    tensors["base_model.model.bert.pooler.dense.weight"] = np.eye(16, dtype=np.float32)
    samples.write(
        path,
        tensors,
        r=2,
        lora_alpha=2,
        modules_to_save=["classifier", "bert.pooler.dense"],
    )


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (lora_bias, ["has a LoRA bias"]),
        (another_pooler, ["cars: saves 'bert.pooler.dense.weight' beside its head"]),
        (
            lambda place: learn_samples.adapters(
                place / "in", ["encoder.query"], head=None
            ),
            ["base: encoder.query", "nearest", "--add-prefix"],
        ),
        (
            lambda place: (place / "data" / "cars.jsonl").unlink(),
            ["no texts of task 'cars'"],
        ),
    ],
)
def test_inputs_that_cannot_be_measured(damage, messages, place):
    damage(place)
    before = everything(place)
    said = refuse(*collect(place, "new", *folders(place)))
    for message in messages:
        assert message in said
    assert everything(place) == before


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ((), {}, "give adapters, or for the base alone --modules"),
        ((), {"modules": "query"}, "give adapters, or"),
        ((), {"modules": "query", "names": "cars", "adapted": True}, "needs adapters"),
        ((), {"modules": "query,q_proj", "names": "cars"}, "named 'q_proj'; there are"),
        ((), {"modules": "query", "names": "cars,cars"}, "different names"),
        (TASKS, {"modules": "query"}, "they name their own modules"),
        (TASKS, {"names": "cars,dtd"}, "3 different names"),
        (TASKS, {"max_length": 33}, "32 positions"),
    ],
)
def test_bad_options(tasks, options, message, place):
    assert message in refuse(*collect(place, "new", *folders(place, tasks), **options))
    assert not (place / "new").exists()


def test_only_statistics_are_replaced_and_only_on_demand(place, monkeypatch):
    ask = collect(place, "stats", *folders(place))
    assert "exists already; choose another name or pass --force" in refuse(*ask)
    said = refuse(*collect(place, "in/cars", *folders(place), force=True))
    assert "is or holds the input" in said
    shutil.copytree(place / "in" / "cars", place / "copy")
    said = refuse(*collect(place, "copy", *folders(place), force=True))
    assert "holds files that are not statistics: 'adapter_config.json'" in said
    shutil.copytree(place / "stats", place / "more")
    assert "not an adapter" in refuse(*merge(place, "ssr", out="more", force=True))
    shutil.rmtree(place / "copy")
    shutil.rmtree(place / "more")
    before = everything(place)

    def interrupted(*args, **options):
        def tasks():
            yield "cars", io.load_moments(place / "stats" / "cars.safetensors")
            raise KeyboardInterrupt

        return tasks()

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "measure", interrupted)
        assert jaxmerge(*ask, "--force").exit_code == 130
    assert everything(place) == before
    result = jaxmerge(*ask, "--force", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert everything(place).keys() == before.keys()


def test_inputs_that_are_not_finite_are_named(place):
    from safetensors.numpy import load_file, save_file

    path = place / "base" / "model.safetensors"
    tensors = load_file(path)
    table = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[table][7] = np.nan
    save_file(tensors, path)
    said = refuse(*collect(place, "new", *folders(place)))
    assert f"inputs of module '{OUTPUT}' are NaN or infinite for task 'cars'" in said
    assert not (place / "new").exists()
