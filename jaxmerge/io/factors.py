"""One adapted module of one adapter: shapes from the header, then its factors.

Whatever the kind of layer, a module becomes two matrices b [m, r] and a [r, n] with the
LoRA scale folded into b. `Layout` keeps what is needed to turn them back into tensors.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmerge.io.config import AdapterConfig
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.experts import refusal_of_experts
from jaxmerge.io.module_layout import Layout
from jaxmerge.io.tensors import FLOATING, TensorFile, read_finite

_TINY, _LOST = 1e-35, 1e-5  # below it float32 has fewer digits; share lost at most


class Factors(NamedTuple):
    """b [m, r], a [r, n] and the bias [m] if there is one; scale folded in; float32."""

    b: np.ndarray
    a: np.ndarray
    bias: np.ndarray | None

    @property
    def is_zero(self) -> bool:
        """Whether the module does nothing: A or B is exactly zero, as is the bias."""
        update = self.a.any() and self.b.any()
        return not update and (self.bias is None or not self.bias.any())


@dataclass(frozen=True)
class FactorSpec:
    """One module of one adapter, as far as the header tells it.

    Attributes:
      parts: part of the factorisation ("A", "B", "E", "bias", ...) -> tensor key.
      shape: (m, n) of the update.
      rank: true rank r of the tensors.
      scale: what ``B A`` is multiplied with.
      dtype: dtype of the factors in the file.
      rows: which rows of B the module is, of a layer that the file holds fused with
        others; None for all.
    """

    layout: Layout
    parts: Mapping[str, str]
    shape: tuple[int, int]
    rank: int
    scale: float
    dtype: np.dtype
    rows: slice | None = None


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The dtype that all share; float32 if they differ."""
    found = set(dtypes)
    return found.pop() if len(found) == 1 else np.dtype(np.float32)


