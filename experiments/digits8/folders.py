"""Images, classes and base as the commands read them.

``python -m experiments.digits8.folders`` writes them for the adapters of this folder:
``digits/<task>.npz``, images without their classes, to learn from;
``digits_test/<task>.npz``, other images with their classes, to score on; and
``digits/heads.safetensors``, the vectors of each task's classes.
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from experiments.digits8.data import load_splits
from experiments.digits8.model import BASE, CLASS_VECTORS
from experiments.digits8.tasks import TASKS

LEARN, TEST, HEADS = "digits", "digits_test", "heads.safetensors"


def main() -> None:
    """Writes the folders into the current one, or into ``--out``."""
    parser = argparse.ArgumentParser(description="Write images of the eight tasks.")
    parser.add_argument("--out", type=Path, default=Path(), help="folder; by default .")
    out = parser.parse_args().out
    for name in (LEARN, TEST):
        if (out / name).exists():
            parser.error(f"{out / name} exists already")
    write(out)
    print(f"wrote {LEARN} and {TEST} into {out.resolve()}")


def write(out: Path) -> None:
    """Validation images to learn from, test images to score on."""
    splits = load_splits()
    for name in (LEARN, TEST):
        (out / name).mkdir(parents=True)
    for name, task in TASKS.items():
        images, _ = task.examples(splits["validation"])
        np.savez(out / LEARN / f"{name}.npz", images=images)
        images, labels = task.examples(splits["test"])
        np.savez(out / TEST / f"{name}.npz", images=images, labels=labels)
    heads = load_file(BASE / CLASS_VECTORS)
    save_file(
        {name: heads[task.head].copy() for name, task in TASKS.items()},
        out / LEARN / HEADS,
    )


if __name__ == "__main__":
    main()
