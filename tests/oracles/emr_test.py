"""EMR: the unified update, its masks and its rescalers over the model."""

import jax
import numpy as np
from golden import assert_close
from oracle import oracle

import jaxmerge as jm

emr_parts = jax.jit(jm.emr_parts)


@oracle("tara.EMR", "fusion.emr")
def test_emr(entry):
    """TARA and FusionBench differ where the sum is exactly 0: nowhere in these."""
    for dtype in entry.dtypes:
        by = entry.get("scaling_factor", 1.0)
        entry.check(entry.merge_in(jm.full, jm.emr, dtype, by=by), dtype)
        if "rescalers" in entry.quantities:
            check_parts(entry, dtype)


def check_parts(entry, dtype):
    coordinates = entry.coordinates(jm.full, dtype)
    parts = {name: emr_parts(matrices) for name, (matrices, _) in coordinates.items()}
    rescalers, official = np.asarray(jm.emr_rescalers(parts)), entry.read("rescalers")
    zero = [not np.any(task) for task in next(iter(coordinates.values()))[0]]
    assert np.array_equal(np.isnan(official), zero)  # 0 / 0: ours is 0
    official = np.where(zero, 0, official)
    assert_close(rescalers, official, entry.tolerance(dtype), entry.id)
    for name, part in parts.items():
        if entry.has(f"mask/{name}"):
            assert np.array_equal(part.masks, entry.read(f"mask/{name}"))


def test_ties_of_the_sign():
    """A sum of exactly 0 is negative, as in FusionBench; TARA has + there."""
    cancelling = np.array([[[2.0]], [[-2.0]]])
    assert jm.emr(cancelling)[0, 0] == -2
