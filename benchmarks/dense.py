"""The dense route of the official codes, transcribed to numpy in float64.

What KnOTS, TSV-M and the Core Space code compute for one module of dense updates, step
by step as published, with none of jaxmerge's shortcuts. A baseline for time alone.
"""

import numpy as np


def trimmed(vectors: np.ndarray, density: float) -> np.ndarray:
    """Keeps the largest entries of each row."""
    size = vectors.shape[1]
    cut = np.partition(np.abs(vectors), size - int(density * size), axis=1)
    threshold = cut[:, size - int(density * size), None]
    return np.where(np.abs(vectors) >= threshold, vectors, 0.0)


def ties(matrices: np.ndarray, density: float) -> np.ndarray:
    """Trim, elect by sum, disjoint mean: [T, p, q] -> [p, q]."""
    vectors = trimmed(matrices.reshape(len(matrices), -1), density)
    elected = np.sign(vectors.sum(0))
    elected = np.where(elected == 0, np.sign(elected.sum()), elected)
    kept = np.where(np.sign(vectors) == elected, vectors, 0.0)
    merged = kept.sum(0) / np.maximum((kept != 0).sum(0), 1)
    return merged.reshape(matrices.shape[1:])


def knots_ties(b: np.ndarray, a: np.ndarray, density: float = 0.2) -> np.ndarray:
    """SVD of the updates side by side, TIES on S V_t."""
    updates = b @ a
    tasks, _, n = updates.shape
    u, s, vt = np.linalg.svd(np.concatenate(list(updates), 1), full_matrices=False)
    keep = s > 1e-5
    u, rows = u[:, keep], s[keep, None] * vt[keep]
    blocks = np.stack([rows[:, t * n : (t + 1) * n] for t in range(tasks)])
    return u @ ties(blocks, density)


def tsv_m(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """An SVD of every dense update, the leading min(m, n) / T triplets, two polars."""
    updates = b @ a
    k = min(updates.shape[1:]) // len(updates)
    left, values, right = [], [], []
    for update in updates:
        u, s, vt = np.linalg.svd(update, full_matrices=False)
        left.append(u[:, :k])
        values.append(s[:k])
        right.append(vt[:k])
    u, _, vt = np.linalg.svd(np.concatenate(left, 1), full_matrices=False)
    x, _, yt = np.linalg.svd(np.concatenate(right, 0), full_matrices=False)
    return (u @ vt * np.concatenate(values)) @ (x @ yt)


def core_ties(b: np.ndarray, a: np.ndarray, density: float = 0.2) -> np.ndarray:
    """Core Space as its code does it: an SVD of every factor and of both stacks."""
    u_ref, _, _ = np.linalg.svd(np.concatenate(list(b), 1), full_matrices=False)
    _, _, vt_ref = np.linalg.svd(np.concatenate(list(a), 0), full_matrices=False)
    cores = []
    for b_t, a_t in zip(b, a, strict=True):
        ub, sb, vbt = np.linalg.svd(b_t, full_matrices=False)
        ua, sa, vat = np.linalg.svd(a_t, full_matrices=False)
        core = (np.diag(sb) @ vbt) @ (ua @ np.diag(sa))
        cores.append((u_ref.T @ ub) @ core @ (vat @ vt_ref.T))
    return u_ref @ ties(np.stack(cores), density) @ vt_ref


ROUTES = {"core_ties": core_ties, "knots_ties": knots_ties, "tsv_m": tsv_m}
