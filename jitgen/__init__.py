"""jitgen: batch-reduce GEMM kernels as machine code (AVX-512, AVX2, ARM SVE and NEON), from Python.

    C = epilogue(beta * C + alpha * sum over i of A_i B_i)

Ask for a shape, get a verified callable. Deep-learning layers (`jitgen.primitives`) are
imported when they are asked for.

>>> import jitgen
>>> kernel = jitgen.brgemm(64, 64, 64, target="avx2")
>>> len(kernel.code) > 0
True
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from jitgen import moved
from jitgen.gemm.kernel import Bound, Kernel, brgemm
from jitgen.gemm.plan import Plan
from jitgen.gemm.spec import KernelSpec
from jitgen.kernels.pack import pack_b
from jitgen.run.cpu import host, targets
from jitgen.run.memory import cache_info, clear_caches
from jitgen.target import Target
from jitgen.version import __version__ as __version__

if TYPE_CHECKING:
    from jitgen import debug
    from jitgen.objects import export
    from jitgen.primitives import (
        Adam,
        AveragePool,
        Convolution,
        FullyConnected,
        Gru,
        LayerNorm,
        LogSoftmax,
        LogSumExp,
        Loop,
        Lstm,
        MaxPool,
        Mlp,
        Nest,
        Primitive,
        RmsNorm,
        Rnn,
        RowMean,
        RowSum,
        Sgd,
        Softmax,
        Stream,
        Tensor,
        convolution_1d,
        fold_batch_norm,
        softmax_cross_entropy,
    )

__all__ = [
    "Adam", "AveragePool", "Bound", "Convolution", "FullyConnected", "Gru", "Kernel", "KernelSpec",
    "LayerNorm", "LogSoftmax", "LogSumExp", "Loop", "Lstm", "MaxPool", "Mlp", "Nest", "Plan",
    "Primitive", "RmsNorm", "Rnn", "RowMean", "RowSum", "Sgd", "Softmax", "Stream", "Target",
    "Tensor", "brgemm", "cache_info", "clear_caches", "convolution_1d", "debug", "export",
    "fold_batch_norm", "host", "pack_b", "softmax_cross_entropy", "targets",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # what not every program uses is imported when it is asked for: that takes ten milliseconds
    if name in ("debug", "primitives"):
        return importlib.import_module(f"jitgen.{name}")
    if name == "export":
        return importlib.import_module("jitgen.objects").export
    if name in __all__:
        return getattr(importlib.import_module("jitgen.primitives"), name)
    if f"jitgen.{name}" in moved.MOVED:
        return moved.imported(f"jitgen.{name}")
    raise AttributeError(f"module 'jitgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


moved.install()
if os.environ.get("JITGEN_VERBOSE"):
    importlib.import_module("jitgen.run.verbose").enable_from_environment()
if os.environ.get("JITGEN_DEBUG"):
    importlib.import_module("jitgen.debug").enable_from_environment()
