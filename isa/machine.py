"""The only interface between an algorithm and an instruction set: facts and verbs.

Every instruction set is a machine that multiplies a (1 x ku) unit of A, broadcast, by a (ku x
lanes) unit of B into a row of `lanes` accumulators; ku belongs to the element type
(jitgen.isa.types). Elements have a storage type in memory and an arithmetic type in registers,
mostly the same. A `Machine` says how many lanes and registers there are and how far addresses
reach (facts), and emits the few operations an algorithm is written in (verbs). Registers are plain
numbers. Not here: any algorithm, and any instruction: the bindings stand in one file per
instruction set.

Vector operands: `at` is an address (register, byte displacement); `lanes` the number of active
elements of a vector (inactive ones are neither read nor written). In arithmetic verbs the last
operand may be a constant handle from `const`, which costs no register of the caller's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jitgen.isa import types
from jitgen.isa.program import Program

At = tuple[int, int]
#: Handle of a constant: its address but for the base register, which `use_constants` names.
Constant = tuple[int, None, int, int]
#: Verbs that move elements from or to memory
_MEMORY_VERBS = (
    "copy_element", "load", "store", "broadcast", "mac_broadcast", "mac_load", "transpose",
    "store_first", "load_unit",
)  # fmt: skip


class Machine(ABC):
    """Facts and verbs of one instruction set at one vector length, arithmetic and storage type."""

    # ---- facts ----------------------------------------------------------------------------
    name: str
    #: general-purpose registers for the algorithm's use, those that need no saving first
    gprs: tuple[int, ...]
    #: registers of the first arguments of a function, and of its result
    arguments: tuple[int, ...]
    result: int
    #: those of `gprs` that a call keeps
    kept: tuple[int, ...]
    #: number of vector registers, and what stands before a number in the name of a whole one
    vectors: int
    register: str
    #: multiply-accumulate can read its broadcast operand, or its vector operand, from memory
    fused_broadcast: bool = False
    fused_load: bool = False
    #: largest displacement of `load_unit` and of a vector load; beyond it a pointer must move
    broadcast_reach: int
    vector_reach: int
    #: displacements of vector loads are multiples of this many bytes
    vector_granule: int = 1
    #: sides of the squares that `transpose` copies, the largest first
    transpose_squares: tuple[int, ...] = ()
    #: vector registers that verbs need for constant operands (`constant_temps`)
    constant_registers: int = 0
    #: bytes that the start of an inner loop is aligned to
    loop_alignment: int = 32
    #: sizes of the floats that arithmetic verbs compute in, in bytes
    lane_sizes: tuple[int, ...] = (4, 8)
    #: (storage, arithmetic) types between which loads and stores convert, by name
    converts: frozenset[tuple[str, str]] = frozenset()

    def __init__(self, arithmetic: str, vector_bits: int, storage: str | None = None) -> None:
        #: type of the lanes of a vector register, and of elements in memory
        self.arithmetic = self.storage = types.find("arithmetic", arithmetic)
        if self.arithmetic.kind != "float" or self.arithmetic.size not in self.lane_sizes:
            sizes = " or ".join(map(str, self.lane_sizes))
            raise ValueError(f"arithmetic={arithmetic!r} is no float of {sizes} bytes, in which "
                             f"{self.name} computes")  # fmt: skip
        if storage is not None and storage != arithmetic:
            self.storage = types.find("storage", storage)
            if (storage, arithmetic) not in self.converts:
                for verb in _MEMORY_VERBS:
                    setattr(self, verb, self._refuse)
        self.vector_bits = vector_bits
        #: bytes of an element in memory
        self.element = self.storage.size
        self.lanes = vector_bits // 8 // self.arithmetic.size
        self.program = self._new_program()
        self.constant_base = -1
        #: vector registers that verbs may clobber for constants (where constants need one)
        self.constant_temps: tuple[int, ...] = ()

    @abstractmethod
    def _new_program(self) -> Program: ...

    def _refuse(self, *operands: object) -> None:
        """In place of verbs that would have to convert between types, and cannot."""
        raise NotImplementedError(
            f"storage={self.storage.name!r}: {self.name} has no verbs yet that load and store it "
            f"as {self.arithmetic.name}"
        )

    @property
    def argument(self) -> int:
        """Register that holds a kernel's one argument on entry."""
        return self.arguments[0]

    def tail_vectors(self, lanes: int) -> int:
        """How many vector registers a tail of `lanes` elements occupies during a tile."""
        return 0

    # ---- structure ------------------------------------------------------------------------
    @abstractmethod
    def begin(self, used: Sequence[int], stack: int = 0, calls: bool = False) -> None:
        """Function entry: save those of `used` registers that the ABI wants kept; take `stack`
        bytes of scratch at `stack_pointer`, of any content. `calls`: the function calls others
        (and has a stack)."""

    @abstractmethod
    def end(self, status: int | None = None) -> None:
        """Return 0 to the caller, or what register `status` (one of `kept`) holds, undoing
        `begin`."""

    @property
    @abstractmethod
    def stack_pointer(self) -> int:
        """Register that addresses the scratch taken by `begin`."""

    def call(self, function: int, *arguments: int) -> None:
        """Call the function whose address is in a register, with the values of other registers,
        none of which is one of `arguments`; `kept` registers stay, `result` is set, all others are
        lost."""
        passed = self.arguments[: len(arguments)]
        assert not {function, *arguments} & {*passed}, "a register is overwritten before it is read"
        for to, source in zip(passed, arguments, strict=True):
            self.move(to, source)
        self._call(function)

    @abstractmethod
    def _call(self, function: int) -> None: ...

    def place(self, label: int) -> None:
        """Put a label here."""
        self.program.place(label)

    @abstractmethod
    def jump(self, label: int) -> None: ...

    @abstractmethod
    def jump_if_nonzero(self, r: int, label: int) -> None: ...

    @abstractmethod
    def jump_if_equal(self, a: int, b: int, label: int) -> None: ...

    @abstractmethod
    def jump_if_different(self, a: int, b: int, label: int) -> None: ...

    @abstractmethod
    def jump_if_less(self, r: int, bound: int, label: int) -> None:
        """Jump if r < bound (signed)."""

    @abstractmethod
    def count_down(self, r: int, label: int) -> None:
        """r -= 1; jump while it is not zero."""

    # ---- scalar ---------------------------------------------------------------------------
    @abstractmethod
    def set(self, d: int, value: int) -> None: ...

    @abstractmethod
    def move(self, d: int, s: int) -> None: ...

    @abstractmethod
    def offset(self, d: int, s: int, value: int) -> None:
        """d = s + value."""

    def advance(self, d: int, value: int) -> None:
        """d += value."""
        if value:
            self.offset(d, d, value)

    @abstractmethod
    def hoist(self, value: int, register: int) -> None:
        """`register` holds `value` from now on: where it helps, `offset` adds the register."""

    @abstractmethod
    def sum(self, d: int, a: int, b: int, shift: int = 0) -> None:
        """d = a + (b << shift), shift up to 3."""

    @abstractmethod
    def subtract(self, d: int, s: int) -> None:
        """d -= s."""

    @abstractmethod
    def multiply(self, d: int, s: int, value: int) -> None:
        """d = s * value (of 32 bits)."""

    @abstractmethod
    def shift_right(self, d: int, bits: int) -> None:
        """d >>= bits (unsigned)."""

    @abstractmethod
    def minimum(self, d: int, s: int, value: int) -> None:
        """d = min(s, value) (unsigned; d differs from s)."""

    @abstractmethod
    def load_word(self, d: int, at: At) -> None:
        """Load 8 bytes."""

    @abstractmethod
    def load_half(self, d: int, at: At) -> None:
        """Load 4 bytes, unsigned."""

    @abstractmethod
    def store_word(self, s: int, at: At) -> None:
        """Store 8 bytes."""

    @abstractmethod
    def copy_element(self, to: At, source: At, temp: int) -> None:
        """One element from `source` to `to` through a general-purpose register."""

    # ---- between threads --------------------------------------------------------------------
    @abstractmethod
    def fetch_add(self, d: int, at: int, s: int) -> None:
        """d = the word (8 bytes) that register `at` points to, which becomes larger by s, at once
        for all threads; what this thread has stored before is seen by those that see the sum, and
        the other way round (d is neither at nor s)."""

    @abstractmethod
    def load_acquire(self, d: int, at: At) -> None:
        """Load a word: whoever stored it with `store_release` has stored all that it did before."""

    @abstractmethod
    def store_release(self, s: int, at: At) -> None:
        """Store a word, after all that this thread has stored and loaded before."""

    @abstractmethod
    def pause(self) -> None:
        """Tell the core that this thread waits in a loop."""

    @abstractmethod
    def give_way(self) -> None:
        """Ask the operating system (Linux) to run another thread first. Registers are lost as by a
        call."""

    # ---- vectors --------------------------------------------------------------------------
    @abstractmethod
    def set_tail(self, lanes: int, vector: int) -> None:
        """Make the mask of a tail of `lanes` elements (in `vector`, where the machine needs it)."""

    @abstractmethod
    def zero(self, v: int) -> None: ...

    @abstractmethod
    def load(self, v: int, at: At, lanes: int) -> None: ...

    @abstractmethod
    def store(self, v: int, at: At, lanes: int) -> None:
        """Store the first `lanes` elements; may clobber v."""

    @abstractmethod
    def broadcast(self, v: int, at: At) -> None:
        """All lanes = the unit at `at`."""

    @abstractmethod
    def mac(self, acc: int, a: int, b: int, lanes: int) -> None:
        """acc += a * b."""

    def load_unit(self, v: int, at: At) -> None:
        """The unit at `at` into v, for `mac_unit`: no other verb may read v, whose lanes but one
        may hold anything."""
        self.broadcast(v, at)

    def mac_unit(self, acc: int, a: int, b: int, lanes: int) -> None:
        """acc += the unit that `load_unit` put into a, in every lane, * b."""
        self.mac(acc, a, b, lanes)

    def mac_broadcast(self, acc: int, b: int, at: At, lanes: int) -> None:
        """acc += broadcast(at) * b; only if `fused_broadcast`."""
        raise AssertionError(f"{self.name} has no fused broadcast")

    def mac_load(self, acc: int, a: int, at: At, lanes: int) -> None:
        """acc += a * load(at); only if `fused_load` and lanes is a whole register."""
        raise AssertionError(f"{self.name} has no fused load")

    def transpose(self, side: int, to: At, to_row: int, source: At, source_row: int) -> None:
        """Copy a square of `side` elements a side (one of `transpose_squares`), transposed; rows
        are so many bytes apart. Clobbers all vector registers."""
        raise AssertionError(f"{self.name} has no transpose")

    @abstractmethod
    def prefetch(self, at: At) -> None:
        """Bring the line at `at` into the first-level cache; never faults."""

    # ---- arithmetic of epilogues (names as in jitgen.emit.functions.Emitter) ---------------------
    def const(self, value: float) -> Constant:
        """Handle of a constant, one value in every lane."""
        return self._constant(self.arithmetic.encode(value))

    def const_bits(self, bits: int) -> Constant:
        """Handle of a constant bit pattern, one in every lane."""
        return self._constant(self.arithmetic.encode_bits(bits))

    @abstractmethod
    def _constant(self, element: bytes) -> Constant: ...

    @abstractmethod
    def use_constants(self, base: int) -> None:
        """Point register `base` at the constants; needed once before any constant is used."""

    @abstractmethod
    def load_const(self, d: int, c: Constant) -> None:
        """d = the constant in every lane."""

    @abstractmethod
    def add(self, d: int, a: int, b: int | Constant) -> None: ...

    @abstractmethod
    def sub(self, d: int, a: int, b: int | Constant) -> None:
        """d = a - b."""

    @abstractmethod
    def mul(self, d: int, a: int, b: int | Constant) -> None: ...

    @abstractmethod
    def div(self, d: int, a: int, b: int | Constant) -> None:
        """d = a / b."""

    @abstractmethod
    def sqrt(self, d: int, a: int) -> None: ...

    @abstractmethod
    def max(self, d: int, a: int, b: int | Constant) -> None:
        """d = the greater of a and b; where one of them is NaN, b or NaN."""

    @abstractmethod
    def min(self, d: int, a: int, b: int | Constant) -> None:
        """d = the smaller of a and b; where one of them is NaN, b or NaN."""

    @abstractmethod
    def fma(self, acc: int, a: int, b: int | Constant) -> None:
        """acc = a * b + acc."""

    @abstractmethod
    def fnma(self, acc: int, a: int, b: int | Constant) -> None:
        """acc = -(a * b) + acc."""

    @abstractmethod
    def fmad(self, d: int, a: int, b: int | Constant) -> None:
        """d = d * a + b."""

    @abstractmethod
    def and_(self, d: int, a: int, b: int | Constant) -> None:
        """d = a & b, bit by bit."""

    @abstractmethod
    def or_(self, d: int, a: int, b: int | Constant) -> None:
        """d = a | b, bit by bit."""

    @abstractmethod
    def shift_left(self, d: int, a: int, bits: int) -> None:
        """d = a << bits in every lane."""

    @abstractmethod
    def select_negative(self, d: int, condition: int, a: int, b: int) -> None:
        """d = a where the sign bit of `condition` is set, else b."""

    @abstractmethod
    def select_greater(self, d: int, x: int, y: int, a: int, b: int) -> None:
        """d = a where x > y, else b (also where x or y is NaN); d is neither a nor b."""

    @abstractmethod
    def shift_down(self, d: int, a: int, bits: int) -> None:
        """d = a >> bits in every lane, zeros coming in; bits at least 1."""

    # ---- across lanes -----------------------------------------------------------------------
    @abstractmethod
    def sum_lanes(self, d: int, v: int, temp: int) -> None:
        """Every lane of d = the sum of all lanes of v, those of pairs first, then of pairs of
        pairs; `temp` is neither d nor v."""

    @abstractmethod
    def max_lanes(self, d: int, v: int, temp: int) -> None:
        """Every lane of d = the greatest lane of v, any of them or NaN where one is NaN; `temp` is
        neither d nor v."""

    @abstractmethod
    def select_first(self, d: int, a: int, b: int, lanes: int) -> None:
        """d = the first `lanes` lanes of a, and the others of b; `lanes` is that of `set_tail`."""

    @abstractmethod
    def store_first(self, v: int, at: At) -> None:
        """Store the first lane as an element."""

    @abstractmethod
    def positive_bits(self, d: int, v: int, lanes: int, temps: Sequence[int]) -> None:
        """d = bit i set where lane i of v is > 0, for the first `lanes` (at most 64) lanes."""

    @abstractmethod
    def merge_bits(self, d: int, s: int, shift: int) -> None:
        """d |= s << shift (may clobber s)."""

    @abstractmethod
    def store_bits(self, r: int, at: At, count: int) -> None:
        """Store the low `count` bytes (1 to 8) of r; may clobber r."""

    @abstractmethod
    def load_bits(self, d: int, at: At, count: int) -> None:
        """d = `count` bytes (1 to 8), the first one lowest, and zeros (d is not the base)."""

    @abstractmethod
    def spread_bits(self, d: int, r: int, position: int, temps: Sequence[int]) -> None:
        """The sign bit of lane i of d = bit position + i of general-purpose register r; the lanes
        other bits may be anything. position + lanes is at most 64."""
