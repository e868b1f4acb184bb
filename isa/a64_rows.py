"""A64 table rows in the notation of the Arm manual (bit diagrams), and their encoder.

A row is `syntax | bit diagram | feature`, for example

    fmla z{d+}.s, p{g}/m, z{n}.s, z{m}.s | 01100101101 m:5 000 g:3 n:5 d:5 | sve

In the syntax `{name}` is an operand: a register after its letter (`x{n:sp}`: 31 is the stack
pointer, which `x{n}` does not take), an immediate after '#', a label where it stands alone; '+'
marks an operand that is read and written. Operands come in the order of the syntax. A field of
the diagram is `name:width`, or `name<high:low>` for a part of a split one, then 's' if it is
signed, 'n' if it holds minus the operand (from 1 on), and '*n' if it counts in units of n. Operand
kinds, ranges, text and signature follow from the row; the signature is the syntax without names and
commas: "fmla z.s p/m z.s z.s". Not here: which rows there are (jitgen.isa.a64, jitgen.isa.neon,
jitgen.isa.sve).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jitgen.isa.form import EncodingError, Form, Operands

#: The stack pointer and the zero register share the code 31; as operands they are two numbers.
SP = 31
XZR = 32

#: What stands before an operand's name -> its kind
KINDS = {"#": "imm", "": "label"} | {letter: letter for letter in "xwzpdsvq"}
_OPERAND = re.compile(r"([^\s,{}\[]*)\{(\w+)(\+?)(:sp)?\}")
_FIELD = re.compile(r"(\w+)(?::(\d+)|<(\d+):(\d+)>)([sn]?)(?:\*(\d+))?")


def parse_table(text: str, meanings: Mapping[str, str] = MappingProxyType({})) -> dict[str, Form]:
    """All forms of a table, by signature. `meanings`: what they do (`Form.meaning`), by signature
    or else mnemonic."""
    forms: dict[str, Form] = {}
    for line in text.strip().splitlines():
        syntax, diagram, feature = (part.strip() for part in line.split("|"))
        row = _Row(re.sub(" +", " ", syntax), diagram)
        if row.signature in forms:
            raise EncodingError(f"two rows give {row.signature!r}")
        meaning = meanings.get(row.signature) or meanings.get(row.signature.split()[0], "")
        sizes = (4,) if row.label_at >= 0 else ()
        forms[row.signature] = Form(
            row.signature, row.kinds, feature, row.encode, row.text, row.label_at, sizes, meaning
        )
    return forms


class _Field:
    """The parts of the word that one operand fills: (low bit in the value, mask, place)."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int, int]] = []
        self.bits = 0
        self.signed = False
        self.negated = False
        self.scale = 1

    def limits(self) -> tuple[int, int]:
        """Smallest and largest value, in units of the operand."""
        low = -(1 << self.bits - 1) if self.signed else int(self.negated)
        return low * self.scale, (low + (1 << self.bits) - 1) * self.scale

    def place(self, value: int) -> int:
        """The value's bits where the word has them; it must lie within the limits."""
        value //= -self.scale if self.negated else self.scale
        word = 0
        for low, mask, place in self.parts:
            word |= (value >> low & mask) << place
        return word


