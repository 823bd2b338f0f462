"""The only home of decompositions: precision, numerical rank and derivatives.

`arithmetic` has products at the highest precision of the device, and what counts as
rounding noise; `decompositions` what mergers use. Below them are `lapack`, one matrix
at a time on a CPU, and `tall`, its faster route for float32.
"""

from jaxmerge.linalg.arithmetic import (
    ORDINARY,
    divide,
    einsum,
    keep_directions,
    matmul,
    nonzero_directions,
    rank_tolerance,
    root,
    transpose,
    unit_power,
)
from jaxmerge.linalg.decompositions import (
    column_basis,
    eigh,
    polar,
    row_basis,
    svd,
    svd_of_product,
    triangle,
)

__all__ = [
    "ORDINARY",
    "column_basis",
    "divide",
    "eigh",
    "einsum",
    "keep_directions",
    "matmul",
    "nonzero_directions",
    "polar",
    "rank_tolerance",
    "root",
    "row_basis",
    "svd",
    "svd_of_product",
    "transpose",
    "triangle",
    "unit_power",
]
