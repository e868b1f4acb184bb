"""A pass of a layer as a C function: the entry, its driver and kernels, its streams and constants.

The entry takes the stream of its thread, makes base addresses of the caller's, and calls the driver
(`jitgen.run.replay`); all addresses in the library are distances, so nothing is relocated. A call
on several threads ends with a barrier: it returns when all of them have done their parts. Not here:
what is to be done (`jitgen.objects.procedure`), choice of a target (`jitgen.objects.prototypes`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from jitgen.emit.frame import Frame
from jitgen.emit.routine import Operand, Written, emitter
from jitgen.isa.machine import Machine
from jitgen.objects.code import Code, Data
from jitgen.objects.elf import Fixup
from jitgen.objects.procedure import Base, Cut, Procedure
from jitgen.run import barrier, replay

#: What an entry returns: done; as kernels, this thread's vectors have another length; no stream for
#: such a thread and number of threads; and, of the header's function, no target fits this CPU
DONE, WRONG_LENGTH, WRONG_THREADS, NO_TARGET = range(4)
#: What lies on an entry's stack, in bytes: a word to pass an int through, the barrier's argument,
#: the driver's job, base addresses
_WORD, _WAIT, _JOB, _BASES = 0, 16, 32, 64


class Group(NamedTuple):
    """An entry and all that it needs, in order."""

    codes: tuple[Code, ...]
    data: tuple[Data, ...]


def entry_group(symbol: str, procedure: Procedure) -> Group:
    """The functions and data of a procedure whose entry is called `symbol`; the names of all others
    are local, and begin with it."""
    codes: list[Code] = []
    data = [Data(f"{symbol}.{c.name}", c.data) for c in procedure.constants]
    drivers: dict[bytes, str] = {}
    words: list[str] = []  # symbols that the entry's constants are distances to
    if procedure.barriers:
        wait = Code(f"{symbol}.barrier", barrier.emit_barrier(procedure.target), exported=False)
        codes.append(wait)
        words.append(wait.symbol)
    words += [each.symbol for each in data]
    for cut in procedure.cuts:
        name = f"{symbol}.t{cut.threads}"
        code = cut.driver.code
        if code not in drivers:
            drivers[code] = f"{name}_replay"
            codes += _driver_codes(name, cut)
        words.append(drivers[code])
        streams = [Data(f"{name}_stream{t}", stream) for t, stream in enumerate(cut.slices)]
        data += streams
        words += [each.symbol for each in streams]
    routine = emit_entry(procedure)
    first = len(routine.code) - 8 * len(words)
    fixups = tuple(Fixup(first + 8 * i, "distance8", word) for i, word in enumerate(words))
    return Group((Code(symbol, routine, fixups), *codes), tuple(data))


def _driver_codes(name: str, cut: Cut) -> list[Code]:
    """The driver, and the kernels that are its constants: where these stand in its code is where
    functions stand one behind the other, at multiples of 64 bytes."""
    driver, *kernels = cut.driver.pieces()
    codes = [Code(f"{name}_replay", driver.routine, exported=False, leads=True)]
    for i, (_, _, routine) in enumerate(kernels):
        what = re.sub(r"\W+", "_", routine.name)
        codes.append(Code(f"{name}_k{i}_{what}", routine, exported=False))
    return codes


@emitter
def emit_entry(procedure: Procedure) -> Written:
    """`int entry(const uint64_t args[], int tid, int nthreads)`: does the part of thread `tid` of
    `nthreads`. It returns DONE, WRONG_LENGTH or WRONG_THREADS; not DONE: nothing was done.

    Its constants are distances to the barrier (where there is one), to constants, and for each
    number of threads to the driver and to the streams of the threads, as `entry_group` fills in.
    """
    return _Entry(procedure).written()


class _Entry:
    """An entry while it is written."""

    def __init__(self, procedure: Procedure) -> None:
        self.procedure = procedure
        target = procedure.target
        machine: Machine = target.scalar_machine()
        self.machine, self.frame = machine, Frame(machine)
        free = [r for r in machine.gprs if r not in (*machine.arguments, *machine.kept)]
        roles = ("args", "thread", "threads", "distances", "status")
        self.args, self.thread, self.threads, self.distances, self.status = machine.kept[:5]
        self.value, self.other = free[:2]
        self.frame.roles.update(zip(roles, machine.kept, strict=False))
        self.stack = machine.stack_pointer
        self._distances = 0

    def written(self) -> Written:
        machine, program, procedure = self.machine, self.machine.program, self.procedure
        program.section("entry: keep the arguments")
        most = max(len(cut.bases) for cut in procedure.cuts)
        machine.begin(machine.kept[:5], _BASES + 8 * most, calls=True)
        machine.move(self.args, machine.arguments[0])
        given = zip((self.thread, self.threads), machine.arguments[1:3], strict=True)
        for register, argument in given:
            # an int: the upper half of its register is anything
            machine.store_word(argument, (self.stack, _WORD))
            machine.load_half(register, (self.stack, _WORD))
        machine.use_constants(self.distances)
        wrong, done = program.new_label(), program.new_label()
        wait = self._take(bool(procedure.barriers))
        constants = [self._take() for _ in procedure.constants]
        for cut in procedure.cuts:
            following, mine = program.new_label(), program.new_label()
            program.section(f"on {cut.threads} threads")
            machine.set(self.value, cut.threads)
            machine.jump_if_different(self.threads, self.value, following)
            machine.jump_if_less(self.thread, cut.threads, mine)
            machine.jump(wrong)
            machine.place(mine)
            self._cut(cut, wait, constants)
            machine.jump(done)
            machine.place(following)
        machine.place(wrong)
        machine.set(self.status, WRONG_THREADS)
        machine.place(done)
        program.constant(bytes(8 * self._distances))
        machine.end(self.status)
        names = [*(a.name for a in procedure.arguments), "scratch"]
        words = {name: 8 * i for i, name in enumerate(names)}
        signature = (
            *(Operand(a.name, "x".join(map(str, a.shape)) or "1", a.dtype or "data")
              for a in procedure.arguments),
            Operand("scratch", "memory of the threads", "data"),
        )  # fmt: skip
        name = f"entry {procedure.name}"
        return Written(name, signature, procedure.target, self.frame, words)

    def _take(self, wanted: int = 1) -> int:
        """The place of so many more distances."""
        at = 8 * self._distances
        self._distances += wanted
        return at

    def _address(self, to: int, at: int) -> None:
        """to = the address that a distance leads to."""
        self.machine.load_word(self.other, (self.distances, at))
        self.machine.offset(to, self.distances, at)
        self.machine.sum(to, to, self.other)

    def _cut(self, cut: Cut, wait: int, constants: Sequence[int]) -> None:
        """What a thread does of this many."""
        machine, value, stack = self.machine, self.value, self.stack
        driver, streams = self._take(), self._take(len(cut.slices))
        working, leave = machine.program.new_label(), machine.program.new_label()
        machine.set(self.status, DONE)
        if len(cut.slices) < cut.threads:
            machine.jump_if_less(self.thread, len(cut.slices), working)
            machine.jump(leave)
            machine.place(working)
        if len(cut.slices) == 1:
            self._address(value, streams)
        else:
            machine.sum(value, self.distances, self.thread, 3)
            machine.load_word(self.other, (value, streams))
            machine.sum(value, value, self.other)
            machine.advance(value, streams)
        machine.store_word(value, (stack, _JOB + replay.STREAM))
        for i, base in enumerate(cut.bases):
            self._base(base, constants)
            machine.store_word(value, (stack, _BASES + 8 * i))
        machine.offset(value, stack, _BASES)
        machine.store_word(value, (stack, _JOB + replay.BASES))
        if len(cut.slices) > 1:
            self._barrier(0, len(cut.slices))
            machine.offset(value, stack, _WAIT)
            machine.store_word(value, (stack, _JOB + replay.BARRIER_ARGUMENT))
            self._address(value, wait)
        else:
            machine.set(value, 0)
        machine.store_word(value, (stack, _JOB + replay.BARRIER_FUNCTION))
        self._address(value, driver)
        machine.offset(self.other, stack, _JOB)
        machine.call(value, self.other)
        machine.move(self.status, machine.result)
        machine.place(leave)
        if cut.threads > 1:
            self._barrier(1, cut.threads)
            self._address(value, wait)
            machine.offset(self.other, stack, _WAIT)
            machine.call(value, self.other)

    def _base(self, base: Base, constants: Sequence[int]) -> None:
        """value = a base address."""
        machine, procedure = self.machine, self.procedure
        if base.kind == "argument":
            machine.load_word(self.value, (self.args, 8 * base.at))
        elif base.kind == "scratch":
            machine.load_word(self.value, (self.args, 8 * len(procedure.arguments)))
            machine.advance(self.value, procedure.barriers + base.at)
        elif base.kind == "constant":
            self._address(self.value, constants[base.at])
        else:
            machine.set(self.value, 0)

    def _barrier(self, number: int, threads: int) -> None:
        """The barrier's argument: its state in the scratch memory, and how many threads wait."""
        machine, value = self.machine, self.value
        machine.load_word(value, (self.args, 8 * len(self.procedure.arguments)))
        machine.advance(value, number * barrier.STATE_BYTES)
        machine.store_word(value, (self.stack, _WAIT + barrier.STATE))
        machine.set(value, threads)
        machine.store_word(value, (self.stack, _WAIT + barrier.THREADS))
