"""Groups of adapters: those that were planted, whatever the order of the tasks."""

import numpy as np
import pytest
from methods import distance, random_stack, task_updates
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

import jaxmerge as jm
from jaxmerge.diagnostics import cluster_adapters, task_similarities
from jaxmerge.diagnostics.clusters import average_linkage

NAMES = ["e", "b", "f", "a", "d", "c"]
FAMILY = [0, 1, 0, 1, 2, 0]  # e f c, b a, d


@pytest.fixture(scope="module")
def planted():
    """Tasks of a family share most of their directions, at other sizes and signs."""
    rng = np.random.default_rng(0)
    stacks = {}
    for module, (m, n) in {"q": (14, 12), "k": (14, 12)}.items():
        common_b, common_a = rng.normal(size=(3, m, 2)), rng.normal(size=(3, 2, n))
        pairs = [
            (
                common_b[family] @ rng.normal(size=(2, 2))
                + 0.1 * rng.normal(size=(m, 2)),
                common_a[family] + 0.1 * rng.normal(size=(2, n)),
            )
            for family in FAMILY
        ]
        if module == "k":
            pairs[0] = None  # one task does not adapt it
        stacks[module] = jm.stack_adapters(pairs, dtype=np.float64)
    return stacks


def test_planted_groups_are_found_in_any_order(planted):
    found = cluster_adapters(NAMES, planted, groups=3)
    assert found == (("a", "b"), ("c", "e", "f"), ("d",))
    assert cluster_adapters(NAMES, planted, groups=1) == (tuple("abcdef"),)
    assert cluster_adapters(NAMES, planted, groups=6) == tuple((x,) for x in "abcdef")
    order = np.array([3, 5, 0, 2, 1, 4])
    ranks = {name: tuple(s.ranks[t] for t in order) for name, s in planted.items()}
    permuted = {
        name: s.replace(a=s.a[order], b=s.b[order], ranks=ranks[name])
        for name, s in planted.items()
    }
    names = [NAMES[t] for t in order]
    assert cluster_adapters(names, permuted, groups=3) == found


def test_cosines_are_those_of_the_dense_updates():
    stacks = {
        "q": random_stack((3, 2, 0, 2), 9, 8),
        "k": random_stack((1, 2, 2, 2), 5, 7),
    }
    rows = np.concatenate(
        [np.asarray(task_updates(s)).reshape(4, -1) for s in stacks.values()], axis=1
    )
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert distance(task_similarities(stacks, by="cosine"), unit @ unit.T) < 1e-12


def test_overlaps_are_means_over_the_modules_of_both(planted):
    found = task_similarities(planted)
    expected = np.mean(
        [
            [
                jm.diagnostics.above_random(x.b, x.random_b)[1, 3],
                jm.diagnostics.above_random(x.a, x.random_a)[1, 3],
            ]
            for x in map(jm.diagnostics.overlaps, planted.values())
        ]
    )
    assert found[1, 3] == pytest.approx(expected)
    alone = task_similarities({"q": planted["q"]})
    assert np.allclose(found[0], alone[0])


@pytest.mark.parametrize("groups", [1, 2, 4, 9, 12])
def test_groups_are_those_of_scipy(groups):
    points = np.random.default_rng(groups).normal(size=(12, 12))
    similarity = np.corrcoef(points)
    distances = squareform(1 - similarity, checks=False)
    labels = fcluster(linkage(distances, "average"), groups, "maxclust")
    expected = {frozenset(np.flatnonzero(labels == x)) for x in set(labels)}
    found = average_linkage(similarity, groups)
    assert {frozenset(group) for group in found} == expected
    assert found == sorted(sorted(group) for group in found)


def test_ties_are_broken_by_name():
    same = {"q": jm.stack_adapters([([[1.0]], [[1.0]])] * 4)}
    for names in ("abcd", "dbca"):
        assert cluster_adapters(names, same, groups=2) == (("a", "b", "c"), ("d",))


def test_what_cannot_be_grouped_is_refused(planted):
    for names in (NAMES[:5], [*NAMES[:5], "e"]):
        with pytest.raises(jm.Refusal, match="each of the 6 tasks"):
            cluster_adapters(names, planted, groups=2)
    for groups in (0, 7):
        with pytest.raises(jm.Refusal, match=f"1 to 6 groups, not {groups}"):
            cluster_adapters(NAMES, planted, groups=groups)
    with pytest.raises(jm.Refusal, match="'overlap' or 'cosine', not 'sign'"):
        cluster_adapters(NAMES, planted, groups=2, by="sign")
    broken = planted["q"].replace(b=planted["q"].b.at[1, 0, 0].set(np.nan))
    for by in ("overlap", "cosine"):
        with pytest.raises(jm.Refusal, match=r"not finite: \['b'\]"):
            cluster_adapters(NAMES, {"q": broken}, groups=2, by=by)
