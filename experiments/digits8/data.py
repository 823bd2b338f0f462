"""The digits of scikit-learn, 1,797 images of 8 x 8 pixels in [0, 1], in splits."""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIZES = {"train": 897, "validation": 200, "test": 700}


class Split(NamedTuple):
    """Images [N, 8, 8] in float32 and their digits [N]."""

    images: np.ndarray
    digits: np.ndarray


@cache
def load_splits() -> dict[str, Split]:
    """Three fixed splits, with every digit in proportion."""
    bunch = load_digits()
    images, digits = (bunch.images / 16).astype(np.float32), bunch.target
    order = {"shuffle": True, "random_state": 0}
    train, rest = train_test_split(
        np.arange(len(digits)), train_size=SIZES["train"], stratify=digits, **order
    )
    validation, test = train_test_split(
        rest, train_size=SIZES["validation"], stratify=digits[rest], **order
    )
    parts = {"train": train, "validation": validation, "test": test}
    return {name: Split(images[part], digits[part]) for name, part in parts.items()}


def augment(split: Split, *, copies: int, seed: int) -> Split:
    """Makes slightly moved, scaled, dimmed and noisy copies of every image.

    Turns stay within 17 degrees, shifts within one pixel, sizes within 20 %; none of
    the tasks' variations is among them.
    """
    rng = np.random.default_rng(seed)
    images, digits = (np.concatenate([part] * copies) for part in split)
    count, centre = len(images), np.array([3.5, 3.5])
    angles = rng.uniform(-0.3, 0.3, count)
    sizes = rng.uniform(0.85, 1.2, (count, 2))
    shifts = rng.uniform(-1, 1, (count, 2))
    moved = np.empty_like(images)
    for i, image in enumerate(images):
        cosine, sine = np.cos(angles[i]), np.sin(angles[i])
        matrix = np.array([[cosine, -sine], [sine, cosine]]) * sizes[i]
        offset = centre - matrix @ centre + shifts[i]
        ndimage.affine_transform(image, matrix, offset, order=1, output=moved[i])
    gain = rng.uniform(0.6, 1.1, (count, 1, 1))
    brightness = rng.uniform(0, 0.1, (count, 1, 1))
    noise = rng.normal(0, 0.08, moved.shape)
    return Split((gain * moved + brightness + noise).astype(np.float32), digits)
