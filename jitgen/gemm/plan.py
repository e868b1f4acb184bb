"""How a kernel is computed: the plan, a pure function of spec, machine facts and cache sizes.

A plan cuts C into register tiles, balanced so that no tile is a poor remainder, and says how the
reduction runs: unrolling, independent accumulator sets, how much of the batch stays in registers
before C is stored; `reasons` says why. Any field can be overridden to tune. Not here: the search
for tiles (`jitgen.gemm.tiles`) and emission (`jitgen.gemm.generator`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from jitgen import doors
from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.gemm.spec import KernelSpec
from jitgen.gemm.tiles import Search, Segment, best_split, registers_needed
from jitgen.target import Facts


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
    pack: int  # 1: a tile's columns of B are copied to the stack first, where they lie densely
    reasons: tuple[str, ...] = ()

    def tiles(self) -> Iterator[tuple[Segment, Segment]]:
        """(rows, columns) of every kind of tile."""
        for outer, inners in self.nest:
            for inner in inners:
                yield (inner, outer) if self.order == "nm" else (outer, inner)


#: Fields of a plan that a caller may override, besides rows and columns of the register tile.
TUNABLE = ("order", "hold", "k_unroll", "k_split", "k_block", "batch_chunk", "prefetch", "pack")
#: Those of them that are names
NAMED = {"order": ("nm", "mn"), "hold": ("auto", "a", "b")}
#: Multiply-accumulates in one unrolled pass: enough to hide the loop, few enough to emit quickly.
UNROLL_MACS = 60
#: Multiply-accumulates in line that anyone may ask for
MOST_MACS = 1 << 15
#: Reduction steps between two stores of C, at least
SHORTEST_PASS = 64
#: Bytes of stack that B may be packed into, and how many of them a plan takes by itself
PACK_BYTES = 32768
PACK_NEAR = 16384
#: Rows of B so many bytes apart fall into few sets of L1 and many pages: worth packing for as many
#: rows of C; a multiple of SAME_SET, where all fall into one set, already for the second number
PACK_STRIDE, SAME_SET, PACK_ROWS = 2048, 4096, (32, 12)


def check_overrides(plan: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Overrides (rows, columns or any of TUNABLE) as plain values, in order of their names; ranges
    are `make_plan`'s to check. TypeError, ValueError."""
    given: dict[str, Any] = {}
    for name, value in doors.mapping("plan", plan).items():
        if not isinstance(name, str) or name not in (*TUNABLE, "rows", "columns"):
            known = f"rows, columns, {', '.join(TUNABLE)}"
            raise ValueError(f"plan option {doors.shown(name)} is not one of {known}")
        what = f"plan option {name}"
        if name in NAMED:
            given[name] = doors.one_of(what, value, NAMED[name])
        else:
            given[name] = doors.size(what, value, 0)
    return tuple(sorted(given.items()))


def make_plan(spec: KernelSpec, facts: Facts, overrides: tuple[tuple[str, Any], ...] = ()) -> Plan:
    """The plan for `spec`, with `overrides` (from `check_overrides`) taken as given.

    Raises ValueError if an override is out of range or needs too many registers.
    """
    given = dict(overrides)
    order = given.get("order", "")
    search = Search(spec, facts, given)
    columns, reason = search.choose_columns()
    demand = _demand(spec, facts, columns[0].size, search.choose_rows(columns[0])[0].size)
    pack = given.get("pack", int(_packing_pays(spec, demand > facts.rates.l2_bytes)))
    if pack not in (0, 1) or (spec.trans_b and not pack) or (spec.panel and pack):
        raise ValueError(
            f"plan option pack={pack}: it is 0 or 1; a transposed B needs 1, panels need 0"
        )
    if pack and order == "mn":
        raise ValueError("plan option order='mn': B is packed by columns ('nm')")
    if not order:
        # B should stay in L1 while A streams, or else the smaller of both; columns that differ in
        # the registers they need want rows of their own, which only the order "nm" gives them
        uniform = len({_registers(spec, facts, c) for c in columns}) == 1
        small = spec.k * spec.n * spec.b_bytes <= facts.rates.l1 or spec.n <= spec.m
        order = "mn" if uniform and small and not pack else "nm"
    nest: tuple[tuple[Segment, tuple[Segment, ...]], ...]
    if order == "nm":
        nest = tuple((c, search.choose_rows(c)) for c in columns)
    else:
        widest = max(columns, key=lambda c: _registers(spec, facts, c))
        nest = tuple((r, tuple(columns)) for r in search.choose_rows(widest))
    tiles = [
        (inner, outer) if order == "nm" else (outer, inner)
        for outer, inners in nest for inner in inners
    ]  # fmt: skip
    chosen, why = _choose_reduction(spec, facts, order, tiles, pack, demand)
    if not given:
        return Plan(order, nest, reasons=(reason, why), **chosen)
    chosen |= {name: given[name] for name in TUNABLE[1:] if name in given}
    plan = Plan(order, nest, reasons=(reason, why, f"overridden: {given}"), **chosen)
    _check(spec, facts, plan)
    return plan


