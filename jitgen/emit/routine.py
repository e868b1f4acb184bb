"""Emitted functions as values, and the scaffold that emitters share.

A `Routine` is a function that has been emitted: what it is called, which words it reads and what
they mean, its target and its code. An emitter is a function that writes one into a program and
hands it back as `Written`; the decorator `emitter` makes a routine of that, which keeps no program:
it asks the emitter again. `Writer` is what emitters over rows of elements have in common.

Not here: what is done with a vector (`jitgen.kernels`, `jitgen.gemm`), loading
(`jitgen.run.loader`).
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, ParamSpec

from jitgen import records
from jitgen.emit.copying import repeated
from jitgen.emit.frame import ARGUMENTS, Frame
from jitgen.frozen import Frozen
from jitgen.isa.machine import Machine
from jitgen.isa.program import Program
from jitgen.target import Target

P = ParamSpec("P")
#: What a routine takes beside its code, in bytes, about
ROUTINE_BYTES = 1024


class Operand(NamedTuple):
    """A word that a routine reads from what its argument points to, and what the word means there.

    type: what the word is the address of: elements ("f32", "f64"), "bits" in bytes, "offsets" or
    "addresses" of 64 bits, a "function", "data" of another kind; or "number", which is no address.
    """

    word: str
    meaning: str
    type: str


class Piece(NamedTuple):
    """A function within code: where it begins, its bytes with constants, and what it is."""

    offset: int
    size: int
    routine: Routine


class Routine(Frozen):
    """An emitted function `int64_t f(const void *args)`.

    name: a kind, then type and shape, such as "relu_backward f32 3x77". words: offsets of the words
    that the argument points to, by name, those of docs/abi.md if not said otherwise. write: what
    emits it again; None where the code did not come about here.
    """

    name: str
    target: Target
    words: Mapping[str, int]
    _signature: tuple[Operand, ...]
    _code: bytes
    _write: Callable[[], Written] | None
    _flops: int

    def __init__(
        self, name: str, signature: tuple[Operand, ...], target: Target, code: bytes,
        write: Callable[[], Written] | None = None, words: Mapping[str, int] = ARGUMENTS,
        flops: int = 0,
    ) -> None:  # fmt: skip
        vars(self).update(  # several microseconds faster than one by one, past Frozen
            name=name, target=target, words=words, _signature=signature, _code=code, _write=write,
            _flops=flops,
        )  # fmt: skip

    @property
    def signature(self) -> tuple[Operand, ...]:
        """The words it reads."""
        return self._signature

    @property
    def code(self) -> bytes:
        """The machine code with its constants."""
        return self._code

    def flops(self, count: int = 1) -> int:
        """Floating-point operations of a call, of a kernel with a batch of `count`: the
        multiplications and additions of its products; 0 if it has none."""
        return self._flops

    @property
    def nbytes(self) -> int:
        """Bytes that the routine holds, about."""
        return len(self._code) + ROUTINE_BYTES

    @property
    def program(self) -> Program:
        """The instructions, emitted anew: some 100 KB that a cached routine need not keep. Empty
        where the code did not come about here."""
        return self._write().frame.machine.program if self._write else Program()

    @property
    def roles(self) -> dict[str, int]:
        """Role -> general-purpose register."""
        return self._write().frame.roles if self._write else {}

    @property
    def argument(self) -> int:
        """General-purpose register of its argument."""
        return self.target.scalar_machine().argument

    def pieces(self) -> list[Piece]:
        """The functions that its code holds, by offset: itself, and others that lie behind it."""
        return [Piece(0, len(self.code), self)]

    def listing(self, format: str = "text", syntax: str = "intel") -> str:
        """The routine in a format: "text" (sections, registers, every instruction; of a kernel,
        each with its meaning), "asm" (assembles to `code`; syntax "intel" or "att"), "json" or
        "html" (docs/listing.md).

        Raises ValueError for an unknown format or syntax.
        """
        # by its name: the reader stands above all that emits, and takes tens of milliseconds
        formats = importlib.import_module("jitgen.inspect.formats")
        return str(formats.render(self, format, syntax))

    def __repr__(self) -> str:
        return f"<jitgen.Routine {self.name} for {self.target.name}, {len(self.code)} bytes>"


class Written(NamedTuple):
    """A function that an emitter has written into the program of `frame`'s machine."""

    name: str
    signature: tuple[Operand, ...]
    target: Target
    frame: Frame
    words: Mapping[str, int] = ARGUMENTS
    #: see `Routine.flops`
    flops: int = 0


