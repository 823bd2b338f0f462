"""Sparsification and dropping of entries: PEFT, mergekit and what DARE promises."""

from functools import cache, partial

import conditioning
import jax
import jax.numpy as jnp
import numpy as np
from documented import code_of
from golden import assert_close, truncated
from oracle import oracle

import jaxmerge as jm

ties = code_of("ties.md")
SIGN = {"sum": ties.plus_at_zero, "count": jm.sign_of_count}
NORMS = {
    "l1": lambda x: jnp.sum(jnp.abs(x)),
    "l2": lambda x: jnp.sqrt(jnp.sum(jnp.square(x))),
    "linf": lambda x: jnp.max(jnp.abs(x)),
}


def pruned(entry, scaled=False) -> dict:
    """Exactly ``int(density * size)`` entries; weights may come before or after."""
    weights, prune = np.asarray(entry["weights"]), prune_to(entry["density"])
    return {
        dtype: entry.merge(prune, dtype, scaled=scaled, weights=weights)
        for dtype in entry.dtypes
    }


@cache
def prune_to(density: float):
    return jm.full_space(jm.trim(jm.total, density=density))


@oracle("peft.fn.magnitude_prune/*")
def test_magnitude_prune(entry):
    for dtype, updates in pruned(entry).items():
        entry.check(updates, dtype)


@oracle("peft.awa.magnitude_prune_svd/*")
def test_magnitude_prune_svd(entry):
    rank, merged = max(entry.case.ranks), pruned(entry, scaled=True)
    for dtype, updates in merged.items():
        entry.check(
            {name: truncated(update, rank) for name, update in updates.items()},
            dtype,
            moves=lambda name: conditioning.truncation(merged[np.float64][name], rank),
        )


@partial(jax.jit, static_argnames=("norm",))
def without_outliers(matrix, density, top, norm=None):
    """The largest entries but for the ``top`` share of them, at the old norm."""
    (result,) = jm.keep_largest(matrix[None], density)
    result = result - jm.keep_largest(matrix[None], top)[0]
    if norm is None:
        return result
    size = NORMS[norm](result)
    return result * (NORMS[norm](matrix) / jnp.where(size > 0, size, 1))


def sparsify(entry, matrix, *, norm=None):
    """mergekit's ``magnitude`` and ``magnitude_outliers``, by two trimmings."""
    size = matrix.size
    top = int(size * entry.get("gamma", 0.0))
    count = int(size * entry["density"]) + top
    share = ties.keeping(top, size) if top else 0.0
    return without_outliers(matrix, ties.keeping(count, size), share, norm)


@oracle("mergekit.sparsify/*", where=lambda entry: entry.get("gamma") != 0)
def test_sparsify(entry):
    for dtype in entry.dtypes:
        merged = {}
        for name, (matrices, _) in entry.coordinates(jm.full, dtype).items():
            norm = entry.get("rescale_norm")
            merged[name] = np.asarray(
                sparsify(entry, matrices[entry["task"]], norm=norm)
            )
        entry.check(merged, dtype)


@oracle("mergekit.sparsify/outliers_gamma0")
def test_sparsify_without_outliers(entry):
    """Without outliers to drop the official code drops everything; ours trims."""
    for name, (matrices, _) in entry.coordinates(jm.full).items():
        assert not np.any(entry.read(f"dW/{name}"))
        matrix = matrices[entry["task"]]
        ours = np.asarray(sparsify(entry, matrix))
        assert np.count_nonzero(ours) == int(matrix.size * entry["density"])


GTA = ("mergekit.gta/ties_*", "mergekit.gta/breadcrumbs_*")


@oracle(*GTA, where=lambda entry: entry["rescale"] or entry.get("gamma"))
def test_rescaled_and_breadcrumbs(entry):
    """Sparsify, rescale to the old L1 norm, then weights and consensus."""
    norm = "l1" if entry["rescale"] else None
    for dtype in entry.dtypes:
        weights = np.asarray(entry["w"], dtype)
        merged = {}
        for name, (matrices, _) in entry.coordinates(jm.full, dtype).items():
            sparse = jnp.stack([sparsify(entry, x, norm=norm) for x in matrices])
            combined = combine(sparse, weights, entry["consensus"], entry["normalize"])
            merged[name] = entry["lam"] * np.asarray(combined)
        entry.check(merged, dtype)


@partial(jax.jit, static_argnums=(2, 3))
def combine(sparse, weights, consensus, normalize):
    if consensus is None:
        return jm.total(sparse * weights[:, None, None])
    options = {"sign": SIGN[consensus], "normalize": normalize}
    return ties.mergekit(sparse, weights=weights, density=1.0, **options)


@oracle("mergekit.mask/*")
def test_consensus_mask(entry):
    """Where a weighted task has the elected sign, which `elect` hands to combine."""
    weights = np.asarray(entry["weights"])[:, None, None]
    for name, (matrices, _) in entry.coordinates(jm.full).items():
        sign = SIGN[entry["method"]]
        agreeing = jm.elect(matrices * weights, sign=sign, combine=lambda x: x != 0)
        assert np.array_equal(agreeing, entry.read(f"mask/{name}"))


@oracle("mergekit.della_probs/*")
def test_probabilities_of_della(entry):
    for dtype in entry.dtypes:
        for name, (matrices, _) in entry.coordinates(jm.full, dtype).items():
            probabilities = jm.della_probabilities(
                matrices[entry["task"]],
                density=entry["density"],
                epsilon=entry["epsilon"],
            )
            assert probabilities.dtype == dtype
            assert_close(probabilities, entry.read(f"probs/{name}"), 1e-6, entry.id)


DRAWS = 4000


@oracle("peft.dare/*")
def test_dare_of_peft(entry):
    """Mean and spread over many draws, within five standard errors of both."""
    (name,) = entry.modules
    matrices, _ = entry.coordinates(jm.full, np.float32)[name]
    weights = jnp.asarray(entry["weights"], jnp.float32)

    def linear(thinned, **extra):
        return jm.total(thinned * weights[:, None, None])

    def elected(thinned, **extra):
        return ties.peft(thinned, weights=weights, density=1.0)

    thin = jm.dare(
        {"dare_linear": linear, "dare_ties": elected}[entry.name.split("/")[1]],
        density=entry["density"],
    )
    keys = jax.random.split(jax.random.key(0), DRAWS)
    draws = jax.jit(jax.vmap(lambda key: thin(matrices, key=key)))(keys)
    draws = np.asarray(draws, np.float64)
    mean, spread = np.mean(draws, axis=0), np.std(draws, axis=0)
    official_mean, official_spread = (
        entry.read(f"{what}/{name}") for what in ("mean", "std")
    )
    error = np.sqrt(spread**2 / DRAWS + official_spread**2 / entry["n_draws"])
    assert np.max(np.abs(mean - official_mean) / error) < 5
    assert np.max(np.abs(spread / official_spread - 1)) < 0.1
    if entry.name == "peft.dare/dare_linear":
        exact = np.einsum("t,tmn->mn", np.asarray(weights), np.asarray(matrices))
        assert np.max(np.abs(mean - exact) / (spread / np.sqrt(DRAWS))) < 5


@oracle("core.full/dare_probe")
def test_dare_alone(entry):
    """The official method fails; ours needs a key and changes with it alone."""
    assert "lmc" in entry.raises
    merger = jm.full_space(jm.dare(jm.total, density=0.5))
    for stack in entry.stacks().values():
        first, again, other = (
            merger(stack, key=jax.random.key(seed)) for seed in (0, 0, 1)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert np.all(np.isfinite(first))
