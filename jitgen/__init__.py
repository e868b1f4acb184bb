"""jitgen: batch-reduce GEMM kernels as machine code for AVX-512, AVX2 and ARM SVE, from Python.

    C = epilogue(beta * C + alpha * sum over i of A_i B_i)

Ask for a shape, get a verified callable. Not here: deep-learning primitives (`primitives`).

>>> import jitgen
>>> kernel = jitgen.brgemm(64, 64, 64, target="avx2")
>>> len(kernel.code) > 0
True
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from jitgen.gemm.kernel import Bound, Kernel, brgemm
from jitgen.gemm.plan import Plan
from jitgen.gemm.spec import KernelSpec
from jitgen.kernels.pack import pack_b
from jitgen.run.cpu import host, targets
from jitgen.run.memory import cache_info, clear_caches
from jitgen.target import Target

if TYPE_CHECKING:
    from jitgen import debug
    from jitgen.objects import export

__version__ = "0.1.0"
__all__ = [
    "Bound", "Kernel", "KernelSpec", "Plan", "Target", "brgemm", "cache_info",
    "clear_caches", "debug", "export", "host", "pack_b", "targets",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # what few programs use is imported when it is asked for: that takes ten milliseconds
    if name == "debug":
        return importlib.import_module("jitgen.debug")
    if name == "export":
        return importlib.import_module("jitgen.objects").export
    raise AttributeError(f"module 'jitgen' has no attribute {name!r}")


if os.environ.get("JITGEN_DEBUG"):
    importlib.import_module("jitgen.debug").enable_from_environment()