def _demand(spec: KernelSpec, facts: Facts, columns: int, rows: int) -> float:
    """Bytes of B that a tile asks for a cycle."""
    macs = rows * -(-columns // facts.lanes)
    return columns * spec.ku * spec.b_bytes / max(macs / facts.rates.fma, 1.0)


def _packing_pays(spec: KernelSpec, near: bool) -> bool:
    """Whether B is copied to the stack: it must be if transposed, and is if tiles want it near
    (in L1) and its rows lie badly for that."""
    apart = spec.ldb * spec.ku * spec.b_bytes
    badly = apart >= PACK_STRIDE and spec.m >= PACK_ROWS[apart % SAME_SET == 0]
    return spec.trans_b or (near and badly and not spec.panel)


def _registers(spec: KernelSpec, facts: Facts, column: Segment) -> int:
    """Vector registers that a row of a tile with these columns needs, to compare columns."""
    return registers_needed(spec, facts, 1, column.size, 1, "b")


def tile_split(plan: Plan, spec: KernelSpec, facts: Facts, rows: int, columns: int) -> int:
    """Accumulator sets of one tile: as the plan says, or what hides the latency."""
    return plan.k_split or best_split(spec, facts, rows, columns, plan.hold)


def _choose_reduction(
    spec: KernelSpec, facts: Facts, order: str, tiles: list[tuple[Segment, Segment]], pack: int,
    demand: float,
) -> tuple[dict[str, Any], str]:
    """The fields of a plan that say how the reduction runs; the reason."""
    columns = max(c.size for _, c in tiles)
    macs = max(r.size * -(-c.size // facts.lanes) for r, c in tiles)
    chosen = {
        "hold": "auto", "k_unroll": choose_unroll(spec.steps, macs), "k_split": 0,
        "k_block": spec.steps, "batch_chunk": 0, "prefetch": 0, "pack": pack,
    }  # fmt: skip
    if pack:
        packed = -(-columns // facts.lanes) * facts.lanes
        k_block = min(spec.steps, PACK_NEAR // (packed * spec.ku * spec.b_bytes))
        what = "transposed" if spec.trans_b else f"{spec.ldb * spec.b_bytes} bytes from row to row"
        why = f"B is {what}: {k_block} steps at once are packed to the stack"
        return chosen | {"k_block": k_block, "batch_chunk": 1}, why
    if sum(r.repeat for r, _ in tiles) == 1:
        why = "one tile of rows: the whole batch stays in registers"
        return chosen, why
    # Each tile reads one matrix again, beside its own rows or columns of the other. Wide tiles ask
    # for so few bytes a cycle that L2 serves them; narrow ones want what is read again in L1, which
    # takes passes over the batch. A pass should be long enough that storing and reloading C costs
    # little beside it.
    asks = f"a tile asks for {demand:.0f} bytes of B a cycle"
    if demand <= facts.rates.l2_bytes:
        return chosen, f"{asks}: the whole batch stays in registers"
    rows = max(r.size for r, _ in tiles)
    a, b = spec.a_bytes, spec.b_bytes
    kept, moving = (spec.m * a, columns * b) if order == "nm" else (spec.n * b, rows * a)
    size = (kept + 2 * moving) * spec.k
    chunk = max(1, int(0.9 * facts.rates.l1) // size, -(-SHORTEST_PASS // spec.steps))
    why = f"{asks}: {chunk} batch elements a pass, {size} bytes each, for L1"
    return chosen | {"batch_chunk": chunk}, why


def choose_unroll(k: int, macs: int) -> int:
    """Reduction steps in one pass of the loop: all of them if few, else a divisor near the cap.

    >>> choose_unroll(64, 12), choose_unroll(63, 12), choose_unroll(9, 12)
    (4, 3, 3)
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
    ahead *= max(spec.ldb, spec.panel) * spec.ku * spec.b_bytes
    if plan.prefetch and ahead >= MATRIX_BYTES:
        raise ValueError(
            f"plan option prefetch={plan.prefetch}: that is {ahead} bytes ahead; displacements "
            f"reach {MATRIX_BYTES - 1}"
        )
    if plan.pack:
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
    """The stack holds one batch element's block of B, of PACK_BYTES at most."""
    if plan.batch_chunk != 1:
        raise ValueError(
            f"plan option batch_chunk={plan.batch_chunk}: B is packed one batch element a pass (1)"
        )
    vectors = max(-(-c.size // facts.lanes) for _, c in plan.tiles())
    size = vectors * facts.lanes * spec.ku * spec.b_bytes * plan.k_block
    if size > PACK_BYTES:
        raise ValueError(
            f"plan option k_block={plan.k_block}: B is packed to {size} bytes of stack; there are "
            f"{PACK_BYTES}"
        )
