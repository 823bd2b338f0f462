"""Pico: the calibrated factors, the restored norm, and the folder mode."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import assert_close
from oracle import oracle

import jaxmerge as jm
from jaxmerge.stacks import concatenate

MERGERS = {"mean": jm.average, "sum": jm.concat}


def calibrated(merger):
    """Pico without restoring the norm."""
    return lambda stack, **extra: merger(jm.calibrate(stack), **extra)


PLAIN = {name: calibrated(merger) for name, merger in MERGERS.items()}
PICO = {name: jm.pico(merger) for name, merger in MERGERS.items()}
calibrate = jax.jit(jm.calibrate)
deltas = jax.jit(lambda stack: jm.full.project(stack)[0])


@oracle("pico.calibrate/*")
def test_pico(entry):
    mergers = PICO if entry["energy_compensation"] else PLAIN
    for dtype in entry.dtypes:
        entry.check(entry.merge(mergers[entry["merge"]], dtype), dtype)
        if entry.quantities:
            check_parts(entry, dtype)


def check_parts(entry, dtype):
    """The calibration, read off the calibrated factors.

    Direction j of ``[B_1 .. B_T]`` comes out as ``alpha_j sigma_j``, and
    ``collision_j = (1 / alpha_j - 1) / (T - 1)``.
    """
    plain = entry.merge(PLAIN[entry["merge"]], dtype)
    restored = entry.merge(PICO[entry["merge"]], dtype)
    for name, stack in entry.stacks(dtype).items():
        u, sigma, _ = np.linalg.svd(concatenate(stack).b, full_matrices=False)
        after = np.linalg.norm(u.T @ concatenate(calibrate(stack)).b, axis=1)
        exists = sigma > 1e-5 * sigma[0]
        alpha = np.where(exists, after / np.where(exists, sigma, 1), 1)
        parts = {
            "sigma": sigma,
            "alpha": alpha,
            "collision": (1 / alpha - 1) / (entry.case.tasks - 1),
            "gamma": [np.linalg.norm(restored[name]) / np.linalg.norm(plain[name])],
            "calibrated": deltas(calibrate(stack)),
        }
        for what, ours in parts.items():
            if entry.has(f"{what}/{name}"):
                least = 2e-5 if dtype == np.float32 else 5e-6
                official = entry.read(f"{what}/{name}")
                assert_close(ours, official, least, f"{entry.id} {what}")


@oracle("pico.folder/*")
def test_folder_mode(entry):
    """Restores the norm of every adapter before the merge, instead of after it."""
    for dtype in entry.dtypes:
        for name, stack in entry.stacks(dtype).items():
            b = np.asarray(folder(stack, entry["energy_compensation"]))
            for task, rank in enumerate(entry.case.ranks):
                official = entry.read(f"B_cal/{name}/{task}")
                least = 2e-5 if dtype == np.float32 else 5e-6
                assert_close(b[task, :, :rank], official, least, entry.id)


@partial(jax.jit, static_argnums=1)
def folder(stack, compensate):
    shrunk = jm.calibrate(stack)
    if not compensate:
        return shrunk.b
    before, after = jm.task_norms(stack), jm.task_norms(shrunk)
    restored = jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1)
    return shrunk.b * restored[:, None, None]


def test_the_two_modes_differ():
    """Restoring every adapter favours the one that was shrunk most."""
    eye = np.eye(4)
    pairs = [(eye[:, :1], eye[:1]), (eye[:, :1], eye[1:2]), (eye[:, 1:2], eye[2:3])]
    stack = jm.stack_adapters(pairs, dtype=np.float64)
    after = jm.dense(jm.pico(jm.concat)(stack))
    before = jm.dense(jm.concat(stack.replace(b=folder(stack, True))))
    assert np.linalg.norm(after) == pytest.approx(1.0)
    assert before[0, 0] == pytest.approx(before[1, 2])
    assert after[0, 0] < 0.9 * after[1, 2]
