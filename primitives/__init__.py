"""Deep-learning primitives as loops around one kernel (Georganas et al., arXiv:1906.06440).

>>> from jitgen import FullyConnected
>>> FullyConnected(4, 8, 16, activation="relu", threads=2).threads
2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jitgen import moved

if TYPE_CHECKING:
    from jitgen.primitives.conv.folding import fold_batch_norm
    from jitgen.primitives.layers.convolution import Convolution
    from jitgen.primitives.layers.convolution_1d import convolution_1d
    from jitgen.primitives.layers.fully_connected import FullyConnected
    from jitgen.primitives.layers.normalisation import (
        LayerNorm,
        LogSoftmax,
        LogSumExp,
        RmsNorm,
        RowMean,
        RowSum,
        Softmax,
    )
    from jitgen.primitives.layers.pooling import AveragePool, MaxPool
    from jitgen.primitives.layers.recurrent import Gru, Lstm, Rnn
    from jitgen.primitives.nest.loops import Loop
    from jitgen.primitives.nest.nest import Nest
    from jitgen.primitives.nest.stream import Stream
    from jitgen.primitives.nest.tensor import Tensor
    from jitgen.primitives.train.mlp import Mlp, softmax_cross_entropy
    from jitgen.primitives.train.optimizers import Adam, Sgd

#: Public name -> module of this package; imported when it is asked for
PUBLIC = {
    "FullyConnected": "layers.fully_connected", "Convolution": "layers.convolution",
    "convolution_1d": "layers.convolution_1d", "MaxPool": "layers.pooling",
    "AveragePool": "layers.pooling", "Lstm": "layers.recurrent", "Gru": "layers.recurrent",
    "Rnn": "layers.recurrent", "Mlp": "train.mlp", "Sgd": "train.optimizers",
    "Adam": "train.optimizers", "softmax_cross_entropy": "train.mlp",
    "fold_batch_norm": "conv.folding", "Tensor": "nest.tensor", "Nest": "nest.nest",
    "Loop": "nest.loops", "Stream": "nest.stream", "Softmax": "layers.normalisation",
    "LogSoftmax": "layers.normalisation", "LogSumExp": "layers.normalisation",
    "LayerNorm": "layers.normalisation", "RmsNorm": "layers.normalisation",
    "RowMean": "layers.normalisation", "RowSum": "layers.normalisation",
}  # fmt: skip
__all__ = [
    "Adam", "AveragePool", "Convolution", "FullyConnected", "Gru", "LayerNorm", "LogSoftmax",
    "LogSumExp", "Loop", "Lstm", "MaxPool", "Mlp", "Nest", "RmsNorm", "Rnn", "RowMean", "RowSum",
    "Sgd", "Softmax", "Stream", "Tensor", "convolution_1d", "fold_batch_norm",
    "softmax_cross_entropy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module(f"jitgen.primitives.{PUBLIC[name]}"), name)
    if f"jitgen.primitives.{name}" in moved.MOVED:
        return moved.imported(f"jitgen.primitives.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


if __name__ == "primitives":  # a checkout's folder, imported by its own name
    from jitgen import primitives  # noqa: F401

    moved.same_as_ours("primitives")
