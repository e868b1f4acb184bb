"""What the examples of primitives share: results held against float64, and times in turns.

Not here: any primitive (block_sparse.py, linear_attention.py, fused_attention.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np


def options(text: str) -> argparse.ArgumentParser:
    """What an example can be asked; `text` is its description."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="default: all CPUs")
    parser.add_argument("--target", help="such as avx2; default: this CPU's best")
    parser.add_argument("--dtype", default="f32", help="f32 or f64; default %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="of measuring; %(default)s")
    return parser


def check(found: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    """Raise ValueError unless `found` is `expected`, which is float64, within `bound`."""
    with np.errstate(invalid="ignore"):
        worst = np.nanmax(np.abs(found - expected) / bound)
    if not np.isfinite(found).all() or worst > 1:
        raise ValueError(f"wrong: {worst:.3g} times the error that rounding explains")
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"right: largest error {error:.1e} of the largest result, {worst:.1e} of the bound")


def show_times(calls: Mapping[str, Callable[[], object]], seconds: float) -> None:
    """Print the shortest time of a call of each, which take turns for so long, and twice at the
    least."""
    best = dict.fromkeys(calls, float("inf"))
    end, turns = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turns < 2:
        turns += 1
        for name, call in calls.items():
            call()  # the other one's data has taken the caches
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, taken in best.items():
        print(f"{name:12} {1e3 * taken:8.3f} ms")
