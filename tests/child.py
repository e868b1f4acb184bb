"""Runs Python text in a child process that can import jitgen and the test helpers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_child(text: str, timeout: float = 120.0, **environment: str) -> str:
    """Run `text`, fail unless it exits 0, and return what it printed. environment: variables set
    on top of this process's own."""
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(text)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
