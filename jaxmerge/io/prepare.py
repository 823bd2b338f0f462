"""What is to be written, checked and complete in memory before any file exists."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.typing import ArrayLike

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.compress import Compressed, compress
from jaxmerge.io.errors import AdapterError, given, listing
from jaxmerge.io.files import SAFETENSORS_FILE
from jaxmerge.io.image.output_file import image_file
from jaxmerge.io.output_config import output_config
from jaxmerge.io.saved_modules import Heads, head_modules
from jaxmerge.io.wrappers import PEFT_PREFIX
from jaxmerge.refusals import Option
from jaxmerge.types import LowRank, Update
from jaxmerge.updates import dense as dense_of

_VANISHED = 0.1  # of the norm of a module, lost by the cast to the dtype of the output
DELTA_FILE = "delta.safetensors"
_DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Output:
    """The content of a folder.

    Attributes:
      files: file name -> tensors by key.
      config: the adapter config; None for full-weight deltas and for files of image
        models.
      header: what the header of the weight file says.
      factors: module -> factors as written.
      biases: module -> LoRA bias as written.
      cast_error: module -> relative error of the cast.
    """

    files: dict[str, Mapping[str, np.ndarray]]
    config: dict[str, Any] | None
    cast_error: dict[str, float]
    factors: dict[str, Compressed] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=lambda: {"format": "pt"})


def adapter_output(
    updates: Mapping[str, Update],
    like: Adapters,
    *,
    dtype: np.dtype,
    rank: int | None,
    energy: float | None,
    ragged: bool,
    biases: Mapping[str, np.ndarray],
    heads: Heads,
) -> Output:
    """One adapter of the kind of the inputs: one rank, or one per module if ragged."""
    factors = compress(updates, rank=rank, energy=energy, ragged=ragged)
    widest = rank or max(1, *(f.rank for f in factors.values()))
    cast, cast_error = {}, {}
    for module, found in factors.items():
        padded = found.padded(max(found.rank, 1) if ragged else widest)
        b, a = (_cast(x, dtype, module) for x in (padded.b, padded.a))
        cast[module] = Compressed(b, a, found.energy)
        cast_error[module] = _held(padded.error_of(cast[module]), dtype, module)
    cast_biases = {module: _cast(x, dtype, module) for module, x in biases.items()}
    modules = {
        module: like.layouts[module].to_tensors(found.b, found.a)
        for module, found in cast.items()
    }
    for module, bias in cast_biases.items():
        modules[module]["lora_B.bias"] = bias
    if like.kind != "peft":
        name, tensors, header = image_file(modules, heads, like)
        header = {"format": "pt", **header}
        return Output({name: tensors}, None, cast_error, cast, cast_biases, header)
    tensors = {f"{PEFT_PREFIX}{name}": value for name, value in heads.items()}
    for module, parts in modules.items():
        for leaf, value in parts.items():
            tensors[f"{PEFT_PREFIX}{module}.{leaf}"] = value
    config = output_config(
        {module: found.rank for module, found in cast.items()},
        like,
        modules_to_save=head_modules(heads, like),
        lora_bias=bool(biases),
    )
    return Output({SAFETENSORS_FILE: tensors}, config, cast_error, cast, cast_biases)


def delta_output(
    updates: Mapping[str, Update], like: Adapters, *, dtype: np.dtype
) -> Output:
    """Full-weight deltas: ``<module>.weight``, in the shape of the base weight."""
    unclear = [m for m in updates if like.layouts[m].fan_in_fan_out is None]
    if unclear:
        raise AdapterError(
            f"the configs disagree on fan_in_fan_out for {listing(unclear)}, so the "
            "shape of the base weights is unclear; correct the wrong config"
        )
    tensors, cast_error = {}, {}
    for module, update in updates.items():
        exact = np.asarray(dense_of(update))
        cast = _cast(exact, dtype, module)
        total = np.linalg.norm(exact.astype(np.float64))
        lost = np.linalg.norm(cast.astype(np.float64) - exact)
        lost = float(lost / total) if total else 0.0
        cast_error[module] = _held(lost, dtype, module)
        tensors[f"{module}.weight"] = like.layouts[module].to_weight(cast)
    return Output({DELTA_FILE: tensors}, None, cast_error)


def checked_updates(updates: Mapping[str, Update], like: Adapters) -> dict[str, Update]:
    """The updates, if each is a finite update of a module of ``like``.

    Types narrower than float32 become float32, in which truncation computes.
    """
    if not updates:
        raise AdapterError("there are no updates to save")
    strange = sorted(updates.keys() - like.stacks.keys())
    if strange:
        raise AdapterError(f"updates of unknown modules: {listing(strange)}")
    for module, update in updates.items():
        stack = like.stacks[module]
        wanted = (stack.b.shape[1], stack.a.shape[2])
        low_rank = isinstance(update, LowRank)
        shapes = [np.shape(x) for x in update] if low_rank else [np.shape(update)]
        if any(len(s) != 2 for s in shapes) or (shapes[0][0], shapes[-1][1]) != wanted:
            raise AdapterError(f"module {module!r}: update {shapes}, expected {wanted}")
        if low_rank and shapes[0][1] != shapes[1][0]:
            raise AdapterError(f"module {module!r}: factors {shapes} do not fit")
        if not all(np.isfinite(x).all() for x in (update if low_rank else [update])):
            raise AdapterError(f"module {module!r}: the update holds NaN or Inf")
    return {m: jax.tree.map(_at_least_float32, u) for m, u in updates.items()}


def _at_least_float32(values: ArrayLike) -> jax.Array:
    values = jnp.asarray(values)
    wide = values.dtype in (jnp.float32, jnp.float64)
    return values if wide else values.astype(jnp.float32)


def checked_dtype(dtype: Any) -> np.dtype:
    """A dtype of outputs as numpy's; refuses all but float32, float16 and bfloat16."""
    try:
        found = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    except TypeError:
        found = None
    if found is None or found not in [np.dtype(allowed) for allowed in _DTYPES]:
        raise AdapterError(
            given("dtype", dtype), ": expected float32, float16 or bfloat16"
        )
    return found


