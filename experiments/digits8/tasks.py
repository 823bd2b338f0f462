"""The eight tasks: what is done to images or labels, and which adapter learns it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from experiments.digits8.data import Split

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

Variation = Callable[[np.ndarray], np.ndarray]  # [N, 8, 8] -> [N, 8, 8]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapter's shape: ``alpha / rank`` scales it, or ``alpha / sqrt(rank)``."""

    rank: int
    alpha: int
    rslora: bool = False
    targets: tuple[str, ...] = ATTENTION

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


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


def turned_left(images: np.ndarray) -> np.ndarray:
    """Turned by 45 degrees against the clock."""
    return ndimage.rotate(images, 45, axes=(1, 2), reshape=False, order=1)


def turned_right(images: np.ndarray) -> np.ndarray:
    """Turned by 45 degrees with the clock."""
    return ndimage.rotate(images, -45, axes=(1, 2), reshape=False, order=1)


def slanted(images: np.ndarray) -> np.ndarray:
    """Sheared: every row is moved by 0.9 pixels against the next."""
    return _transformed(images, [[1, 0], [0.9, 1]])


def tilted(images: np.ndarray) -> np.ndarray:
    """Sheared: every column is moved by 0.9 pixels against the next."""
    return _transformed(images, [[1, 0.9], [0, 1]])


def flattened(images: np.ndarray) -> np.ndarray:
    """Pressed to 1 / 1.8 of the height."""
    return _transformed(images, [[1.8, 0], [0, 1]])


def swapped(images: np.ndarray) -> np.ndarray:
    """Columns exchanged in pairs."""
    return images[:, :, [1, 0, 3, 2, 5, 4, 7, 6]]


def barred(images: np.ndarray) -> np.ndarray:
    """Every third row covered by a white bar."""
    return np.where((np.arange(8) % 3 == 2)[None, :, None], 1, images)


def _transformed(images: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Reads every pixel (row, column) at ``matrix`` times its place from the centre."""
    whole = np.eye(3)  # the first axis counts the images
    whole[1:, 1:] = matrix
    centre = np.array([0, 3.5, 3.5])
    return ndimage.affine_transform(images, whole, centre - whole @ centre, order=1)


TASKS = {
    "turned_left": Task(vary=turned_left, lora=Lora(rank=8, alpha=16)),
    "turned_right": Task(vary=turned_right, lora=Lora(rank=8, alpha=12)),
    "slanted": Task(vary=slanted, lora=Lora(rank=16, alpha=24)),
    "tilted": Task(vary=tilted, lora=Lora(rank=8, alpha=16)),
    "flattened": Task(vary=flattened, lora=Lora(rank=16, alpha=32)),
    "swapped": Task(vary=swapped, lora=Lora(rank=16, alpha=8, rslora=True)),
    "barred": Task(vary=barred, lora=Lora(rank=4, alpha=8)),
    "parity": Task(
        vary=unchanged,
        head="parity",
        lora=Lora(rank=4, alpha=8, targets=("q_proj", "v_proj")),
    ),
}
