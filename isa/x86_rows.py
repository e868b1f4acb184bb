"""x86-64 table rows in the notation of the Intel manual (SDM volume 2), and their encoder.

A row is `mnemonic | operands | encoding | feature`, for example

    vfmadd231ps | zmm+{kz} zmm zmm/m512/b32 | EVEX.512.66.0F38.W0 B8 /r | avx512f

'/' lists alternatives of the register-or-memory operand (b32: a broadcast 32-bit element), '{kz}'
allows merging and zeroing masks, '+' marks an operand that is read and written. One row gives one
`Form` per alternative; its signature is the operands written out: "vfmadd231ps zmm{k}{z} zmm b32".
A mask register is the last operand. Memory is the tuple (base, index or None, scale, displacement).
Not here: which rows there are (jitgen.isa.x86, jitgen.isa.avx2, jitgen.isa.avx512).
"""

from __future__ import annotations

import re
from functools import cache

from jitgen.isa.form import EncodingError, Form, Operands

Memory = tuple[int, "int | None", int, int]

R64 = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"]
R64 += [f"r{i}" for i in range(8, 16)]
R32 = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"]
R32 += [f"r{i}d" for i in range(8, 16)]
R16 = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]
R16 += [f"r{i}w" for i in range(8, 16)]
R8 = ["al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"]
R8 += [f"r{i}b" for i in range(8, 16)]
REGISTERS = {
    "r64": R64, "r32": R32, "r16": R16, "r8": R8, "rax": R64, "cl": R8,
    "xmm": [f"xmm{i}" for i in range(32)],
    "ymm": [f"ymm{i}" for i in range(32)],
    "zmm": [f"zmm{i}" for i in range(32)],
    "k": [f"k{i}" for i in range(8)],
}
POINTERS = {8: "byte", 16: "word", 32: "dword", 64: "qword", 128: "xmmword", 256: "ymmword",
            512: "zmmword"}
IMMEDIATE_BYTES = {"imm8": 1, "imm32": 4, "imm64": 8, "uimm32": 4, "uimm8": 1}
PREFIX_BITS = {"66": 1, "F3": 2, "F2": 3}
MAP_BITS = {"0F": 1, "0F38": 2, "0F3A": 3}
SCALE_BITS = {1: 0, 2: 1, 4: 2, 8: 3}
INDEXES = frozenset((None, *range(16))) - {4}  # rsp's code means: no index
LENGTH_BITS = {"128": 0, "256": 1, "512": 2, "LIG": 0, "LZ": 0, "L0": 0, "L1": 1}
MASKS = {"": ("",), "k}": ("", "{k}"), "kz}": ("", "{k}", "{k}{z}")}
#: What else a row may hold: kinds of operands, what stands behind VEX and EVEX, other tokens
KINDS = {*REGISTERS, *IMMEDIATE_BYTES, "rel", "rip", "m",
         *(letter + str(bits) for letter in "mb" for bits in POINTERS)}
HEAD = {"VEX", "EVEX", *PREFIX_BITS, *MAP_BITS, *LENGTH_BITS, "W0", "W1", "WIG"}
TOKEN = re.compile(r"[0-9A-F]{2}(\+r)?|/[r0-7]|/is4|MR|REX\.W")


def parse_table(text: str) -> dict[str, Form]:
    """All forms of a table, by signature."""
    forms: dict[str, Form] = {}
    for line in text.strip().splitlines():
        mnemonic, operands, encoding, feature = (part.strip() for part in line.split("|"))
        _check_row(line, operands, encoding)
        for kinds in _alternatives(operands.split()):
            form = _form(mnemonic, kinds, encoding, feature)
            if form.signature in forms:
                raise EncodingError(f"two rows give {form.signature!r}")
            forms[form.signature] = form
    return forms


def _check_row(line: str, operands: str, encoding: str) -> None:
    """Raise EncodingError for a word that has no meaning here: nothing else would notice it."""
    for what, known, column in (
        ("kind of operand", _is_operand, operands), ("part of an encoding", _is_token, encoding),
    ):  # fmt: skip
        for word in column.split():
            if not known(word):
                raise EncodingError(f"{line}: {word!r} is no {what}")


@cache
def _is_operand(word: str) -> bool:
    base, _, mask = word.partition("{")
    return mask in MASKS and KINDS.issuperset(base.replace("+", "").split("/"))