def checked_biases(
    biases: Mapping[str, ArrayLike] | None, modules: Mapping[str, Any], like: Adapters
) -> dict[str, np.ndarray]:
    """Merged LoRA biases of every written module, or of none.

    PEFT's ``lora_bias`` is one switch for all modules, so those without get zeros.
    """
    if biases is None and like.biases:
        raise AdapterError(
            f"the adapters carry LoRA biases ({listing(like.biases)}); pass the ",
            "merged ones as ",
            Option("biases", "{module: [m], ...}"),
            ", such as weights @ adapters.biases[module], or ",
            Option("biases", "{}"),
            " to leave them out",
        )
    if not biases:
        return {}
    strange = sorted(biases.keys() - modules.keys())
    if strange:
        raise AdapterError(f"biases of modules without an update: {listing(strange)}")
    embeddings = [m for m in modules if like.layouts[m].kind == "embedding"]
    if embeddings:
        raise AdapterError(
            f"PEFT has no LoRA bias on embeddings ({listing(embeddings)}), and "
            "lora_bias is one switch for all modules; leave out these modules or the "
            "biases"
        )
    found = {}
    for module in modules:
        m = like.stacks[module].b.shape[1]
        bias = np.asarray(biases.get(module, np.zeros(m, np.float32)))
        if bias.shape != (m,) or not np.isfinite(bias).all():
            raise AdapterError(f"module {module!r}: bias is not {m} finite numbers")
        found[module] = bias
    return found


def checked_rank(
    rank: int | str | None, energy: float | None, like: Adapters
) -> int | None:
    """The output rank as a number; "auto" is the largest rank among the inputs."""
    if rank is not None and energy is not None:
        raise AdapterError(
            Option("rank"),
            " and ",
            Option("energy"),
            " both decide the rank; give one of them",
        )
    if energy is not None and not 0 < energy <= 1:
        raise AdapterError(given("energy", energy), ": expected a share in (0, 1]")
    if rank == "auto":
        return max(max(stack.ranks) for stack in like.stacks.values())
    if rank is not None and (type(rank) is not int or rank < 1):
        raise AdapterError(
            given("rank", rank), ": expected a positive integer or 'auto'"
        )
    return rank


def _held(error: float, dtype: np.dtype, module: str) -> float:
    """The relative error of a cast; AdapterError if little more than zeros is left."""
    if error > _VANISHED:
        raise AdapterError(
            f"module {module!r}: its values are too small for {dtype.name}, which ",
            f"would lose {error:.0%} of them; save with ",
            Option("dtype", "float32", quoted=True),
        )
    return error


def _cast(values: np.ndarray, dtype: np.dtype, module: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise AdapterError(
            f"module {module!r}: its values do not fit into {dtype.name}; save with ",
            Option("dtype", "float32", quoted=True),
        )
    return cast