def emitter(write: Callable[P, Written]) -> Callable[P, Routine]:
    """Decorator: the routine that `write` writes. Its arguments are kept, to write it again."""

    @functools.wraps(write)
    def emit(*args: P.args, **kwargs: P.kwargs) -> Routine:
        start = time.perf_counter()
        again = functools.partial(write, *args, **kwargs)
        name, signature, target, frame, words, flops = again()
        code = frame.machine.program.encode()
        seconds = time.perf_counter() - start
        records.told_generation("routine", name, "new", target.name, len(code), seconds)
        return Routine(name, signature, target, code, again, words, flops)

    return emit


class Writer:
    """A function over rows of `columns` elements while it is written.

    `operands`: role -> word that the pointer of that role comes from; `beside`: words that no
    register is kept for. The last vector registers are set aside for constants and the mask of a
    tail; those below `free` are the emitter's.
    """

    def __init__(
        self, name: str, target: Target, machine: Machine, operands: Mapping[str, Operand],
        columns: int = 0, beside: tuple[Operand, ...] = (),
    ) -> None:  # fmt: skip
        self.name, self.target, self.machine = name, target, machine
        self.frame = Frame(machine)
        self.operands, self._beside = operands, beside
        self.element = machine.element
        #: bytes of a vector; whole vectors of a row, and elements behind them
        self.vector = machine.lanes * machine.element
        self.vectors, self.tail = divmod(columns, machine.lanes)
        last = machine.vectors - (machine.tail_vectors(self.tail) if self.tail else 0)
        self.free = last - machine.constant_registers
        machine.constant_temps = tuple(range(self.free, last))

    def take(self, *scratch: str) -> None:
        """Give registers to the roles of operands, then to others ("constants": the address of the
        constants). An operand that stands among the others has its place there."""
        for role in self.operands:
            if role not in scratch:
                self.frame.take(role)
        for role in scratch:
            self.frame.take(role)

    def begin(self, constants: bool = True) -> None:
        """Entry: save registers, point at constants (where they have a register), load mask and
        pointers."""
        self.machine.program.section(self.name)
        self.machine.begin(self.frame.used())
        if constants and "constants" in self.frame.roles:
            self.machine.use_constants(self.frame["constants"])
        self.enter()

    def end(self) -> Written:
        """Return; the function is complete."""
        self.machine.end()
        signature = (*self.operands.values(), *self._beside)
        return Written(self.name, signature, self.target, self.frame)

    def enter(self) -> None:
        """Load the mask of a tail and the pointers."""
        self.set_tail()
        self.load_operands()

    def set_tail(self) -> None:
        """Make the mask of the tail, if there is one."""
        if self.tail:
            self.machine.set_tail(self.tail, self.machine.vectors - 1)

    def load_operands(self) -> None:
        """Load the pointers."""
        for role, operand in self.operands.items():
            self.frame.load_argument(role, operand.word)

    def over_vectors(self, emit: Callable[[int], None], counter: str, roles: Iterable[str]) -> None:
        """`emit` for each vector of a row, and for its tail, with their lanes. The pointers of
        `roles` move from each whole vector to the next."""
        if self.vectors:
            with repeated(self.machine, self.frame[counter], self.vectors):
                emit(self.machine.lanes)
                for role in roles:
                    self.machine.advance(self.frame[role], self.vector)
        if self.tail:
            self.machine.program.section(f"tail of {self.tail} elements")
            emit(self.tail)
