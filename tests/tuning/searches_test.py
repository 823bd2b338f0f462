"""Searches on known functions: what they ask for, what they find, and ENMP's masks."""

import itertools
import math

import numpy as np
import pytest

from jaxmerge.refusals import Refusal
from jaxmerge.spec.varied import vary, vary_weights
from jaxmerge.tuning import searches
from jaxmerge.tuning.families import Family, Point, decode_mask, mask_pairs
from jaxmerge.tuning.progression import Budget, best_row, run_searches
from jaxmerge.tuning.searches import evolve, grid, line
from jaxmerge.tuning.trace import Row, Scored, Trace

ONE = Family(vary("concat|scale({0.1:10})"))
TWO = Family(vary("elect|trim(density={0.1:0.9})|core|scale({0.1:10})"))


def number(point, name):
    """An argument of a point's pipeline."""
    return float(point.pipeline.split(name)[1].split(")")[0])


def run(search, function, *, maximise=False, budget=None, trace=None):
    """Runs a search on a function of points; gives the rows that were tried."""
    trace = Trace(None, {}) if trace is None else trace
    new = []

    def evaluate(points):
        for point in points:
            yield Row(point, Scored(function(point), seconds=1.0))

    finished = run_searches(
        [search],
        evaluate,
        trace,
        maximise=maximise,
        budget=budget or Budget(),
        report=new.append,
    )
    return trace.rows, new, finished


def bowl(point):
    """Least at scale 0.7."""
    return math.log(number(point, "scale(") / 0.7) ** 2


def bowl_of_two(point):
    """Least at density 0.3 and scale 2, with a valley that lies askew."""
    x = math.log(number(point, "density=") / 0.3)
    y = math.log(number(point, "scale(") / 2.0)
    return x * x + y * y + 0.8 * x * y


@pytest.mark.parametrize("maximise", [False, True])
def test_a_line_ends_near_the_best(maximise):
    sign = -1 if maximise else 1
    search = line(ONE, points=9, refinements=6)
    rows, _, finished = run(search, lambda p: sign * bowl(p), maximise=maximise)
    assert finished
    best = number(best_row(rows, maximise=maximise).point, "scale(")
    # 8 steps of ratio 10 ** 0.25; a bracket of two of them, cut 6 times
    width = 2 * math.log(10) * 0.25 * 0.618**6
    assert abs(math.log(best / 0.7)) < width
    assert len(rows) == 9 + 6 + 1  # one new merge for each cut but the first


def test_lines_through_several_ranges_go_on_until_nothing_changes():
    rows, _, _ = run(line(TWO, points=7, refinements=5, passes=8), bowl_of_two)
    best = best_row(rows, maximise=False)
    assert best.scored.score < 0.01
    assert number(best.point, "density=") == pytest.approx(0.3, rel=0.1)


def test_a_grid_is_every_combination_with_the_ends():
    rows, _, _ = run(grid(TWO, points=3), bowl_of_two)
    found = {(number(r.point, "density="), number(r.point, "scale(")) for r in rows}
    assert found == set(itertools.product([0.1, 0.3, 0.9], [0.1, 1.0, 10.0]))


def test_merges_without_a_score_are_the_worst():
    def broken(point):
        return None if number(point, "scale(") > 1 else bowl(point)

    rows, _, _ = run(line(ONE, points=5, refinements=4), broken)
    assert number(best_row(rows, maximise=False).point, "scale(") <= 1
    with pytest.raises(Refusal, match="no merge could be scored"):
        best_row(run(grid(ONE, points=2), lambda _: None)[0], maximise=True)


