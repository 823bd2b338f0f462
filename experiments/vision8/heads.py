"""Linear probes: the heads of the tasks on the frozen base."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from experiments.suite import Split, Suite, batches
from experiments.vision8.data import TASKS, load_split

INVERSE_PENALTIES = (0.01, 0.1, 1.0)
ITERATIONS = 300


def fit_heads(suite: Suite, path: Path, *, report: Callable[[str], None]) -> None:
    """Fits a head to each task's train part and writes all of them to one file."""
    apply = jax.jit(suite.apply)

    def features(split: Split) -> np.ndarray:
        return np.concatenate(
            [np.asarray(apply(suite.params, x)) for x, _ in batches(suite, split, 256)]
        )

    stored = {}
    for name in TASKS:
        train, validation = load_split(name, "train"), load_split(name, "validation")
        kernel, bias, score = fit_head(
            (features(train), train.labels), (features(validation), validation.labels)
        )
        stored |= {f"{name}.kernel": kernel, f"{name}.bias": bias}
        report(f"{name}: linear probe {100 * score:.1f} % on validation")
    fresh = path.with_suffix(".new")
    save_file(stored, fresh)
    fresh.replace(path)


def fit_head(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Multinomial logistic regression on standardised features.

    Args:
      train: features [N, d] and labels [N].
      validation: the same, to choose the strength of the L2 penalty.

    Returns:
      Kernel [d, classes] and bias [classes] for the features as they are, and the
      accuracy on validation.
    """
    features, labels = train
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    best = None
    for inverse_penalty in INVERSE_PENALTIES:
        model = LogisticRegression(C=inverse_penalty, max_iter=ITERATIONS)
        model.fit((features - mean) / deviation, labels)
        score = model.score((validation[0] - mean) / deviation, validation[1])
        if best is None or score > best[0]:
            best = score, model
    score, model = best
    kernel, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
        kernel, bias = np.hstack([0 * kernel, kernel]), np.append(0 * bias, bias)
    kernel = kernel / deviation[:, None]
    bias = bias - mean @ kernel
    return kernel.astype(np.float32), bias.astype(np.float32), float(score)
