"""An unpickler that knows the few names of a torch checkpoint and nothing else.

A pickle is a program. Any name in it other than those of tensor rebuilding, storages
and ordered dictionaries is an error before it is called, and so is a key of a
dictionary that is neither text nor a number.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pickle import _Unpickler as PythonUnpickler  # pyright: ignore[reportPrivateUsage]
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from jaxmerge.io.errors import AdapterError

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Storage(NamedTuple):
    """A flat buffer of the file, named but not yet read."""

    key: str
    dtype: np.dtype
    size: int  # elements


class Tensor(NamedTuple):
    """A strided view of a storage; has the ``dtype`` and ``shape`` of a TensorInfo."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_: Any
) -> Tensor:
    """Stands in for torch's rebuild functions; checks that the view stays inside."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor is rebuilt from something not a storage")
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise pickle.UnpicklingError("a tensor has an impossible shape or stride")
    empty = 0 in shape
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if not empty and last >= storage.size:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if not empty and np.prod(shape, dtype=float) > storage.size:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return Tensor(storage, offset, shape, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise pickle.UnpicklingError(
            "a parameter is rebuilt from something not a tensor"
        )
    return tensor


def _ordered_dict(items: Any = ()) -> OrderedDict[str | int, Any]:
    return OrderedDict((checked_key(key), value) for key, value in items)


def checked_key(key: Any) -> str | int:
    """A key that is safe to hash: nested tuples take all the stack or all the time."""
    if not isinstance(key, str | int):
        raise pickle.UnpicklingError(
            f"a {type(key).__name__} as the key of a dictionary"
        )
    return key


_KNOWN_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{
        (module, name): np.dtype(dtype)
        for module in ("torch", "torch.storage")
        for name, dtype in _STORAGES.items()
    },
}


class Unpickler(PythonUnpickler):
    """An unpickler for which only `_KNOWN_NAMES` exist.

    It is the one in Python, whose opcodes can be replaced: the one in C hashes any key
    and sets attributes of any object.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(
        PythonUnpickler.dispatch
    )
    for _opcode in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        del dispatch[_opcode[0]]  # sets hash their entries; no checkpoint has any

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(self.stack[-1], [key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(self.stack[-1], items)

    dispatch[pickle.DICT[0]] = load_dict

    def load_build(self) -> None:
        """Drops attributes: those of a state dict are versions of its modules."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build

    def _fill(self, table: Any, items: list[Any]) -> None:
        if not isinstance(table, dict):
            raise pickle.UnpicklingError("an entry of something not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            table[checked_key(key)] = value

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN_NAMES[module, name]
        except KeyError:
            raise AdapterError(
                f"the pickle asks for {module}.{name}, which is not part of a tensor "
                "file and was not run; save the adapter as safetensors"
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _location, size, *view = pid
        if (
            kind != "storage"
            or not isinstance(dtype, np.dtype)
            or not isinstance(key, str)
            or type(size) is not int
            or size < 0
            or view not in ([], [None])
        ):
            raise pickle.UnpicklingError("a storage record of an unknown form")
        return Storage(key, dtype, size)
