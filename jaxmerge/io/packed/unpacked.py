"""The tensors of a quantised model as if nothing were quantised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.packed import bitsandbytes, gptq
from jaxmerge.io.tensors import Described, TensorFile, TensorInfo, usual_dtype
from jaxmerge.refusals import Option

CONFIG_KEY = "quantization_config"  # of config.json


class Quantised(Protocol):
    """A weight that is packed into other tensors."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def rows(self, rows: slice) -> np.ndarray: ...


class Unpacked:
    """The tensors of a model, of which quantised weights are unpacked when asked for.

    Attributes:
      path: the weight file, or the index.
      files: files of which the model consists.
      metadata: of the file.
      infos: key -> dtype and shape; of a quantised weight those that it stands for.
      quantised: key -> such a weight.
    """

    def __init__(
        self,
        tensors: TensorFile,
        quantised: Mapping[str, tuple[Quantised, frozenset[str]]],
    ):
        self._tensors = tensors
        self.path, self.files = tensors.path, tensors.files
        self.metadata = tensors.metadata
        self.quantised = {key: weight for key, (weight, _) in quantised.items()}
        parts = {part for _, names in quantised.values() for part in names}
        self._places = {key: min(names) for key, (_, names) in quantised.items()}
        self.plain: dict[str, Described] = {
            key: info for key, info in tensors.infos.items() if key not in parts
        }
        self.infos: dict[str, Described] = {
            **self.plain,
            **{k: TensorInfo(x.dtype, x.shape) for k, x in self.quantised.items()},
        }

    def holder(self, key: str, /) -> TensorFile:
        """The file that holds a tensor, or the first part of a quantised weight."""
        return self._tensors.holder(self._places.get(key, key))

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor."""
        weight = self.quantised.get(key)
        if weight is None:
            return self._tensors.read(key)
        return weight.rows(slice(0, weight.shape[0])).reshape(weight.shape)


def unpack(folder: Path, config: Mapping[str, Any], tensors: TensorFile) -> Unpacked:
    """Finds the quantised weights of a model.

    Raises:
      AdapterError: there are none, or some that are not as their library saves them.
    """
    said = _said(config)
    four = bitsandbytes.four_bit(tensors)
    scales = (".SCB", ".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map")
    plain = [info for key, info in tensors.infos.items() if not key.endswith(scales)]
    eight = bitsandbytes.eight_bit(tensors, usual_dtype(plain))
    words = gptq.packed(tensors, said, folder)
    kinds = [kind for kind in (four, eight, words) if kind]
    if len(kinds) > 1:
        raise AdapterError(f"{folder}: holds weights quantised in several ways")
    if not kinds:
        raise AdapterError(
            f"{folder}: holds no weights that are quantised in a known way; leave ",
            Option("dequantise"),
            " out",
        )
    found = kinds[0]
    method = said.get("quant_method", "bitsandbytes")
    if found is not words and method != "bitsandbytes":
        raise AdapterError(
            f"{folder}: holds weights of bitsandbytes, and {CONFIG_KEY} in config.json "
            f"says quant_method {show(method)}"
        )
    taken = found.keys() & tensors.infos.keys() - {
        part for _, parts in found.values() for part in parts
    }
    if taken:
        raise AdapterError(
            f"{folder}: holds {min(taken)!r} both quantised and not; remove one of them"
        )
    return Unpacked(tensors, found)


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says of no part of a model that it is quantised."""
    return {
        name: without_quantisation(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name != CONFIG_KEY
    }


def _said(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of the quantisation, in whichever of its parts."""
    for part in (config, *(v for v in config.values() if isinstance(v, Mapping))):
        if isinstance(part.get(CONFIG_KEY), Mapping):
            return part[CONFIG_KEY]
    return {}
