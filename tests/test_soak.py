"""The soak, outside the plain run: `python -m pytest -m soak [--minutes N] [--runs N]`.

Not here: what it does (soak, processes).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import needs
import processes
import pytest
import soak

from jitgen.run import cpu

pytestmark = pytest.mark.skipif(
    not any(not why for why in cpu.targets().values()), reason="no target runs on this CPU"
)
SCRIPT = Path(__file__).resolve().parent / "soak.py"
#: Layers and seconds of the plain run: enough to see that the soak works
PLAIN_LAYERS, PLAIN_SECONDS = 40, 60


def _soak(seconds: float, layers: int, **environment: str) -> None:
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT), str(seconds), str(layers)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=2 * seconds + 120,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    print(done.stdout)


def test_a_few_layers() -> None:
    _soak(PLAIN_SECONDS, PLAIN_LAYERS)


def test_a_wrong_number_is_seen() -> None:
    work = soak.Work("wrong", lambda: 1, lambda result: result == 2)
    for action in (soak.alone, soak.threads, soak.forked):
        with pytest.raises(AssertionError):
            action(work, soak.random.Random(1))


@pytest.mark.soak
@pytest.mark.parametrize("own", [False, True], ids=["OpenMP", "threads of our own"])
def test_random_layers(own: bool, request: pytest.FixtureRequest) -> None:
    runs = request.config.getoption("--runs")
    seconds = 60.0 * request.config.getoption("--minutes") / 2
    limited = {"OMP_THREAD_LIMIT": "1"} if own else {}
    _soak(3600.0 if runs else seconds, runs or 1 << 30, **limited)


@pytest.mark.soak
@pytest.mark.parametrize("name", processes.NAMES)
def test_processes(name: str, request: pytest.FixtureRequest) -> None:
    needs.need(*processes.missing(name))
    wrong = processes.run(name, request.config.getoption("--runs") or 5)
    assert not wrong, "\n\n".join([f"{len(wrong)} runs failed", *wrong])
