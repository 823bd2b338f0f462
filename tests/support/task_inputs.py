"""Inputs of tasks, each in its own directions, and the sizes of their adapters."""

import numpy as np

M, N = 9, 11
RANKS = (2, 4, 3)
COUNTS = (40, 300, 25)


def inputs_of(tasks, counts=COUNTS, n=N, rank=None, seed=0):
    """Inputs X_t [N_t, n] of each task, in its own directions."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(count, rank or n)) @ rng.normal(size=(rank or n, n)) + 0.2
        for count in counts[:tasks]
    ]
