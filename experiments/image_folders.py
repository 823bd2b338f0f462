"""Image data sets in class folders: ``<task>/<part>/<class>/<image>``."""

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.suite import Split

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm"}


def read_folders(folder: Path, part: str, *, side: int, limit: int) -> Split:
    """One part of a task: pixels [N, side, side, 3] in uint8 and labels [N].

    Images are resized to ``side`` on their shorter edge and cropped in the middle, as
    for CLIP. Labels number the class folders in the order of their names, the same in
    every part. Of more than ``limit`` images an even share of every class is read.

    Raises:
      ValueError: no such part, or a class without images.
    """
    classes = sorted(path for path in (folder / part).glob("*") if path.is_dir())
    if not classes:
        raise ValueError(f"{folder / part}: no class folders")
    each = max(1, limit // len(classes))
    pixels, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in ENDINGS)[:each]
        if not files:
            raise ValueError(f"{path}: no images")
        pixels += [_read(file, side) for file in files]
        labels += [label] * len(files)
    order = np.random.default_rng(0).permutation(len(labels))
    return Split(np.stack(pixels)[order], np.asarray(labels, np.int32)[order])


def _read(file: Path, side: int) -> np.ndarray:
    with Image.open(file) as image:
        image = image.convert("RGB")
        factor = side / min(image.size)
        size = [max(side, round(edge * factor)) for edge in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = ((edge - side) // 2 for edge in size)
        return np.asarray(image.crop((left, top, left + side, top + side)))
