"""The examples with recurrent layers: they learn, report failure, and follow PyTorch.

Not here: the layers (test_recurrent).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import needs
import pytest

from jitgen import cpu

ROOT = Path(__file__).resolve().parent.parent
HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")


def run(example: str, *options: str, code: int = 0) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", "--threads", "1", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_digits_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "digits.png"
    assert "test accuracy 9" in run("digits_lstm", "--plot", str(file))
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "test accuracy" in run("digits_lstm", "--epochs", "1", "--least", "100", code=1)


def test_characters(tmp_path: Path) -> None:
    """A text that one can learn by heart is learnt, and written."""
    text = tmp_path / "text"
    text.write_text("Das Wasser rauscht', das Wasser schwoll.\n" * 20)
    out = run("characters", "--text", str(text), "--hidden", "32", "--steps", "150", "--most",
              "0.2", "--temperature", "0.1")  # fmt: skip
    assert "Das Wasser rauscht', das Wasser schwoll.\nDas Wasser rauscht'" in out
    run("characters", "--steps", "5", "--hidden", "16", code=1)
    text.write_text("too short")
    run("characters", "--text", str(text), code=1)


@pytest.mark.parametrize("example", ["digits_lstm", "characters"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_beside_pytorch(example: str, optimizer: str) -> None:
    """The first 50 losses from the same weights, within 1e-4 of their size."""
    needs.need_torch()
    out = run(example, "--compare", "--optimizer", optimizer, *SMALL[example])
    found = re.search(r"largest relative difference in 50 steps: (\S+)", out)
    assert found and 0 < float(found[1]) < 1e-4, out


SMALL: dict[str, list[str]] = {"digits_lstm": [], "characters": ["--hidden", "64", "--batch", "8"]}