@cache
def _is_token(word: str) -> bool:
    if word.startswith(("VEX.", "EVEX.")):
        return HEAD.issuperset(word.split("."))
    return bool(TOKEN.fullmatch(word))


def _alternatives(operands: list[str]) -> list[tuple[str, ...]]:
    """Every combination of operand kinds that a row's operand column allows."""
    found: list[tuple[str, ...]] = [()]
    for operand in operands:
        base, _, mask = operand.partition("{")
        kinds = base.split("/")
        read_write = "+" if kinds[0].endswith("+") else ""
        names = [k.rstrip("+") + read_write for k in kinds]
        names = [n + m for n in names for m in MASKS[mask]]
        found = [(*head, name) for head in found for name in names]
    return found


def _form(mnemonic: str, kinds: tuple[str, ...], encoding: str, feature: str) -> Form:
    signature = " ".join((mnemonic, *(k.replace("+", "") for k in kinds)))
    row = _Encoding(signature, kinds, encoding)
    label_at = row.label_at
    form = Form(signature, kinds, feature, row.encode, row.text, label_at, row.sizes)
    form.mnemonic = row.mnemonic
    return form


class _Encoding:
    """The parsed encoding column of one form."""

    def __init__(self, signature: str, kinds: tuple[str, ...], encoding: str) -> None:
        self.signature = signature
        self.kinds = [re.sub(r"[+{].*", "", k) for k in kinds]
        words = signature.split()
        #: with a prefix that is a word: "lock xadd"
        self.mnemonic = " ".join(words[: len(words) - len(kinds)])
        self.mask = "{k}" in "".join(kinds)
        self.zero = "{z}" in "".join(kinds)
        tokens = encoding.split()
        head = tokens[0].split(".")
        self.space = head[0] if head[0] in ("VEX", "EVEX") else "legacy"
        self.opcodes: list[int] = []
        self.digit: int | None = None
        self.modrm = self.plus_r = self.is4 = False
        self.store_order = "MR" in tokens
        for token in tokens[0 if self.space == "legacy" else 1 :]:
            if re.fullmatch(r"[0-9A-F]{2}(\+r)?", token):
                self.opcodes.append(int(token[:2], 16))
                self.plus_r = token.endswith("+r")
            elif token.startswith("/"):
                self.modrm = token != "/is4" or self.modrm
                self.is4 = self.is4 or token == "/is4"
                self.digit = int(token[1:]) if token[1:].isdigit() else self.digit
        self.w = int("REX.W" in tokens or "W1" in head)
        self.prefix = next((PREFIX_BITS[t] for t in head if t in PREFIX_BITS), 0)
        self.map = next((MAP_BITS[t] for t in head if t in MAP_BITS), 0)
        self.length = next((LENGTH_BITS[t] for t in head if t in LENGTH_BITS), 0)
        self.sizes: tuple[int, ...] = ()
        self.label_at = next((i for i, k in enumerate(self.kinds) if k in ("rel", "rip")), -1)
        if self.label_at >= 0:
            self.sizes = (len(self.opcodes) + 1, len(self.opcodes) + 4)
            if self.kinds[self.label_at] == "rip":
                self.sizes = (7,)
            elif self.opcodes[0] == 0x0F:  # near jcc; its short form is one byte shorter
                self.sizes = (2, 6)
            else:
                self.sizes = (2, 5)
        self._roles()
        #: operands with a range: index, least value, one past the largest
        self.ranges = [(i, *self._range(kind)) for i, kind in enumerate(self.kinds)
                       if kind in REGISTERS or kind in IMMEDIATE_BYTES]  # fmt: skip
        if self.mask:
            self.ranges.append((len(self.kinds), 1, 8))
        self.count = len(self.kinds) + self.mask
        # what does not depend on the operands; N of disp8*N (SDM 2.7.5) is the size of the memory
        # operand, 1 outside EVEX
        self.compression = self.memory_bits // 8 if self.space == "EVEX" else 1
        self.second = self.w << 7 | 4 | self.prefix
        self.third = self.zero << 7 | self.length << 5 | self.broadcast << 4
        self.bytes_named = any(self.kinds[i] == "r8" for i in (self.reg, self.rm) if i >= 0)

    def _range(self, kind: str) -> tuple[int, int]:
        if kind in REGISTERS:
            limit = 16 if self.space != "EVEX" and kind != "k" else len(REGISTERS[kind])
            return 0, 1 if kind == "rax" else limit
        bits = 8 * IMMEDIATE_BYTES[kind]
        low = 0 if kind[0] == "u" else -(1 << bits - 1)
        return low, 1 << bits if kind[0] == "u" or bits == 64 else 1 << bits - 1

    def _roles(self) -> None:
        """Which operand goes to ModRM.reg, VEX.vvvv, ModRM.rm, is4 and the immediate."""
        plain = [i for i, k in enumerate(self.kinds) if k not in IMMEDIATE_BYTES and k != "cl"]
        self.immediate = next((i for i, k in enumerate(self.kinds) if k in IMMEDIATE_BYTES), -1)
        self.reg = self.vvvv = self.rm = self.fourth = -1
        if self.is4:
            self.fourth = plain.pop()
        memory_first = bool(plain) and self.kinds[plain[0]][0] in "mb" and len(plain) > 1
        if not self.modrm:
            self.rm = plain[0] if self.plus_r else -1
        elif memory_first or self.store_order:
            self.rm, self.reg = plain[0], plain[-1]
            self.vvvv = plain[1] if len(plain) == 3 else -1
        elif self.digit is not None:
            self.rm = plain[-1]
            self.vvvv = plain[0] if len(plain) == 2 else -1
        else:
            self.reg, self.rm = plain[0], plain[-1]
            self.vvvv = plain[1] if len(plain) == 3 else -1
        memory = self.kinds[self.rm] if self.rm >= 0 else ""
        self.memory_bits = int(memory[1:] or 64) if memory[:1] in ("m", "b") else 0
        self.broadcast = memory[:1] == "b"

    # ---- encoding -------------------------------------------------------------------------

    def encode(self, operands: Operands) -> bytes:
        """The instruction's bytes."""
        if len(operands) != self.count:
            raise EncodingError(f"{self.signature}: {len(operands)} operands {operands}")
        for i, low, high in self.ranges:
            if not low <= operands[i] < high:
                raise self._wrong(i, operands[i])
        if self.label_at >= 0:
            return self._encode_label(operands)
        reg = operands[self.reg] if self.reg >= 0 else (self.digit or 0)
        vvvv = operands[self.vvvv] if self.vvvv >= 0 else 0
        if self.rm < 0:
            base = index = 0
            tail = b""
        elif self.memory_bits:
            base, index, tail = _memory(operands[self.rm], reg & 7, self.compression)
        else:
            base, index = operands[self.rm], 0
            tail = bytes((0xC0 | (reg & 7) << 3 | base & 7,)) if self.modrm else b""
        if self.space == "legacy":
            code = self._legacy(reg, index, base)
        elif self.space == "VEX":
            code = self._vex(reg, index, base, vvvv)
        else:
            code = self._evex(reg, index, base, vvvv, operands[-1] if self.mask else 0)
        code += tail
        if self.fourth >= 0:
            code += bytes((operands[self.fourth] << 4,))
        if self.immediate >= 0:
            n = IMMEDIATE_BYTES[self.kinds[self.immediate]]
            code += (operands[self.immediate] & (1 << 8 * n) - 1).to_bytes(n, "little")
        return code

    def _legacy(self, reg: int, index: int, base: int) -> bytes:
        opcodes = list(self.opcodes)
        prefix = []
        if opcodes[0] in (0x66, 0xF0, 0xF2, 0xF3):
            prefix.append(opcodes.pop(0))
        rex = 0x48 * self.w | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | base >> 3 & 1
        # without a REX prefix, the numbers 4 to 7 name ah to bh
        byte_register = self.bytes_named and any(
            i >= 0 and self.kinds[i] == "r8" and register >= 4
            for i, register in ((self.reg, reg), (self.rm, base))
        )
        if rex or byte_register:
            prefix.append(0x40 | rex)
        if self.plus_r:
            opcodes[-1] |= base & 7
        return bytes(prefix + opcodes)

    def _vex(self, reg: int, index: int, base: int, vvvv: int) -> bytes:
        r, x, b = ~reg >> 3 & 1, ~index >> 3 & 1, ~base >> 3 & 1
        last = (~vvvv & 15) << 3 | self.length << 2 | self.prefix
        if x and b and not self.w and self.map == 1:
            return bytes((0xC5, r << 7 | last, self.opcodes[0]))
        second = r << 7 | x << 6 | b << 5 | self.map
        return bytes((0xC4, second, self.w << 7 | last, self.opcodes[0]))

    def _evex(self, reg: int, index: int, base: int, vvvv: int, mask: int) -> bytes:
        x = ~(index if self.memory_bits else base >> 1) >> 3 & 1
        first = (~reg >> 3 & 1) << 7 | x << 6 | (~base >> 3 & 1) << 5 | (~reg >> 4 & 1) << 4
        second = self.second | (~vvvv & 15) << 3
        third = self.third | (~vvvv >> 4 & 1) << 3 | mask
        return bytes((0x62, first | self.map, second, third, self.opcodes[0]))

    def _encode_label(self, operands: Operands) -> bytes:
        distance, size = operands[self.label_at]
        offset: int = distance - size
        limit = 1 << (7 if size == 2 else 31)
        if not -limit <= offset < limit:
            raise EncodingError(f"{self.signature}: a label {distance} bytes away, size {size}")
        if self.kinds[self.label_at] == "rip":
            reg: int = operands[self.reg]
            head = bytes((0x48 | (reg >> 3) << 2, self.opcodes[0], (reg & 7) << 3 | 5))
            return head + (offset & 0xFFFFFFFF).to_bytes(4, "little")
        if size == 2:
            opcode = self.opcodes[-1] - 0x10 if self.opcodes[0] == 0x0F else 0xEB
            return bytes((opcode, offset & 0xFF))
        return bytes(self.opcodes) + (offset & 0xFFFFFFFF).to_bytes(4, "little")

    def _wrong(self, at: int, value: int) -> EncodingError:
        """What is wrong with an operand that is out of range."""
        if at == len(self.kinds):
            return EncodingError(f"{self.signature}: mask k{value}; a mask is k1 to k7")
        kind = self.kinds[at]
        if kind in REGISTERS:
            return EncodingError(f"{self.signature}: {value} is no {kind} register")
        return EncodingError(f"{self.signature}: immediate {value} needs {kind}")

    # ---- text -----------------------------------------------------------------------------

    def text(self, operands: Operands) -> str:
        """The instruction in Intel syntax, as llvm-mc and GNU as read it."""
        parts = []
        for i, kind in enumerate(self.kinds):
            parts.append(self._operand_text(kind, operands[i]))
            if i == 0 and self.mask:
                parts[0] += f" {{k{operands[-1]}}}" + (" {z}" if self.zero else "")
        return f"{self.mnemonic} {', '.join(parts)}" if parts else self.mnemonic

    def _operand_text(self, kind: str, value: int | Memory) -> str:
        if isinstance(value, tuple):
            size = f"{POINTERS[self.memory_bits]} ptr " if kind != "m" else ""
            to = f"{{1to{(128 << self.length) // self.memory_bits}}}" if self.broadcast else ""
            return f"{size}[{memory_text(value)}]{to}"
        if kind == "rel":
            return f"L{value}"
        if kind == "rip":
            return f"[rip + L{value}]"
        return REGISTERS[kind][value] if kind in REGISTERS else str(value)