@pytest.mark.parametrize(
    ("budget", "tried"),
    [(Budget(evaluations=5), 5), (Budget(minutes=7 / 60), 7)],
)
def test_a_budget_ends_a_search_and_a_larger_one_goes_on(budget, tried):
    """What was tried before is not tried again, and the rows are the same."""
    trace = Trace(None, {})
    rows, _, finished = run(
        line(ONE, points=9, refinements=3), bowl, budget=budget, trace=trace
    )
    assert len(rows) == tried
    assert not finished
    rows, new, finished = run(line(ONE, points=9, refinements=3), bowl, trace=trace)
    assert finished
    assert rows == run(line(ONE, points=9, refinements=3), bowl)[0]
    assert len(new) == len(rows) - tried


def test_searches_take_turns():
    order = []

    def evaluate(points):
        for point in points:
            order.append(point.pipeline.split("|")[0])
            yield Row(point, Scored(bowl(point)))

    families = [
        Family(vary(f"{name}|scale({{0.1:10}})")) for name in ("concat", "tsv_m")
    ]
    run_searches(
        [line(family, points=3, refinements=2) for family in families],
        evaluate,
        Trace(None, {}),
        maximise=False,
        budget=Budget(),
        report=lambda _: None,
    )
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns[:4] == ["concat", "tsv_m"] * 2


def test_weights_are_ranges_too():
    family = Family(vary("concat"), vary_weights("1,{0.5:2}", ["cars", "dtd"]))
    assert family.point([1.0]) == Point("concat", (1.0, 2.0))
    assert family.ranges[0].name == "weight of dtd"


@pytest.mark.parametrize("share", [0.0, 0.2, 0.29, 1.0])
def test_masks_are_decoded_by_the_rule_of_enmp(share):
    """Of the k = share * L * T largest entries, those above 0."""
    rng = np.random.default_rng(0)
    for count in (5, 96, 100):
        values = rng.normal(size=count)
        largest = sorted(range(count), key=lambda i: -values[i])
        largest = largest[: math.floor(round(share * count, 6))]
        expected = {i for i in largest if values[i] > 0}
        assert set(np.flatnonzero(decode_mask(values, share=share))) == expected
    assert not decode_mask(np.full(96, -1.0), share=share).any()


def test_pairs_are_those_of_blocks_and_tasks():
    modules = [f"h.{layer}.attn.{leaf}" for layer in (0, 1, 10) for leaf in "qv"]
    pairs = mask_pairs(modules, ("cars", "dtd"))
    assert len(pairs) == 3 * 2
    assert pairs[:3] == ("cars@h.0", "dtd@h.0", "cars@h.1")


def test_evolution_finds_a_mask_and_a_scale():
    """Two pairs that do harm, and a scale of 2; nothing is left out at the start."""
    pytest.importorskip("cmaes")
    pairs = mask_pairs([f"h.{layer}.q" for layer in range(4)], ("a", "b", "c"))
    family = Family(vary("concat|scale({0.1:10})"), None, pairs, 0.25)
    harmful = {"b@h.1", "c@h.3"}

    def loss(point):
        missed = len(harmful ^ set(point.left_out))
        return missed + abs(math.log(number(point, "scale(") / 2.0))

    asked = evolve(family, seed=0, population=12, generations=25)
    rows, _, _ = run(asked, loss)
    best = best_row(rows, maximise=False)
    assert set(best.point.left_out) == harmful
    assert number(best.point, "scale(") == pytest.approx(2, rel=0.2)
    assert all(len(row.point.left_out) <= 3 for row in rows)
    again, _, _ = run(evolve(family, seed=0, population=12, generations=25), loss)
    assert again == rows
    other, _, _ = run(evolve(family, seed=1, population=12, generations=1), loss)
    assert other[0] != rows[0]


def test_evolution_refuses_one_number_and_a_missing_library(monkeypatch):
    with pytest.raises(Refusal, match="two numbers or more"):
        next(evolve(ONE, seed=0))
    monkeypatch.setattr(searches, "find_spec", lambda _: None)
    with pytest.raises(Refusal, match=r"pip install 'jaxmerge\[tune\]'"):
        next(evolve(TWO, seed=0))
