"""Numbers of tasks that differ from module to module."""

import re

import jax
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.spec.layerwise import depths

RNG = np.random.default_rng(0)
MODULES = [f"h.{layer}.{part}" for layer in range(3) for part in ("attn", "mlp")]
RISING = [0.2, 0.8]
SETTINGS = [RISING, [{"filter": "attn", "value": [1, 0, 2]}, {"value": -0.5}], 0.5]


def adapters(ranks):
    pairs = [
        (RNG.normal(size=(5, r)), RNG.normal(size=(r, 4))) if r else None for r in ranks
    ]
    return jm.stack_adapters(pairs)


@pytest.fixture(scope="module")
def stacks():
    made = {module: adapters((2, 1, 2)) for module in MODULES}
    made["h.1.mlp"] = adapters((2, 0, 1))  # a task that is absent
    return made


def close(found, expected):
    for module in expected:
        ours, theirs = jm.dense(found[module]), jm.dense(expected[module])
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def interpolated(numbers, layer, layers):
    """As mergekit interpolates."""
    scaled = layer / (layers - 1) * (len(numbers) - 1)
    first = int(scaled)
    second = min(len(numbers) - 1, first + 1)
    return (1 - scaled + first) * numbers[first] + (scaled - first) * numbers[second]


@pytest.mark.parametrize("numbers", [[0.3], [0.2, 0.8], [1.0, 0.0, 2.0], [4, 3, 2, 1]])
@pytest.mark.parametrize("layers", [2, 3, 7])
def test_layers_are_interpolated_as_in_mergekit(numbers, layers):
    modules = [f"model.layers.{layer}.mlp" for layer in range(layers)]
    found = jm.module_values([numbers], modules)
    for layer, module in enumerate(modules):
        expected = interpolated(numbers, layer, layers)
        assert found[module] == pytest.approx([expected], abs=1e-12)


def test_each_stack_of_layers_has_its_own_depth():
    names = ["vision.layers.1.q", "vision.layers.3.q", "text.layers.1.q", "one.0.q"]
    assert list(depths(names).values()) == [1 / 3, 1.0, 1.0, 1.0]
    assert jm.layer_of("h.11") == ("h", 11)
    assert jm.layer_of("0.fc") == ("", 0)
    assert jm.layer_of("conv2d.fc1") is None


@pytest.mark.parametrize("text", ["concat", "total|core"])
def test_a_merge_takes_the_weights_of_each_module(stacks, text):
    """As if each module were merged by itself."""
    pipeline, values = jm.parse(text), jm.module_values(SETTINGS, stacks)
    alone = {
        m: pipeline.run({m: s}, weights=values[m].tolist())[m]
        for m, s in stacks.items()
    }
    close(pipeline.run(stacks, weights=SETTINGS), alone)
    close(pipeline.run(stacks, weights=values), alone)
    close(pipeline.run(stacks, weights=lambda module: values[module]), alone)


def test_equal_weights_of_modules_are_those_of_all(stacks):
    pipeline = jm.parse("elect|trim_whole_model(density=0.5)|full")
    same = {module: [0.5, 2.0, -1.0] for module in stacks}
    close(
        pipeline.run(stacks, weights=same),
        pipeline.run(stacks, weights=same["h.0.mlp"]),
    )


def test_very_large_weights_of_modules(stacks):
    large = {m: [1e30, 2e30, 0.0] for m in stacks}
    found = jm.parse("concat|scale(1e-30)").run(stacks, weights=large)
    close(found, jm.parse("concat").run(stacks, weights=[1.0, 2.0, 0.0]))


STEPS = ["ties", "elect|trim", "elect|trim_whole_model", "total|dare", "total|della"]


@pytest.mark.thorough
@pytest.mark.parametrize("step", STEPS)
def test_one_density_of_each_is_the_density_of_all(stacks, step):
    key = jax.random.key(0)
    each = jm.parse(f"{step}(density=each)|full")
    same = jm.parse(f"{step}(density=0.5)|full").run(stacks, key=key)
    close(each.run(stacks, densities=[0.5] * 3, key=key), same)


