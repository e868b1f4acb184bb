"""Functions of rows: softmax, norms, sums, forward and backward, in passes along each row.

One emitter for all of `jitgen.kernels.row_functions`: a pass reduces a row to numbers, or maps it,
or both. A row that fits the registers stays in them from pass to pass; another one is read again,
from the cache. Reductions have several sums side by side, which hides latency; all of them are
added up in an order that only the shape and the instruction set decide. Along columns (axis 0) the
same passes go down the rows, a vector of columns at a time, and nothing crosses lanes.

Not here: what a pass computes, threads (`jitgen.primitives.nest.rows`).

>>> from jitgen.target import AVX512
>>> emit_rows("softmax", 64, 128, "f32", AVX512).name
'softmax f32 64x128'
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from jitgen import doors
from jitgen.emit.copying import repeated
from jitgen.emit.routine import Operand, Routine, Writer, Written, emitter
from jitgen.emit.shapes import check_rows
from jitgen.isa.machine import At
from jitgen.kernels.row_bodies import Between, Group
from jitgen.kernels.row_functions import ROW_FUNCTIONS, Pass, RowFunction
from jitgen.run.cache import CODE
from jitgen.target import Target

#: Vectors of a line that stand in line at most; more are a loop
_IN_LINE = 16
#: Columns, in vectors, that are gone down together
_SIDE_BY_SIDE = 4
#: Bytes of a cache line
_LINE = 64
#: A vector: its line, and its number along that
Place = tuple[int, int]
#: How many vectors take each step together, the first that registers suffice for
_WIDTHS = (8, 4, 3, 2, 1)


def emit_rows(
    function: str, rows: int, columns: int, dtype: str, target: Target, *,
    ld: Mapping[str, int] | None = None, given: Collection[str] = (), eps: float = 1e-5,
    axis: int = 1,
) -> Routine:  # fmt: skip
    """The routine that applies a function of `ROW_FUNCTIONS` to each of the rows (axis 1), or to
    each of the columns (axis 0), of blocks of rows x columns elements.

    Its operands, and the words that they are in, are those of the record; `ld` gives leading
    dimensions in elements by operand (default: columns), `given` the optional operands that there
    are. Operands of place "column" have an element for each position along what is reduced, those
    of place "value" one for each row (axis 0: column), one behind the other. y may be x, and dx
    any of its inputs, at the same address and leading dimension; other results overlap nothing.
    dscale and dshift, which rows are added to, are for axis 1.

    Raises ValueError that names argument, value and rule.
    """
    doors.one_of("function", function, ROW_FUNCTIONS)
    record = ROW_FUNCTIONS[function]
    leading = {name: columns for name, o in record.operands.items() if o.place == "row"}
    for name, elements in (ld or {}).items():
        doors.one_in("ld", name, f"the rows of {function}", leading)
        leading[name] = elements
    optional = [name for name, operand in record.operands.items() if operand.optional]
    for name in given:
        doors.one_in("given", name, f"the optional operands of {function}", optional)
    for elements in leading.values():
        check_rows(rows, columns, dtype, elements)
    if axis not in (0, 1):
        raise ValueError(f"axis={axis} is neither 0 nor 1")
    if axis == 0 and {"dscale", "dshift"} & set(given):
        raise ValueError("axis=0: sums over rows, dscale and dshift, are for axis=1")
    here = tuple(n for n in record.operands if n in given or n not in optional)
    return _emit_rows(
        function, rows, columns, dtype, target, tuple(leading.items()), here,
        eps if record.eps else 0.0, axis,
    )  # fmt: skip


@CODE.of
@emitter
def _emit_rows(
    function: str, rows: int, columns: int, dtype: str, target: Target,
    ld: tuple[tuple[str, int], ...], here: tuple[str, ...], eps: float, axis: int,
) -> Written:  # fmt: skip
    name = f"{function} {dtype} {rows}x{columns}" + (" down columns" if axis == 0 else "")
    record = ROW_FUNCTIONS[function]
    return _Rows(record, name, rows, columns, dtype, target, dict(ld), here, eps, axis).write()


class _Rows(Writer):
    """Writes one routine. A line is what is reduced: a row, or a vector of columns."""

    def __init__(
        self, record: RowFunction, name: str, rows: int, columns: int, dtype: str, target: Target,
        ld: Mapping[str, int], here: Sequence[str], eps: float, axis: int,
    ) -> None:  # fmt: skip
        machine = target.machine(dtype, columns)
        operands = {
            name: Operand(record.operands[name].word, record.operands[name].meaning, dtype)
            for name in here
        }
        super().__init__(name, target, machine, operands, columns)
        self.record, self.axis, self.rows, self.eps = record, axis, rows, eps
        #: elements, and vectors, of a line
        self.reduced = columns if axis else rows
        self.length = self.vectors + (self.tail > 0) if axis else rows
        self.place = {name: record.operands[name].place for name in here}
        size, vector = machine.element, self.vector
        #: bytes from a vector of a line to the next, and from a line to the next
        self.step: dict[str, int] = {}
        self.next: dict[str, int] = {}
        for operand, place in self.place.items():
            pitch = ld.get(operand, 0) * size
            self.step[operand], self.next[operand] = {
                "row": (vector, pitch), "column": (vector, 0), "value": (0, size)
            }[place] if axis else {
                "row": (pitch, vector), "column": (size, 0), "value": (0, vector)
            }[place]  # fmt: skip
        stored = {name for p in record.passes for name in p.stores.values()}
        #: numbers that are read
        self.given = [n for n, place in self.place.items() if place == "value" and n not in stored]
        numbers = [*self.given, *record.numbers]
        numbers += [name for p in record.passes for name in (*p.sums, *p.tops)]
        #: numbers of a line
        self.numbers = list(dict.fromkeys(numbers))
        self._settle()

    def _settle(self) -> None:
        """How many lines are worked on at a time, and which registers hold what. Lines that are
        read more than once stay in registers where they fit, several of them if they are short: so
        none waits for its numbers."""
        passes = self.record.passes
        written = {name for p in passes for name in p.writes}
        names = [n for p in passes for n in p.reads if self.place.get(n) == "row"]
        kept = [name for name in dict.fromkeys(names) if name not in written]
        # what all lines are added to is read again for each
        shared = any(self.place.get(name) == "column" for name in written)
        most = 1 if shared else self.machine.vectors // 2 // (max(1, len(kept)) * self.length)
        kept = kept if len(passes) > 1 and len(kept) * self.length < self.free else []
        lines = self.rows
        if not self.axis:  # neighbours lie together: rows are read in wider pieces
            most, lines = max(most, _SIDE_BY_SIDE), self.vectors
        for keep, together in itertools.product((kept, []), (8, 4, 2, 1)):
            if together == 1 or (together <= min(most, lines) and (keep or not self.axis)):
                self._allot(together, keep)
                if all(self.fits(p, 2 if p.temps else 1, 1) for p in passes):
                    return
        self._allot(1, [])

    def _allot(self, together: int, kept: Sequence[str]) -> None:
        """Registers of constants, of numbers and vectors of so many lines; the others are the
        passes'."""
        registers = itertools.count()  # too many of them leave none to the passes
        self.together = together
        self.constants = {name: next(registers) for name in self.record.constants}
        #: by line
        self.s = [{name: next(registers) for name in self.numbers} for _ in range(together)]
        #: operand -> registers that keep its vectors while lines are worked on, by line
        self.homes = {
            name: [[next(registers) for _ in range(self.length)] for _ in range(together)]
            for name in kept
        }
        self.pool = range(next(registers), self.free)

    def fits(self, p: Pass, width: int, chains: int) -> bool:
        """Whether registers suffice for groups of so many vectors, with a spare one, and so many
        sums side by side in each line."""
        sums = (chains - 1) * (len(p.sums) + len(p.tops)) * self.together
        loaded = [n for n in p.reads if n in self.place and not (
            self.homes and self.place[n] == "row"
        )]  # fmt: skip
        each = len(loaded) + p.temps + self.own_result(p)
        return sums + max(width * each + 1, p.after_temps) <= len(self.pool)

    def own_result(self, p: Pass) -> bool:
        """Whether the result of a pass has registers of its own."""
        return p.result and not (p.reads and (p.writes or not self.homes))

    def write(self) -> Written:
        machine = self.machine
        self.take("line", "step", "constants")
        self.begin()
        for name, value in self.record.constants.items():
            constant = machine.const(value(machine.arithmetic.name, self.reduced))
            machine.load_const(self.constants[name], constant)
        if self.axis:
            times, rest = divmod(self.rows, self.together)
            self._lines(times, self.together, machine.lanes, self.tail)
            self._lines(1 if rest else 0, rest, machine.lanes, self.tail)
        else:
            times, rest = divmod(self.vectors, self.together)
            self._lines(times, self.together, machine.lanes, 0)
            self._lines(1 if rest else 0, rest, machine.lanes, 0)
            self._lines(1 if self.tail else 0, 1, self.tail, 0)
        return self.end()

    def _lines(self, times: int, together: int, lanes: int, tail: int) -> None:
        """So many times as many lines as are worked on together, of vectors of so many lanes, the
        last one of `tail` (0: a whole one)."""
        if times:
            with repeated(self.machine, self.frame["line"], times):
                self._together(together, lanes, tail)
                for name, size in self.next.items():
                    self.machine.advance(self.frame[name], size * together)

    def _together(self, together: int, lanes: int, tail: int) -> None:
        machine = self.machine
        for name in self.given:
            for line in range(together):
                at = self.frame[name], line * self.next[name]
                if self.axis:
                    machine.broadcast(self.s[line][name], at)
                else:
                    machine.load(self.s[line][name], at, lanes)
        kept, passes = _Kept(dict(self.homes), set()), self.record.passes
        for number, p in enumerate(passes):
            later = {name for q in passes[number + 1 :] for name in q.reads}
            ahead = bool(self.axis) and number == 1
            _Pass(self, p, together, lanes, tail, kept, later, ahead).write()


