"""Names of kernels in files, profilers and debuggers.

>>> import jitgen
>>> symbol_name(jitgen.brgemm(4, 8, 16, target="avx2"))[:-8]
'jitgen_brgemm_avx2_f32_4x8x16_'
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jitgen.gemm.emitted import EmittedKernel


def symbol_name(kernel: EmittedKernel) -> str:
    """A C identifier: target, element type, m x n x k, and 8 hexadecimal digits of the SHA-256 of
    the code, so that kernels share a name only if they are the same code. Equal in every run."""
    spec = kernel.spec
    digits = hashlib.sha256(kernel.code).hexdigest()[:8]
    name = f"jitgen_brgemm_{kernel.target.name}_{spec.dtype}_{spec.m}x{spec.n}x{spec.k}_{digits}"
    return re.sub(r"\W", "_", name, flags=re.ASCII)
