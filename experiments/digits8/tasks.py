"""The eight tasks: what is done to images or labels, and which adapter learns it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from experiments.digits8.data import Split
from experiments.lora import Lora

Variation = Callable[[np.ndarray], np.ndarray]  # [N, 8, 8] -> [N, 8, 8]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A variation of the digits; ``head`` names the class vectors that it uses."""

    vary: Variation
    lora: Lora
    head: str = "digits"

    def examples(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Varied images [N, 8, 8, 1] and labels [N]."""
        labels = split.digits % 2 if self.head == "parity" else split.digits
        return self.vary(split.images)[..., None].astype(np.float32), labels


def unchanged(images: np.ndarray) -> np.ndarray:
    return images


def turned(images: np.ndarray) -> np.ndarray:
    """Turned by 45 degrees."""
    return ndimage.rotate(images, 45, axes=(1, 2), reshape=False, order=1)


def sheared(images: np.ndarray) -> np.ndarray:
    """Slanted: every row is moved by 0.9 pixels against the next."""
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0, 0.9, 1]])
    return ndimage.affine_transform(images, matrix, (0, 0, -0.9 * 3.5), order=1)


def mirrored(images: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return images[:, :, ::-1]


def swapped(images: np.ndarray) -> np.ndarray:
    """Columns exchanged in pairs."""
    return images[:, :, [1, 0, 3, 2, 5, 4, 7, 6]]


def jagged(images: np.ndarray) -> np.ndarray:
    """Even rows moved one pixel left, odd rows one pixel right, around the edge."""
    even = (np.arange(8) % 2 == 0)[None, :, None]
    return np.where(even, np.roll(images, -1, axis=2), np.roll(images, 1, axis=2))


def outlined(images: np.ndarray) -> np.ndarray:
    """Horizontal differences instead of brightness."""
    return np.abs(images - np.roll(images, 1, axis=2))


def barred(images: np.ndarray) -> np.ndarray:
    """Every third row covered by a white bar."""
    return np.where((np.arange(8) % 3 == 2)[None, :, None], 1, images)


TASKS = {
    "turned": Task(vary=turned, lora=Lora(rank=8, alpha=16)),
    "sheared": Task(vary=sheared, lora=Lora(rank=8, alpha=12)),
    "mirrored": Task(vary=mirrored, lora=Lora(rank=16, alpha=24)),
    "swapped": Task(vary=swapped, lora=Lora(rank=16, alpha=8, rslora=True)),
    "jagged": Task(vary=jagged, lora=Lora(rank=8, alpha=16)),
    "outlined": Task(vary=outlined, lora=Lora(rank=16, alpha=32)),
    "barred": Task(vary=barred, lora=Lora(rank=4, alpha=8)),
    "parity": Task(
        vary=unchanged,
        head="parity",
        lora=Lora(rank=4, alpha=8, targets=("q_proj", "v_proj")),
    ),
}
