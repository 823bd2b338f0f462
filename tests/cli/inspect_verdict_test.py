"""What ``jaxmerge inspect`` says of several adapters: the rule of its verdict."""

import io_samples as samples
import numpy as np
import pytest
from cli_samples import document, succeed

from jaxmerge.diagnostics import verdict
from jaxmerge.diagnostics.findings import Pair

pytestmark = pytest.mark.usefixtures("no_cache")


def pair(b, a, *, names=("x", "y"), random=0.01):
    return Pair(names, b, random, a, random, sign_conflict=0.5, cosine=0.0)


@pytest.mark.parametrize(
    ("pairs", "says", "harm"),
    [
        (
            [pair(0.31, 0.12)],
            "B is more shared than A: x + y (0.31 against 0.12); calibrate task "
            "arithmetic and learned merges with pico; TSV-M has gained nothing from it",
            "some",
        ),
        (
            [pair(0.12, 0.31)],
            "A is more shared than B: x + y (0.31 against 0.12); "
            "not the case that pico is made for",
            "some",
        ),
        (
            [pair(0.22, 0.2)],
            "B and A are about equally shared: x + y (0.22 and 0.20); pico is worth a "
            "try with task arithmetic and learned merges, not with TSV-M",
            "some",
        ),
        (
            [pair(0.021, 0.019), pair(0.01, 0.02, names=("x", "z"))],
            "B and A overlap hardly more than random subspaces: x + y (0.02 and 0.02), "
            "x + z (0.01 and 0.02); a sum (concat) loses little to interference",
            "none",
        ),
        (
            [pair(0.1, 0.9), pair(0.2, 0.8, names=("y", "z"))],
            "x, y and z share their initial A (overlap of A 0.80 to 0.90, of B 0.10 to "
            "0.20): not the case that pico is made for",
            "some",
        ),
    ],
)
def test_the_verdict_follows_its_rule(pairs, says, harm):
    assert verdict.of_all(pairs, {}) == (verdict.Said(says, harm),)


def test_every_pair_is_named_and_none_is_averaged_across_a_shared_start():
    same = [pair(0.3, 0.9, names=("a", "b")), pair(0.3, 0.8, names=("c", "d"))]
    others = [
        *(pair(0.3, 0.02, names=("a", "c")), pair(0.01, 0.01, names=("a", "d"))),
        *(pair(0.2, 0.02, names=("b", "c")), pair(0.01, 0.01, names=("b", "d"))),
    ]
    said = [text for text, _ in verdict.of_all([*same, *others], {})]
    assert said[0].startswith("a and b share their initial A (overlap of A 0.90, of")
    assert said[1].startswith("c and d share their initial A (overlap of A 0.80, of")
    assert "a + c (0.30 against 0.02), b + c (0.20 against 0.02); calibrate" in said[2]
    assert "a + d (0.01 and 0.01), b + d (0.01 and 0.01); a sum" in said[3]
    many = [pair(0.3, 0.02, names=("x", str(other))) for other in range(9)]
    assert "x + 5 (0.30 against 0.02) and 3 more;" in verdict.of_all(many, {})[0].text


@pytest.mark.parametrize(
    ("norms", "says"),
    [
        (
            {"a": 2.0, "b": 20.0, "c": 2.2, "d": 1.8},
            "b is 10 times as large as the others (norm 20 against 1.8 to 2.2) and "
            "outweighs them; weights 1, 0.1, 1, 1 make all alike",
        ),
        (
            {"a": 5.0, "b": 1e-9},
            "a is 5e+09 times as large as b (norm 5 against 1e-09) and outweighs it; "
            "weights 2e-10, 1 make both alike",
        ),
        (
            {"a": 2.0, "b": 2.0, "c": 0.2},
            "c is 10 times as small as the others (norm 0.2 against 2) and is drowned; "
            "weights 1, 1, 10 make all alike",
        ),
        ({"a": 1.0, "b": 2.9}, None),
        ({"a": 0.0, "b": 2.9}, None),
    ],
)
def test_an_adapter_of_another_size_comes_first(norms, says):
    said = verdict.of_all([pair(0.31, 0.12)], norms)
    assert len(said) == 1 + (says is not None)
    assert says is None or said[0] == verdict.Said(says, "high")


