"""Every public function refuses arrays of other shapes, or says why it takes none.

`doors_test` tries rules, mergers and posts in more detail. Nothing is compiled here: a
refusal comes before any arithmetic.
"""

import jax
import pytest
from other_shapes import CALLS, MODEL, ROW, STACK

import jaxmerge as jm

WITHOUT = {
    "files, options and text": {
        *("merge", "learn", "evaluate", "check", "collect", "inspect", "plan"),
        *("convert", "verify", "parse", "register_step", "tune", "bake", "extract"),
        *("cluster", "compress", "restore"),
        *("run_recipe", "recipe_of", "recipe_text", "push", "layer_of"),
        "module_values",
    },
    "a type, checked where it is used": {
        *("AdapterStack", "Calibration", "Learned", "LowRank", "Merger", "Post"),
        *("ModelMerger", "Rule", "Space", "Update", "EmrParts", "Moments", "Sketch"),
        *("ModelSample", "Taught", "ReversibleMerge", "RoutedCores", "Router"),
        *("AdaptedHead", "TopTokens"),
    },
    "a result or an error": {
        *("Fitted", "History", "Progress", "Start", "Refusal", "PipelineError"),
        "CompressionCurve",
    },
    "a space: in_space checks what it is given": {
        *("core", "full", "knots", "knots_unscaled", "compressed"),
    },
    "numbers and devices alone": {
        "kaiming_init",
        "module_mesh",
        "data_mesh",
        "by_rules",
    },
    "functions; entropy checks what they give": {
        *("entropies", "information", "token_entropies"),
    },
    "a model and its batches; moments_of and check_mask check what passes through": {
        *("collect_inputs", "collector"),
    },
    "optimisers, for any pytree": {"decay_to_start", "tail_average"},
    "packages": {"diagnostics", "io", "linalg", "models", "reports", "tasks"},
}


def test_every_public_name_is_checked_or_needs_none():
    without = [name for names in WITHOUT.values() for name in names]
    assert sorted([*CALLS, *without]) == sorted(jm.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_other_shapes_are_refused(name):
    assert len(CALLS[name]) > 0
    for call in CALLS[name]:
        with pytest.raises(
            ValueError, match=r"takes|expected|other|no task|alike|merged|only"
        ):
            call()


def test_a_rule_gives_one_matrix():
    for merger in (jm.core_space, jm.full_space):
        with pytest.raises(jm.Refusal, match="a rule makes one matrix"):
            merger(lambda matrices, **_: matrices)(STACK)
    whole = jm.trim_whole_model(lambda x, **_: x, jm.full, density=0.5)
    with pytest.raises(jm.Refusal, match="a rule makes one matrix"):
        whole(MODEL)


def test_the_checks_work_under_jit():
    with pytest.raises(jm.Refusal, match=r"values \[T\], preference \[T\]"):
        jax.jit(jm.smooth_tchebycheff)(ROW, preference=ROW[:2])
    assert jax.jit(jm.smooth_tchebycheff)(ROW, preference=ROW) > 0
