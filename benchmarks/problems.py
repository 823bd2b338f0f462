"""Inputs and clocks of the measurements."""

import time
from collections.abc import Callable

import numpy as np

TASKS, RANK, WIDTH, MODULES = 8, 16, 768, 48  # q, k, v, o of CLIP ViT-B/32


def factors(modules: int, *, width: int = WIDTH, seed: int = 0):
    """Gaussian adapters: lists of b [T, m, r] and a [T, r, n], one of each a module."""
    rng = np.random.default_rng(seed)
    b = [rng.normal(size=(TASKS, width, RANK)) for _ in range(modules)]
    a = [rng.normal(size=(TASKS, RANK, width)) for _ in range(modules)]
    return b, a


def clock(run: Callable[[], object], *, repeats: int) -> list[float]:
    """Seconds of each of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def seconds(run: Callable[[], object]) -> float:
    """Of processor time, so that other work on the machine counts little."""
    start = time.process_time()
    run()
    return time.process_time() - start


def in_turn(*sides: Callable[[], object], rounds: int) -> np.ndarray:
    """Processor seconds of every side in every round, [sides, rounds].

    Each runs once before, so that compilation is not counted.
    """
    for side in sides:
        side()
    return np.array([[seconds(side) for side in sides] for _ in range(rounds)]).T
