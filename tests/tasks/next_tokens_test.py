"""Texts for causal language models: what counts, and what is refused."""

import json

import causal_samples
import jax
import numpy as np
import pytest
from causal_samples import BEGIN, END

import jaxmerge as jm
from jaxmerge import Refusal, tasks
from jaxmerge.diagnostics.likelihood import likelihoods
from jaxmerge.tasks.next_tokens import counted_inputs, counted_tokens, end_of_text
from jaxmerge.tasks.texts import cropped, load_tokenizer

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return causal_samples.base(tmp_path_factory.mktemp("causal"), tied=True)


@pytest.fixture(scope="module")
def base(folder):
    return tasks.load_base(folder, "causal")


@pytest.fixture
def read(base, tmp_path):
    """What becomes of some lines."""

    def of(*lines, **options):
        rows = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "one.jsonl").write_text(rows)
        return tasks.load_unlabeled(tmp_path, ("one",), base, **options)

    return of


def pairs(unlabeled, row=0):
    """What predicts and is predicted: (number of token, its id, the next one's)."""
    inputs = unlabeled.inputs["one"]
    counted = inputs["next_ids"][row] >= 0
    places = inputs["places"][row][counted]
    following = inputs["next_ids"][row][counted]
    return [
        (int(p), int(inputs["input_ids"][row][p]), int(n))
        for p, n in zip(places, following, strict=True)
    ]


def test_the_completion_counts_and_the_token_that_ends_it(read):
    found = read(
        {"prompt": "w1 w2", "completion": " w3 w4", "answer": "w4"},
        {"prompt": "w5", "completion": " w6"},
    )
    assert pairs(found) == [(2, 6, 7), (3, 7, 8), (4, 8, END)]
    assert pairs(found, 1) == [(1, 9, 10), (2, 10, END)]
    ids = found.inputs["one"]["input_ids"]
    assert ids[0].tolist() == [BEGIN, 5, 6, 7, 8, END, *[0] * 10]
    assert found.notes == ()
    assert found.whole["one"].tolist() == [True, True]
    counted = np.asarray(counted_inputs(found.inputs["one"]))
    assert counted[0].tolist() == [i in (2, 3, 4) for i in range(16)]
    assert counted[1].tolist() == [i in (1, 2) for i in range(16)]


def test_an_answer_is_a_completion(read):
    found = read({"prompt": "w1 w2", "answer": " w3"})
    assert pairs(found) == [(2, 6, 7), (3, 7, END)]


def test_all_tokens_of_a_text_but_the_first_count(read):
    found = read({"text": "w1 w2"})
    assert found.whole == {"one": None}
    assert pairs(found) == [(0, BEGIN, 5), (1, 5, 6), (2, 6, END)]
    beside = read({"prompt": "", "completion": "w1 w2"})
    assert pairs(beside) == pairs(found)


def test_a_token_across_the_border_counts(read):
    """Joined, the last word of the prompt is another one."""
    found = read({"prompt": "w1 w", "completion": "2 w3"})
    assert pairs(found) == [(1, 5, 6), (2, 6, 7), (3, 7, END)]


def test_what_is_cut_off_is_told_or_refused(read):
    lines = [{"prompt": "w1 w2", "completion": " w3 w4 w5 w6 w7 w8"}] * 2
    found = read(*lines, max_length=8)
    assert pairs(found) == [(2, 6, 7), (3, 7, 8), (4, 8, 9), (5, 9, 10), (6, 10, 11)]
    assert found.notes == ("2 of 2 inputs of one were truncated to 8 tokens",)
    assert found.whole["one"].tolist() == [False, False]
    late = {"prompt": "w1 w2 w3 w4 w5 w6 w7 w8", "completion": " w9"}
    for count, others in ((1, ""), (3, " and 2 others")):
        message = rf"of line 3{others} no token counts within 8 tokens"
        with pytest.raises(Refusal, match=message):
            read(*lines, *[late] * count, max_length=8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "w1", "completion": " "}, "line 1 has an empty completion"),
        ({"text": ""}, "line 1 has an empty text"),
        ({"prompt": "w1", "answer": ""}, "line 1 has an empty answer"),
        ({"prompt": "w1"}, "must be prompt and completion, prompt and answer, or text"),
        ({"prompt": "w1", "completion": "w2", "text": "w3"}, "or text alone"),
        ({"text_a": "w1", "text_b": "w2"}, "found text_a, text_b"),
        ({"prompt": 1, "completion": "w2"}, "no text in prompt and completion"),
        ([1], "found none"),
    ],
)
def test_lines_that_are_refused(read, line, message):
    with pytest.raises(Refusal, match=message):
        read(line)


