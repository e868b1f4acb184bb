"""Ten thousand random calls neither crash nor raise anything but the documented errors."""

from __future__ import annotations

import ast

import pytest
from child import run_child
from random_cases import SEED

import jitgen


@pytest.mark.skipif(
    all(jitgen.targets().values()), reason=f"no target runs here: {jitgen.targets()}"
)
def test_ten_thousand_random_calls() -> None:
    """The child process exits 0; enough calls of each kind were accepted and refused.

    One call again: fuzz.main(seed, number) with JITGEN_SEED as the seed; the calls are independent.
    """
    printed = run_child(f"import fuzz; fuzz.main('{SEED}', 10_000)", timeout=300)
    ends = ast.literal_eval(printed)
    assert sum(ends.values()) == 10_000
    for kind in ("_request", "_call", "_pack"):
        for end in ("accepted", "TypeError", "ValueError"):
            assert ends.get(f"{kind} {end}", 0) > 30, ends
