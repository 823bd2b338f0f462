"""Files of images as arrays of pixels."""

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.refusals import Refusal
from jaxmerge.untrusted.archive import DAMAGED, open_archive
from jaxmerge.untrusted.json_text import read_json
from jaxmerge.untrusted.text import shown

KEY = "images"
PREPROCESSOR = "preprocessor_config.json"
_FOREIGN_ERRORS = (  # what numpy, zipfile and zlib raise on damaged input
    *DAMAGED,
    SyntaxError,
    tokenize.TokenError,
    zlib.error,
)
_LARGEST, _DENSEST = 2**26, 200  # bytes that no file explains, in all and for each


@contextmanager
def open_arrays(path: Path) -> Generator[Mapping[str, np.ndarray], None, None]:
    """The arrays of an ``.npz`` file; what goes wrong with them names the file.

    Raises:
      ValueError: also instead of what reading an array raises.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise Refusal(
                "a single array; save it by its name with numpy.savez"
                if _is_single_array(path)
                else "not an archive as numpy.savez writes it"
            )
        with open_archive(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > max(_LARGEST, _DENSEST * path.stat().st_size):
            raise Refusal(f"unpacks to {size} bytes, more than images do")
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except _FOREIGN_ERRORS as error:
        raise Refusal(f"{path}: {shown(str(error), keep='')[:500]}") from None


def _is_single_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def checked_array(value: Any) -> np.ndarray:
    """An entry of an archive if it is an array; numpy gives others as bytes."""
    if not isinstance(value, np.ndarray):
        raise Refusal("an entry is no array as numpy.savez writes it")
    return value


def read_images(path: Path, *, size: int, channels: int) -> np.ndarray:
    """Images [N, size, size, channels] of an ``.npz`` file.

    Its array ``images`` is in uint8, from 0 to 255, or in float, normalised as the
    model expects; other arrays, such as labels, are ignored.

    Returns:
      uint8 as stored, or float32.

    Raises:
      ValueError: no such array, or images of another shape, type, or not finite.
    """
    with open_arrays(path) as arrays:
        if KEY not in arrays:
            raise Refusal(
                f"no array {KEY!r} [N, {size}, {size}, {channels}]; it holds "
                f"{', '.join(map(repr, [*arrays][:6])) or 'none'}"
            )
        images = checked_array(arrays[KEY])
    if images.ndim != 4 or images.shape[1:] != (size, size, channels):
        raise Refusal(
            f"{path}: {KEY} {images.shape}, the model reads [N, {size}, {size}, "
            f"{channels}]; resize them first"
        )
    if len(images) == 0:
        raise Refusal(f"{path}: {KEY} holds no image")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise Refusal(
            f"{path}: {KEY} in {images.dtype}; expected uint8, or float if normalised"
        )
    if not np.isfinite(images).all():
        raise Refusal(f"{path}: {KEY} holds NaN or infinite values")
    return images.astype(np.float32)


def pixel_normaliser(folder: Path, channels: int) -> Callable[[jax.Array], jax.Array]:
    """What turns 8-bit pixels into what the model was trained on; floats stay."""
    path = folder / PREPROCESSOR
    statistics = None
    if path.is_file():
        try:
            found = read_json(path)
            mean, std = found["image_mean"], found["image_std"]
            statistics = [jnp.asarray(x, jnp.float32) for x in (mean, std)]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(
                f"{path}: no usable image_mean and image_std ({error!r})"
            ) from None
        if any(x.shape != (channels,) for x in statistics):
            raise Refusal(f"{path}: image_mean and image_std of {channels} channels")

    def normalise(images: jax.Array) -> jax.Array:
        if images.dtype != jnp.uint8:
            return images
        if statistics is None:
            raise Refusal(
                f"{folder}: no {PREPROCESSOR}, so 8-bit pixels cannot be normalised; "
                "add it, or give the images as normalised floats"
            )
        mean, std = (x[None, None, None] for x in statistics)
        return (images.astype(jnp.float32) / jnp.float32(255) - mean) / std

    return normalise
