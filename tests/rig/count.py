"""Counts executed kernels by instruction set and by how they were executed.

Process-wide. With JITGEN_COUNT_FILE set, every count is also appended to that file, so that
several processes (pytest-xdist) add up: `table(read(file))`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

FILE_VARIABLE = "JITGEN_COUNT_FILE"

_counts: Counter[tuple[str, str]] = Counter()


def count(isa: str, how: str, n: int) -> None:
    """Add n kernels of an instruction set executed in a way, e.g. count("avx512", "bochs", 40)."""
    for name, text in (("isa", isa), ("how", how)):
        if not text or "\t" in text or "\n" in text:
            raise ValueError(f"{name}={text!r}: must be a non-empty name without tabs or newlines")
    if n < 0:
        raise ValueError(f"n={n}: must not be negative")
    _counts[isa, how] += n
    path = os.environ.get(FILE_VARIABLE)
    if path:
        # One write to a file opened for appending: lines of several processes do not mix.
        with open(path, "ab", buffering=0) as file:
            file.write(f"{isa}\t{how}\t{n}\n".encode())


def read(file: str | Path) -> Counter[tuple[str, str]]:
    """Sum a count file: {(isa, how): n}. A missing file is empty; a bad line is a ValueError."""
    counts: Counter[tuple[str, str]] = Counter()
    path = Path(file)
    if not path.exists():
        return counts
    for number, line in enumerate(path.read_text().splitlines(), 1):
        parts = line.split("\t")
        if len(parts) != 3 or not parts[2].isdigit():
            raise ValueError(f"{path.name}:{number}: {line!r} is not 'isa<tab>how<tab>n'")
        counts[parts[0], parts[1]] += int(parts[2])
    return counts


def table(counts: Mapping[tuple[str, str], int] | None = None) -> str:
    """Return a text table of counts (default: of this process), one line per isa and how."""
    chosen = _counts if counts is None else counts
    rows = [("instruction set", "kernels executed", "how")]
    rows += [(isa, str(n), how) for (isa, how), n in sorted(chosen.items())]
    wide = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{isa:<{wide[0]}}  {n:>{wide[1]}}  {how}" for isa, n, how in rows]
    return "\n".join(lines)
