"""Thirteen sets of small images, all as 32 x 32 pixels in three channels.

Eight are the tasks; the other five only help to pretrain the base.
"""

from functools import cache
from typing import Any

import jax
import numpy as np
from sklearn.model_selection import train_test_split

from experiments.suite import Split, shared_folder

TASKS = (
    "mnist",
    "fashion_mnist",
    "cifar10",
    "gtsrb",
    "notmnist",
    "arabic_letters",
    "rsscn7_satellite",
    "neu_surface_texture",
)
OTHERS = (
    "bangla_numerals",
    "telugu_numerals",
    "omniglot_alphabet",
    "quickdraw3",
    "pneumonia_mnist",
)
SIDE = 32
MEAN, DEVIATION = 0.5, 0.25  # of every channel, in parts of full brightness


def load_split(name: str, part: str) -> Split:
    """Normalised float32 images [N, 32, 32, 3] and labels of one part of a set.

    Args:
      name: one of ``TASKS`` or ``OTHERS``.
      part: "train", "validation" or "test".
    """
    pixels, labels = load_pixels(name, part)
    return Split(normalise(pixels), labels)


def normalise(pixels: np.ndarray | jax.Array) -> Any:
    """Bytes to float32 around 0: ``(pixels / 255 - MEAN) / DEVIATION``."""
    return (pixels.astype(np.float32) / 255 - MEAN) / DEVIATION


def load_pixels(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes [N, 32, 32, 3] and int32 labels [N] of one part of a set.

    Validation is a tenth of the published train part, at most 500 images, with classes
    in proportion; images of it that are also in the rest stay in the rest only.

    Raises:
      ValueError: an unknown set or part, or no such file.
    """
    if name not in TASKS + OTHERS:
        raise ValueError(f"no set {name!r}; there are {', '.join(TASKS + OTHERS)}")
    if part not in ("train", "validation", "test"):
        raise ValueError(f"no part {part!r}; there are train, validation and test")
    path = shared_folder() / "data" / "images" / f"{name}.npz"
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    side = "test" if part == "test" else "train"
    with np.load(path) as file:
        images, labels = file[f"x_{side}"], file[f"y_{side}"].astype(np.int32)
    if part != "test":
        chosen = _train_and_validation(name)[part == "validation"]
        images, labels = images[chosen], labels[chosen]
    return _in_three_channels(images), labels


@cache
def _train_and_validation(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the published train part that are used for each."""
    with np.load(shared_folder() / "data" / "images" / f"{name}.npz") as file:
        images, labels = file["x_train"], file["y_train"]
    train, validation = train_test_split(
        np.arange(len(labels)),
        test_size=min(500, len(labels) // 10),
        stratify=labels,
        random_state=0,
    )
    known = {images[index].tobytes() for index in train}
    fresh = [index for index in validation if images[index].tobytes() not in known]
    return np.sort(train), np.sort(np.array(fresh))


def _in_three_channels(images: np.ndarray) -> np.ndarray:
    """Gray to three equal channels; 28 x 28 pixels get a black frame."""
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    margin = SIDE - images.shape[1]
    around = (margin // 2, margin - margin // 2)
    return np.pad(images, ((0, 0), around, around, (0, 0)))
