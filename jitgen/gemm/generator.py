"""The generator: one algorithm, written once against the verbs of `jitgen.isa.machine.Machine`.

`emit` writes a whole kernel into the machine's program: passes over the batch, loops over the tiles
of C, and in each tile the reduction (the end of a tile stands in `jitgen.gemm.epilogue`). No
instruction set is named here: what differs between them is facts and verbs.

A position is the first row or column of a tile, or a reduction step: in a register while a loop
runs over it, a plain int where there is only one. Every address of a tile follows from positions
by one multiplication each, so no pointer has to be rewound. A step of the reduction multiplies a
unit of ku elements of A, broadcast, with ku interleaved rows of B.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jitgen.emit.copying import copy_rows, copy_transposed
from jitgen.emit.frame import ARGUMENTS, Frame, Position, Register
from jitgen.gemm.epilogue import Finish
from jitgen.gemm.plan import Plan, tile_split
from jitgen.gemm.sections import BatchPass, BlockLoop, Mark, PackB, ReductionLoop, TileSection
from jitgen.gemm.spec import KernelSpec
from jitgen.gemm.tile import Tile
from jitgen.gemm.tiles import Segment, tail_registers
from jitgen.isa.machine import Machine
from jitgen.target import Facts


def emit(spec: KernelSpec, plan: Plan, facts: Facts, machine: Machine) -> dict[str, int]:
    """Write the kernel into `machine.program`; returns the general-purpose registers by role."""
    return _Brgemm(spec, plan, facts, machine).emit()


@dataclass(frozen=True)
class _Advance:
    """How a pointer moves through the reduction: bytes per step, steps between two moves."""

    step: int
    every: int


class _Brgemm:
    def __init__(self, spec: KernelSpec, plan: Plan, facts: Facts, machine: Machine) -> None:
        self.spec = spec
        self.plan = plan
        self.facts = facts
        self.machine = machine
        self.frame = Frame(machine)
        # bytes of one column of a unit of B, and of a vector of units
        self.unit = spec.ku * spec.b_bytes
        self.vector = facts.lanes * self.unit
        # bytes from one row of op(A) to the next, and from one reduction step to the next
        if spec.trans_a:
            self.a_row, self.a_step = spec.a_bytes, spec.lda * spec.a_bytes
        else:
            self.a_row, self.a_step = spec.lda * spec.a_bytes, spec.ku * spec.a_bytes
        # op(B) as a tile reads it has contiguous columns; they may be a packed copy on the stack
        self.packed = 0
        if plan.pack:
            self.packed = max(-(-c.size // facts.lanes) for _, c in plan.tiles()) * facts.lanes
        self.b_step = (self.packed or spec.panel or spec.ldb) * self.unit
        self.chunked = plan.batch_chunk > 0
        self.k_blocks = _k_blocks(spec.k, plan.k_block * spec.ku)
        self.finish = Finish(spec, facts, self.frame)

    # ---- the whole kernel -------------------------------------------------------------------

    def emit(self) -> dict[str, int]:
        machine, frame = self.machine, self.frame
        self._allocate()
        stack = self.packed * self.unit * self.plan.k_block
        machine.program.section(Mark.ENTRY)
        machine.begin(frame.used(), stack)
        if "constants" in frame.roles:
            machine.use_constants(frame["constants"])
        if "b_step" in frame.roles:
            machine.set(frame["b_step"], self.b_step)
            machine.hoist(self.b_step, frame["b_step"])
        tail = self.spec.n % self.facts.lanes
        if tail and not self.facts.tail_vectors[tail]:
            machine.set_tail(tail, -1)
        if self.spec.batch == "stride":
            frame.load_argument("a", "a")
            frame.load_argument("b", "b")
        if self.chunked:
            self._passes()
        else:
            frame.load_argument("last", "count")
            self._k_blocks(0)
        machine.program.section(Mark.RETURN)
        machine.end()
        return frame.roles

    def _allocate(self) -> None:
        """Give every role its register."""
        roles = ["a", "b"] if self.spec.batch == "stride" else []
        roles += ["a_now", "b_now", "last", "index", "step"]
        if self.chunked:
            roles.append("first")
        outer, inner = ("col", "row") if self.plan.order == "nm" else ("row", "col")
        if any(segment.repeat > 1 for segment, _ in self.plan.nest):
            roles.append(outer)
        if any(segment.repeat > 1 for _, inners in self.plan.nest for segment in inners):
            roles.append(inner)
        if any(block.repeat > 1 for block in self.k_blocks):
            roles.append("k")
        columns = {c.size for _, c in self.plan.tiles()}
        masks = any(tail_registers(self.spec, self.facts, c) for c in columns)
        if masks or self.finish.needs_constants:
            roles.append("constants")
        for role in roles:
            self.frame.take(role)
        self._plan_pointers()

    def _passes(self) -> None:
        """Passes over the batch, `batch_chunk` elements each: C is stored after every one."""
        machine, frame, chunk = self.machine, self.frame, self.plan.batch_chunk
        first, last, index = frame["first"], frame["last"], frame["index"]
        machine.program.section(BatchPass(chunk))
        machine.set(first, 0)
        again = machine.program.new_label()
        machine.place(again)
        frame.load_argument("index", "count")
        machine.subtract(index, first)
        machine.minimum(last, index, chunk)
        machine.sum(last, last, first)
        self._k_blocks(Register(first))
        machine.program.section(Mark.NEXT_PASS)
        if self.spec.batch == "stride":
            machine.advance(frame["a"], chunk * self.spec.stride_a * self.spec.a_bytes)
            machine.advance(frame["b"], chunk * self.spec.stride_b * self.spec.b_bytes)
        machine.move(first, last)
        frame.load_argument("index", "count")
        machine.jump_if_different(first, index, again)

    def _k_blocks(self, first: Position) -> None:
        """Blocks of the reduction dimension: C is stored after every one."""
        for block in self.k_blocks:
            with self._loop("k", block) as k:
                self._tiles(block.size // self.spec.ku, k, first)

    def _tiles(self, depth: int, k: Position, first: Position) -> None:
        """The loops over m and n."""
        outer_role, inner_role = ("col", "row") if self.plan.order == "nm" else ("row", "col")
        for outer, inners in self.plan.nest:
            with self._loop(outer_role, outer) as outer_at:
                if self.packed:
                    self._pack(outer.size, outer_at, depth, k, first)
                for inner in inners:
                    with self._loop(inner_role, inner) as inner_at:
                        if self.plan.order == "nm":
                            self._tile(inner.size, outer.size, inner_at, outer_at, depth, k, first)
                        else:
                            self._tile(outer.size, inner.size, outer_at, inner_at, depth, k, first)

    @contextmanager
    def _loop(self, role: str, segment: Segment) -> Iterator[Position]:
        """A loop over the blocks of a segment; yields the position of the block."""
        if segment.repeat == 1:
            yield segment.start
            return
        machine, r = self.machine, self.frame[role]
        machine.program.section(BlockLoop(role, segment.repeat, segment.size, segment.start))
        machine.set(r, segment.start)
        label = machine.program.new_label()
        machine.place(label)
        yield Register(r)
        machine.advance(r, segment.size)
        machine.jump_if_less(r, segment.end, label)

    # ---- one tile ---------------------------------------------------------------------------

    def _tile(
        self, rows: int, columns: int, row: Position, col: Position, depth: int, k: Position,
        first: Position,
    ) -> None:  # fmt: skip
        machine = self.machine
        split = tile_split(self.plan, self.spec, self.facts, rows, columns)
        tile = Tile(
            self.spec, self.facts, rows, columns, row, col, split, self.plan.hold
        )
        pointers, per_pointer = self._pointers(tile), self.rows_per_pointer
        tile.a_at = [
            (pointers[i // per_pointer], i % per_pointer * self.a_row) for i in range(rows)
        ]
        tile.b_at = [(self.frame["b_now"], j * self.unit) for j in tile.offsets]
        machine.program.section(TileSection(rows, columns, "start"))
        if tile.tail >= 0:
            machine.set_tail(tile.widths[-1], tile.tail)
        self.finish.start(tile, self._earlier(first, k))
        machine.program.section(TileSection(rows, columns, "reduce"))
        self._reduce(tile, depth, k, first)
        machine.program.section(TileSection(rows, columns, "finish"))
        self.finish.end(tile, self._later(k), self._earlier(first, k))

    def _earlier(self, first: Position, k: Position) -> list[Register] | bool:
        """Was C stored by an earlier pass? Known now, or if any of these registers is not zero."""
        if isinstance(k, int) and k > 0:
            return True
        registers = [p for p in (first, k) if isinstance(p, Register)]
        return registers or False

    def _later(self, k: Position) -> list[tuple[int, int | str]] | bool:
        """Will a later pass add to C? Known now, or unless these registers have these values."""
        conditions: list[tuple[int, int | str]] = []
        block = self.k_blocks[-1]
        final = block.end - block.size
        if isinstance(k, int) and k != final:
            return True
        if isinstance(k, Register):
            if block.repeat == 1:
                return True
            conditions.append((k.number, final))
        if self.chunked:
            conditions.append((self.frame["last"], "count"))
        return conditions or False

    def _reduce(self, tile: Tile, depth: int, k: Position, first: Position) -> None:
        """acc += sum over the pass's batch elements and `depth` steps of the reduction."""
        machine, frame = self.machine, self.frame
        a, b, index, last = (frame[r] for r in ("a_now", "b_now", "index", "last"))
        strided = self.spec.batch == "stride"
        if isinstance(first, int):
            machine.set(index, first)
        else:
            machine.move(index, first.number)
        done = machine.program.new_label()
        machine.jump_if_equal(index, last, done)
        if strided:
            machine.move(a, frame["a"])
            self._shift_a(tile, k)
            if not self.packed:
                machine.move(b, frame["b"])
                self._shift_b(tile, k)
        once = self.packed != 0
        each = machine.program.new_label()
        if not once:
            machine.place(each)
        if not strided:
            self._load_pointer(a, "a")
            self._shift_a(tile, k)
            if not self.packed:
                self._load_pointer(b, "b")
                self._shift_b(tile, k)
        if self.packed:
            machine.move(b, machine.stack_pointer)
        a_moved, b_moved = self._steps(tile, depth)
        if not once:
            if strided:
                for pointer in self._pointers(tile):
                    machine.advance(pointer, self.spec.stride_a * self.spec.a_bytes - a_moved)
                machine.advance(b, self.spec.stride_b * self.spec.b_bytes - b_moved)
            machine.advance(index, 1)
            machine.jump_if_different(index, last, each)
        machine.place(done)

    def _load_pointer(self, d: int, name: str) -> None:
        """d = address of the batch element that `index` counts (offset and address batches)."""
        machine, frame = self.machine, self.frame
        entry = frame["step"]
        frame.load_argument("step", name if self.spec.batch == "address" else f"{name}_offsets")
        machine.sum(entry, entry, frame["index"], 3)
        if self.spec.batch == "address":
            machine.load_word(d, (entry, 0))
        else:
            machine.load_word(entry, (entry, 0))
            machine.load_word(d, (machine.argument, ARGUMENTS[name]))
            size = self.spec.a_bytes if name == "a" else self.spec.b_bytes
            machine.sum(d, d, entry, size.bit_length() - 1)

    def _shift_a(self, tile: Tile, k: Position) -> None:
        a = self.frame["a_now"]
        self.frame.shift(a, tile.row, self.a_row, "step")
        self.frame.shift(a, k, self.a_step // self.spec.ku, "step")
        for i, pointer in enumerate(self._pointers(tile)[1:], 1):
            self.machine.offset(pointer, a, i * self.rows_per_pointer * self.a_row)

    def _shift_b(self, tile: Tile, k: Position) -> None:
        b = self.frame["b_now"]
        # a panel holds k rows of its columns: column j begins j * k elements into the panels
        per_column = self.spec.k * self.spec.b_bytes if self.spec.panel else self.unit
        self.frame.shift(b, tile.col, per_column, "step")
        self.frame.shift(b, k, self.b_step // self.spec.ku, "step")

    # ---- the inner loop ---------------------------------------------------------------------

    def _plan_pointers(self) -> None:
        """Decide how many pointers the rows of A need and how often pointers move.

        Where displacements reach everything (x86) there is one pointer and one move a pass of the
        unrolled loop; elsewhere (SVE) each pointer serves the rows within its reach.
        """
        unroll, reach = self.plan.k_unroll, self.facts.broadcast_reach
        every = unroll if (unroll - 1) * self.a_step <= reach else 1
        self.a_advance = _Advance(self.a_step, every)
        left = reach - (every - 1) * self.a_step
        height = max(r.size for r, _ in self.plan.tiles())
        wanted = min(height, left // self.a_row + 1)
        free = 1 + self.frame.free()
        self.rows_per_pointer = max(wanted, -(-height // free))
        more = range(1, -(-height // self.rows_per_pointer))
        self.pointers = [self.frame["a_now"], *(self.frame.take(f"a_now{i}") for i in more)]
        vectors = max(-(-c.size // self.facts.lanes) for _, c in self.plan.tiles())
        span = (unroll - 1) * self.b_step + (vectors - 1) * self.vector
        together = span <= self.facts.vector_reach and (
            self.b_step % self.facts.vector_granule == 0 or unroll == 1
        )
        self.b_advance = _Advance(self.b_step, unroll if together else 1)
        if not together and self.frame.free():
            self.frame.take("b_step")

    def _pointers(self, tile: Tile) -> list[int]:
        return self.pointers[: -(-tile.rows // self.rows_per_pointer)]

    def _steps(self, tile: Tile, depth: int) -> tuple[int, int]:
        """`depth` reduction steps; returns by how many bytes the pointers of A and B moved."""
        machine, unroll = self.machine, self.plan.k_unroll
        passes, rest = divmod(depth, unroll)
        a_moved = b_moved = 0
        if passes > 1:
            step = self.frame["step"]
            machine.set(step, passes)
            machine.program.align(machine.loop_alignment)
            label = machine.program.new_label()
            machine.place(label)
            machine.program.section(ReductionLoop(passes, unroll))
            self._unrolled(tile, unroll, True)
            machine.count_down(step, label)
            a_moved, b_moved = passes * unroll * self.a_step, passes * unroll * self.b_step
        elif passes:
            rest += unroll
        if rest:
            moved = self._unrolled(tile, rest, False)
            a_moved += moved[0]
            b_moved += moved[1]
        return a_moved, b_moved

    def _unrolled(self, tile: Tile, steps: int, move: bool) -> tuple[int, int]:
        """`steps` reduction steps in line; `move`: leave the pointers behind the last one."""
        machine, b = self.machine, self.frame["b_now"]
        pointers = self._pointers(tile)
        a_at = b_at = 0
        for s in range(steps):
            last = s == steps - 1
            self._step(tile, s, s - a_at, s - b_at)
            if (s + 1 - a_at == self.a_advance.every and not last) or (last and move):
                for pointer in pointers:
                    machine.advance(pointer, (s + 1 - a_at) * self.a_step)
                a_at = s + 1
            if (s + 1 - b_at == self.b_advance.every and not last) or (last and move):
                machine.advance(b, (s + 1 - b_at) * self.b_step)
                b_at = s + 1
        return a_at * self.a_step, b_at * self.b_step

    def _step(self, tile: Tile, s: int, a_s: int, b_s: int) -> None:
        """One reduction step: a rank-1 update of the tile."""
        machine = self.machine
        a_shift, b_shift = a_s * self.a_step, b_s * self.b_step
        if self.plan.prefetch:
            ahead = b_shift + self.plan.prefetch * self.b_step
            machine.prefetch((self.frame["b_now"], ahead))
        chosen = s % len(tile.sets)
        lanes = self.facts.lanes
        held, moving = tile.held, tile.moving
        if tile.hold == "b":
            for register, (pointer, disp), width in zip(held, tile.b_at, tile.loaded, strict=True):
                machine.load(register, (pointer, disp + b_shift), width)
            for i, (pointer, disp) in enumerate(tile.a_at):
                at = (pointer, disp + a_shift)
                if moving < 0:
                    machine.mac_broadcast(tile.sets[chosen][i][0], held[0], at, tile.widths[0])
                else:
                    machine.load_unit(moving, at)
                    self._macs(tile, chosen, i)
            return
        for register, (pointer, disp) in zip(held, tile.a_at, strict=True):
            machine.load_unit(register, (pointer, disp + a_shift))
        fused = tile.rows == 1 and self.facts.fused_load
        for j, (pointer, disp) in enumerate(tile.b_at):
            at = (pointer, disp + b_shift)
            if fused and tile.loaded[j] == lanes:
                machine.mac_load(tile.sets[chosen][0][j], held[0], at, lanes)
            else:
                machine.load(moving, at, tile.loaded[j])
                self._macs(tile, chosen, j)

    def _macs(self, tile: Tile, chosen: int, position: int) -> None:
        """Multiply the moving operand with all held ones: a row of the tile, or a column.

        These are the same in every step, so their records are made once and then repeated.
        """
        records = self.machine.program.records
        made = tile.repeated.get((chosen, position))
        if made is not None:
            records += made
            return
        start = len(records)
        acc = tile.sets[chosen]
        if tile.hold == "b":
            for j, b in enumerate(tile.held):
                self.machine.mac_unit(acc[position][j], tile.moving, b, tile.widths[j])
        else:
            for i, a in enumerate(tile.held):
                self.machine.mac_unit(acc[i][position], a, tile.moving, tile.widths[position])
        tile.repeated[chosen, position] = records[start:]

    # ---- packing of B -----------------------------------------------------------------------

    def _pack(self, columns: int, col: Position, depth: int, k: Position, first: Position) -> None:
        """Copy op(B)'s columns of this pass to the stack, so that they become contiguous."""
        machine, frame = self.machine, self.frame
        assert isinstance(first, Register), "a packed B is chunked"
        machine.program.section(PackB(depth, columns))
        done = machine.program.new_label()
        machine.jump_if_equal(first.number, frame["last"], done)
        source, to, step = frame["b_now"], frame["a_now"], frame["step"]
        if self.spec.batch == "stride":
            machine.move(source, frame["b"])
        else:
            machine.move(frame["index"], first.number)
            self._load_pointer(source, "b")
        leading = self.spec.ldb * self.spec.b_bytes
        down, across = (self.spec.b_bytes, leading) if self.spec.trans_b else (leading, self.unit)
        frame.shift(source, col, across, "step")
        frame.shift(source, k, down, "step")
        machine.move(to, machine.stack_pointer)
        if self.spec.trans_b:
            temp = frame["index"]
            copy_transposed(machine, columns, depth, source, to, leading, self.b_step, step, temp)
        else:
            tile = Tile(self.spec, self.facts, 1, columns, 0, 0, 1, "b")
            if tile.tail >= 0:
                machine.set_tail(tile.widths[-1], tile.tail)
            displacements = [j * self.unit for j in tile.offsets]
            parts = list(zip(displacements, tile.widths, strict=True))
            copy_rows(machine, parts, depth, source, to, leading * self.spec.ku, self.b_step, step)
        machine.place(done)


def _k_blocks(k: int, block: int) -> list[Segment]:
    """Cut the reduction into blocks of `block` steps; the last may be shorter."""
    whole, rest = divmod(k, block)
    segments = [Segment(0, block, whole)] if whole else []
    return segments + ([Segment(whole * block, rest, 1)] if rest else [])


