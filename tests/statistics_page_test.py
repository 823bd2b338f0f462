"""The page on statistics: its commands and its code, as readers see them."""

import re
import shlex
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_samples import document, succeed, updates_of
from documented import DOCS, code_of
from methods import distance, random_stack
from statistics_samples import QUERY

import jaxmerge as jm

pytest_plugins = ["statistics_fixtures"]
PAGE = "statistics.md"
page = code_of(PAGE)


@pytest.mark.thorough
@pytest.mark.usefixtures("as_a_user")
def test_the_commands_of_the_page(place, monkeypatch):
    shutil.rmtree(place / "stats")
    (place / "in").rename(place / "runs")
    monkeypatch.chdir(place)
    lines = re.findall(r"^\$ jaxmerge (.*)$", (DOCS / PAGE).read_text(), re.M)
    assert len(lines) == 8
    for line in lines:
        succeed(*shlex.split(line))
    for merged in ("small", "rounds", "taught"):
        assert document("verify", merged)["identical"]
    assert updates_of(place / "small").keys() == updates_of(place / "merged").keys()
    rows = page.osrm_rows("before", ["dtd"], 2)[QUERY]
    others = jm.io.open_statistics("before").of(["dtd"]).load()[QUERY]
    quietest = np.linalg.eigvalsh(others.gram[0])[:2].sum()
    assert np.trace(rows @ others.gram[0] @ rows.T) == pytest.approx(quietest, abs=1e-3)


def test_any_model_can_be_measured_from_python(tmp_path):
    model = nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(4)])
    rng = np.random.default_rng(0)
    batches = {
        task: [jnp.asarray(rng.normal(size=(9, 6)), jnp.float32) for _ in range(2)]
        for task in "ab"
    }
    params = model.init(jax.random.key(0), batches["a"][0])
    modules = ["layers_0", "layers_2"]
    statistics = page.measured(model.apply, params, batches, modules)
    stacks = {
        "layers_0": random_stack((2, 3), 5, 6, dtype=np.float32),
        "layers_2": random_stack((2, 3), 4, 5, seed=1, dtype=np.float32),
    }
    merged = page.merged(tmp_path / "stats", stacks, ["b", "a"], statistics)
    stacked = jm.stack_moments([statistics["b"], statistics["a"]])
    in_pieces = page.merged_in_pieces(stacks, stacked)
    for name in modules:
        expected = jm.regmean(stacks[name], stats=stacked[name], ridge=0.01)
        assert distance(jm.dense(merged[name]), jm.dense(expected)) < 1e-5
        assert distance(jm.dense(in_pieces[name]), jm.dense(expected)) < 1e-5
