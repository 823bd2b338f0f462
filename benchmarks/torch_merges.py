"""The merges as a competent torch programmer writes them: thin QR and small SVDs.

The peer that counts: float32, low rank throughout, nothing of size m x n, the exact
threshold by ``torch.kthvalue``. One function for each method, for the adapters of one
module: b [T, m, r] and a [T, r, n]; each gives factors of the merged update.
"""

import torch
from torch import Tensor
from torch.linalg import qr, svd

Factors = tuple[Tensor, Tensor]


def side_by_side(b: Tensor, a: Tensor) -> Factors:
    """[m, K] and [K, n]."""
    return torch.cat(list(b), 1), torch.cat(list(a), 0)


def ties(matrices: Tensor, density: float = 0.2) -> Tensor:
    """Trim, elect by sum, disjoint mean: [T, p, q] -> [p, q]."""
    tasks = len(matrices)
    sizes = matrices.abs().reshape(tasks, -1)
    drop = sizes.shape[1] - int(density * sizes.shape[1])
    threshold = sizes.kthvalue(drop + 1, dim=1).values
    kept = torch.where(matrices.abs() < threshold[:, None, None], 0, matrices)
    signs = kept.sum(0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    kept = torch.where(kept * signs > 0, kept, 0)
    return kept.sum(0) / (kept != 0).sum(0).clamp(min=1)


def basis(x: Tensor) -> Tensor:
    """Left singular vectors of a tall matrix."""
    q, r = qr(x)
    return q @ svd(r)[0]


def core_ties(b: Tensor, a: Tensor) -> Factors:
    """TIES in core space."""
    every_b, every_a = side_by_side(b, a)
    u, v = basis(every_b), basis(every_a.T)
    cores = (u.T @ b) @ (a @ v)
    return u @ ties(cores), v.T


def knots_ties(b: Tensor, a: Tensor) -> Factors:
    """KnOTS-TIES: its basis from B_t L_t with L_t of a thin QR of A_t^T."""
    lower = qr(a.mT, mode="r").R.mT
    u = basis(torch.cat(list(b @ lower), 1))
    return u, ties((u.T @ b) @ a)


def polar(x: Tensor) -> Tensor:
    """The orthonormal factor nearest to a tall matrix."""
    q, r = qr(x)
    u, _, vt = svd(r)
    return q @ (u @ vt)


def tsv_m(b: Tensor, a: Tensor) -> Factors:
    """An SVD of each update from its factors, then two polar factors."""
    qb, rb = qr(b)
    qa, ra = qr(a.mT)
    u, s, vt = svd(rb @ ra.mT)
    left, right = side_by_side(qb @ u, vt @ qa.mT)
    return polar(left) * s.reshape(-1), polar(right.T).T


def truncated_sum(b: Tensor, a: Tensor) -> Factors:
    """The sum of the updates, at the rank of one of them."""
    every_b, every_a = side_by_side(b, a)
    qb, rb = qr(every_b)
    qa, ra = qr(every_a.T)
    u, s, vt = svd(rb @ ra.T)
    rank = b.shape[-1]
    return qb @ (u[:, :rank] * s[:rank]), vt[:rank] @ qa.T


MERGES = {
    "core_ties": core_ties,
    "knots_ties": knots_ties,
    "tsv_m": tsv_m,
    "truncated_sum": truncated_sum,
}
