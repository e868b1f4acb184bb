"""Runs `python -m tools.bench` for tests.

Not here: any test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def bench(
    command: str, *arguments: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command's output; `path` is searched for modules first."""
    environment = {**os.environ, "PYTHONPATH": f"{path}"} if path else None
    return subprocess.run(
        [sys.executable, "-m", "tools.bench", command, *arguments], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip
