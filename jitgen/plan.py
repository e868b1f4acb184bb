"""How a kernel is computed: the plan, a pure function of spec, machine facts and cache sizes.

A plan cuts C into register tiles, balanced so that no tile is a poor remainder, and says how the
reduction runs: unrolling, independent accumulator sets, how much of the batch stays in registers
before C is stored. Candidates are compared by a small cost model in cycles; `reasons` says why the
winner won. Any field can be overridden to tune. Not here: emission (`jitgen.generator`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from jitgen.functions import TEMPS
from jitgen.spec import MATRIX_BYTES, KernelSpec


@dataclass(frozen=True)
class Facts:
    """What the plan needs to know of a machine. Rates are per cycle, caches in bytes."""

    lanes: int
    vectors: int
    element: int
    fused_broadcast: bool
    fused_load: bool
    tail_vectors: tuple[int, ...]  # extra registers for a tail of so many lanes
    constant_temps: int  # registers that constants of an epilogue need
    broadcast_reach: int  # bytes
    vector_reach: int  # bytes
    vector_granule: int  # displacements of vector loads are multiples of this
    fma_rate: float
    load_rate: float
    issue_rate: float
    fma_latency: int
    l1: int
    l2: int
    l2_rate: float  # bytes a cycle that L2 delivers beside everything else


@dataclass(frozen=True)
class Segment:
    """`repeat` blocks of `size` rows or columns each, beginning at `start`."""

    start: int
    size: int
    repeat: int

    @property
    def end(self) -> int:
        """One past the last row or column."""
        return self.start + self.size * self.repeat


@dataclass(frozen=True)
class Plan:
    """Tiles and loops of one kernel."""

    order: str  # "nm": columns outside, rows inside; "mn": the reverse
    #: outer segments, each with the inner segments that run inside it
    nest: tuple[tuple[Segment, tuple[Segment, ...]], ...]
    hold: str  # operand kept in registers: "b", "a" or "auto" (the one that needs fewer)
    k_unroll: int
    k_split: int  # independent accumulator sets (0: what each tile needs)
    k_block: int  # reduction steps between stores of C (k: all)
    batch_chunk: int  # batch elements between stores of C (0: the whole batch)
    prefetch: int  # reduction steps that B is prefetched ahead (0: not)
    reasons: tuple[str, ...] = ()

    def tiles(self) -> Iterator[tuple[Segment, Segment]]:
        """(rows, columns) of every kind of tile."""
        for outer, inners in self.nest:
            for inner in inners:
                yield (inner, outer) if self.order == "nm" else (outer, inner)


#: Fields of a plan that a caller may override, besides rows and columns of the register tile.
TUNABLE = ("order", "hold", "k_unroll", "k_split", "k_block", "batch_chunk", "prefetch")
#: Batch length assumed where only the run knows it: weighs tile overhead against the reduction.
TYPICAL_BATCH = 4
#: Cycles lost at each change of tile: the loop branch, address arithmetic, draining accumulators.
TILE_OVERHEAD = 12.0
#: What each further kind of tile costs, as a part of the whole: code to emit, fetch and predict
BODY_COST = 0.01
#: Part of a load's time that shows even when another bound is tighter
LOAD_WEIGHT = 0.15
#: Multiply-accumulates in one unrolled pass: enough to hide the loop, few enough to emit quickly.
UNROLL_MACS = 100
#: Multiply-accumulates in line that anyone may ask for
MOST_MACS = 1 << 15
#: Reduction steps between two stores of C, at least
SHORTEST_PASS = 64
#: bytes of stack a transposed B may be packed into
PACK_BYTES = 32768


_IMPOSSIBLE = float("inf")


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
    temps = max((TEMPS.get(step[0], 1) for step in spec.epilogue), default=1)
    return temps + facts.constant_temps


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
    per_step = LOAD_WEIGHT * loads / facts.load_rate + max(
        macs / facts.fma_rate,
        loads / facts.load_rate,
        uops / facts.issue_rate,
        facts.fma_latency / split,
    )
    ends = macs * (1 + split) / facts.load_rate + TILE_OVERHEAD
    return per_step * k * TYPICAL_BATCH + ends


def make_plan(spec: KernelSpec, facts: Facts, overrides: tuple[tuple[str, Any], ...] = ()) -> Plan:
    """The plan for `spec`, with `overrides` (rows, columns or any of TUNABLE) taken as given.

    Raises ValueError if an override is unknown, out of range or needs too many registers.
    """
    given = dict(overrides)
    for name, value in given.items():
        if name not in (*TUNABLE, "rows", "columns"):
            known = f"rows, columns, {', '.join(TUNABLE)}"
            raise ValueError(f"plan option {name!r} is not one of {known}")
        if name not in ("order", "hold") and type(value) is not int:
            raise TypeError(f"plan option {name}={value!r} is no integer")
    order = given.get("order", "")
    if order not in ("nm", "mn", ""):
        raise ValueError(f"plan option order={order!r} is neither 'nm' nor 'mn'")
    if given.get("hold", "auto") not in ("auto", "a", "b"):
        raise ValueError(f"plan option hold={given['hold']!r} is not 'auto', 'a' or 'b'")
    search = _Search(spec, facts, given)
    columns, reason = search.choose_columns()
    if spec.trans_b and order == "mn":
        raise ValueError("plan option order='mn': a transposed B is packed by columns ('nm')")
    if not order:
        # B should stay in L1 while A streams, or else the smaller of both; columns that differ in
        # the registers they need want rows of their own, which only the order "nm" gives them
        uniform = len({_demand(spec, facts, c) for c in columns}) == 1
        small = spec.k * spec.n * spec.element <= facts.l1 or spec.n <= spec.m
        order = "mn" if uniform and small and not spec.trans_b else "nm"
    nest: tuple[tuple[Segment, tuple[Segment, ...]], ...]
    if order == "nm":
        nest = tuple((c, search.choose_rows(c)) for c in columns)
    else:
        widest = max(columns, key=lambda c: _demand(spec, facts, c))
        nest = tuple((r, tuple(columns)) for r in search.choose_rows(widest))
    plan = Plan(order, nest, "auto", 1, 0, spec.steps, 0, 0)
    plan, why = _choose_reduction(spec, facts, plan)
    reasons: tuple[str, ...] = (reason, why)
    if given:
        plan = replace(plan, **{name: given[name] for name in TUNABLE if name in given})
        reasons += (f"overridden: {given}",)
    plan = replace(plan, reasons=reasons)
    _check(spec, facts, plan)
    return plan


def _demand(spec: KernelSpec, facts: Facts, column: Segment) -> int:
    """Vector registers that a row of a tile with these columns needs, to compare columns."""
    return registers_needed(spec, facts, 1, column.size, 1, "b")


def tile_split(plan: Plan, spec: KernelSpec, facts: Facts, rows: int, columns: int) -> int:
    """Accumulator sets of one tile: as the plan says, or what hides the latency."""
    return plan.k_split or best_split(spec, facts, rows, columns, plan.hold)


class _Search:
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
        if spec.panel:
            columns = split_columns(spec.n, lanes, 0, spec.panel, False)
            return columns, f"tile columns = panel width {spec.panel}"
        bits = spec.has("relu_mask")
        if bits and math.lcm(lanes, 8) > 64:
            raise ValueError(
                f"epilogue step 'relu_mask': vectors of {lanes} elements cannot be packed in bytes"
            )
        if self.columns is not None:
            if self.columns < 1:
                raise ValueError(f"plan option columns={self.columns} is smaller than 1")
            columns = split_columns(spec.n, lanes, -(-self.columns // lanes), 0, bits)
            return columns, f"tile columns = {self.columns} as given"
        total = -(-spec.n // lanes)
        most = min(total, self.facts.vectors // 4)
        # one width for every number of blocks: others differ only in where the remainder is
        widths = sorted({-(-total // (-(-total // v))) for v in range(1, most + 1)})
        best: tuple[float, list[Segment]] | None = None
        for vectors in widths:
            columns = split_columns(spec.n, lanes, vectors, 0, bits)
            cost = sum(c.repeat * self._rows(c)[0] for c in columns)
            cost *= 1 + BODY_COST * len(columns)
            if best is None or cost < best[0]:
                best = (cost, columns)
        if best is None or best[0] == _IMPOSSIBLE:
            raise ValueError(self._too_many(self.columns or lanes))
        ideal = spec.flops(TYPICAL_BATCH) / 2 / lanes / self.facts.fma_rate
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
        most = min(self.spec.m, (self.facts.vectors - min(vectors, 2)) // vectors)
        while most and not self._fits(most, column.size):
            most -= 1
        if not most:
            return []
        fewest = -(-self.spec.m // most)
        return sorted({-(-self.spec.m // blocks) for blocks in range(fewest, fewest + 3)})

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
        size * split < facts.fma_latency * facts.fma_rate
        and 2 * split <= spec.steps
        and registers_needed(spec, facts, rows, columns, 2 * split, hold) <= facts.vectors
    ):
        split *= 2
    return split


def _choose_reduction(
    spec: KernelSpec, facts: Facts, plan: Plan
) -> tuple[Plan, str]:
    columns = max(c.size for _, c in plan.tiles())
    macs = max(r.size * -(-c.size // facts.lanes) for r, c in plan.tiles())
    unroll = choose_unroll(spec.steps, macs)
    if spec.trans_b:
        packed = -(-columns // facts.lanes) * facts.lanes
        k_block = min(spec.steps, PACK_BYTES // (packed * spec.ku * spec.element))
        why = "transposed B: each block is packed to the stack, one batch element a pass"
        return replace(plan, k_unroll=unroll, k_block=k_block, batch_chunk=1), why
    if sum(r.repeat for r, _ in plan.tiles()) == 1:
        why = "one tile of rows: the whole batch stays in registers"
        return replace(plan, k_unroll=unroll), why
    # Each tile of a pass reads one matrix again, beside its own rows or columns of the other.
    # Narrow tiles ask for so many bytes a cycle that only L1 can serve them; for wide ones L2 does.
    # A pass should also be long enough that storing and reloading C costs little beside it.
    rows = max(r.size for r, _ in plan.tiles())
    kept, moving = (spec.m, columns) if plan.order == "nm" else (spec.n, rows)
    size = (kept + 2 * moving) * spec.k * spec.element
    demand = columns * spec.element / max(macs / facts.fma_rate, 1.0)
    near = demand > facts.l2_rate
    room = int(0.9 * facts.l1) if near else facts.l2 // 2
    chunk = max(1, room // size, -(-SHORTEST_PASS // spec.steps))
    why = (
        f"{chunk} batch elements a pass, {size} bytes each, kept in {'L1' if near else 'L2'}: a "
        f"tile asks for {demand:.0f} bytes of B a cycle"
    )
    return replace(plan, k_unroll=unroll, batch_chunk=chunk), why


def choose_unroll(k: int, macs: int) -> int:
    """Reduction steps in one pass of the loop: all of them if few, else a divisor near the cap.

    >>> choose_unroll(64, 12), choose_unroll(63, 12), choose_unroll(9, 12)
    (8, 7, 9)
    """
    cap = max(4, UNROLL_MACS // macs)
    if k <= cap + cap // 2:
        return k
    return next((u for u in range(cap, cap // 2, -1) if k % u == 0), cap)


def _check(spec: KernelSpec, facts: Facts, plan: Plan) -> None:
    for field in fields(plan):
        value = getattr(plan, field.name)
        low = 1 if field.name in ("k_unroll", "k_block") else 0
        if isinstance(value, int) and value < low:
            raise ValueError(f"plan option {field.name}={value} is too small")
        if isinstance(value, int) and value >= MATRIX_BYTES:
            raise ValueError(
                f"plan option {field.name}={value} is larger than {MATRIX_BYTES - 1}"
            )
    macs = max(r.size * -(-c.size // facts.lanes) for r, c in plan.tiles())
    unrolled = min(plan.k_unroll, spec.steps)
    if unrolled * macs > MOST_MACS:
        raise ValueError(
            f"plan option k_unroll={plan.k_unroll}: that is {unrolled * macs} "
            f"multiply-accumulates in line; at most {MOST_MACS}"
        )
    ahead = plan.prefetch + unrolled
    ahead *= max(spec.ldb, spec.panel) * spec.ku * spec.element
    if plan.prefetch and ahead >= MATRIX_BYTES:
        raise ValueError(
            f"plan option prefetch={plan.prefetch}: that is {ahead} bytes ahead; displacements "
            f"reach {MATRIX_BYTES - 1}"
        )
    if spec.trans_b:
        _check_packing(spec, facts, plan)
    for rows, columns in plan.tiles():
        split = tile_split(plan, spec, facts, rows.size, columns.size)
        need = registers_needed(spec, facts, rows.size, columns.size, split, plan.hold)
        if need > facts.vectors:
            raise ValueError(
                f"plan: a tile of {rows.size} x {columns.size} with k_split={split} needs "
                f"{need} vector registers; there are {facts.vectors}"
            )


def _check_packing(spec: KernelSpec, facts: Facts, plan: Plan) -> None:
    """The stack holds one batch element's block of a transposed B, of PACK_BYTES at most."""
    if plan.batch_chunk != 1:
        raise ValueError(
            f"plan option batch_chunk={plan.batch_chunk}: a transposed B is packed one batch "
            "element a pass (1)"
        )
    vectors = max(-(-c.size // facts.lanes) for _, c in plan.tiles())
    size = vectors * facts.lanes * spec.ku * spec.element * plan.k_block
    if size > PACK_BYTES:
        raise ValueError(
            f"plan option k_block={plan.k_block}: a transposed B is packed to {size} bytes of "
            f"stack; there are {PACK_BYTES}"
        )
