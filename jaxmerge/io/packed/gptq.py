"""Weights of GPTQ and AWQ: whole numbers in words of 32 bits, and scales of groups."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.tensors import FLOATING, TensorFile, read_piece

_WORD = 32
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)  # which of 8 outputs each place of a word holds
_CHOICES = {  # what a config may say, of what this module reads
    "gptq": {
        "checkpoint_format": (None, "gptq", "gptq_v2"),
        "bits": (2, 4, 8),
        "dynamic": (None, {}),
        "is_marlin_format": (None, False),
    },
    "awq": {
        "version": (None, "gemm", "GEMM"),
        "bits": (4,),
        "zero_point": (None, True),
        "backend": (None, "autoawq"),
    },
}


class Format(NamedTuple):
    """How a model is packed, by its config.

    Attributes:
      name: "gptq" or "awq".
      bits: of a value.
      group: number of inputs that share a scale; None for all.
      less: what zeros are stored less than they are.
    """

    name: str
    bits: int
    group: int | None
    less: int

    @property
    def order(self) -> tuple[int, ...]:
        """Which of the outputs of a word each of its places holds."""
        return _AWQ if self.name == "awq" else tuple(range(_WORD // self.bits))


class Packed:
    """A weight ``W[j, i] = scales[g(i), j] (q[i, j] - zeros[g(i), j])``.

    GPTQ has the numbers of several inputs i in a word of ``qweight``, AWQ those of
    several outputs j; zeros of several outputs share a word in both. The input i is of
    the group ``g_idx[i]``, or of those that follow each other. The product has the
    dtype of the scales. ``qweight`` is in memory while rows of it are asked for.

    Args:
      tensors: of the model.
      module: of which it is the weight.
      form: how it is packed.

    Raises:
      AdapterError: tensors that are missing, or that do not fit each other.
    """

    def __init__(self, tensors: TensorFile, module: str, form: Format):
        self.tensors, self.module, self.form = tensors, module, form
        groups, outputs = self._matrix("scales")
        words, width = self._matrix("qweight")
        per_word = _WORD // form.bits
        inputs = words * per_word if form.name == "gptq" else words
        self.shape: tuple[int, ...] = (outputs, inputs)
        self.dtype = tensors.infos[f"{module}.scales"].dtype
        self._words: np.ndarray | None = None
        rows = width if form.name == "gptq" else width * per_word
        group = form.group or inputs
        fits = rows == outputs and self.dtype in FLOATING
        fits &= self._matrix("qzeros") == (groups, -(-outputs // per_word))
        fits &= groups == -(-inputs // group) and outputs % per_word == 0
        self._groups = np.arange(inputs) // group
        if f"{module}.g_idx" in tensors.infos:
            self._groups = self._read("g_idx").astype(np.int64)
            fits &= len(self._groups) == inputs
            fits &= bool(((self._groups >= 0) & (self._groups < groups)).all())
        if not fits:
            raise self._damaged("its tensors do not fit each other and the config")

    @property
    def parts(self) -> frozenset[str]:
        """The tensors of which it consists."""
        names = ("qweight", "qzeros", "scales", "g_idx")
        keys = (f"{self.module}.{name}" for name in names)
        return frozenset(key for key in keys if key in self.tensors.infos)

    def rows(self, rows: slice) -> np.ndarray:
        """Some of its rows [rows, n]."""
        if self._words is None:
            self._words = self._read("qweight")
        scales = self._read("scales")[:, rows].astype(np.float32)
        zeros = self._outputs(self._read("qzeros"), rows)
        if self.form.less and (zeros == 2**self.form.bits - 1).any():
            raise self._damaged("zeros that libraries read in two ways")
        zeros = zeros + self.form.less
        if self.form.name == "gptq":
            numbers = _unpacked(self._words[:, rows].T, self.form).T
        else:
            numbers = self._outputs(self._words, rows)
        if rows.stop == self.shape[0]:
            self._words = None
        exact = scales[self._groups] * (numbers - zeros[self._groups])
        return np.ascontiguousarray(exact.astype(self.dtype).T)

    def _outputs(self, words: np.ndarray, rows: slice) -> np.ndarray:
        """Numbers [.., outputs] of words that hold several outputs each."""
        per_word = _WORD // self.form.bits
        first, last = rows.start // per_word, -(-rows.stop // per_word)
        found = _unpacked(words[:, first:last], self.form)
        return found[:, rows.start - first * per_word :][:, : rows.stop - rows.start]

    def _matrix(self, name: str) -> tuple[int, int]:
        info = self.tensors.infos.get(f"{self.module}.{name}")
        whole = name == "scales" or (info is not None and info.dtype == np.int32)
        if info is None or len(info.shape) != 2 or not whole:
            raise self._damaged(f"there is no matrix {name}")
        return info.shape[0], info.shape[1]

    def _read(self, name: str) -> np.ndarray:
        key = f"{self.module}.{name}"
        shape = self.tensors.infos[key].shape
        return read_piece(self.tensors, key, 0, math.prod(shape)).reshape(shape)

    def _damaged(self, why: str) -> AdapterError:
        return AdapterError(
            f"{self.tensors.path}: {self.module!r}: {why}; it is not as known versions "
            f"of {self.form.name.upper()} save a layer, so give the model in 16 or 32 "
            "bits"
        )


def _unpacked(words: np.ndarray, form: Format) -> np.ndarray:
    """Numbers [p, q * 32 / bits] of words [p, q]."""
    shifts = np.empty(len(form.order), np.int64)
    shifts[list(form.order)] = np.arange(len(form.order)) * form.bits
    numbers = words.view(np.uint32)[..., None] >> shifts.astype(np.uint32)
    numbers &= np.uint32(2**form.bits - 1)
    return numbers.reshape(len(words), -1).astype(np.int32)


def packed(
    tensors: TensorFile, config: Mapping[str, Any], where: object
) -> dict[str, tuple[Packed, frozenset[str]]]:
    """Key of each weight of GPTQ or AWQ -> the weight, and the tensors that it is of.

    Args:
      tensors: of the model.
      config: its ``quantization_config``.
      where: the model, for messages.
    """
    modules = [key.removesuffix(".qweight") for key in tensors.infos if _packs(key)]
    if not modules:
        return {}
    form = _format(config, where)
    weights = [Packed(tensors, module, form) for module in modules]
    return {f"{weight.module}.weight": (weight, weight.parts) for weight in weights}


def _packs(key: str) -> bool:
    return key.endswith(".qweight")


def _format(config: Mapping[str, Any], where: object) -> Format:
    name = config.get("quant_method")
    if name not in _CHOICES:
        raise AdapterError(
            f"{where}: holds packed weights (qweight), and quantization_config in "
            f"config.json says quant_method {show(name)}, expected gptq or awq"
        )
    for field, values in _CHOICES[name].items():
        value = config.get(field)
        if value not in values or type(value) not in map(type, values):
            raise AdapterError(
                f"{where}: quantization_config says {field} {show(value)}, which is "
                "not unpacked here; give the model that it was made from"
            )
    group = config.get("group_size", -1 if name == "gptq" else None)
    if type(group) is not int or (group < 1 and group != -1):
        raise AdapterError(f"{where}: quantization_config: group_size {show(group)}")
    second = config.get("checkpoint_format") == "gptq_v2"
    less = 1 if name == "gptq" and not second else 0
    return Format(name, config["bits"], None if group == -1 else group, less)