class _Kept(NamedTuple):
    """homes: operand -> registers that keep its vectors, by line; those in `loaded` are there
    already."""

    homes: dict[str, list[list[int]]]
    loaded: set[str]


class _Pass:
    """One pass along lines, while it is written. ahead: the next lines are fetched meanwhile."""

    def __init__(
        self, whole: _Rows, p: Pass, together: int, lanes: int, tail: int, kept: _Kept,
        later: Collection[str], ahead: bool,
    ) -> None:  # fmt: skip
        self.whole, self.p, self.together, self.lanes, self.tail = whole, p, together, lanes, tail
        self.machine, self.frame, self.kept, self.later = whole.machine, whole.frame, kept, later
        self.reads = [name for name in p.reads if name in whole.place]
        self.writes = [name for name in p.writes if name in whole.place]
        self.ahead = [name for name, place in whole.place.items() if ahead and place == "row"]
        chains = p.chains
        while chains > whole.length or not whole.fits(p, 4 if chains > 1 else 1, chains):
            chains //= 2
        self.chains = chains
        self.width = next(width for width in _WIDTHS if whole.fits(p, width, chains))
        free = iter(whole.pool)
        #: registers of sums and maxima side by side, by line
        self.sums = [
            {name: [whole.s[line][name], *(next(free) for _ in range(chains - 1))]
             for name in (*p.sums, *p.tops)}
            for line in range(together)
        ]  # fmt: skip
        self.free = list(free)

    def write(self) -> None:
        machine, p, length = self.machine, self.p, self.whole.length
        machine.program.section(p.emit.__name__.replace("_", " "))
        for sums in self.sums:
            for name, registers in sums.items():
                for register in registers:
                    if name in p.tops:
                        machine.load_const(register, machine.const(-math.inf))
                    else:
                        machine.zero(register)
        done = 0
        if length > _IN_LINE and not self.kept.homes:
            done = self._loop(length - (self.tail > 0))
        self._groups([(line, i) for line in range(self.together) for i in range(done, length)])
        self.kept.loaded.update(self.reads)
        for line in range(self.together):
            self._finish(line)

    def _loop(self, count: int) -> int:
        """Whole vectors in a loop; how many these are. Pointers are moved back behind it."""
        machine, frame = self.machine, self.frame
        step = max(1, self.width // self.together)
        unit = step * -(-self.chains // step)
        times = count // unit
        names = dict.fromkeys((*self.reads, *self.writes, *self.ahead))
        moved = {name: self.whole.step[name] for name in names}
        machine.set(frame["step"], times)
        machine.program.align(machine.loop_alignment)
        again = machine.program.new_label()
        machine.place(again)
        for first in range(0, unit, step):
            self._groups([(line, i) for i in range(first, first + step)
                          for line in range(self.together)])  # fmt: skip
        for name, size in moved.items():
            machine.advance(frame[name], size * unit)
        machine.count_down(frame["step"], again)
        for name, size in moved.items():
            machine.advance(frame[name], -size * unit * times)
        return unit * times

    def _groups(self, places: Sequence[Place]) -> None:
        for first in range(0, len(places), self.width):
            self._group(places[first : first + self.width])

    def _group(self, places: Sequence[Place]) -> None:
        """Vectors that take every step together, by line and their number along it."""
        machine, whole, p, homes = self.machine, self.whole, self.p, self.kept.homes
        tails = [j for j, (_, i) in enumerate(places) if self.tail and i == whole.length - 1]
        lanes = [self.tail if j in tails else self.lanes for j in range(len(places))]
        free = iter(self.free)
        x: dict[str, list[int]] = {}
        for name in self.reads:
            kept = name in homes
            x[name] = [homes[name][line][i] if kept else next(free) for line, i in places]
            if not kept or name not in self.kept.loaded:
                self._load(name, x[name], places, lanes)
        self._fetch(places)
        d = []
        if whole.own_result(p):
            d = [next(free) for _ in places]
        elif p.writes or p.result:
            d = x[self.reads[0]]
        t = [[next(free) for _ in places] for _ in range(p.temps)]
        s = {name: [whole.s[line][name] for line, _ in places] for name in whole.numbers}
        s |= {name: [register] for name, register in whole.constants.items()}
        sums = {name: [self.sums[line][name][i % self.chains] for line, i in places]
                for name in self.sums[0]}  # fmt: skip
        p.emit(machine, Group(machine, x, d, t, s, sums, tails, self.tail, next(free)))
        for number, name in enumerate(self.writes):
            if homes and name in self.later:
                homes[name] = homes[self.reads[0]]
                self.kept.loaded.add(name)
                continue
            for place, register, width in zip(places, x[name] if number else d, lanes, strict=True):
                machine.store(register, self._at(name, place), width)

    def _at(self, name: str, place: Place) -> At:
        line, i = place
        return self.frame[name], line * self.whole.next[name] + i * self.whole.step[name]

    def _load(
        self, name: str, registers: Sequence[int], places: Sequence[Place], lanes: Sequence[int]
    ) -> None:
        spread = self.whole.place[name] == "column" and not self.whole.axis
        for place, register, width in zip(places, registers, lanes, strict=True):
            if spread:
                self.machine.broadcast(register, self._at(name, place))
            else:
                self.machine.load(register, self._at(name, place), width)

    def _fetch(self, places: Sequence[Place]) -> None:
        """The same places of the lines behind these, each cache line once."""
        for name in self.ahead:
            step, down = self.whole.step[name], self.together * self.whole.next[name]
            for line, i in places:
                if i * step % _LINE < step:
                    base, disp = self._at(name, (line, i))
                    self.machine.prefetch((base, disp + down))

    def _finish(self, line: int) -> None:
        """Numbers of a line from its sums, what follows from them, and what is stored."""
        machine, whole, p, s = self.machine, self.whole, self.p, self.whole.s[line]
        for name, registers in self.sums[line].items():
            combine = machine.max if name in p.tops else machine.add
            while len(registers) > 1:
                half = len(registers) // 2
                for a, b in zip(registers[:half], registers[half:], strict=True):
                    combine(a, a, b)
                registers = registers[:half]
        if whole.axis:
            for name in self.sums[line]:
                across = machine.max_lanes if name in p.tops else machine.sum_lanes
                across(s[name], s[name], self.free[0])
        if p.after is not None:
            temps = self.free[: p.after_temps]
            p.after(machine, s, Between(whole.reduced, whole.eps, temps))
        for number, name in p.stores.items():
            if name in whole.place and whole.axis:
                machine.store_first(s[number], self._at(name, (line, 0)))
            elif name in whole.place:  # of a copy: a store may clobber what it stores
                machine.or_(self.free[0], s[number], s[number])
                machine.store(self.free[0], self._at(name, (line, 0)), self.lanes)
