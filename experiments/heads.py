"""Linear probes: what a frozen base can do without any adapter."""

import numpy as np
from sklearn.linear_model import LogisticRegression

INVERSE_PENALTIES = (0.01, 0.1, 1.0)
ITERATIONS = 300


def fit_probe(
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
