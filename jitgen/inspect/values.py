"""What registers hold while a kernel is read: linear values, and the operations that make them.

Both architectures are read as the same few scalar operations (`Scalar`); the tables that translate
instructions into them are `jitgen.inspect.x86` and `jitgen.inspect.a64`. Not here: words for a
reader (`jitgen.inspect.meaning`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

Number = int | Fraction


class Value:
    """A number of bytes (or elements): a constant plus multiples of named quantities.

    >>> row = Value(0, {"row": 36}) + Value(4)
    >>> row.constant, row.terms
    (4, {'row': 36})
    """

    __slots__ = ("constant", "terms")

    def __init__(self, constant: Number = 0, terms: dict[str, Number] | None = None) -> None:
        self.constant = constant
        self.terms = terms or {}

    def __add__(self, other: Value) -> Value:
        terms = dict(self.terms)
        for name, factor in other.terms.items():
            terms[name] = terms.get(name, 0) + factor
            if not terms[name]:
                del terms[name]
        return Value(self.constant + other.constant, terms)

    def __sub__(self, other: Value) -> Value:
        return self + other.times(-1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        return self.constant == other.constant and self.terms == other.terms

    __hash__ = None  # type: ignore[assignment]

    def times(self, factor: Number) -> Value:
        """The value times a number."""
        if not factor:
            return Value()
        return Value(
            self.constant * factor, {name: f * factor for name, f in self.terms.items()}
        )

    @property
    def number(self) -> int | None:
        """The whole number that this is, or None."""
        return None if self.terms else int(self.constant)


class Register(NamedTuple):
    """A general-purpose register as an operand."""

    number: int


class Memory(NamedTuple):
    """A memory operand, base + offset * scale + disp: two registers (-1: none), bytes; its size."""

    base: int
    disp: int
    size: int = 8
    offset: int = -1
    scale: int = 1


Operand = Register | Memory | int


class Scalar(NamedTuple):
    """An operation on general-purpose registers: to = a op (b * scale).

    op is one of "=" (a may be memory), "+", "-", "*", "<<", ">>", "&", "|", "insert" (b holds the
    value of the bits that scale masks), "below" (to = a where the last comparison found below, else
    b), "constants" (to = their address), "store" (a = b), "compare", "branch" (on the condition in
    text; if a is a register, on its comparison with 0), "save" and "restore" (the registers in
    text), "return", "prefetch", and "unknown" (to holds what text says, or a vector's bits).
    """

    op: str
    to: int = -1
    a: Operand = 0
    b: Operand = 0
    scale: int = 1
    text: str = ""


class State:
    """General-purpose registers and masks at one place of the program; None is unknown."""

    def __init__(self) -> None:
        self.registers: dict[int, Value | None] = {}
        #: active lanes of a mask, by its name
        self.masks: dict[str, int] = {}
        #: the last comparison: (register or -1, its value, what it was compared with)
        self.compared: tuple[int, Value | None, Operand] = (-1, None, 0)
        #: nothing gets here: behind a return or a jump
        self.dead = False

    def copy(self) -> State:
        """A state of its own."""
        result = State()
        result.registers = dict(self.registers)
        result.masks = dict(self.masks)
        result.compared = self.compared
        return result

    def merge(self, other: State, name: str) -> None:
        """What is true here if control may come from `other` as well; `name` stands for 1 if it
        does and 0 if it does not."""
        if self.dead:
            self.registers, self.masks = dict(other.registers), dict(other.masks)
            self.dead = False
            return
        for r, value in self.registers.items():
            there = other.registers.get(r)
            if value != there:
                difference = (there - value).number if value and there else None
                chosen = None if difference is None else Value(0, {name: difference})
                self.registers[r] = value + chosen if value and chosen else None

    def value(self, operand: Operand) -> Value | None:
        """What a register or an immediate is; memory is unknown."""
        if isinstance(operand, Register):
            return self.registers.get(operand.number)
        return Value(operand) if isinstance(operand, int) else None

    def address(self, memory: Memory) -> Value | None:
        """The address that an operand names."""
        base = self.registers.get(memory.base)
        if base is None:
            return None
        if memory.offset >= 0:
            index = self.registers.get(memory.offset)
            if index is None:
                return None
            base = base + index.times(memory.scale)
        return base + Value(memory.disp)

    def result(self, s: Scalar) -> Value | None:
        """What an operation leaves in its register."""
        if s.op == "constants":
            return Value(0, {"constants": 1})
        a, b = self.value(s.a), self.value(s.b)
        if s.op == "=":
            return a
        if a is None or b is None:
            return None
        if s.op == "+":
            return a + b.times(s.scale)
        if s.op == "-":
            return a - b
        if b.number is None or s.op not in ("*", "<<", ">>", "insert"):
            return None
        if s.op == "insert":
            return None if a.number is None else Value(a.number & ~s.scale | b.number)
        power = Fraction(1, 1 << b.number) if s.op == ">>" else 1 << b.number
        return a.times(b.number if s.op == "*" else power)