def test_the_sizes_of_real_folders_are_compared(tmp_path):
    folders = []
    for seed, scale in ((0, 1), (50, 10), (90, 1)):
        tensors = samples.linear("h.0.fc", m=64, n=64, r=4, seed=seed)
        tensors[samples.KEY_B] = tensors[samples.KEY_B] * np.float32(scale)
        folders.append(samples.write(tmp_path / f"t{seed}", tensors))
    found = document("inspect", *folders)["diagnostics"]
    assert found["verdict"].startswith("t50 is ")
    assert found["statements"][0]["harm"] == "high"
    said = succeed("inspect", *folders).splitlines()
    assert next(x for x in said if "verdict" in x).startswith("verdict: t50 is ")


def test_overlaps_count_above_random():
    """Random subspaces of rank 8 in 20 dimensions overlap by 0.4: no sharing."""
    assert verdict.of_pair(pair(0.4, 0.4, random=0.4)) == "as if random"
    assert verdict.of_pair(pair(0.5, 0.41, random=0.4)) == "B more shared"
    assert verdict.of_pair(pair(0.41, 0.5, random=0.4)) == "A more shared"
    assert verdict.of_pair(pair(0.5, 0.5, random=0.4)) == "B and A alike"
    assert verdict.of_pair(pair(0.1, 0.9)) == "same initial A"


def test_adapters_with_a_common_b_or_a_common_a_are_told_apart(tmp_path):
    folders = []
    for seed in (0, 50):
        tensors = samples.linear("h.0.fc", m=64, n=64, r=4, seed=seed)
        folders.append(samples.write(tmp_path / f"{seed}", tensors))
    key_a, key_b = samples.KEY_A, samples.KEY_B
    first, second = (samples.linear("h.0.fc", m=64, n=64, r=4, seed=s) for s in (0, 50))
    same_b = samples.write(tmp_path / "b", {key_a: second[key_a], key_b: first[key_b]})
    same_a = samples.write(tmp_path / "a", {key_a: first[key_a], key_b: second[key_b]})
    verdicts = [
        document("inspect", folders[0], other)["diagnostics"]["verdict"]
        for other in (folders[1], same_b, same_a)
    ]
    assert "calibrate" not in verdicts[0]
    assert verdicts[1].startswith("B is more shared than A: 0 + b (1.00 against 0.")
    assert verdicts[2].startswith("0 and a share their initial A (overlap of A 1.00")


@pytest.mark.thorough
def test_real_adapters_agree_with_what_is_known_of_them(shared):
    """Medical and sports began with the same A; legal and tigrinya did not."""
    names = ("legal", "medical", "sports", "tigrinya")
    folders = [shared / "adapters" / "gpt2_domains" / name for name in names]
    found = document("inspect", *folders)["diagnostics"]
    pairs = {tuple(p["tasks"]): p for p in found["pairs"]}
    assert pairs["medical", "sports"]["overlap_a"] == pytest.approx(0.98, abs=0.005)
    for first in ("legal", "tigrinya"):
        assert all(p["overlap_a"] < 0.03 for k, p in pairs.items() if first in k)
    assert pairs["legal", "medical"]["overlap_b"] == pytest.approx(0.203, abs=0.002)
    assert found["verdict"].startswith("tigrinya is 9.75 times as large as the others")
    assert (
        "medical and sports share their initial A (overlap of A 0.98"
        in (found["verdict"])
    )
    assert "legal + medical (0.20 against 0.02), legal + sports" in found["verdict"]
    assert found["total"]["updates"] <= 4
