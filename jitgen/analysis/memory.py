"""Which bytes of A, B and C a kernel fetches from beyond each cache level.

By layer conditions: what a loop reads again comes from a cache if everything touched between two
readings fits there; a little too much loses a part of the sets first, and soon all. Caches are
warm: a call follows others with the same arrays. Rows whose distance makes them fall into few sets
of the first cache get only those. Not here: bandwidths (`jitgen.analysis.cpus`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jitgen.analysis.cpus import Cpu
from jitgen.gemm.kernel import Kernel

LINE = 64
#: Ways of the caches beyond the first, as most CPUs have them
WAYS = 8
#: Pieces of rows that begin and end within cache lines are fetched at this part of the bandwidth of
#: the second-level cache; the same for all CPUs, measured on one (docs/analysis.md)
SCATTERED = 0.8


@dataclass(frozen=True)
class Traffic:
    """Bytes, in whole cache lines, that one call moves into the first-level cache, into the second
    and into the third; `scattered` of the first lie in pieces of rows that share their lines;
    `touched` is the size of everything that a call reads or writes."""

    l1: float
    scattered: float
    l2: float
    l3: float
    touched: int

    def cycles(self, cpu: Cpu) -> dict[str, float]:
        """The bounds that the levels set to a call."""
        slow = self.l1 + self.scattered * (1 / SCATTERED - 1)
        bounds = {"L2 bandwidth": slow / cpu.l2_bytes}
        if cpu.l3:
            bounds["L3 bandwidth"] = self.l2 / cpu.l3_bytes
            bounds["memory bandwidth"] = self.l3 / cpu.memory_bytes
        else:
            bounds["memory bandwidth"] = self.l2 / cpu.memory_bytes
        return bounds


def traffic(kernel: Kernel, cpu: Cpu, batch: int) -> Traffic:
    """The bytes that a call with a batch of `batch` fetches from each level."""
    kept = _Operands(kernel, cpu, batch)
    l1, scattered = kept.moved(cpu.l1, cpu.l1_ways, True)
    l2, _ = kept.moved(cpu.l2, WAYS, False)
    l3, _ = kept.moved(cpu.l3, WAYS, False)
    return Traffic(l1, scattered, l2, l3, kept.touched)


def misses(needed: float, cache: int, ways: int) -> float:
    """The part of what is read in turns, `needed` bytes in all, that a cache does not keep.

    The least recently used line of a set leaves: a set with one line too many keeps none, and with
    an excess of one in `ways` all sets have one.

    >>> misses(32000, 32768, 8), misses(34816, 32768, 8), misses(40000, 32768, 8)
    (0.0, 0.5, 1.0)
    """
    if not cache:
        return 1.0
    return min(1.0, max(0.0, (needed / cache - 1) * ways))


class _Operands:
    """A and B of one kernel and batch: sizes, and how its tiles walk over them."""

    def __init__(self, kernel: Kernel, cpu: Cpu, batch: int) -> None:
        spec, plan = kernel.spec, kernel.plan
        self.spec, self.plan, self.cpu = spec, plan, cpu
        chunk = min(plan.batch_chunk or batch, batch)
        depth = min(plan.k_block, spec.k)
        self.passes = -(-batch // chunk) * -(-spec.k // depth)
        self.depth, self.chunk = depth, chunk
        self.rows = max(r.size for r, _ in plan.tiles())
        self.columns = max(c.size for _, c in plan.tiles())
        self.bytes = {"a": spec.a_bytes, "b": spec.b_bytes}
        self.c = spec.m * spec.n * spec.c_bytes
        self.all = {"a": self._all("a", batch), "b": self._all("b", batch)}
        streams = self.c * (2 if spec.has("residual") else 1)
        self.touched = sum(self.all.values()) + streams
        self.streams = streams

    def _all(self, matrix: str, batch: int) -> int:
        """Bytes of all A_i or B_i, as far as they differ."""
        spec = self.spec
        element = self.bytes[matrix]
        stride = (spec.stride_a if matrix == "a" else spec.stride_b) * element
        size = (spec.m if matrix == "a" else spec.n) * spec.k * element
        if spec.batch == "stride" and stride < size:
            return (batch - 1) * stride + size
        return size * batch

    def _lines(self, matrix: str) -> float:
        """Bytes of cache lines for each byte of a tile's part of a matrix: more than 1 where its
        pieces of rows begin or end within lines."""
        spec = self.spec
        if matrix == "b":
            if spec.panel or spec.trans_b:
                return 1.0
            piece, leading = self.columns, spec.ldb
        else:
            piece, leading = (self.rows if spec.trans_a else self.depth), spec.lda
        if piece >= leading:
            return 1.0
        size = piece * self.bytes[matrix]
        # a piece begins anywhere in its line that the distance of rows allows
        start = math.gcd(leading * self.bytes[matrix], size, LINE)
        return (size + LINE - start) / size

    def moved(self, cache: int, ways: int, first: bool) -> tuple[float, float]:
        """(bytes fetched from beyond a cache, those in scattered pieces of rows); `first`: it is
        the first-level cache, whose sets count."""
        whole = misses(self.touched, cache, ways)
        if not whole:
            return 0.0, 0.0
        spec, plan = self.spec, self.plan
        unit = {x: self.depth * self.chunk * element for x, element in self.bytes.items()}
        lines = {"a": self._lines("a"), "b": self._lines("b")}
        tile = {
            "a": min(self.rows * unit["a"] * lines["a"], spec.m * unit["a"]),
            "b": min(self.columns * unit["b"] * lines["b"], spec.n * unit["b"]),
        }
        size = {"a": spec.m * unit["a"], "b": spec.n * unit["b"]}
        outer = sum(segment.repeat for segment, _ in plan.nest)
        inner = sum(s.repeat for s in plan.nest[0][1])
        # the inner loop passes over one matrix beside a tile of the other, which stays
        stays, passes = ("b", "a") if plan.order == "nm" else ("a", "b")
        times = {
            stays: 1 + (inner - 1) * max(
                misses(tile[stays] + tile[passes], cache, ways), first * self._crowded(stays)
            ),
            passes: 1 + (outer - 1) * max(
                misses(size[passes] + tile[stays], cache, ways), first * self._crowded(passes)
            ),
        }  # fmt: skip
        # lines that two tiles share are fetched twice unless they stay from one to the next
        apart = misses(tile["a"] + tile["b"], cache, ways)
        fetched = {
            x: self.all[x] * times[x] * (1 + (lines[x] - 1) * apart) for x in ("a", "b")
        }  # fmt: skip
        scattered = sum(fetched[x] * apart for x in ("a", "b") if lines[x] > 1)
        sums = 2.0 * (self.passes - 1) * self.c
        sums *= misses(self.c + size[passes] + tile[stays], cache, ways)
        total = sum(fetched.values()) + sums + self.streams
        return whole * total, whole * scattered

    def _crowded(self, matrix: str) -> bool:
        """Whether the rows that a tile reads find no room in the sets of the first cache that they
        fall into."""
        spec, cpu = self.spec, self.cpu
        if matrix == "a":
            rows, piece = (self.depth, self.rows) if spec.trans_a else (self.rows, self.depth)
            leading = spec.lda
        elif spec.panel or self.plan.pack:
            return False
        else:
            rows, piece, leading = self.depth, self.columns, spec.ldb
        leading *= self.bytes[matrix]
        sets = cpu.l1 // cpu.l1_ways // LINE
        lines = -(-piece * self.bytes[matrix] // LINE)
        starts = sets // math.gcd(leading // LINE, sets) if leading % LINE == 0 else sets
        return rows * lines > min(sets, starts * lines) * cpu.l1_ways
