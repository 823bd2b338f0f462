"""What was written, read again and compared before anybody sees it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxmerge.io.factors import read_factors
from jaxmerge.io.opening import open_adapters
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.output import Output, mark_of
from jaxmerge.io.tensors import SafetensorsFile


def verify_written(folder: Path, output: Output) -> None:
    """Reads everything back; RuntimeError unless it is bit by bit what was meant."""
    for name, tensors in output.files.items():
        _refuse_different(SafetensorsFile(folder / name), tensors, tensors)
    weights = SafetensorsFile(folder / output.name)
    others = {key: x for key, x in output.blanks.items() if key not in output.places}
    _refuse_different(weights, output.blanks, others)
    if not output.ranks:
        for key, (module, _) in output.places.items():
            _refuse_other_mark(module, output, mark_of(weights.read(key)))
        return
    (adapter,) = open_adapters([folder], ReadOptions(heads="keep"))
    for module in output.ranks:
        spec = adapter.specs[module]
        read = read_factors(spec, adapter.tensors)
        mark = mark_of(read.b, read.a, read.bias)
        _refuse_other_mark(module, output, mark if spec.scale == 1.0 else None)


def _refuse_different(
    written: SafetensorsFile,
    tensors: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
) -> None:
    """RuntimeError unless the tensors are there, and those that are known are equal."""
    same = written.infos.keys() == tensors.keys() and all(
        _same_bits(written.read(key), value) for key, value in known.items()
    )
    if not same:
        raise RuntimeError(f"{written.path.name} does not read back as it was written")


def _refuse_other_mark(module: str, output: Output, mark: int | None) -> None:
    if mark != output.written[module].mark:
        raise RuntimeError(f"module {module!r} does not read back as it was written")


def _same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    return (
        x.dtype == y.dtype
        and x.shape == y.shape
        and np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes()
    )