def output_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The dtype that all share; float32 if they differ, or merges are not saved in it.

    >>> output_dtype([np.dtype("float16")]), output_dtype([np.dtype("float64")])
    (dtype('float16'), dtype('float32'))
    """
    common = common_dtype(dtypes)
    return common if common.itemsize in (2, 4) else np.dtype(np.float32)


def factor_spec(
    module: str,
    parts: Mapping[str, str],
    tensors: TensorFile,
    config: AdapterConfig,
    *,
    inputs: int = 0,
) -> FactorSpec:
    """What the header says about one module; AdapterError if its tensors do not fit.

    Args:
      module: name in the base model, for the patterns and for messages.
      parts: part -> tensor key, VeRA's shared projections included.
      tensors: the open file.
      config: its checked config.
      inputs: n of a VeRA module, which its file does not tell.
    """
    where = f"{tensors.path}: module {module!r}"
    shapes = {part: tensors.infos[key].shape for part, key in parts.items()}
    dtypes = {tensors.infos[key].dtype for key in parts.values()}
    for part, key in parts.items():
        if tensors.infos[key].dtype not in FLOATING:
            raise AdapterError(
                f"{where}: {part} has dtype {tensors.infos[key].dtype}, whose values "
                "need the scales of their quantisation; save it as bf16, fp16 or fp32"
            )
    expected = _EXPECTED_PARTS[config.peft_type]
    if not any(set(shapes) - {"bias", "mid"} == set(names) for names in expected):
        wanted = " or ".join("+".join(names) for names in expected)
        raise AdapterError(
            f"{where}: found {'+'.join(sorted(shapes))}, expected {wanted}; "
            "the file is incomplete or belongs to another kind of adapter"
        )
    pruned = config.peft_type == "ADALORA" and all(map(len, shapes.values()))
    if any(0 in shape and not (pruned and len(shape) > 1) for shape in shapes.values()):
        raise AdapterError(
            f"{where}: empty factors {shapes}; the shards of a distributed run "
            "(DeepSpeed ZeRO-3, FSDP) were not gathered before saving"
        )
    if config.peft_type == "LORA" and len(shapes.get("A", ())) in (2, 3):
        rank, dimensions = shapes["A"][-2], len(shapes["A"])
        experts = refusal_of_experts(module, rank, config.rank, dimensions)
        if experts is not None:
            raise AdapterError(f"{where}: {experts}")
    if config.peft_type == "VERA":
        layout, b_shape, a_shape = _vera_shapes(shapes, inputs, where)
    else:
        layout, b_shape, a_shape = _lora_shapes(shapes, config, where)
    (m, rank), n = b_shape, a_shape[1]
    if (
        a_shape[0] != rank
        or min(m, n) == 0
        or ("bias" in shapes and shapes["bias"] != (m,))
    ):
        raise AdapterError(f"{where}: shapes do not fit each other: {shapes}")
    return FactorSpec(
        layout=layout,
        parts=dict(parts),
        shape=(m, n),
        rank=rank,
        scale=config.scale(module, rank),
        dtype=common_dtype(dtypes),
    )


_EXPECTED_PARTS = {
    "LORA": (("A", "B"), ("embedding_A", "embedding_B")),
    "ADALORA": (("A", "B", "E"),),
    "VERA": (("A", "B", "lambda_b", "lambda_d"),),
}
_Shape = tuple[int, ...]


def _lora_shapes(
    shapes: Mapping[str, _Shape], config: AdapterConfig, where: str
) -> tuple[Layout, _Shape, _Shape]:
    """Layout and the shapes of b and a as matrices."""
    if "embedding_A" in shapes:
        a, b = shapes["embedding_A"], shapes["embedding_B"]
        layout = Layout("embedding")
    else:
        a, b = shapes["A"], shapes["B"]
        layout = Layout("linear", fan_in_fan_out=config.fan_in_fan_out)
    if "E" in shapes and shapes["E"] != (*a[:1], 1):
        raise AdapterError(f"{where}: lora_E is {shapes['E']}, lora_A {a}")
    if "mid" in shapes:
        a = _behind_mid(a, shapes["mid"], where)
    spatial = len(a) - 2
    if layout.kind == "linear" and 1 <= spatial <= 3 and len(b) == len(a):
        if b[2:] != (1,) * spatial:
            raise AdapterError(f"{where}: lora_B {b} is not a pointwise convolution")
        layout = Layout(f"conv{spatial}d", kernel=a[2:])
        a, b = (a[0], math.prod(a[1:])), b[:2]
    if len(a) != 2 or len(b) != 2:
        raise AdapterError(f"{where}: factors of shapes {a} and {b} are not LoRA")
    if layout.kernel and a[0] != b[1]:
        raise AdapterError(
            f"{where}: a grouped convolution (lora_B takes {b[1]} of {a[0]} channels), "
            "whose update is not B A; leave this module out"
        )
    return layout, b, a


def _behind_mid(a: _Shape, mid: _Shape, where: str) -> _Shape:
    """Shape of ``mid`` [r, r, h, w] applied behind A [r, inputs, 1, 1]."""
    rank, inputs, *kernel = a
    if len(mid) != len(a) or mid[:2] != (rank, rank) or set(kernel) != {1}:
        raise AdapterError(
            f"{where}: factors of shapes {a} and {mid} (lora_mid) are not those of a "
            "convolution in three factors"
        )
    return (rank, inputs, *mid[2:])


def _vera_shapes(
    shapes: Mapping[str, _Shape], inputs: int, where: str
) -> tuple[Layout, _Shape, _Shape]:
    a, b = shapes["A"], shapes["B"]
    lambda_b, lambda_d = shapes["lambda_b"], shapes["lambda_d"]
    if any(len(s) != d for s, d in ((a, 2), (b, 2), (lambda_b, 1), (lambda_d, 1))):
        raise AdapterError(f"{where}: VeRA tensors of unexpected shapes {shapes}")
    (m,), (rank,) = lambda_b, lambda_d
    if not 0 < inputs <= a[1] or m > b[0] or rank != a[0] or rank != b[1]:
        raise AdapterError(
            f"{where}: [{m}, {rank}] x [{rank}, {inputs}] is not part of the shared "
            f"projections {b} and {a}"
        )
    return Layout("linear"), (m, rank), (rank, inputs)


def read_factors(spec: FactorSpec, tensors: TensorFile) -> Factors:
    """Reads the factors of one module; AdapterError if they hold NaN or Inf."""
    values = {part: read_finite(tensors, key) for part, key in spec.parts.items()}
    if spec.rows is not None:
        values = {
            p: v[spec.rows] if p in ("B", "bias") else v for p, v in values.items()
        }
    with np.errstate(over="ignore"):
        factors = _fold(spec, values)
    if not all(np.isfinite(x).all() for x in factors if x is not None):
        keys = listing(spec.parts.values())
        raise AdapterError(
            f"{tensors.path}: {keys} times the scale {spec.scale:g} overflow float32; "
            "the adapter's training diverged or the file is damaged"
        )
    given = [value for part, value in values.items() if part != "bias"]
    lost = not (factors.a.any() and factors.b.any())
    if lost and all(value.any() for value in given):
        keys = listing(spec.parts.values())
        raise AdapterError(
            f"{tensors.path}: {keys} times the scale {spec.scale:g} vanish in float32, "
            "so the module would be lost; save its factors in like magnitudes and with "
            "an alpha near the rank"
        )
    plain = "B" in values and "lambda_b" not in values
    if plain and values["B"].any() and max(factors.b.max(), -factors.b.min()) < _TINY:
        from jaxmerge.magnitudes import lost_by_rounding  # it loads JAX

        exact = values["B"].astype(np.float64).reshape(factors.b.shape) * spec.scale
        if lost_by_rounding(exact, factors.b) > _LOST:
            raise AdapterError(
                f"{tensors.path}: {spec.parts['B']} times the scale {spec.scale:g} is "
                "too small for float32; save the adapter with a larger B"
            )
    return factors


def _a_of(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """A; in three factors it is A[p, i, h, w] = sum_q mid[p, q, h, w] A[q, i]."""
    a = values["A"]
    if "mid" not in values:
        return a
    return np.einsum("pq...,qi->pi...", values["mid"], a.reshape(a.shape[:2]))


def _fold(spec: FactorSpec, values: Mapping[str, np.ndarray]) -> Factors:
    """Factors and bias of one module from its tensors, whatever its variant."""
    (m, n), rank = spec.shape, spec.rank
    scale = np.float32(spec.scale)
    if "lambda_d" in values:
        a = values["lambda_d"][:, None] * values["A"][:, :n]
        b = values["lambda_b"][:, None] * values["B"][:m]
    elif "embedding_A" in values:
        a, b = values["embedding_A"], values["embedding_B"]
    else:
        a, b = _a_of(values).reshape(rank, n), values["B"].reshape(m, rank)
    if "E" in values:
        a = values["E"] * a
    bias = values["bias"] * scale if "bias" in values else None
    return Factors(b if scale == 1 else b * scale, a, bias)
