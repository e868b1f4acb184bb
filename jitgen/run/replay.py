"""Replay: machine code that makes a whole sequence of kernel calls, read from a stream of numbers.

A primitive's loops are a stream of 32-bit words: runs `kind, repeats, records`, where a record
holds one offset for each word of the argument struct that changes from call to call. The emitted
driver walks the stream, adds the base addresses, and calls the kernel of the kind; the kernels'
code lies behind the driver's, so that the whole is one piece of position-independent code.

`int64_t replay(const uint64_t job[])`: job[0] is the address of the stream, job[1] of the base
addresses, job[2] and job[3] a barrier function and its argument (0: no barrier). It returns 0, or
what the calls returned, or-ed. Not here: how a stream comes about (`jitgen.primitives.nest.loops`)
and on which threads it runs (`jitgen.run.crew`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from jitgen.emit.frame import ARGUMENTS, Frame
from jitgen.emit.routine import Operand, Piece, Routine, Written
from jitgen.target import Target

#: Kinds that call no kernel; kernels count from FIRST_KIND
END, BARRIER, FIRST_KIND = 0, 1, 2
#: Words of a job, in bytes
STREAM, BASES, BARRIER_FUNCTION, BARRIER_ARGUMENT = 0, 8, 16, 24
WORDS = {
    "stream": STREAM, "bases": BASES, "barrier": BARRIER_FUNCTION,
    "barrier_argument": BARRIER_ARGUMENT,
}  # fmt: skip


class Word(NamedTuple):
    """A word of the argument struct that a record sets: base[base] + (offset << shift), or the
    offset itself where `base` is None."""

    name: str
    base: int | None
    shift: int = 0


class Call(NamedTuple):
    """A kind of call: the kernel, the words that records set, and those that are the same in every
    call (name -> value)."""

    routine: Routine
    words: tuple[Word, ...]
    fixed: tuple[tuple[str, int], ...] = ()

    @property
    def code(self) -> bytes:
        """The kernel's machine code."""
        return self.routine.code


_SIGNATURE = (
    Operand("stream", "records", "data"), Operand("bases", "addresses of tensors", "addresses"),
    Operand("barrier", "waits for the other threads", "function"),
    Operand("barrier_argument", "what the barrier is given", "number"),
)  # fmt: skip


class Driver(Routine):
    """What replays streams: its code holds that of their kernels, so it keeps none of its own, and
    emits it whenever it is asked for. Make it with `emit_replay`."""

    def __init__(self, calls: Sequence[Call], target: Target, name: str) -> None:
        self.calls = tuple(calls)
        write = partial(_write, self.calls, target, name)
        super().__init__(f"replay {name}".strip(), _SIGNATURE, target, b"", write, WORDS)

    @property
    def code(self) -> bytes:
        """The machine code: the driver, and the kernels as its constants."""
        return self.program.encode()

    def pieces(self) -> list[Piece]:
        """The driver, and each kernel once."""
        program = self.program
        own = len(program.encode()) - program.constant_bytes
        kernels = {own + program.constant(_padded(call.code)): call.routine for call in self.calls}
        found = [Piece(at, len(kernels[at].code), kernels[at]) for at in sorted(kernels)]
        return [Piece(0, own, self), *found]


def emit_replay(calls: Sequence[Call], target: Target, name: str = "") -> Driver:
    """A driver for streams whose kind FIRST_KIND + i is calls[i]; `name` says whose they are."""
    return Driver(calls, target, name)


def _padded(code: bytes) -> bytes:
    # a kernel's constants lie at a multiple of 64 bytes from its start
    return code.ljust(64, b"\0")


def _write(calls: Sequence[Call], target: Target, name: str) -> Written:
    machine = target.scalar_machine()
    program, frame = machine.program, Frame(machine)
    stream, bases, left, status, job, kernels = machine.kept[:6]
    offset, base, function = (frame.take(role) for role in ("offset", "base", "function"))
    struct = machine.stack_pointer
    program.section("entry: save registers, load the job")
    machine.begin(machine.kept, 8 * len(ARGUMENTS), calls=True)
    machine.move(job, machine.argument)
    machine.load_word(stream, (job, STREAM))
    machine.load_word(bases, (job, BASES))
    machine.use_constants(kernels)
    machine.set(status, 0)
    following, finished = program.new_label(), program.new_label()
    blocks = [program.new_label() for _ in calls]
    machine.place(following)
    program.section("next run: a kind and how often it is repeated")
    machine.load_half(offset, (stream, 0))
    machine.load_half(left, (stream, 4))
    machine.advance(stream, 8)
    machine.jump_if_less(offset, END + 1, finished)
    barrier = program.new_label()
    machine.jump_if_less(offset, BARRIER + 1, barrier)
    for i, label in enumerate(blocks[:-1]):
        machine.jump_if_less(offset, FIRST_KIND + i + 1, label)
    if blocks:
        machine.jump(blocks[-1])
    for i, (call, label) in enumerate(zip(calls, blocks, strict=True)):
        program.section(f"kind {FIRST_KIND + i}: sets {', '.join(w.name for w in call.words)}")
        machine.place(label)
        for name, constant in call.fixed:
            machine.set(offset, constant)
            machine.store_word(offset, (struct, ARGUMENTS[name]))
        start = program.constant(_padded(call.code))
        again = program.new_label()
        machine.place(again)
        for w, word in enumerate(call.words):
            machine.load_half(offset, (stream, 4 * w))
            value = offset
            if word.base is not None:
                value = base
                machine.load_word(base, (bases, 8 * word.base))
                machine.sum(base, base, offset, word.shift)
            machine.store_word(value, (struct, ARGUMENTS[word.name]))
        machine.advance(stream, 4 * len(call.words))
        machine.offset(function, kernels, start)
        machine.call(function, struct)
        machine.merge_bits(status, machine.result, 0)
        machine.count_down(left, again)
        machine.jump(following)
    program.section("barrier: wait for the other threads")
    machine.place(barrier)
    machine.load_word(function, (job, BARRIER_FUNCTION))
    machine.set(offset, 0)
    machine.jump_if_equal(function, offset, following)
    machine.load_word(base, (job, BARRIER_ARGUMENT))
    machine.call(function, base)
    machine.jump(following)
    program.section("return")
    machine.place(finished)
    machine.end(status)
    return Written(f"replay {name}".strip(), _SIGNATURE, target, frame, WORDS)