def test_tokens_of_another_base_are_refused(folder, base, tmp_path):
    other = causal_samples.base(tmp_path / "other", tied=True)
    causal_samples.save_tokenizer(other, more=30)
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "w69"}))
    with pytest.raises(Refusal, match="they do not belong together"):
        tasks.load_unlabeled(tmp_path, ("one",), base._replace(folder=other))
    with pytest.raises(Refusal, match="64 positions"):
        tasks.load_unlabeled(tmp_path, ("one",), base, max_length=65)


def test_the_token_that_ends_a_text(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    assert end_of_text(folder, tokenizer) == END
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    with pytest.raises(Refusal, match="names 2 tokens"):
        end_of_text(tmp_path, tokenizer)
    settings = tmp_path / "tokenizer_config.json"
    for token, expected in (("</s>", END), ({"content": "<s>"}, BEGIN)):
        settings.write_text(json.dumps({"eos_token": token}))
        assert end_of_text(tmp_path, tokenizer) == expected
    settings.write_text(json.dumps({"eos_token": "<|none|>"}))
    with pytest.raises(Refusal, match=r"has no eos_token \"<\|none\|>\""):
        end_of_text(tmp_path, tokenizer)
    (tmp_path / "config.json").write_text("{}")
    settings.write_text("{}")
    assert end_of_text(tmp_path, tokenizer) is None
    settings.write_text("[")
    with pytest.raises(Refusal, match="not readable"):
        end_of_text(tmp_path, tokenizer)


def test_batches_of_other_lengths_change_nothing(base, read):
    """Neither what texts are worth nor what a merge is taught by them."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    lines = [
        {"prompt": " ".join(words[:n]), "completion": f" {rng.choice(words)}"}
        for n in (1, 30, 4, 17, 2)
    ]
    unlabeled = read(*lines)
    found = [likelihoods(base, unlabeled, batch=n)("one", {}) for n in (1, 2, 5)]
    for other in found[1:]:
        np.testing.assert_allclose(other.nats, found[0].nats, rtol=1e-5)
        np.testing.assert_array_equal(other.exact, found[0].exact)
    inputs = unlabeled.inputs["one"]
    tokens = ("input_ids", "attention_mask")
    left = {name: np.pad(inputs[name], ((0, 0), (7, 0))) for name in tokens}
    shifted = inputs | left | {"places": inputs["places"] + 7}
    losses = jm.token_distillation(base.apply, base.vocabulary, mask=counted_tokens)
    name, rank = "model.layers.0.self_attn.q_proj", 2
    b, a = (rng.normal(size=s).astype(np.float32) for s in ((16, rank), (rank, 16)))
    teacher = rng.normal(size=(5, 16, 16)).astype(np.float32)

    def value(update, inputs):
        taught = {"one": jm.Taught(inputs, teacher)}
        return losses(base.params, {name: update}, taught)["one"]

    run = jax.jit(jax.value_and_grad(value))
    each = [run(jm.LowRank(b, a), some) for some in (inputs, shifted)]
    for one, other in zip(*map(jax.tree.leaves, each), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_padding_and_the_width_of_batches_change_nothing(base, read):
    lines = [
        {"prompt": "w1 w2 w3", "completion": " w4"},
        {"prompt": "w5", "completion": " w6 w7"},
    ]
    inputs = read(*lines).inputs["one"]
    apply = jax.jit(base.apply)
    found = np.asarray(apply(base.params, inputs))
    assert found.shape == (2, 16, 16)
    counted = inputs["next_ids"] >= 0
    wide = {
        name: np.pad(inputs[name], ((0, 0), (0, 5)))
        for name in ("input_ids", "attention_mask")
    }
    left = {name: np.pad(inputs[name], ((0, 0), (5, 0))) for name in wide}
    for padded in (
        inputs | wide,
        inputs | left | {"places": inputs["places"] + 5},
        cropped(inputs | wide),
    ):
        other = np.asarray(apply(base.params, padded))
        np.testing.assert_allclose(other[counted], found[counted], atol=2e-6)
    alone = np.asarray(apply(base.params, {k: v[1:] for k, v in inputs.items()}))
    np.testing.assert_allclose(alone[0][counted[1]], found[1][counted[1]], atol=2e-6)
