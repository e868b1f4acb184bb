"""Names of emitted functions in files, profilers and debuggers.

>>> import jitgen
>>> symbol_name(jitgen.brgemm(4, 8, 16, target="avx2"))[:-8]
'jitgen_brgemm_avx2_f32_4x8x16_'
"""

from __future__ import annotations

import hashlib
import re

from jitgen.emit.routine import Routine


def symbol_name(routine: Routine) -> str:
    """A C identifier: kind, target, the rest of the routine's name, and 8 hexadecimal digits of the
    SHA-256 of the code, so that routines share a name only if they are the same code. Equal in
    every run."""
    digits = hashlib.sha256(routine.code).hexdigest()[:8]
    kind, *rest = routine.name.split()
    name = "_".join(("jitgen", kind, routine.target.name, *rest, digits))
    return re.sub(r"[\W_]+", "_", name, flags=re.ASCII)