def memory_text(memory: Memory) -> str:
    """Intel syntax of a memory operand without its brackets."""
    base, index, scale, disp = memory
    text = R64[base]
    if index is not None:
        text += f" + {scale}*{R64[index]}"
    if disp:
        text += f" {'-' if disp < 0 else '+'} {abs(disp)}"
    return text


def _memory(memory: Memory, reg: int, compression: int) -> tuple[int, int, bytes]:
    """(base, index, ModRM + SIB + displacement) of a memory operand."""
    base, index, scale, disp = memory
    if not -(1 << 31) <= disp < 1 << 31:
        raise EncodingError(f"displacement {disp} does not fit 32 bits")
    if not 0 <= base < 16 or index not in INDEXES or scale not in SCALE_BITS:
        raise EncodingError(f"{memory} is no (base, index but rsp, scale, displacement)")
    compressed, rest = divmod(disp, compression)
    if disp == 0 and base & 7 != 5:
        mod, tail = 0, b""
    elif rest == 0 and -128 <= compressed <= 127:
        mod, tail = 0x40, bytes((compressed & 0xFF,))
    else:
        mod, tail = 0x80, (disp & 0xFFFFFFFF).to_bytes(4, "little")
    if index is None and base & 7 != 4:
        return base, 0, bytes((mod | reg << 3 | base & 7,)) + tail
    low = 4 if index is None else index & 7
    head = bytes((mod | reg << 3 | 4, SCALE_BITS[scale] << 6 | low << 3 | base & 7))
    return base, index or 0, head + tail