class _Row:
    """The parsed syntax and diagram of one form."""

    def __init__(self, syntax: str, diagram: str) -> None:
        self._word, fields = _parse_diagram(syntax, diagram)
        self._pieces: list[str | tuple[int, str]] = []  # text, or (operand, kind)
        self.limits: list[tuple[int, int, int]] = []  # smallest, largest, unit
        self._places: list[Callable[[int], int]] = []
        names: list[str] = []
        kinds: list[str] = []
        signature = ""
        end = 0
        for match in _OPERAND.finditer(syntax):
            kind, name, read_write = _kind(match), match[2], match[3]
            between = syntax[end : match.start()]
            end = match.end()
            signature += between + kind
            if name not in names:
                if name not in fields:
                    raise EncodingError(f"{syntax}: no field for the operand {match[0]}")
                names.append(name)
                kinds.append(kind + read_write)
                self._add_field(kind, fields.pop(name))
            elif kinds[names.index(name)].rstrip("+") != kind:
                raise EncodingError(f"{syntax}: {match[0]} stood before, as another kind")
            self._pieces += [between, (names.index(name), kind)]
        self._pieces.append(syntax[end:])
        if fields:
            raise EncodingError(f"{syntax}: no operand for the fields {', '.join(fields)}")
        signature += syntax[end:]
        self.signature = " ".join(re.sub(r"[,{}]", " ", signature).replace("[ ", "[").split())
        self.kinds = tuple(kinds)
        self.label_at = kinds.index("label") if "label" in kinds else -1

    def _add_field(self, kind: str, field: _Field) -> None:
        low, high = field.limits()
        self.limits.append((low, high, field.scale))
        if kind in ("imm", "label"):
            self._places.append(field.place)
            return
        values = {r: field.place(r) for r in range(high + 1)}
        if kind in ("x", "w"):
            values[XZR] = values.pop(31)
        self._places.append(values.__getitem__)

    def encode(self, operands: Operands) -> bytes:
        """The instruction's bytes."""
        if len(operands) != len(self._places):
            raise EncodingError(f"{self.signature}: {len(operands)} operands {operands}")
        word = self._word
        try:
            for i, place in enumerate(self._places):
                value = operands[i]
                if self.kinds[i] in ("imm", "label"):
                    value = self._checked(i, value if i != self.label_at else value[0])
                word |= place(value)
        except KeyError as error:
            raise EncodingError(
                f"{self.signature}: {error.args[0]} is no {self.kinds[i].rstrip('+')} register"
                f" that fits this field"
            ) from None
        return word.to_bytes(4, "little")

    def _checked(self, i: int, value: int) -> int:
        low, high, unit = self.limits[i]
        if not low <= value <= high or value % unit:
            rule = f"{low} to {high}" + (f" in steps of {unit}" if unit > 1 else "")
            raise EncodingError(f"{self.signature}: {self.kinds[i]} {value} is not {rule}")
        return value

    def text(self, operands: Operands) -> str:
        """The instruction in A64 syntax, as llvm-mc and GNU as read it."""
        parts = []
        for piece in self._pieces:
            if isinstance(piece, str):
                parts.append(piece)
                continue
            i, kind = piece
            value = operands[i]
            if kind == "imm":
                parts.append(f"#{value}")
            elif kind == "label":
                parts.append(f"L{value}")
            elif kind == "xsp" and value == SP:
                parts.append("sp")
            elif value == XZR:
                parts.append(f"{kind}zr")
            else:
                parts.append(f"{kind[0]}{value}")
        return "".join(parts)


def _kind(match: re.Match[str]) -> str:
    """The kind of the operand that stands there, "xsp" where it may be the stack pointer."""
    letter, _, _, sp = match.groups()
    syntax = match.string
    if letter not in KINDS or (sp and letter != "x"):
        known = ", ".join(filter(None, KINDS))
        rule = "takes no :sp, x does" if letter in KINDS else f"is not one of {known}"
        raise EncodingError(f"{syntax}: {letter!r} before {{{match[2]}}} {rule}")
    ends = syntax[match.start() - 1 : match.start()], syntax[match.end() : match.end() + 1]
    if not letter and (ends[0] != " " or ends[1] not in ("", ",")):
        raise EncodingError(f"{syntax}: {match[0]} is a label, which stands alone")
    return KINDS[letter] + (sp or "")[1:]


def _parse_diagram(syntax: str, diagram: str) -> tuple[int, dict[str, _Field]]:
    """The fixed bits of a word, and its fields by name."""
    word = 0
    place = 32
    fields: dict[str, _Field] = {}
    for token in diagram.split():
        match = _FIELD.fullmatch(token)
        if match is None:
            if not re.fullmatch("[01]+", token):
                raise EncodingError(f"{syntax}: {token!r} is neither bits nor a field")
            place -= len(token)
            word |= int(token, 2) << place
            continue
        name, width, high, low, sign, scale = match.groups()
        lowest = int(low or 0)
        bits = int(width) if width else int(high) - lowest + 1
        place -= bits
        field = fields.setdefault(name, _Field())
        field.parts.append((lowest, (1 << bits) - 1, place))
        field.bits = max(field.bits, lowest + bits)
        field.signed = field.signed or sign == "s"
        field.negated = field.negated or sign == "n"
        field.scale = int(scale or field.scale)
    if place:
        raise EncodingError(f"{syntax}: the diagram has {32 - place} bits, not 32")
    return word, fields
