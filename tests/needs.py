"""The one rule for what a machine lacks: tests skip, but under CI what CI installs must be there.

Not here: any test or fixture.
"""

from __future__ import annotations

import importlib.util
import os

import pytest


def need(reason: str | None, installable: bool = True) -> None:
    """Skip for `reason` (None: nothing is missing); fail under CI if it can be installed."""
    if reason is None:
        return
    if installable and os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_torch() -> None:
    """Skip where there is no PyTorch: a peer to compare with, which CI does not install."""
    there = importlib.util.find_spec("torch") is not None
    need(None if there else "PyTorch is not installed", installable=False)
