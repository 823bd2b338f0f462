"""Labels beside the inputs, where a file has them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.folders import Folder
from jaxmerge.refusals import Refusal
from jaxmerge.tasks.heads import head_shape
from jaxmerge.tasks.images import checked_array, open_arrays
from jaxmerge.tasks.texts import read_rows
from jaxmerge.tasks.unlabeled import Unlabeled, spread

FIELD, KEY = "label", "labels"  # of a line of texts, of an archive of images


def load_labels(
    folder: Folder, unlabeled: Unlabeled, heads: Mapping[str, Any]
) -> dict[str, np.ndarray | None]:
    """Reads for each task the classes [N] of its inputs; None where a file has none.

    Texts have them in the field ``label`` of every line, images in the array
    ``labels``, as numbers of the classes of the head, from 0.

    Args:
      folder: from which the inputs were read.
      unlabeled: the inputs.
      heads: task -> its head, see `task_heads`.

    Raises:
      ValueError: labels for some of the rows, or that are no class of the head.
    """
    labels = {}
    for task, file in zip(unlabeled.inputs, unlabeled.files, strict=True):
        path, rows = Path(folder) / file, unlabeled.rows[task]
        classes, _ = head_shape(heads[task])
        read = _of_images if path.suffix == ".npz" else _of_texts
        found = read(path, rows, classes)
        chosen = spread(rows, unlabeled.count(task))
        labels[task] = None if found is None else found[chosen]
    return labels


def _of_texts(path: Path, rows: int, classes: int) -> np.ndarray | None:
    lines = read_rows(path)
    missing = [number for number, line in lines if FIELD not in line]
    if len(missing) == rows:
        return None
    if missing:
        raise Refusal(
            f"{path}: line {missing[0]} has no {FIELD}, others have; label all of them "
            "or none"
        )
    values = ((number, line[FIELD]) for number, line in lines)
    _check(path, values, classes, lambda number: f"line {number}: {FIELD}")
    return np.array([line[FIELD] for _, line in lines], np.int64)


def _of_images(path: Path, rows: int, classes: int) -> np.ndarray | None:
    with open_arrays(path) as arrays:
        found = checked_array(arrays[KEY]) if KEY in arrays else None
    if found is None:
        return None
    if found.shape != (rows,) or not np.issubdtype(found.dtype, np.integer):
        raise Refusal(
            f"{path}: {KEY} {found.shape} in {found.dtype}; expected whole numbers "
            f"({rows},), one for each image"
        )
    _check(path, enumerate(found.tolist()), classes, lambda row: f"{KEY}[{row}]")
    return found.astype(np.int64)


def _check(
    path: Path,
    values: Iterable[tuple[int, Any]],
    classes: int,
    named: Callable[[int], str],
) -> None:
    """Refuses what is no class of the head; a bool is none either."""
    for place, value in values:
        if type(value) is not int or not 0 <= value < classes:
            raise Refusal(
                f"{path}: {named(place)} is {value!r}; expected the number of a class "
                f"of the head, 0 to {classes - 1} (leave labels out that are unknown)"
            )
