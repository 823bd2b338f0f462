"""TIES in the spaces of KnOTS and Core Space, module by module and whole model."""

from functools import partial

import conditioning
import jax
import numpy as np
from documented import code_of
from golden import assert_close, project
from oracle import oracle

import jaxmerge as jm

ties = code_of("ties.md")
COMBINE = {"mean": jm.mean_of_agreeing, "sum": jm.sum_of_agreeing}


def mean_of_kept(matrices, **extra):
    return jm.mean_of_agreeing(matrices)


def sum_of_kept(matrices, **extra):
    return jm.sum_of_agreeing(matrices)


ELECT = {name: partial(jm.elect, combine=combine) for name, combine in COMBINE.items()}
RULES = {"ties": ELECT, "tv": {"mean": mean_of_kept, "sum": sum_of_kept}}
run_whole_model = jax.jit(ties.knots, static_argnames=("space", "rule"))


def ties_per_module(matrices, *, density, **extra):
    return jm.ties(matrices, density=density)


def singular_values(matrices) -> np.ndarray:
    """Those of KnOTS, from our coordinates: the norms of the rows of S V^T."""
    return np.sqrt(np.sum(np.square(np.asarray(matrices, np.float64)), axis=(0, 2)))


def density_in_knots(entry, coordinates) -> float:
    """KnOTS counts the entries of directions with s > 1e-5, an absolute cut."""
    counted = [
        int(np.sum(singular_values(block) > 1e-5)) * block.shape[2]
        for block, _ in coordinates.values()
    ]
    ours = sum(int(jm.knots.size(*each)) for each in coordinates.values())
    return ties.one_more(entry["topK"], sum(counted), of=ours)


def updates(merged) -> dict[str, np.ndarray]:
    return {name: np.asarray(jm.dense(update)) for name, update in merged.items()}


SPACES_OF_CORE = ("core.full/ties_*", "core.knots/ties_*", "core.core/ties_*")


def trimmed_alone(entry) -> bool:
    return not entry["isotropize"] and entry.has_dw


@oracle(*SPACES_OF_CORE, where=trimmed_alone)
def test_core_space_code(entry):
    """Module by module, k + 1 entries, always the mean, in all its spaces."""
    for dtype in entry.dtypes:
        merged = entry.merge_in(
            entry.space,
            ties_per_module,
            dtype,
            by=entry["scaling_coeffs"],
            each=lambda shape: {
                "density": ties.one_more(entry["topK"], shape[1] * shape[2])
            },
        )
        moves = entrywise_moves(entry, entry.space, merged)
        entry.check(merged, dtype, moves=moves)


def entrywise_moves(entry, space, merged):
    """How far rounding moves the update of a module, see `conditioning`."""
    stacks = entry.stacks()
    return lambda name: conditioning.merged_entrywise(space, stacks[name], merged[name])


def whole_model(entry, stacks, density):
    return run_whole_model(
        stacks,
        density=density,
        weight=float(np.ravel(entry["scaling_coeffs"])[0]),
        rule=RULES[entry["merge_method"]][entry["merging_type"]],
    )


KNOTS = ("knots.svd/t*", "core.svd/ties_*")


def in_our_basis(entry) -> bool:
    """Not those that need the stored one, transposed updates, or no trimming."""
    across = entry.get("concat_across_output", True)
    plain_sum = entry.name == "knots.svd/tv_sum_topK100"
    return entry.status == "unique" and across and not plain_sum


@oracle(*KNOTS, where=in_our_basis)
def test_knots(entry):
    """One threshold over all modules; of a list of scales only the first counts."""
    for dtype in entry.dtypes:
        stacks = entry.stacks(dtype)
        density = density_in_knots(entry, entry.coordinates(jm.knots, dtype))
        merged = updates(whole_model(entry, stacks, density))
        moves = entrywise_moves(entry, jm.knots, merged)
        entry.check(merged, dtype, moves=moves)


def spoiled_by_noise(entry) -> bool:
    isotropic = entry.get("isotropize")
    return entry.status == "not-unique" and not (entry.has_dw or isotropic)


@oracle(*KNOTS, "core.knots/ties_*", where=spoiled_by_noise)
def test_zero_adapter_does_not_count(entry):
    """In the official KnOTS space a zero adapter is rounding noise, and is counted.

    So the mean of agreeing values is not reproducible there. In ours its coordinates
    are exact zeros: it may as well be absent.
    """
    assert entry.get("merging_type", "mean").startswith("mean")
    (stack,) = entry.stacks().values()
    assert not np.any(stack.b[0])
    others = jm.AdapterStack(a=stack.a[1:], b=stack.b[1:], ranks=stack.ranks[1:])
    space = jm.knots_unscaled if entry.family == "core.knots" else jm.knots
    rule = RULES[entry["merge_method"]]["mean"]
    with_zero, without = (
        run_whole_model(
            {"": one},
            density=density_in_knots(entry, {"": project(jm.knots, one)}),
            space=space,
            rule=rule,
        )[""]
        for one in (stack, others)
    )
    assert_close(jm.dense(with_zero), jm.dense(without), 1e-9, entry.id)


def transposed(stack):
    swap = partial(np.swapaxes, axis1=1, axis2=2)
    return stack.replace(a=swap(stack.b), b=swap(stack.a))


@oracle("knots.svd/*_concatIn")
def test_knots_of_the_other_side(entry):
    """``concat_across_output=False`` is KnOTS of transposed updates.

    The official code reshapes instead of transposing back, and so works for square
    modules alone; ours has no such limit.
    """
    stacks = {name: transposed(stack) for name, stack in entry.stacks().items()}
    coordinates = {name: project(jm.knots, stack) for name, stack in stacks.items()}
    density = density_in_knots(entry, coordinates)
    merged = updates(whole_model(entry, stacks, density))
    if entry.has_dw:
        entry.check({name: update.T for name, update in merged.items()})
        return
    assert "pdb" in entry.raises
    for name, stack in entry.stacks().items():
        assert merged[name].T.shape == (stack.b.shape[1], stack.a.shape[2])
        assert np.all(np.isfinite(merged[name]))
        assert np.any(merged[name])
