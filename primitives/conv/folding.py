"""Batch normalisation folded into the weights of the layer before it, for inference.

Not here: batch normalisation in training, which needs the statistics of the batch.
"""

from __future__ import annotations

import numpy as np

from jitgen import doors


def fold_batch_norm(
    w: np.ndarray, b: np.ndarray | None, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray,
    variance: np.ndarray, eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Weights and bias of the layer that computes (w x + b - mean) gamma / sqrt(variance + eps) +
    beta. The first axis of w is the output channel; b may be None; the rest are vectors of as many
    elements. All are arrays of float32 or float64, with any strides. Computed in float64, returned
    in w's type. Raises TypeError or ValueError that names argument, value and rule.

    >>> vectors = [np.full(1, v) for v in (6.0, 1.0, 2.0, 4.0)]
    >>> w, b = fold_batch_norm(np.ones((1, 2)), None, *vectors, eps=0)
    >>> w.tolist(), b.tolist()
    ([[3.0, 3.0]], [-5.0])
    """
    doors.floats("w", w)
    if not w.ndim or not w.size:
        raise ValueError(f"w has shape {w.shape}; it must be (channels, ...), none zero")
    if b is None:
        b = np.zeros(len(w), w.dtype)
    given = {"b": b, "gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    for name, array in given.items():
        doors.floats(name, array)
        if array.shape != w.shape[:1]:
            raise ValueError(f"{name} has shape {array.shape}; w has {w.shape[0]} channels")
    eps = doors.number("eps", eps, low=0)
    lowest = float(variance.min())
    if not lowest + eps > 0:  # NaN too
        raise ValueError(f"variance={lowest:g} plus eps={eps} is not positive")
    scale = np.asarray(gamma, np.float64) / np.sqrt(np.asarray(variance, np.float64) + eps)
    folded = w * scale.reshape(-1, *[1] * (w.ndim - 1))
    return folded.astype(w.dtype), ((b - mean) * scale + beta).astype(w.dtype)
