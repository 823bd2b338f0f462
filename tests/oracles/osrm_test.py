"""OSRM's official code: rows of A, the projection after training, mean features."""

import conditioning
import jax
import jax.numpy as jnp
import numpy as np
from golden import assert_close, least
from oracle import oracle

import jaxmerge as jm


def features(entry):
    """The feature rows that the official code stacks, all of one weight."""
    prefix = entry["X"].removesuffix("*")
    arrays = entry.case.arrays
    names = sorted(name for name in arrays if name.startswith(prefix))
    return np.concatenate([arrays[name] for name in names]).astype(np.float64)


@oracle("osrm.A/*")
def test_rows(entry):
    """Theirs are the last right singular vectors: a choice of LAPACK's if x is short.

    Ours are compared as a projector where the official rows are unique, and by what
    they must satisfy everywhere; the official rows must satisfy it too.
    """
    x, rank = features(entry), entry["rank"]
    official, projector = entry.read("A"), entry.read("P")
    assert_close(projector, official.T @ official, 1e-5)
    n = x.shape[1]
    exact = np.zeros(n)
    exact[: len(entry.peek("sv"))] = np.linalg.svd(x, compute_uv=False)
    moments = jm.moments_of(jnp.asarray(x))
    values, _ = jm.spectrum(moments)
    sizes = np.sqrt(np.asarray(values[::-1]) * len(x))[: len(entry.peek("sv"))]
    assert_close(sizes, entry.read("sv"), 1e-6)
    ours = jm.osrm_init(jax.tree.map(lambda x: x[None], moments), rank=rank)
    rows = {"ours": ours, "official": official}
    if len(x) + rank <= n:  # the rows are in a null space larger than themselves
        rows["random"] = jm.osrm_null_space(
            jnp.asarray(x), rank=rank, key=jax.random.key(0)
        )
    if len(x) > n - rank:
        moves = conditioning.projector(exact, rank) / np.linalg.norm(projector)
        tolerance = least(np.float64) + conditioning.rounding(moves)
        assert_close(ours.T @ ours, projector, tolerance)
    least_energy = np.sum(exact[n - rank :] ** 2)
    for name, a in rows.items():
        a = np.asarray(a, np.float64)
        assert_close(a @ a.T, np.eye(rank), 2e-6, name)
        energy = np.linalg.norm(x @ a.T) ** 2
        assert abs(energy - least_energy) < 1e-6 * np.linalg.norm(x) ** 2, name


@oracle("osrm.B")
def test_projection_after_training(entry):
    """The official product is in bfloat16: eight bits."""
    arrays = entry.case.arrays
    update = jnp.asarray(arrays["in/osrm_B/W"] - arrays["in/osrm_B/W0"], jnp.float64)
    official = entry.read("A").astype(np.float64)
    ours = jm.osrm_project(update, jnp.asarray(official))
    assert_close(ours.b, entry.read("B"), 8e-3, entry.id)
    assert_close(jm.dense(ours), update @ official.T @ official, 1e-5)


@oracle("osrm.features")
def test_mean_features(entry):
    """Theirs is the mean times N / (N - 1) for N batches: the same null space.

    It rounds its means to bfloat16, eight bits.
    """
    arrays = entry.case.arrays
    for task in range(2):
        batches = [
            jnp.asarray(arrays[f"in/osrm_feat/{task}/{i}"], jnp.bfloat16)
            for i in range(3)
        ]
        moments = jm.moments_of(batches[0])
        for batch in batches[1:]:
            moments = jm.merge_moments(moments, jm.moments_of(batch))
        official = entry.read(f"feat/task{task}")
        assert_close(moments.mean[None] * 3 / 2, official, 4e-3, entry.id)
