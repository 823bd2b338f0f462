"""Files of images as arrays of pixels."""

import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxmerge.refusals import Refusal

KEY = "images"


@contextmanager
def open_arrays(path: Path) -> Generator[np.lib.npyio.NpzFile, None, None]:
    """The arrays of an ``.npz`` file; what goes wrong with them names the file.

    Raises:
      ValueError: also instead of what reading an array raises.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise Refusal("a single array, not an archive as numpy.savez writes it")
        with arrays:
            yield arrays
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise Refusal(f"{path}: {error}") from None


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
                f"{', '.join(arrays) or 'none'}"
            )
        images = arrays[KEY]
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
