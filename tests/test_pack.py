"""jitgen.pack_b: the panels, on every target of this host, and its errors.

Not here: kernels that read panels (test_kernels, test_kernels_python).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jitgen

USABLE = [name for name, reason in jitgen.targets().items() if not reason]
DTYPES = {"f32": np.float32, "f64": np.float64}


def pack_panels(b: np.ndarray, panel: int) -> np.ndarray:
    """(count, k, n) -> (count, ceil(n / panel), k, panel), zero beyond n."""
    count, k, n = b.shape
    padded = np.zeros((count, k, -(-n // panel) * panel), b.dtype)
    padded[:, :, :n] = b
    return padded.reshape(count, k, -1, panel).transpose(0, 2, 1, 3)


@pytest.fixture(autouse=True)
def _needs_a_target() -> None:
    if not USABLE:
        pytest.skip(str(jitgen.targets()))


@pytest.mark.parametrize("target", USABLE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trans", [False, True])
def test_panels_of_a_kernel(
    target: str, dtype: str, trans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a kernel whose target is not the host's choice."""
    rng = np.random.default_rng()
    for isa in USABLE:
        monkeypatch.setenv("JITGEN_ISA", isa)
        for k, n in ((1, 1), (3, 16), (5, 7), (17, 100), (33, 29), (64, 64)):
            kernel = jitgen.brgemm(9, n, k, dtype, packed_b=True, target=target)
            b = rng.standard_normal((2, k, n)).astype(DTYPES[dtype])
            given = np.ascontiguousarray(b.swapaxes(1, 2)) if trans else b
            panels = jitgen.pack_b(given, kernel, trans=trans)
            np.testing.assert_array_equal(panels, pack_panels(b, kernel.spec.panel))


def test_views_and_out() -> None:
    whole = np.random.default_rng().standard_normal((3, 9, 40)).astype(np.float32)
    view = whole[:, :7, 2:31]
    out = np.full((3, 2, 7, 16), np.nan, np.float32)
    assert jitgen.pack_b(view, 16, out=out) is out
    np.testing.assert_array_equal(out, pack_panels(view, 16))
    one = jitgen.pack_b(view[1], 16)
    np.testing.assert_array_equal(one, out[1])
    assert jitgen.pack_b(whole[:0], 16).shape == (0, 3, 9, 16)


@pytest.mark.parametrize("panel", [64, 512])
def test_panels_wider_than_all_registers(panel: int) -> None:
    b = np.random.default_rng().standard_normal((2, 3, 700))
    np.testing.assert_array_equal(jitgen.pack_b(b, panel), pack_panels(b, panel))


B = np.zeros((5, 20), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1.0]], 16), TypeError, "list"),
        ((B.astype(np.int32), 16), TypeError, "int32"),
        ((B.astype(">f4"), 16), TypeError, ">f4"),
        ((B[0], 16), ValueError, "shape"),
        ((B[:0], 16), ValueError, "shape"),
        ((B, 0), ValueError, "panel=0"),
        ((B, 7), ValueError, "panel=7"),
        ((B, 16.0), TypeError, "panel=16.0"),
        ((B, True), TypeError, "panel=True"),
        ((B[:, ::2], 16), ValueError, "strides"),
        ((B[::-1], 16), ValueError, "strides"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        jitgen.pack_b(*arguments)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 5, 16)), np.zeros((2, 5, 8), np.float32), [0],
        np.zeros((2, 5, 32), np.float32)[:, :, ::2], np.broadcast_to(np.float32(0), (2, 5, 16)),
    ],
)  # fmt: skip
def test_bad_out(out: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"out (has|is)"):
        jitgen.pack_b(B, 16, out=out)


def test_out_may_not_overlap_b() -> None:
    memory = np.zeros(5 * 32, np.float32)
    with pytest.raises(ValueError, match="out overlaps b"):
        jitgen.pack_b(memory[:100].reshape(5, 20), 16, out=memory.reshape(2, 5, 16))
