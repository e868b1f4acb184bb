"""A process with layers ends, forks and is interrupted without a crash, a hang or a wrong number.

A few runs of each; many of them are the soak (test_soak). Not here: the programs (processes).
"""

from __future__ import annotations

import needs
import processes
import pytest

from jitgen.run import cpu

pytestmark = pytest.mark.skipif(
    not any(not why for why in cpu.targets().values()), reason="no target runs on this CPU"
)


@pytest.mark.parametrize("name", processes.NAMES)
def test_processes(name: str) -> None:
    needs.need(*processes.missing(name))
    wrong = processes.run(name, processes.SCENARIOS[name].runs)
    assert not wrong, "\n\n".join(wrong)
