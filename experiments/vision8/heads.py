"""The heads of the tasks, made from the frozen base and its features.

A head is a nearest-class-mean classifier: it knows the classes, as the text vectors of
a zero-shot model do, and leaves the learning to the adapter. A linear probe on the same
features says what the base can do without any adapter.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from experiments.heads import fit_probe
from experiments.suite import Split, Suite, batches
from experiments.vision8.data import TASKS, load_split

SHARPNESS = 20.0  # divides distances, so that softmax can be sure


def fit_heads(suite: Suite, path: Path, *, report: Callable[[str], None]) -> None:
    """Fits a head to each task's train part and writes all of them to one file."""
    apply = jax.jit(suite.base.apply)

    def features(split: Split) -> np.ndarray:
        read = batches(suite, split.inputs, 256)
        return np.concatenate([np.asarray(apply(suite.base.params, x)) for x in read])

    stored = {}
    for name in TASKS:
        parts = (load_split(name, part) for part in ("train", "validation"))
        train, validation = ((features(split), split.labels) for split in parts)
        kernel, bias = class_means(*train)
        stored |= {f"{name}.kernel": kernel, f"{name}.bias": bias}
        probe_kernel, probe_bias, score = fit_probe(train, validation)
        stored |= {
            f"{name}.probe_kernel": probe_kernel,
            f"{name}.probe_bias": probe_bias,
        }
        means = np.mean((validation[0] @ kernel + bias).argmax(1) == validation[1])
        report(f"{name}: means {means:.3f}, linear probe {score:.3f} on validation")
    fresh = path.with_suffix(".new")
    # safetensors writes the memory of an array, whatever its strides say
    save_file({key: np.ascontiguousarray(x) for key, x in stored.items()}, fresh)
    fresh.replace(path)


def class_means(
    features: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest class mean in standardised features, as a linear head.

    The logits are ``s (x . mu_c - |mu_c|^2 / 2) / d``: the distance to the mean of a
    class, up to what all classes share, averaged over the d features and sharpened.

    Args:
      features: [N, d].
      labels: [N]; every class occurs.

    Returns:
      Kernel [d, classes] and bias [classes] for the features as they are.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    standard = (features - mean) / deviation
    means = np.stack([standard[labels == c].mean(0) for c in range(labels.max() + 1)])
    kernel = SHARPNESS * means.T / deviation[:, None] / len(mean)
    bias = -SHARPNESS * np.square(means).sum(1) / 2 / len(mean) - mean @ kernel
    return kernel.astype(np.float32), bias.astype(np.float32)
