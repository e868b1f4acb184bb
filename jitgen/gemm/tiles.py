"""Register tiles: the registers one needs, what it costs, and the search for the best cut of C.

Candidates are compared by a small cost model in cycles: the tightest of the bounds by
multiply-accumulates, loads, issue and latency, and an overhead for each tile. Not here: the order
of the loops and how the reduction runs (`jitgen.gemm.plan`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jitgen.emit.steps import temporaries
from jitgen.gemm.spec import KernelSpec
from jitgen.target import Facts

#: Batch length assumed where only the run knows it: weighs tile overhead against the reduction.
TYPICAL_BATCH = 4
#: Cycles lost at each change of tile: the loop branch, address arithmetic, draining accumulators.
TILE_OVERHEAD = 12.0
#: What each further kind of tile costs, as a part of the whole: code to emit, fetch and predict
BODY_COST = 0.01
#: Part of a load's time that shows even when another bound is tighter
LOAD_WEIGHT = 0.15
_IMPOSSIBLE = float("inf")


class Segment(NamedTuple):
    """`repeat` blocks of `size` rows or columns each, beginning at `start`."""

    start: int
    size: int
    repeat: int

    @property
    def end(self) -> int:
        """One past the last row or column."""
        return self.start + self.size * self.repeat


def registers_needed(
    spec: KernelSpec, facts: Facts, rows: int, columns: int, split: int, hold: str
) -> int:
    """Vector registers of a tile with `split` accumulator sets, in its reduction and its end."""
    vectors = -(-columns // facts.lanes)
    reduction = rows * vectors * split + operand_registers(facts, rows, vectors, hold)
    end = rows * vectors + epilogue_temps(spec, facts)
    return max(reduction, end) + tail_registers(spec, facts, columns)


def overlaps(spec: KernelSpec, facts: Facts, columns: int) -> bool:
    """Whether the last vector of a tile lies over the one before it, instead of having a tail.

    Both then compute the same elements of C, so it is right; it is faster where a tail costs
    masked loads and stores in pieces. The bits of a relu mask cannot overlap.
    """
    masked = facts.tail_vectors[columns % facts.lanes] > 0
    return masked and columns > facts.lanes and not spec.has("relu_mask")


def tail_registers(spec: KernelSpec, facts: Facts, columns: int) -> int:
    """Vector registers that the mask of a tile's tail occupies."""
    if overlaps(spec, facts, columns):
        return 0
    return facts.tail_vectors[columns % facts.lanes]


def epilogue_temps(spec: KernelSpec, facts: Facts) -> int:
    """Vector registers that the end of a tile needs beside the accumulators."""
    if not spec.epilogue and spec.alpha == 1.0 and spec.beta in (0.0, 1.0):
        return 0
    return temporaries(spec.epilogue) + facts.constant_temps


def operand_registers(facts: Facts, rows: int, vectors: int, hold: str) -> int:
    """Vector registers for A and B in the inner loop."""
    if resolve_hold(rows, vectors, hold) == "b":
        fused = facts.fused_broadcast and vectors == 1
        return vectors + (0 if fused else 1)
    return rows + 1


def resolve_hold(rows: int, vectors: int, hold: str) -> str:
    """Which operand a tile keeps in registers: the one with fewer of them."""
    if hold != "auto":
        return hold
    return "b" if vectors <= rows else "a"


