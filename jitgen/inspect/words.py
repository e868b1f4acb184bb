"""The words for an instruction: operands by role and tile, memory as elements of the matrices.

Not here: following the program (`jitgen.inspect.meaning`), and what an instruction does in itself
(`jitgen.inspect.x86`, `jitgen.inspect.a64`).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Hashable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jitgen.gemm.sections import Mark, PackB, TileSection
from jitgen.inspect import a64, x86
from jitgen.inspect.loops import Loop
from jitgen.inspect.places import Places, shortest
from jitgen.inspect.registers import general_name, tiles, vector_roles
from jitgen.inspect.values import Memory, Operand, Register, Scalar, State, Value
from jitgen.isa.form import REGISTER_KINDS, Form, Operands

if TYPE_CHECKING:
    from jitgen.gemm.emitted import EmittedKernel

_MASK = re.compile(r"mask of the first (\d+) lanes")
_BROADCAST_CONSTANT = re.compile(r"= -?[0-9i][^\[]*, broadcast$")
#: templates whose first two operands may be one: d = d + x is then d += x
_ACCUMULATES = re.compile(r"\{0\} = \{[01]\} [-+*/] \{\d\}")
_VECTORS = ("xmm", "ymm", "zmm", "z", "v", "q", "d", "s")
_GENERAL = ("r64", "r32", "x", "xsp", "w")
_MASKS = {"k1": "tail", "p0": "all", "p1": "tail"}  # others are for comparisons


class Words:
    """Names and sentences for one kernel, in the section and the loops that are being read."""

    def __init__(self, kernel: EmittedKernel, data: bytes) -> None:
        spec, target = kernel.spec, kernel.target
        self.kernel = kernel
        self.machine = target.machine(spec.dtype, spec.n)
        self.element = self.machine.element
        self.isa: ModuleType = x86 if target.architecture == "x86_64" else a64
        self.tiles = tiles(kernel)
        widest = max(-(-columns // self.machine.lanes) for _, columns in self.tiles)
        packed = widest * self.machine.lanes * spec.ku * spec.b_bytes
        self.places = Places(spec, packed, data)
        self.roles = {number: role for role, number in kernel.roles.items()}
        self.names: dict[int, str] = {**self.isa.NAMES, self.machine.argument: "args", **self.roles}
        #: vector registers by what they hold in this section, and as temporaries
        self.vectors: dict[int, str] = {}
        self.temporaries: dict[int, str] = {}
        #: the loops around the instruction
        self.active: list[Loop] = []
        self.section: Hashable = None

    def enter_section(self, section: Hashable) -> None:
        """Names of vector registers change with the tile and its parts."""
        self.section = section
        if isinstance(section, TileSection):
            tile = self.tiles[section.rows, section.columns]
            self.vectors = vector_roles(tile, section.stage)
            finish = section.stage == "finish"
            self.temporaries = {v: f"t{i}" for i, v in enumerate(tile.free)} if finish else {}
        elif isinstance(section, PackB):
            self.vectors, self.temporaries = {}, {}

    def scalar(
        self, s: Scalar, value: Value | None, state: State, label: int, back: bool
    ) -> str:
        """An operation on general-purpose registers that leaves `value`; `label`: where it
        branches to; `back`: that is the begin of a loop."""
        a, b = self._operand(s.a, state), self._operand(s.b, state)
        to = self.names.get(s.to, general_name(self.kernel.target, s.to)) if s.to >= 0 else ""
        returns = self.section is Mark.RETURN or s.to == self.machine.argument
        if returns and s.to == self.machine.result:
            to = "result"
        if s.op in ("save", "restore"):
            return f"{s.op} {s.text}"
        if s.op == "branch":
            return self._branch_text(s, label, state, back)
        if s.op == "store":
            return f"{a} = {b}"
        if s.op == "compare":
            return f"compare {a} with {b}"
        if s.op == "return":
            return "return"
        if s.op == "prefetch":
            return f"prefetch {a}"
        if s.op == "constants":
            return f"{to} = address of the constants"
        result = self._result(s, a, b, value, state)
        if result.startswith((f"{to} + ", f"{to} - ", f"{to} | ")):
            return f"{to} {result[len(to) + 1]}= {result[len(to) + 3 :]}"
        return f"{to} = {result}"

    def _result(self, s: Scalar, a: str, b: str, value: Value | None, state: State) -> str:
        if s.op == "unknown":
            return s.text
        if s.op == "below":
            _, _, other = state.compared
            left = self.names.get(state.compared[0], a)
            return f"{a} if {left} < {self._operand(other, state)}, else {b}"
        if s.op == "=" and isinstance(s.a, Memory):
            return a
        pointer = self._pointer(s.to, value)
        if pointer:
            return pointer
        if s.op == "insert":
            return str(value.number) if value is not None else f"{a} | {b}"
        if s.op == "=" or (s.op == "+" and s.b == 0):
            return a
        if s.scale > 1:
            b = f"{s.scale} * {b}"
        return f"{a} {s.op} {b}"

    def _pointer(self, register: int, value: Value | None) -> str:
        """The element that a register points to, or ""."""
        if value is None or not value.terms.keys() & self.places.matrices.keys():
            return ""
        loop = self.active[-1] if self.active else None
        if loop is not None and loop.quantity in ("index", "pass", "first"):
            head, move = loop.head.get(register), loop.moves.get(register)
            if head is not None and move is not None and value == head + move:
                place = self.places.find(head)
                what = "batch element" if loop.quantity == "index" else "pass"
                return f"&{place.text()} of the next {what}" if place else ""
        place = self.places.find(value)
        return f"&{place.text()}" if place else ""

    def _operand(self, operand: Operand, state: State) -> str:
        if isinstance(operand, Register):
            number = operand.number
            return self.names.get(number, general_name(self.kernel.target, number))
        if isinstance(operand, Memory):
            return self._memory(operand, state, max(1, operand.size // self.element))
        return str(operand)

    def _branch_text(self, s: Scalar, label: int, state: State, back: bool) -> str:
        if not s.text:
            return f"go to L{label}"
        register, _, other = state.compared
        if isinstance(s.a, Register):
            register, other = s.a.number, 0
        name = self.names.get(register, general_name(self.kernel.target, register))
        condition = f"{name} {s.text} {self._operand(other, state)}"
        return f"again while {condition}" if back else f"if {condition}, go to L{label}"

    def loop(self, loop: Loop) -> str:
        """What a loop repeats and how often."""
        trips = f"{loop.trips} passes" if loop.trips != 1 else "once"
        first = loop.start.number if loop.start is not None else None
        if loop.quantity == "index":
            return "loop: each batch element, index up to last"
        if loop.quantity in ("first", "pass"):
            return "loop: each pass over the batch, up to args.count"
        if loop.trips is not None and first is not None:
            if loop.by is None:
                return f"loop: {loop.trips} passes over {loop.quantity}, of different lengths"
            by = loop.by
            values = [first + by * i for i in range(loop.trips)]
            shown = [*values[:2], "...", values[-1]] if len(values) > 3 else values
            return f"loop: {loop.quantity} = {', '.join(map(str, shown))} ({trips})"
        return f"loop over {loop.quantity}"

    # ---- vectors and memory ---------------------------------------------------------------------

    def _memory(self, memory: Memory, state: State, lanes: int) -> str:
        """What a memory operand names: an argument, a constant, an element, or an address."""
        address = state.address(memory)
        name = self.places.argument(address)
        if name:
            return f"args.{name}"
        constant = self.places.constant(address, memory.size)
        if constant is not None:
            return self._constant(constant)
        # what the frame keeps beside the packed B is no element of it
        own = memory.base == self.isa.STACK_POINTER
        place = None if own else self.places.find(address)
        if place is None:
            sign = f" {'-' if memory.disp < 0 else '+'} {abs(memory.disp)}" if memory.disp else ""
            base = self.names.get(memory.base, general_name(self.kernel.target, memory.base))
            return f"[{base}{sign}]"
        if place.matrix == "mask":
            lanes = 8 * memory.size
        elif place.indexes[-1][0].name == "index":  # words of 8 bytes
            lanes = 1
        return place.text(lanes)

    def _constant(self, code: bytes) -> str:
        """A constant by value; bit patterns that are no ordinary number in hexadecimal."""
        size = self.element
        lanes = code.count(b"\xff" * size)
        rest = bytes(len(code) - lanes * size)
        if rest and lanes and code == b"\xff" * (lanes * size) + rest:
            return f"mask of the first {lanes} lanes"
        (number,) = struct.unpack("<f" if size == 4 else "<d", code[:size])
        if math.isnan(number) or (number == 0 and any(code)):
            return hex(int.from_bytes(code[:size], "little"))
        return shortest(number, size)

    def vector(self, form: Form, operands: Operands, state: State) -> str:
        """A vector instruction; "" if the tables do not know it."""
        template = form.meaning or str(self.isa.template(form, operands))
        if not template:
            return ""
        mask = self.isa.mask_of(form, operands)
        if form.kinds and form.kinds[0] in _VECTORS and operands[0] in self.temporaries:
            # a further sum that is overwritten is one no more
            self.vectors[operands[0]] = self.temporaries[operands[0]]
        names = [self._vector_operand(form, i, x, mask, state) for i, x in enumerate(operands)]
        memory = self._a64_memory(form, operands, mask, state) if self.isa is a64 else ""
        constant = _BROADCAST_CONSTANT.search(template.format(*names, memory=memory, lanes=""))
        if constant:
            template = template.removesuffix(", broadcast")
        lanes = self._set_mask(form, operands, names, state)
        if lanes:
            template = "{0} = the first {lanes} lanes"
        text = template.format(*names, memory=memory, lanes=lanes)
        if _ACCUMULATES.fullmatch(template):
            d = names[0]
            text = re.sub(rf"^{re.escape(d)} = {re.escape(d)} ([-+*/]) ", rf"{d} \1= ", text)
        return text

    def _name(self, vector: int) -> str:
        return self.vectors.get(vector, f"v{vector}")

    def _set_mask(self, form: Form, operands: Operands, names: list[str], state: State) -> int:
        """Note a mask that the instruction makes; its lanes, 0 for none. A constant mask is
        noted only: its text says it already."""
        source = self.isa.mask_source(form, operands)
        if source is not None:
            name, register = source
            value = state.registers.get(register)
            bits = value.number if value is not None else None
            if bits is None:
                return 0
            lanes = bits.bit_length() if form.mnemonic == "kmovw" else bits
            state.masks[name] = lanes
            return lanes
        match = _MASK.match(names[1]) if len(names) == 2 else None
        if match:
            state.masks[f"v{operands[0]}"] = int(match[1])
        return 0

    def _vector_operand(self, form: Form, i: int, value: Any, mask: str, state: State) -> str:
        kind = form.kinds[i].partition("{")[0].rstrip("+") if i < len(form.kinds) else "k"
        if isinstance(value, tuple):
            memory, lanes = x86.memory_operand(kind, value, self.element)
            return self._memory(memory, state, state.masks.get(mask, lanes))
        if kind[0] in "kp":
            return _MASKS.get(f"{kind[0]}{value}", "chosen")
        if kind in _GENERAL:
            return self.names.get(value, general_name(self.kernel.target, value))
        return str(value) if "imm" in kind else self._name(value)

    def _a64_memory(self, form: Form, operands: Operands, mask: str, state: State) -> str:
        found = a64.memory_operand(form, operands, self.machine.vector_bits // 8)
        if found is None:
            return ""
        memory, whole = found
        lanes = max(1, REGISTER_KINDS[form.kinds[0]][1] // self.element)
        if whole:
            lanes = state.masks.get(mask, self.machine.lanes)
        return self._memory(memory._replace(size=self.element), state, lanes)
