"""The worked examples of primitives of one's own, which are scripts in examples/, as modules.

Not here: what they compute (`test_own_primitives`).
"""

from __future__ import annotations

import sys
from pathlib import Path

_EXAMPLES = str(Path(__file__).resolve().parent.parent / "examples")
sys.path.insert(0, _EXAMPLES)
try:
    import block_sparse
    import checked
    import fused_attention
    import linear_attention
finally:
    sys.path.remove(_EXAMPLES)

__all__ = ["block_sparse", "checked", "fused_attention", "linear_attention"]
