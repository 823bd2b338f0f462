"""An unpickler that knows the few names of a torch checkpoint and nothing else.

A pickle is a program. Any name in it other than those of tensor rebuilding, storages
and ordered dictionaries is an error before it is called, and so is a key of a
dictionary that is no text, or that is there already. Its instructions are counted, and
none of them takes more time or memory than the bytes that it stands on.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pickle import _Unpickler as PythonUnpickler  # pyright: ignore[reportPrivateUsage]
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.untrusted.text import shown

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
_FLOAT8 = (
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
)


LONGEST_PICKLE = 16 * 2**20  # bytes of a pickle
_MOST_STEPS = 1_000_000  # 43 for each tensor; every one may take 100 bytes
_MOST_AXES = 16
_LARGEST = 2**60  # of a size, offset or stride


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

    @property
    def span(self) -> int:
        """How many numbers of the storage lie from its first entry to its last."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return 1 + sum((n - 1) * step for n, step in steps)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_: Any
) -> Tensor:
    """Stands in for torch's rebuild functions; checks that the view stays inside."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor is rebuilt from something not a storage")
    if not isinstance(shape, tuple | list) or not isinstance(stride, tuple | list):
        raise pickle.UnpicklingError("a tensor without a shape or stride")
    if len(shape) != len(stride) or len(shape) > _MOST_AXES:
        raise pickle.UnpicklingError("a tensor has an impossible shape or stride")
    shape, stride = tuple(shape), tuple(stride)
    if not all(
        type(number) is int and 0 <= number < _LARGEST
        for number in (offset, *shape, *stride)
    ):
        raise pickle.UnpicklingError("a tensor has an impossible shape or stride")
    tensor = Tensor(storage, offset, shape, stride)
    if tensor.span and offset + tensor.span > storage.size:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if math.prod(shape) > storage.size:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return tensor


def _rebuild_tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any,
    dtype: Any, *_: Any,
) -> Tensor:  # fmt: skip
    """Newer dtypes lie in storages of bytes; those known here take one byte each."""
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise pickle.UnpicklingError("a tensor is rebuilt from something not a storage")
    return _rebuild_tensor(storage._replace(dtype=dtype), offset, shape, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise pickle.UnpicklingError(
            "a parameter is rebuilt from something not a tensor"
        )
    return tensor


def _ordered_dict() -> OrderedDict[str, Any]:
    return OrderedDict()  # its entries follow, one by one


def checked_key(key: Any) -> str:
    """A key that is safe to hash: nested tuples take all the stack or all the time."""
    if not isinstance(key, str):
        raise pickle.UnpicklingError(
            f"a {type(key).__name__} as the key of a dictionary, such as the state of "
            "a training has, which is no adapter"
        )
    return key


_KNOWN_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{
        (module, name): np.dtype(dtype)
        for module in ("torch", "torch.storage")
        for name, dtype in _STORAGES.items()
    },
    ("torch.storage", "UntypedStorage"): np.dtype(np.uint8),
    **{("torch", name): np.dtype(name) for name in _FLOAT8},
}


class _Counted:
    """A file of which only so many bytes and instructions are read.

    Every instruction is one byte that is read by itself.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = LONGEST_PICKLE
        self._steps = _MOST_STEPS

    def read(self, size: int) -> bytes:
        self._steps -= size == 1
        if not 0 <= size <= self._left or self._steps < 0:
            raise pickle.UnpicklingError(_TOO_LONG)
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise pickle.UnpicklingError(_TOO_LONG)
        return line


_TOO_LONG = "a pickle that is cut off, or too long for an adapter"


class Unpickler(PythonUnpickler):
    """An unpickler for which only `_KNOWN_NAMES` exist.

    It is the one in Python, whose opcodes can be replaced: the one in C hashes any key
    and sets attributes of any object. An unpickler reads one pickle.
    """

    stack: list[Any]
    memo: dict[int, Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(
        PythonUnpickler.dispatch
    )
    for _opcode in (
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),  # hash their entries
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    ):
        del dispatch[_opcode[0]]  # no checkpoint has any

    def __init__(self, file: BinaryIO):
        counted: Any = _Counted(file)
        super().__init__(counted)

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(
                "an instruction that no tensor file has"
            ) from error

    def load_frame(self) -> None:
        """Frames say in advance how much to read; it is read as it comes."""
        self.read(8)

    dispatch[pickle.FRAME[0]] = load_frame

    def load_long1(self) -> None:
        self._push_long(self.read(1)[0])

    dispatch[pickle.LONG1[0]] = load_long1

    def load_long4(self) -> None:
        self._push_long(int.from_bytes(self.read(4), "little"))

    dispatch[pickle.LONG4[0]] = load_long4

    def _push_long(self, size: int) -> None:
        if size > 16:
            raise pickle.UnpicklingError("a number of too many digits")
        self.stack.append(pickle.decode_long(self.read(size)))

    def load_put(self) -> None:
        place = int(self.readline())
        if not 0 <= place < 2**32:
            raise pickle.UnpicklingError("a place that no pickle has")
        self.memo[place] = self.stack[-1]

    dispatch[pickle.PUT[0]] = load_put

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        if not isinstance(arguments, tuple) or len(arguments) > 16:
            raise pickle.UnpicklingError("a call with impossible arguments")
        self.stack[-1] = self.stack[-1](*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

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
            if checked_key(key) in table:
                raise pickle.UnpicklingError(f"two entries of the name {show(key)}")
            table[key] = value

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN_NAMES[module, name]
        except KeyError:
            wanted = shown(f"{module[:60]}.{name[:60]}", keep="")
            raise AdapterError(
                f"the pickle asks for {wanted}, which is not part of a tensor "
                "file and was not run; save the adapter as safetensors"
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or not 5 <= len(pid) <= 6:
            raise pickle.UnpicklingError("a storage record of an unknown form")
        kind, dtype, key, _location, size, *view = pid
        if (
            kind != "storage"
            or not isinstance(dtype, np.dtype)
            or not isinstance(key, str)
            or type(size) is not int
            or not 0 <= size < _LARGEST
            or view not in ([], [None])
        ):
            raise pickle.UnpicklingError("a storage record of an unknown form")
        return Storage(key, dtype, size)
