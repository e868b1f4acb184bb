"""Weights of ONNX's LSTM, GRU and RNN operators as the layers of
`jitgen.primitives.layers.recurrent` take them.

ONNX stacks the gates as i, o, f, c (LSTM) and z, r, h (GRU), has both biases in one row and always
an axis of directions in front. Not here: reading models, running layers.
"""

from __future__ import annotations

import numpy as np

from jitgen import doors

#: Where ONNX has the gates, in the order of the layers
_LSTM, _GRU, _RNN, _PEEPHOLES = (0, 2, 3, 1), (1, 0, 2), (0,), (0, 2, 1)

Weights = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def lstm_from_onnx(
    w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None, p: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """W (D, 4H, C), R (D, 4H, H), B (D, 8H) and P (D, 3H), D directions, as new arrays w, r, b and
    p that `Lstm` takes; None stays None. TypeError, ValueError: argument, value and rule."""
    weights = _weights(w, r, b, _LSTM)
    hidden = w.shape[1] // len(_LSTM)
    if p is None:
        return *weights, None
    return *weights, _stack("p", p, w, (3 * hidden,), _PEEPHOLES, (3, hidden))


def gru_from_onnx(w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None) -> Weights:
    """W (D, 3H, C), R (D, 3H, H) and B (D, 6H) as `Gru` takes w, r and b; linear_before_reset=1 is
    its reset="after", 0 its "before". Errors as from `lstm_from_onnx`."""
    return _weights(w, r, b, _GRU)


def rnn_from_onnx(w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None) -> Weights:
    """W (D, H, C), R (D, H, H) and B (D, 2H) as `Rnn` takes w, r and b. Errors as from
    `lstm_from_onnx`."""
    return _weights(w, r, b, _RNN)


def _weights(w: np.ndarray, r: np.ndarray, b: np.ndarray | None, order: tuple[int, ...]) -> Weights:
    gates = len(order)
    doors.floats("w", w)
    if w.ndim != 3 or w.shape[0] not in (1, 2) or w.shape[1] % gates or 0 in w.shape:
        rule = f"(1 or 2, {gates} * hidden, in_features)"
        raise ValueError(f"w has shape {w.shape}; it must be {rule}")
    _, rows, features = w.shape
    square = (rows, rows // gates)
    return (
        _stack("w", w, w, (rows, features), order, (rows, features)),
        _stack("r", r, w, square, order, square),
        None if b is None else _stack("b", b, w, (2 * rows,), order, (2, rows)),
    )


def _stack(
    name: str, array: np.ndarray, w: np.ndarray, given: tuple[int, ...], order: tuple[int, ...],
    wanted: tuple[int, ...],
) -> np.ndarray:  # fmt: skip
    """For each direction, `given` with gates in ONNX's order -> `wanted` with those of the
    layers; one direction has no axis."""
    ways = len(w)
    array = np.asarray(doors.array(name, array, (ways, *given), w.dtype))
    copies = 2 if name == "b" else 1
    gates = array.reshape(ways, copies, len(order), -1)[:, :, order]
    return np.ascontiguousarray(gates.reshape((ways, *wanted) if ways == 2 else wanted))
