"""The suite of six inference tasks: its parts, and its logits against torch."""

import gzip
import json

import numpy as np
import pytest

from experiments.evaluation import accuracies, make_exam
from experiments.nli6.data import minilm_folder, split_anew
from experiments.nli6.own import RESULTS, TOLERANCE
from experiments.nli6.suite import GIVEN, LENGTH, load_given, load_suite
from experiments.suite import Split, batches
from experiments.text_pairs import read_pairs
from jaxmerge.io import load_peft
from jaxmerge.models import with_updates
from jaxmerge.stacks import task_updates
from jaxmerge.tasks.batching import row_groups

CLASSES = {"mnli": 3, "qnli": 2, "snli": 3, "rte": 2, "sick": 3, "scitail": 2}


@pytest.fixture
def minilm():
    try:
        return minilm_folder()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def suites():
    """The suite by folder, read once."""
    return {}


@pytest.fixture
def suite(minilm, shared, suites):
    if shared not in suites:
        suites[shared] = load_given(shared)
    return suites[shared]


def updates_of(task):
    return task_updates(load_peft([task.adapter], heads="keep").stacks, 0)


def write_rows(folder, rows, part="test"):
    with gzip.open(folder / f"{part}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_tasks_and_heads(suite):
    assert tuple(task.name for task in suite.tasks) == GIVEN == tuple(CLASSES)
    for task in suite.tasks:
        shapes = {name: value.shape for name, value in task.head.items()}
        assert shapes == {
            "kernel": (384, CLASSES[task.name]),
            "bias": (CLASSES[task.name],),
        }
        assert task.adapter.name == task.name
        assert len(updates_of(task)) == 36  # six layers of six modules


def test_examples(suite):
    for task in suite.tasks:
        split = task.load("validation")
        ((count, width),) = {value.shape for value in split.inputs.values()}
        assert (count, width % 16) == (len(split.labels), 0)
        assert width <= LENGTH
        assert {value.dtype for value in split.inputs.values()} == {np.dtype(np.int32)}
        assert set(split.labels) == set(range(CLASSES[task.name]))
        padded = split.inputs["attention_mask"] == 0
        assert (split.inputs["input_ids"][padded] == 0).all()
        assert (split.inputs["input_ids"][~padded] != 0).all()
    assert task.load("validation") is split  # tokenised once


def test_batches_cover_every_example_once_and_crop_only_padding(suite):
    split = suite.tasks[3].load("validation")
    seen = []
    groups = row_groups(suite.base, split.inputs, 32)
    for inputs, chosen in zip(batches(suite, split.inputs, 32), groups, strict=True):
        seen.extend(chosen)
        length = inputs["input_ids"].shape[1]
        assert length % 16 == 0
        for name, whole in split.inputs.items():
            np.testing.assert_array_equal(inputs[name], whole[chosen, :length])
        assert not split.inputs["attention_mask"][chosen, length:].any()
    assert sorted(seen) == list(range(len(split.labels)))


def test_tokens_equal_those_of_transformers(suite, minilm, tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = [
        ("A man is playing.", "Nobody plays."),
        ("Ünïcode, 中文 & \u200bmarks!", "don't"),
        ("word " * 90, "short one"),
        ("short one", "word " * 90),
        ("even " * 70, "uneven " * 60),
    ]
    write_rows(tmp_path, [{"text_a": a, "text_b": b, "label": 0} for a, b in texts])
    split = read_pairs(suite.base, tmp_path, "test", length=LENGTH)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    expected = tokenizer(
        [a for a, _ in texts],
        [b for _, b in texts],
        truncation=True,
        max_length=LENGTH,
        padding="max_length",
    )
    assert set(split.inputs) == set(expected)
    for name, tokens in split.inputs.items():
        np.testing.assert_array_equal(tokens, np.asarray(expected[name]))
    with pytest.raises(ValueError, match="no such file; parts are"):
        read_pairs(suite.base, tmp_path, "dev", length=LENGTH)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("name", ["mnli", "scitail"])
def test_logits_equal_those_of_peft_in_torch(name, suite, minilm, capfd):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    task = next(task for task in suite.tasks if task.name == name)
    split = task.load("test").first(6)
    base = transformers.BertForSequenceClassification.from_pretrained(
        minilm, num_labels=CLASSES[name]
    )
    reference = peft.PeftModel.from_pretrained(base, task.adapter).eval()
    capfd.readouterr()
    tokens = {key: torch.tensor(value).long() for key, value in split.inputs.items()}
    with torch.no_grad():
        expected = reference(**tokens).logits.numpy()
        plain = reference.get_base_model().bert
        with reference.disable_adapter():
            pooled = plain(**tokens).pooler_output.numpy()
    np.testing.assert_allclose(
        suite.base.apply(suite.base.params, split.inputs), pooled, rtol=0, atol=1e-4
    )
    updates = updates_of(task)
    base = suite.base
    features = with_updates(base.apply, updates)(base.params, split.inputs)
    logits = base.logits(task.head, features)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    alone = suite._replace(tasks=(task._replace(load=lambda _: split),))
    correct = (expected.argmax(axis=-1) == split.labels).mean()
    assert accuracies(make_exam(alone, "test", batch=4), updates) == {name: correct}


def test_committed_accuracies_are_those_that_peft_measured():
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    assert tuple(line["task"] for line in lines) == GIVEN
    for line in lines:
        apart = 100 * abs(line["accuracy"] - line["reference"])
        assert apart <= TOLERANCE
        assert line["pairs"] == {"rte": 277, "scitail": 648}.get(line["task"], 2000)


def test_parts_drawn_anew_hold_every_example_and_classes_in_proportion():
    def load(part):
        sizes = {"train": 5, "validation": 40, "test": 60}
        first = {"train": 0, "validation": 100, "test": 200}[part]
        rows = np.arange(first, first + sizes[part])
        labels = (np.arange(len(rows)) < (30 if part == "validation" else 20)).astype(
            int
        )
        return Split({"row": rows}, labels)

    new = split_anew(load, validation=50)
    validation, test = new("validation"), new("test")
    both = np.concatenate([validation.inputs["row"], test.inputs["row"]])
    assert sorted(both) == [*range(100, 140), *range(200, 260)]
    assert len(validation.labels) == 50
    assert abs(validation.labels.mean() - test.labels.mean()) < 0.03
    assert new("train").inputs["row"].tolist() == list(range(5))
    row = dict(zip(validation.inputs["row"], validation.labels, strict=True))
    assert all(label == (n < 130 or 200 <= n < 220) for n, label in row.items())


def test_missing_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMERGE_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        load_given()
    with pytest.raises(ValueError, match=r"run: python -m experiments\.nli6\.train"):
        load_suite(trained=tmp_path)
