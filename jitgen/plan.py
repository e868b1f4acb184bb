"""How a kernel is computed: the plan, a pure function of spec, machine facts and cache sizes.

A plan cuts C into register tiles, balanced so that no tile is a poor remainder, and says how the
reduction runs: unrolling, independent accumulator sets, how much of the batch stays in registers
before C is stored. Candidates are compared by a small cost model in cycles; `reasons` says why the
winner won. Any field can be overridden to tune. Not here: emission (`jitgen.generator`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from jitgen.spec import KernelSpec


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
#: Multiply-accumulates in one unrolled pass: enough to hide the loop, few enough to emit quickly.
UNROLL_MACS = 100
#: bytes of stack a transposed B may be packed into
PACK_BYTES = 32768


def registers_needed(facts: Facts, rows: int, vectors: int, split: int, tail: int, hold: str) -> int:
    """Vector registers of a tile of `rows` x `vectors` with `split` accumulator sets."""
    return rows * vectors * split + operand_registers(facts, rows, vectors, hold) + tail


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
    if bits and lanes < 8:  # a tile's mask bits begin at a byte
        unit, vectors = 8, max(1, vectors * lanes // 8)
    segments = [Segment(s.start * unit, s.size * unit, s.repeat)
                for s in split_evenly(-(-n // unit), vectors)]  # fmt: skip
    last = segments.pop()
    if last.end == n:
        return [*segments, last]
    if last.repeat > 1:
        segments.append(Segment(last.start, last.size, last.repeat - 1))
    start = last.end - last.size
    return [*segments, Segment(start, n - start, 1)]


def tile_cycles(facts: Facts, spec: KernelSpec, rows: int, columns: int, split: int) -> float:
    """Modelled cycles of one tile: the reduction at its tightest bound, plus its overhead."""
    vectors = -(-columns // facts.lanes)
    macs = rows * vectors
    hold_b = resolve_hold(rows, vectors, "auto") == "b"
    loads = rows + vectors
    uops = macs + loads
    if (hold_b and facts.fused_broadcast and vectors == 1) or (
        not hold_b and facts.fused_load and rows == 1
    ):
        uops = macs + min(rows, vectors)
    per_step = max(
        macs / facts.fma_rate,
        loads / facts.load_rate,
        uops / facts.issue_rate,
        facts.fma_latency / split,
    )
    ends = macs * (2 + (split - 1)) / facts.load_rate + TILE_OVERHEAD
    return per_step * spec.k * TYPICAL_BATCH + ends


def make_plan(spec: KernelSpec, facts: Facts, overrides: tuple[tuple[str, Any], ...] = ()) -> Plan:
    """The plan for `spec`, with `overrides` (rows, columns or any of TUNABLE) taken as given.

    Raises ValueError if an override is unknown, out of range or needs too many registers.
    """
    given = dict(overrides)
    for name in given:
        if name not in (*TUNABLE, "rows", "columns"):
            raise ValueError(f"plan option {name!r} is not one of rows, columns, {', '.join(TUNABLE)}")
    order = given.get("order", "nm")
    if order not in ("nm", "mn"):
        raise ValueError(f"plan option order={order!r} is neither 'nm' nor 'mn'")
    if given.get("hold", "auto") not in ("auto", "a", "b"):
        raise ValueError(f"plan option hold={given['hold']!r} is not 'auto', 'a' or 'b'")
    columns, reasons = _choose_columns(spec, facts, given)
    if order == "nm":
        nest = tuple((c, _choose_rows(spec, facts, c, given)) for c in columns)
    else:
        widest = max(columns, key=lambda s: s.size)
        nest = tuple((r, tuple(columns)) for r in _choose_rows(spec, facts, widest, given))
    plan = Plan(order, nest, "auto", 1, 0, spec.k, 0, 0)
    plan, more = _choose_reduction(spec, facts, plan)
    reasons += more
    if given:
        plan = replace(plan, **{name: given[name] for name in TUNABLE if name in given})
        reasons += (f"overridden: {given}",)
    plan = replace(plan, reasons=reasons)
    _check(spec, facts, plan)
    return plan


def tile_split(plan: Plan, spec: KernelSpec, facts: Facts, rows: int, columns: int) -> int:
    """Accumulator sets of one tile: as the plan says, or what hides the latency."""
    return plan.k_split or _best_split(spec, facts, rows, columns)


def _choose_columns(
    spec: KernelSpec, facts: Facts, given: dict[str, Any]
) -> tuple[list[Segment], tuple[str, ...]]:
    if spec.panel:
        columns = split_columns(spec.n, facts.lanes, 0, spec.panel, False)
        return columns, (f"tile columns = panel width {spec.panel}",)
    bits = spec.has("relu_mask")
    if "columns" in given:
        vectors = -(-int(given["columns"]) // facts.lanes)
        if vectors < 1:
            raise ValueError(f"plan option columns={given['columns']} is smaller than 1")
        return split_columns(spec.n, facts.lanes, vectors, 0, bits), ("tile columns as given",)
    most = min(-(-spec.n // facts.lanes), max(1, facts.vectors // 4))
    best: tuple[float, int, list[Segment]] | None = None
    for vectors in range(1, most + 1):
        columns = split_columns(spec.n, facts.lanes, vectors, 0, bits)
        try:
            cost = sum(
                column.repeat * _column_cost(spec, facts, column, given) for column in columns
            )
        except ValueError:
            continue
        if best is None or cost < best[0]:
            best = (cost, vectors, columns)
    assert best is not None, "one vector by one row fits every machine"
    flops = spec.flops(TYPICAL_BATCH)
    ideal = flops / 2 / facts.lanes / facts.fma_rate
    return best[2], (
        f"{best[1]} vectors of columns a tile: modelled {100 * ideal / best[0]:.0f} % of the FMA "
        f"bound, best of {most} widths",
    )


def _row_partitions(
    spec: KernelSpec, facts: Facts, column: Segment, given: dict[str, Any]
) -> Iterator[tuple[float, list[Segment]]]:
    vectors = -(-column.size // facts.lanes)
    tail = facts.tail_vectors[column.size % facts.lanes]
    hold = given.get("hold", "auto")
    wanted = given.get("rows")
    for height in [int(wanted)] if wanted else range(1, min(spec.m, facts.vectors) + 1):
        if height < 1 or registers_needed(facts, min(height, spec.m), vectors, 1, tail, hold) > facts.vectors:
            continue
        segments = split_evenly(spec.m, height)
        cost = 0.0
        for segment in segments:
            split = _best_split(spec, facts, segment.size, column.size)
            cost += segment.repeat * tile_cycles(facts, spec, segment.size, column.size, split)
        yield cost, segments


def _column_cost(spec: KernelSpec, facts: Facts, column: Segment, given: dict[str, Any]) -> float:
    return min((cost for cost, _ in _row_partitions(spec, facts, column, given)), default=float("inf"))


def _choose_rows(
    spec: KernelSpec, facts: Facts, column: Segment, given: dict[str, Any]
) -> tuple[Segment, ...]:
    best = min(_row_partitions(spec, facts, column, given), key=lambda p: p[0], default=None)
    if best is None:
        raise ValueError(
            f"plan options {given}: a tile of {given.get('rows', 1)} x {column.size} needs more than "
            f"{facts.vectors} vector registers"
        )
    return tuple(best[1])


@lru_cache(maxsize=4096)
def _best_split(spec: KernelSpec, facts: Facts, rows: int, columns: int) -> int:
    """Accumulator sets that a tile needs to hide the latency of the multiply-accumulate."""
    vectors = -(-columns // facts.lanes)
    tail = facts.tail_vectors[columns % facts.lanes]
    split = 1
    while (
        rows * vectors * split < facts.fma_latency * facts.fma_rate
        and 2 * split <= spec.k
        and registers_needed(facts, rows, vectors, 2 * split, tail, "auto") <= facts.vectors
    ):
        split *= 2
    return split


def _choose_reduction(
    spec: KernelSpec, facts: Facts, plan: Plan
) -> tuple[Plan, tuple[str, ...]]:
    columns = max(c.size for _, c in plan.tiles())
    macs = max(r.size * -(-c.size // facts.lanes) for r, c in plan.tiles())
    unroll = choose_unroll(spec.k, macs)
    panel_bytes = spec.k * columns * spec.element
    if spec.trans_b:
        k_block = min(spec.k, PACK_BYTES // (columns * spec.element))
        why = "transposed B: each block is packed to the stack, one batch element a pass"
        return replace(plan, k_unroll=unroll, k_block=k_block, batch_chunk=1), (why,)
    if sum(r.repeat for r, _ in plan.tiles()) == 1:
        why = "one tile of rows: the whole batch stays in registers"
        return replace(plan, k_unroll=unroll), (why,)
    # B's panel of a chunk is read again for every tile of rows: it should stay in half of L1,
    # while A streams past it at a few bytes a cycle
    chunk = max(1, facts.l1 // 2 // panel_bytes)
    why = (
        f"{chunk} batch elements a pass: B's panel of {panel_bytes} bytes each stays in half of "
        f"L1 ({facts.l1} bytes)"
    )
    return replace(plan, k_unroll=unroll, batch_chunk=chunk), (why,)


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
    for rows, columns in plan.tiles():
        vectors = -(-columns.size // facts.lanes)
        tail = facts.tail_vectors[columns.size % facts.lanes]
        split = tile_split(plan, spec, facts, rows.size, columns.size)
        need = registers_needed(facts, rows.size, vectors, split, tail, plan.hold)
        if need > facts.vectors:
            raise ValueError(
                f"plan: a tile of {rows.size} x {columns.size} with k_split={split} needs "
                f"{need} vector registers; there are {facts.vectors}"
            )