def test_each_task_keeps_its_own_share():
    matrix = RNG.normal(size=(2, 6, 10))
    stack = jm.stack_adapters([(m, np.eye(10)) for m in matrix])
    pipeline = jm.parse("total|trim(density=each)|full")
    for other, share in ((0, 0.29), (1, 0.5)):
        weights, densities = [1.0, 1.0], [0.1, 0.1]
        weights[other], densities[1 - other] = 0.0, share
        found = pipeline.run({"a": stack}, weights=weights, densities=densities)["a"]
        assert int((np.asarray(found) != 0).sum()) == int(share * 60 + 1e-9)


def test_densities_may_differ_between_modules(stacks):
    pipeline = jm.parse("ties(density=each)|core")
    settings = [[0.2, 1.0], 0.5, [{"filter": "mlp", "value": 0.3}, {"value": 0.9}]]
    values = jm.module_values(settings, stacks)
    alone = {
        m: pipeline.run({m: s}, densities=values[m].tolist())[m]
        for m, s in stacks.items()
    }
    close(pipeline.run(stacks, densities=settings), alone)


def test_biases_have_the_weights_of_their_module(stacks):
    biases = {m: jax.numpy.ones((3, 5)) for m in ("h.0.mlp", "h.2.mlp")}
    found = jm.parse("concat|scale(2)").merge_biases(
        biases, stacks, weights=[RISING, 1.0, 0.0]
    )
    assert found["h.0.mlp"][0] == pytest.approx(2.4)
    assert found["h.2.mlp"][0] == pytest.approx(3.6)


REFUSED = [
    ({"weights": [0.5, [], 1]}, "weights[1]: an empty list"),
    ({"weights": [0.5, "1", 1]}, "got '1'"),
    ({"weights": [0.5, [1, True], 1]}, "got True"),
    ({"weights": [[float("nan"), 1], 1, 1]}, "expected a finite number"),
    ({"weights": [[0, 1], 1]}, "2 weights for 3 adapters"),
    ({"weights": [[{"filter": "atn", "value": 1}], 1, 1]}, "did you mean 'attn'?"),
    ({"weights": [[{"filter": "attn", "value": 1}], 1, 1]}, "no condition fits module"),
    ({"weights": [[{"fliter": "attn", "value": 1}], 1, 1]}, "did you mean 'filter'?"),
    ({"weights": [[{"filter": "attn"}], 1, 1]}, "without its value"),
    ({"weights": [[{"value": 1}, 2], 1, 1]}, "write {value: 2} at the end"),
    ({"weights": {"h.0.mlp": [1, 1, 1]}}, "none are given for module 'h.0.attn'"),
    ({"weights": lambda _: [1.0]}, "1 weights for 3 adapters"),
    ({"densities": [0.5] * 3}, "asks for no density of each task"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_says_no_number_of_each_task_is_refused(stacks, given, said):
    with pytest.raises(jm.Refusal, match=re.escape(said)):
        jm.parse("concat").run(stacks, **given)


def test_a_module_outside_of_all_layers_needs_a_number():
    with pytest.raises(jm.Refusal, match=re.escape("{filter: lm_head, value: ..}")):
        jm.module_values([[0, 1]], ["h.0.fc", "lm_head"])


@pytest.mark.parametrize(
    ("text", "densities", "said"),
    [
        ("ties(density=each)|core", None, "takes a density of each task; give"),
        ("ties(density=each)|core", [0.5, 0.5, 0.0], "expected numbers in (0, 1]"),
        ("elect|trim_whole_model(density=each)|full", [[0.1, 0.2], 0.5, 0.5], "differ"),
        (
            "elect|trim(density=each)|trim(density=each)|full",
            [0.5] * 3,
            "write a number",
        ),
        ("total|della(density=each)|full", [0.01, 0.5, 0.5], "outside (0, 1]"),
    ],
)
def test_densities_that_no_step_can_use(stacks, text, densities, said):
    with pytest.raises(jm.Refusal, match=re.escape(said)):
        jm.parse(text).run(stacks, densities=densities, key=jax.random.key(0))


def test_a_rule_needs_one_of_density_and_densities():
    matrices = jax.numpy.ones((2, 2, 2))
    for given in ({"density": None}, {"density": 0.5, "densities": [0.5, 0.5]}):
        with pytest.raises(jm.Refusal, match="needs the share of entries to keep"):
            jm.ties(matrices, **given)
