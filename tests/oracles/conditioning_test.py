"""Tolerances from conditions: wide enough for any rounding, too narrow for errors."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import conditioning
import golden
import jax
import numpy as np
import pytest
from golden import distance, least
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.linalg import decompositions

DRAWS = 6


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_truncation_moves_as_far_as_noise_moves_it(rank):
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(8, 6)), 1e-9
    x += 0.9 * (rng.normal(size=(8, 1)) @ rng.normal(size=(1, 6)))

    def cut(x):
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vt[:rank]

    moved = [
        np.linalg.norm(cut(x + noise * rng.normal(size=x.shape)) - cut(x))
        for _ in range(50)
    ]
    bound = noise * conditioning.truncation(x, rank, size=1.0)
    assert 0.5 * bound < np.sqrt(np.mean(np.square(moved))) < 4 * bound


@pytest.mark.parametrize(("rows", "rank"), [(9, 2), (9, 4), (5, 2)])
def test_projectors_move_as_far_as_noise_moves_them(rows, rank):
    rng = np.random.default_rng(1)
    n, noise = 6, 1e-9
    x = rng.normal(size=(rows, n)) * 0.6 ** np.arange(n)
    values = np.zeros(n)
    values[: min(rows, n)] = np.linalg.svd(x, compute_uv=False)

    def last(x):
        vectors = np.linalg.svd(x)[2][n - rank :]
        return vectors.T @ vectors

    moved = [
        np.linalg.norm(last(x + noise * rng.normal(size=x.shape)) - last(x))
        for _ in range(50)
    ]
    bound = noise * conditioning.projector(values, rank) / values[0]
    assert 0.2 * bound < np.sqrt(np.mean(np.square(moved))) < 2 * bound


def test_polar_factors_move_as_far_as_noise_moves_them():
    rng = np.random.default_rng(2)
    x, noise = rng.normal(size=(9, 4)) * 0.4 ** np.arange(4), 1e-9

    def polar(x):
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        return u @ vt

    moved = [
        distance(polar(x + noise * rng.normal(size=x.shape)), polar(x))
        for _ in range(50)
    ]
    values = np.linalg.svd(x, compute_uv=False)
    bound = noise * conditioning.polar(values) / values[0]
    assert 0.5 * bound < np.sqrt(np.mean(np.square(moved))) < 4 * bound


class Example(NamedTuple):
    """A merge that depends on singular directions, of the adapters of a case."""

    case: str
    merger: Callable[[int | None], jm.Merger]
    moves: Callable[..., float]
    rank: int | None = None


@cache
def cart(rank):
    def rule(matrices, **extra):
        fraction = rank / min(matrices.shape[1:])
        return jm.cart(matrices, rank_fraction=fraction, by=1.0)

    return jm.knots_unscaled_space(rule)


@cache
def truncated(rank):
    return jm.then(jm.concat, partial(jm.truncate, rank=rank))


@cache
def tsv(rank):
    def rule(matrices, **extra):
        return jm.tsv(matrices, ranks=(rank,) * len(matrices))

    return jm.full_space(rule)


def ties_in(space):
    merger = jm.in_space(space, partial(jm.ties, density=0.2))
    return lambda _: merger


def cart_moves(stack, update, rank):
    return conditioning.cart(jm.knots_unscaled, stack, rank=rank, by=1.0)


def truncation_moves(stack, update, rank):
    return conditioning.truncation(np.sum(np.matmul(stack.b, stack.a), axis=0), rank)


def tsv_moves(stack, update, rank):
    return conditioning.tsv(jm.full, stack, ranks=(rank,) * len(stack.b))


def entrywise_moves_in(space):
    return lambda stack, update, _: conditioning.merged_entrywise(space, stack, update)


CUT = {
    "cart of nearly equal values": Example("d_hetero", cart, cart_moves, 1),
    "cart with a zero adapter": Example("e_deficient", cart, cart_moves, 1),
    "cart of two directions": Example("c_overfull", cart, cart_moves, 2),
    "cart of square updates": Example("i_square", cart, cart_moves, 1),
    "truncate": Example("c_overfull", truncated, truncation_moves, 3),
    "tsv": Example("c_overfull", tsv, tsv_moves, 4),
}
EXAMPLES = CUT | {
    "ties in core": Example(
        "f_correlated", ties_in(jm.core), entrywise_moves_in(jm.core)
    ),
    "ties in knots": Example(
        "d_hetero", ties_in(jm.knots), entrywise_moves_in(jm.knots)
    ),
}


def adapters(name: str) -> jm.AdapterStack:
    for entry in golden.every_entry():
        if entry.case.name == name:
            return next(iter(entry.stacks().values()))
    pytest.skip(golden.MISSING)
    return None


@partial(jax.jit, static_argnums=0)
def merge(merger, stack):
    return jm.dense(merger(stack))


def exact_and_tolerance(example):
    stack = adapters(example.case)
    exact = np.asarray(merge(example.merger(example.rank), stack))
    moves = example.moves(stack, exact, example.rank) / np.linalg.norm(exact)
    return stack, exact, least(np.float32) + conditioning.rounding(moves)


def as_on_other_devices(*arrays, cpu, default):
    return default(*arrays)


@pytest.mark.thorough
@pytest.mark.parametrize("name", in_turn([*EXAMPLES], quick=3))
def test_rounding_stays_within_and_comes_near(name, monkeypatch):
    """Other orders of rows and columns round differently, as other processors do.

    It comes near where decompositions round in single precision, as on other devices;
    on a CPU they do not.
    """
    example, rng = EXAMPLES[name], np.random.default_rng(0)
    stack, exact, tolerance = exact_and_tolerance(example)
    found = []
    for _ in range(DRAWS):
        rows, columns = (rng.permutation(size) for size in exact.shape)
        moved = stack.replace(
            b=np.float32(stack.b[:, rows]), a=np.float32(stack.a[:, :, columns])
        )
        merger, right = example.merger(example.rank), exact[rows][:, columns]
        assert distance(merge(merger, moved), right) < tolerance
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(decompositions, "_by_platform", as_on_other_devices)
            found.append(distance(jm.dense(merger(moved)), right))
    assert tolerance / 100 < max(found) < tolerance < conditioning.WIDEST


@pytest.mark.thorough
@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("more", [-1, 1])
def test_one_direction_more_or_fewer_is_an_error(name, more):
    example = CUT[name]
    stack, exact, tolerance = exact_and_tolerance(example)
    if example.rank + more:
        wrong = merge(example.merger(example.rank + more), stack)
    else:  # no direction at all: the mean
        wrong = merge(jm.average, stack)
    assert distance(wrong, exact) > 10 * tolerance


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_error_of_a_percent_is_an_error(name):
    _, exact, tolerance = exact_and_tolerance(EXAMPLES[name])
    assert distance(1.01 * exact, exact) > tolerance
