"""A tiny language model, learned block by block."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from fit_problem import adamw
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.learning import blockwise
from jaxmerge.learning.checkpoint import CheckpointError
from jaxmerge.models import DecoderConfig, decoder_blocks, init_decoder

CONFIG = DecoderConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
)
MODEL, TASKS = decoder_blocks(CONFIG), ("math", "code")
SHAPES = {"q_proj": (8, 8), "o_proj": (8, 8)}
MODULES = [f"model.layers.{i}.self_attn.{x}" for i in (0, 2) for x in SHAPES]
RNG = np.random.default_rng(0)


def make_params():
    shapes = jax.eval_shape(partial(init_decoder, CONFIG), jax.random.key(0))
    return jax.tree.map(
        lambda x: RNG.normal(scale=0.5, size=x.shape).astype(np.float32), shapes
    )


def make_stacks(tasks):
    def pair(shape):
        b, a = RNG.normal(size=(shape[0], 2)), RNG.normal(size=(2, shape[1]))
        return 0.2 * b, a

    return {
        name: jm.stack_adapters(
            [pair(SHAPES[name.rpartition(".")[2]]) for _ in tasks], dtype=np.float32
        )
        for name in MODULES
    }


def make_inputs(task):
    mask = np.ones((6, 5), np.int32)
    mask[::2, 3:] = 0
    ids = RNG.integers(0, 20, (6, 5), np.int32)
    return {"input_ids": ids, "attention_mask": mask}


PARAMS, STACKS = make_params(), make_stacks(TASKS)
INPUTS = {task: make_inputs(task) for task in TASKS}
THOROUGH = pytest.mark.thorough
WAYS = {
    "fit": partial(jm.fit_blocks, optimizer=adamw(0.05), steps=20, batch=3, search=2),
    "solve": partial(jm.solve_blocks, batch=4),
}


def learn(way, learned, tasks=TASKS, stacks=STACKS, **options):
    inputs = {task: INPUTS[task] for task in tasks}
    given = (learned, tasks, stacks, MODEL, inputs)
    return WAYS[way](*given, params=PARAMS, **options)


@pytest.mark.parametrize("way", in_turn([*WAYS], quick=1))
def test_each_block_comes_nearer_to_its_teachers(way):
    """Gradients begin at the best scale of task arithmetic, and pass it."""
    reports = []
    found = learn(way, jm.tara_b(), report=reports.append)
    assert found.updates.keys() == STACKS.keys()
    assert [(p.step, p.steps) for p in reports] == [(1, 2), (2, 2)]
    objective, losses = found.history
    assert losses.shape == (*objective.shape, len(TASKS))
    assert (objective[:, -1] < objective[:, 0]).all()
    assert (losses > 0).all()


@pytest.mark.parametrize("way", [pytest.param("fit", marks=THOROUGH), "solve"])
def test_one_adapter_is_its_own_merge(way):
    stacks = {
        name: stack.replace(a=stack.a[:1], b=stack.b[:1], ranks=(2,))
        for name, stack in STACKS.items()
    }
    options = {"optimizer": optax.sgd(0.1), "search": 0} if way == "fit" else {}
    found = learn(way, jm.tara_a(initial=1.0), TASKS[:1], stacks, **options)
    for phi in found.phis.values():
        np.testing.assert_allclose(phi, 1, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("way", [pytest.param("fit", marks=THOROUGH), "solve"])
def test_what_was_stopped_goes_on_with_the_same_bits(way, tmp_path):
    """After the first of two blocks, which is not learned again."""
    whole = learn(way, jm.tara_a())

    def stop(progress):
        raise KeyboardInterrupt

    again = partial(learn, way, jm.tara_a(), checkpoint=tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        again(report=stop)
    reports = []
    found = again(report=reports.append)
    assert [progress.step for progress in reports] == [2]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(CheckpointError, match="differs in its"):
        again(batch=2)
    with pytest.raises(CheckpointError, match="another"):
        learn(way, jm.tara_b(), checkpoint=tmp_path / "work")


def test_blocks_of_one_shape_share_their_programs(monkeypatch):
    made = []
    program_of = blockwise.program_of

    def counted(*args, **options):
        made.append(program_of(*args, **options))
        return made[-1]

    monkeypatch.setattr(blockwise, "program_of", counted)
    learn(
        "fit",
        jm.tara_a(),
    )
    (program,) = made
    assert program.run._cache_size() == 1
