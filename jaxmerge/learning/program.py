"""What a pure function computes, as a digest that is the same in every process."""

import enum
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

_PLAIN = (str, bytes, bool, int, float, complex, type(None), np.dtype, type, enum.Enum)
_SAYS_NOTHING = {"name"}  # of a jitted function


def program_digest(function: Callable[..., Any], *arguments: Any) -> str:
    """Digest of the operations of a function and of the arrays that it holds.

    The function is traced, not run. Names, addresses and places in source files do not
    enter, nor do devices and shardings; nor the Python code of a callback, which is not
    seen. Other versions of JAX may trace one function to other operations.

    Args:
      function: pure; of pytrees of arrays.
      *arguments: only their structure, shapes and types matter.

    >>> one = program_digest(lambda x: 2 * x, np.ones(3))
    >>> one == program_digest(lambda y: 2 * y, np.zeros(3))
    True
    >>> one == program_digest(lambda x: 3 * x, np.ones(3))
    False
    """
    digest = hashlib.sha256()
    for part in _of_value(jax.make_jaxpr(function)(*arguments)):
        digest.update(part + b"\0")
    return digest.hexdigest()


def array_bytes(array: Any) -> bytes:
    """Type, shape and values of an array, of random keys too."""
    dtype = getattr(array, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    values = np.ascontiguousarray(array).tobytes()
    return f"{array.dtype}{array.shape}".encode() + values


def _of_value(value: Any) -> Iterator[bytes]:
    """Parts of the digest of a parameter; none where only an address is known."""
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, core.ClosedJaxpr):
        yield from map(array_bytes, value.consts)
        yield from _of_jaxpr(value.jaxpr)
    elif isinstance(value, core.Jaxpr):
        yield from _of_jaxpr(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _of_value(value[key])
    elif isinstance(value, tuple | list):
        yield f"{len(value)} of".encode()
        for part in value:
            yield from _of_value(part)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value))).encode()
    elif isinstance(value, np.generic | np.ndarray | jax.Array):
        yield array_bytes(value)


def _of_jaxpr(jaxpr: core.Jaxpr) -> Iterator[bytes]:
    numbers: dict[core.Var, int] = {}

    def of(atom: Any) -> bytes:
        kind = f"{getattr(atom.aval, 'dtype', '')}{getattr(atom.aval, 'shape', '')}"
        if isinstance(atom, core.Literal):
            return kind.encode() + array_bytes(atom.val)
        return f"{kind} {numbers.setdefault(atom, len(numbers))}".encode()

    for atom in (*jaxpr.constvars, *jaxpr.invars):
        yield of(atom)
    for equation in jaxpr.eqns:
        yield equation.primitive.name.encode()
        for atom in (*equation.invars, *equation.outvars):
            yield of(atom)
        told = {k: v for k, v in equation.params.items() if k not in _SAYS_NOTHING}
        yield from _of_value(told)
    for atom in jaxpr.outvars:
        yield of(atom)
