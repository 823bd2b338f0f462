"""What the reactions of the losses come to: verdict, shares, JSON, page and plots."""

import json
import re

import numpy as np
import pytest

from jaxmerge.diagnostics import verdict
from jaxmerge.diagnostics.reactions import Reactions, one_pass
from jaxmerge.reports.page_reactions import reactions_part
from jaxmerge.reports.reaction_plots import reaction_plots
from jaxmerge.reports.reaction_tables import preference_rows
from jaxmerge.tasks.unlabeled import Unlabeled


def reactions_of(singular_values, misalignment, repeat=np.nan, rank=None):
    count = len(singular_values)
    xi = np.full((count + 1, count + 1), misalignment) * (1 - np.eye(count + 1))
    xi[-1] = xi[:, -1] = 0.9  # only those of single tasks count
    return Reactions(
        tasks=tuple(f"t{t}" for t in range(count)),
        initial=0.4,
        inputs={f"t{t}": 8 for t in range(count)},
        wanted=8,
        losses=np.ones(count),
        anchors=np.ones(count),
        slopes=np.ones(count),
        singular_values=np.array(singular_values),
        rank=count if rank is None else rank,
        sensitivities=np.ones((count + 1, 4)),
        misalignment=xi,
        repeat=np.full(count + 1, repeat),
        modules={"h.0.q": slice(0, 4)},
    )


@pytest.mark.parametrize(
    ("values", "misalignment", "says"),
    [
        ([8.0, 2.0], 0.75, "unevenly .* 4.0.* different directions .*0.75.*tara_a"),
        ([8.0, 2.0], 0.25, "unevenly .* much the same directions .*tara_a"),
        ([3.0, 2.0], 0.75, "about evenly .* different directions .*tara_a"),
        ([3.0, 2.0], 0.25, "about evenly .* much the same directions .*adamerging"),
    ],
)
def test_the_verdict_follows_its_rule(values, misalignment, says):
    assert re.search(
        says, verdict.of_reactions(reactions_of(values, misalignment)).text
    )


def test_the_verdict_knows_what_chance_gives():
    said = verdict.of_reactions(reactions_of([3.0, 2.0], 0.75, 0.3)).text
    assert "different directions (misalignment 0.75, 0.30 for one task on other" in said
    said = verdict.of_reactions(reactions_of([3.0, 2.0], 0.75, 0.8)).text
    assert "cannot be told (misalignment 0.75, 0.80 for one" in said
    assert said.endswith("take more batches")
    short = reactions_of([3.0, 2.0], 0.75, 0.8)._replace(wanted=128)
    assert verdict.of_reactions(short).text.endswith("take longer files of inputs")
    one = reactions_of([3.0, 2.0], 0.75)._replace(repeat=np.array([0.8, np.nan, 0.1]))
    assert "0.80 for one task on other inputs" in verdict.of_reactions(one).text
    said = verdict.of_reactions(reactions_of([3.0, 2.0], 0.25, 0.8)).text
    assert "much the same directions" in said


def test_a_jacobian_without_full_rank_is_uneven():
    said = verdict.of_reactions(reactions_of([8.0, 0.0, 0.0], 0.25, rank=1)).text
    assert "unevenly to steps of the coefficients (J has rank 1 of 3: they do n" in said
    assert "much the same directions" in said
    assert said.endswith("learn one for each direction (tara_a)")
    found = reactions_of([8.0, 7.0, 0.0], 0.25, 0.1, rank=2)
    h, xi, repeat = found.sensitivities.copy(), found.misalignment.copy(), found.repeat
    h[1], xi[1], xi[:, 1], repeat[1] = 0, 1, 1, 1  # as misalignment is defined there
    found = found._replace(sensitivities=h, misalignment=xi)
    said = verdict.of_reactions(found).text
    assert "J has rank 2 of 3: that of t1 does not move" in said
    assert "same directions (misalignment 0.25, 0.10 for one task on other" in said
    alone = reactions_of([8.0, 0.0], 1.0, rank=1)
    alone = alone._replace(sensitivities=np.array([[1.0] * 4, [0.0] * 4, [1.0] * 4]))
    said = verdict.of_reactions(alone).text
    assert "unevenly" in said
    assert "that of t1 does not move): one coeff" in said
    assert "misalignment" not in said


def test_a_jacobian_of_zeros_says_that_nothing_reacts():
    found = reactions_of([0.0, 0.0], 1.0, rank=0)
    found = found._replace(sensitivities=np.zeros((3, 4)))
    assert verdict.of_reactions(found).text.startswith("no loss reacts")


def test_no_full_rank_in_json_page_and_plot():
    found = reactions_of([8.0, 0.0], 0.25, rank=1)
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (values["rank"], values["condition"]) == (1, None)
    assert set(values["repeat"].values()) == {None}
    assert "<dt>condition number</dt><dd>-</dd>" in reactions_part(found)
    assert "<dt>rank of J</dt><dd>1</dd>" in reactions_part(found)
    assert reaction_plots(found)[0].alt.endswith("rank 1 of 2.")


def test_shares_of_a_sensitivity_and_of_none():
    found = reactions_of([2.0, 1.0], 0.5)
    h = np.array([[3.0, -6.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4])
    found = found._replace(sensitivities=h)
    np.testing.assert_allclose(found.shares[0], [0.6, 0.3, 0.1, 0])
    np.testing.assert_allclose(found.top_tenth, [0.6, 0, 0.25])
    assert found.tenth == 1
    wider = found._replace(sensitivities=np.ones((3, 11)))  # 1.1, rounded up
    np.testing.assert_allclose(wider.top_tenth, 2 / 11)
    for plots in (reaction_plots(found), reaction_plots(wider)):
        assert "if all mattered alike" in plots[1].alt
    assert "0.18 if all mattered alike" in reaction_plots(wider)[1].alt
    rows = preference_rows(found)  # of one batch, which has no halves
    assert rows[0] == ("t0", 1, 1, 1, np.sqrt(46), 0.6, None)
    assert rows[2] == ("all alike", None, None, None, 2, 0.25, None)
    for plot in reaction_plots(found):  # with a task that nothing moves
        assert "nan" not in plot.alt


def test_one_pass_takes_as_many_inputs_as_possible():
    def sizes(count, batch, batches):
        inputs = {"t": np.arange(count)}
        seen = one_pass(Unlabeled(inputs, (), {}, ()), batch, batches)
        rows = [some["t"] for some in seen if "t" in some]
        assert len(seen) == batches
        assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows))
        return [len(some) for some in rows]

    assert sizes(1, 16, 8) == [1]
    assert sizes(2, 16, 8) == [1, 1]
    assert sizes(16, 16, 8) == [8, 8]
    assert sizes(16, 16, 1) == [16]
    assert sizes(27, 4, 8) == [4] * 6
    assert sizes(128, 16, 8) == sizes(999, 16, 8) == [16] * 8
