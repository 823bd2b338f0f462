"""Exact completions, with transformers' greedy decoding beside them."""

import json
from collections import Counter

import causal_samples
import numpy as np
import pytest
from learn_samples import TASKS, WORDS

import jaxmerge as jm
from jaxmerge.diagnostics.evaluation import wilson
from jaxmerge.diagnostics.likelihood import hardly_known, likelihoods
from jaxmerge.tasks.texts import load_tokenizer

pytestmark = pytest.mark.usefixtures("as_a_user")
TASK, MOST = TASKS[0], 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    causal_samples.base(folder / "base")
    causal_samples.adapters(folder / "in", tasks=(TASK,))
    return folder


@pytest.fixture(scope="module")
def greedy(place):
    """What greedy decoding gives after a prompt, of the base or with the adapter."""
    oracle = pytest.importorskip("model_samples")
    nets = {
        "base": oracle.loaded(place / "base"),
        "own": oracle.with_adapter(place / "base", place / "in" / TASK),
    }
    tokenizer = load_tokenizer(place / "base")

    def decode(whose, prompt, tokens, end=None):
        ids = oracle.torch.tensor([tokenizer.encode(prompt).ids])
        found = nets[whose].generate(
            input_ids=ids,
            attention_mask=oracle.torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=end,
            pad_token_id=0,
        )
        return found[0, ids.shape[1] :].tolist()

    return decode


def answers(place, greedy, prompts):
    """Lines with what base and adapter say first, and a token that then ends texts."""
    first = len(causal_samples.SPECIAL)
    known = range(first, first + len(WORDS))
    said = {
        whose: [greedy(whose, prompt, MOST) for prompt in prompts]
        for whose in ("base", "own")
    }
    seen = {
        whose: Counter(i for ids in found for i in ids[1:])
        for whose, found in said.items()
    }
    end = max(known, key=lambda i: min(count[i] for count in seen.values()))
    rows = []
    for found in said.values():
        for prompt, ids in zip(prompts, found, strict=True):
            kept = [i for i in ids[: (*ids, end).index(end)] if i in known] or [first]
            words = " ".join(WORDS[i - first] for i in kept)
            rows.append({"prompt": prompt, "answer": f" {words}"})
    return rows, end


def test_it_is_what_greedy_decoding_gives(place, greedy, tmp_path):
    """Of answers that the model gives, of their beginnings, and of others."""
    rng = np.random.default_rng(1)
    prompts = [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(20)]
    rows, end = answers(place, greedy, prompts)
    path = place / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": end}))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{TASK}.jsonl").write_text(lines)
    tokenizer, shares = load_tokenizer(place / "base"), {}
    base = jm.tasks.load_base(place / "base", "causal")
    unlabeled = jm.tasks.load_unlabeled(tmp_path, (TASK,), base)
    own = jm.task_updates(jm.io.load_peft([place / "in" / TASK]).stacks, 0)
    assess = likelihoods(base, unlabeled, batch=8)
    for whose, updates in (("base", {}), ("own", own)):
        exact = assess(TASK, updates).exact
        for row, hit in zip(rows, exact, strict=True):
            expected = [*tokenizer.encode(row["answer"]).ids[1:], end]
            said = greedy(whose, row["prompt"], len(expected), end)
            assert hit == (said == expected), row
        assert 0 < exact.sum() < len(exact), whose
        shares[whose] = wilson(exact)
    where, folder = {"base": place / "base", "data": tmp_path}, place / "in" / TASK
    standing = jm.check([folder], **where).standings[TASK]
    assert (standing.exact, standing.base_exact) == (shares["own"], shares["base"])
    found = jm.evaluate(folder, [folder], **where).to_json()["tasks"][TASK]["exact"]
    assert found["own"] == found["merged"] == shares["own"]._asdict()
    assert found["base"] == shares["base"]._asdict()


def test_who_knows_little_more_than_one_who_guesses_is_suspected(place):
    """As by tokens of another model: log 50 is 3.91."""
    base = jm.tasks.load_base(place / "base", "causal")
    (note,) = hardly_known(base, {"cars": 2.8, "dtd": 3.2})
    assert "the texts of dtd have 3.20 nats per token" in note
    assert "guessing among 50 tokens 3.91" in note


def test_bounds_of_a_share():
    """Those of Wilson (1927), which contain what a binomial draw would say."""
    hits = np.arange(40) < 10
    value, low, high = wilson(hits)
    assert value == 0.25
    for bound in (low, high):
        spread = np.sqrt(bound * (1 - bound) / 40)
        assert abs(value - bound) == pytest.approx(1.959964 * spread)
    assert wilson(~np.zeros(5, bool)).high == 1