def split_evenly(total: int, most: int) -> list[Segment]:
    """Cut `total` into the fewest blocks of at most `most`, sizes differing by at most one.

    >>> [(s.size, s.repeat) for s in split_evenly(64, 6)]
    [(6, 9), (5, 2)]
    """
    blocks = -(-total // most)
    small, larger = divmod(total, blocks)
    segments = []
    if larger:
        segments.append(Segment(0, small + 1, larger))
    if blocks - larger:
        segments.append(Segment(larger * (small + 1), small, blocks - larger))
    return segments


def split_columns(n: int, lanes: int, vectors: int, panel: int, bits: bool) -> list[Segment]:
    """Cut n columns into tiles of at most `vectors` registers; only the last may have a tail."""
    if panel:
        whole = n // panel
        segments = [Segment(0, panel, whole)] if whole else []
        return segments + ([Segment(whole * panel, n % panel, 1)] if n % panel else [])
    unit = lanes
    if bits:  # a tile's mask bits begin at a byte
        unit = math.lcm(lanes, 8)
        vectors = max(1, vectors * lanes // unit)
    segments = [Segment(s.start * unit, s.size * unit, s.repeat)
                for s in split_evenly(-(-n // unit), vectors)]  # fmt: skip
    last = segments.pop()
    if last.end == n:
        return [*segments, last]
    if last.repeat > 1:
        segments.append(Segment(last.start, last.size, last.repeat - 1))
    start = last.end - last.size
    return [*segments, Segment(start, n - start, 1)]


def tile_cycles(facts: Facts, k: int, rows: int, columns: int, split: int, hold: str) -> float:
    """Modelled cycles of one tile: the reduction at its tightest bound, plus its overhead."""
    vectors = -(-columns // facts.lanes)
    macs = rows * vectors
    loads = rows + vectors
    uops = macs + loads
    if resolve_hold(rows, vectors, hold) == "b":
        if facts.fused_broadcast and vectors == 1:
            uops -= rows
    elif facts.fused_load and rows == 1:
        uops -= vectors
    # the tightest bound, and a little for every load: loads that miss L1 are not hidden for free
    per_step = LOAD_WEIGHT * loads / facts.rates.loads + max(
        macs / facts.rates.fma,
        loads / facts.rates.loads,
        uops / facts.rates.issue,
        facts.rates.latency / split,
    )
    ends = macs * (1 + split) / facts.rates.loads + TILE_OVERHEAD
    return per_step * k * TYPICAL_BATCH + ends


class Search:
    """The search for register tiles: costs are kept by (rows, columns), for this spec only."""

    def __init__(self, spec: KernelSpec, facts: Facts, given: dict[str, Any]) -> None:
        self.spec = spec
        self.facts = facts
        self.hold = given.get("hold", "auto")
        self.rows = given.get("rows")
        self.columns = given.get("columns")
        self.split = given.get("k_split", 0)
        self._costs: dict[tuple[int, int], float] = {}
        self._partitions: dict[int, tuple[float, tuple[Segment, ...]]] = {}

    def choose_columns(self) -> tuple[list[Segment], str]:
        """Cut n into tiles; the reason."""
        spec, lanes = self.spec, self.facts.lanes
        bits = spec.has("relu_mask")
        if bits and math.lcm(lanes, 8) > 64:
            raise ValueError(
                f"epilogue step 'relu_mask': vectors of {lanes} elements cannot be packed in bytes"
            )
        if spec.panel:
            columns = split_columns(spec.n, lanes, 0, spec.panel, False)
            return columns, f"tile columns = panel width {spec.panel}"
        if self.columns is not None:
            if self.columns < 1:
                raise ValueError(f"plan option columns={self.columns} is smaller than 1")
            columns = split_columns(spec.n, lanes, -(-self.columns // lanes), 0, bits)
            return columns, f"tile columns = {self.columns} as given"
        total = -(-spec.n // lanes)
        most = min(total, self.facts.vectors // 4)
        # one width for every number of blocks: others differ only in where the remainder is; single
        # vectors load too much where there are two
        blocks = {-(-total // v) for v in range(min(2, most), most + 1)}
        widths = sorted(-(-total // n) for n in blocks)
        best: tuple[float, list[Segment]] | None = None
        for vectors in widths:
            columns = split_columns(spec.n, lanes, vectors, 0, bits)
            cost = sum(c.repeat * self._rows(c)[0] for c in columns)
            cost *= 1 + BODY_COST * len(columns)
            if best is None or cost < best[0]:
                best = (cost, columns)
        if best is None or best[0] == _IMPOSSIBLE:
            raise ValueError(self._too_many(self.columns or lanes))
        ideal = spec.flops(TYPICAL_BATCH) / 2 / lanes / self.facts.rates.fma
        return best[1], (
            f"tiles of {best[1][0].size} columns: modelled {100 * ideal / best[0]:.0f} % of the "
            f"FMA bound, best of {len(widths)} partitions of {spec.n} columns"
        )

    def choose_rows(self, column: Segment) -> tuple[Segment, ...]:
        """Cut m into tiles beside `column`."""
        cost, segments = self._rows(column)
        if cost == _IMPOSSIBLE:
            raise ValueError(self._too_many(column.size))
        return segments

    def _too_many(self, columns: int) -> str:
        return (
            f"plan options rows={self.rows}, k_split={self.split}, hold={self.hold!r}: a tile with "
            f"{columns} columns needs more than {self.facts.vectors} vector registers"
        )

    def _rows(self, column: Segment) -> tuple[float, tuple[Segment, ...]]:
        best = self._partitions.get(column.size)
        if best is None:
            cost, height = min(
                ((self._height_cost(h, column.size), h) for h in self._heights(column)),
                default=(_IMPOSSIBLE, 0),
            )
            segments = tuple(split_evenly(self.spec.m, height)) if height else ()
            best = self._partitions[column.size] = (cost, segments)
        return best

    def _height_cost(self, height: int, columns: int) -> float:
        """Cycles of all rows beside one tile of columns, cut as `split_evenly` does."""
        blocks = -(-self.spec.m // height)
        small, larger = divmod(self.spec.m, blocks)
        cost = (blocks - larger) * self._cost(small, columns)
        return cost + larger * self._cost(small + 1, columns) if larger else cost

    def _heights(self, column: Segment) -> list[int]:
        """Tile heights worth comparing: the largest that fits, and those with a few more blocks."""
        if self.rows is not None:
            return [self.rows] if self.rows >= 1 and self._fits(self.rows, column.size) else []
        vectors = -(-column.size // self.facts.lanes)
        registers = self.facts.vectors
        # no tile is taller than one that holds B, or, if it is wider than tall, one that holds A
        most = (registers - vectors - 1) // vectors + self.facts.fused_broadcast * (vectors == 1)
        if most < vectors:
            most = max(most, (registers - 1) // (vectors + 1))
        most = min(self.spec.m, most)
        while most and not self._fits(most, column.size):
            most -= 1
        if not most:
            return []
        fewest = -(-self.spec.m // most)
        return sorted({-(-self.spec.m // blocks) for blocks in (fewest, fewest + 1)})

    def _fits(self, rows: int, columns: int) -> bool:
        need = registers_needed(
            self.spec, self.facts, min(rows, self.spec.m), columns, self.split or 1, self.hold
        )
        return need <= self.facts.vectors

    def _cost(self, rows: int, columns: int) -> float:
        cost = self._costs.get((rows, columns))
        if cost is None:
            split = self.split or best_split(self.spec, self.facts, rows, columns, self.hold)
            cost = self._costs[rows, columns] = tile_cycles(
                self.facts, self.spec.steps, rows, columns, split, self.hold
            )
        return cost


def best_split(spec: KernelSpec, facts: Facts, rows: int, columns: int, hold: str) -> int:
    """Accumulator sets that a tile needs to hide the latency of the multiply-accumulate."""
    size = rows * -(-columns // facts.lanes)
    split = 1
    while (
        size * split < facts.rates.latency * facts.rates.fma
        and 2 * split <= spec.steps
        and registers_needed(spec, facts, rows, columns, 2 * split, hold) <= facts.vectors
    ):
        split *= 2
    return split
