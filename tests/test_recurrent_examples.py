"""The examples with recurrent layers: they learn, report failure, and follow PyTorch.

Not here: the layers (test_recurrent).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pages
import pytest

from jitgen import Gru, Lstm, Rnn
from jitgen.run import cpu

ROOT = Path(__file__).resolve().parent.parent
HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")


def run(example: str, *options: str, code: int = 0) -> str:
    """What an example prints; it imports this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", "--threads", "1", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=environment,
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


def test_the_documentation() -> None:
    """from_torch of docs/recurrent.md gives PyTorch's numbers; that its code runs: test_docs.py."""
    page = pages.read(ROOT / "docs" / "recurrent.md")
    (from_torch,) = [block.text for block in page if "def from_torch" in block.text]
    names: dict[str, Any] = {"np": np}
    exec(from_torch, names)
    needs.need_torch()
    import torch

    for kind, ours in ((torch.nn.LSTM, Lstm), (torch.nn.GRU, Gru), (torch.nn.RNN, Rnn)):
        for both in (False, True):
            module = kind(7, 9, bidirectional=both)
            x = np.random.default_rng(0).standard_normal((5, 3, 7)).astype(np.float32)
            layer: Any = ours(3, 5, 7, 9, direction="bidirectional" if both else "forward")
            y = layer.forward(x, *names["from_torch"](module))[0]
            np.testing.assert_allclose(y, module(torch.from_numpy(x))[0].detach(), atol=1e-6)
