"""Merges that differ in a density are one program, and the merges that they were."""

import cli_samples
import jax
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.jobs.merge_recipe import MergeRecipe
from jaxmerge.jobs.tuning_scores import model_scores
from jaxmerge.spec import parse
from jaxmerge.spec.varied import density_apart
from jaxmerge.tuning.families import Point

TEXT = "elect|trim(density={})|core|scale(0.5)"
DENSITIES = (0.2, 0.29, 0.5, 0.85)


def recipe(point, seed):
    return MergeRecipe(parse(point.pipeline), seed=seed)


@pytest.mark.thorough
def test_densities_share_the_program_of_the_merge(tmp_path):
    adapters = jm.io.load_peft(cli_samples.three(tmp_path))
    seen, programs = [], []

    def measure(updates, factors):
        seen.append({m: np.asarray(jm.dense(x)) for m, x in updates.items()})
        programs.append(len(jax.devices()[0].client.live_executables()))
        return [dict.fromkeys(adapters.names, 1.0) for _ in factors]

    shares = dict.fromkeys(adapters.names, 1 / 3)
    evaluate = model_scores(recipe, adapters, measure, shares, (0,), masked=False)
    points = [Point(TEXT.format(density)) for density in DENSITIES]
    assert len(list(evaluate(points))) == len(points)
    assert programs == programs[:1] * len(points)
    for density, found in zip(DENSITIES, seen, strict=True):
        expected = parse(TEXT.format(density)).run(adapters.stacks)
        for module, update in expected.items():
            right = np.asarray(jm.dense(update)) / 0.5
            np.testing.assert_allclose(found[module], right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["concat", "tsv|core", "elect|trim(density=0.5)|dare(density=0.2)|core",
     "elect|trim(density=each)|core"],
)  # fmt: skip
def test_what_has_no_one_density_stays_as_it_is(text):
    assert density_apart(parse(text)) == (parse(text), None)


def test_other_arguments_stay_beside_the_density():
    apart, density = density_apart(parse("elect|della(density=0.4, epsilon=0.1)|core"))
    assert (density, apart.each) == (0.4, True)
    assert "epsilon=0.1" in apart.text
