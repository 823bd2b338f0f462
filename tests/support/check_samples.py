"""Arguments of ``jaxmerge check``, and what its entropy should be."""

import numpy as np
from learn_samples import TASKS


def ask(place, *tasks, base=None, data=None, **options):
    """Arguments of a check."""
    flags = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, value]
    folders = [place / "in" / task for task in tasks or TASKS]
    where = ["--base", base or place / "base", "--data", data or place / "data"]
    return ["check", *folders, *where, *flags]


def entropy_of(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -(p * np.log(p)).sum(axis=1).mean()
