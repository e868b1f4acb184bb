"""Where a job's code, buffers and argument struct lie in memory, and what an address means.

Pure arithmetic on addresses, shared by all machines: nothing is mapped here.
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .job import Buffer, Job, Pointers, Result

FILL = b"\xff"  # around data: NaN as float64, float32, float16 and bfloat16
NEAR = 1 << 16  # an address further than this from every object is reported as a bare number


@dataclass
class Region:
    """Whole pages around one object. address: of the first page; start, size: object within."""

    name: str
    address: int
    pages: bytes
    start: int
    size: int
    protection: str
    buffer: Buffer | None = None

    @property
    def first(self) -> int:
        """Address of the object's first byte."""
        return self.address + self.start

    def read_back(self, pages: bytes) -> tuple[np.ndarray, str]:
        """Return the buffer's array from its pages after the run, and what is wrong around it."""
        assert self.buffer is not None
        end = self.start + self.size
        data = self.buffer.data
        array = np.frombuffer(pages, data.dtype, data.size, self.start).reshape(data.shape).copy()
        if pages[: self.start] != self.pages[: self.start]:
            return array, f"wrote before the start of {self.name}"
        if pages[end:] != self.pages[end:]:
            return array, f"wrote past the end of {self.name}"
        return array, ""


@dataclass
class Layout:
    """A placed job. base: first address (an unmapped page); end: behind the last such page."""

    base: int
    end: int
    regions: list[Region]
    outputs: list[Region]
    code: int
    words: int

    def where(self, address: int) -> str:
        """Name an address relative to the object next to it."""
        best = min(self.regions, key=lambda region: _distance(region, address))
        if _distance(best, address) > NEAR:
            return f"{address:#x}"
        offset = address - best.first
        if offset < 0:
            side = "before its start"
        elif offset >= best.size:
            side = "past its end"
        else:
            side = "inside"
        return f"{best.name}{offset:+d} ({side}, {best.size} bytes, {best.protection})"

    def instruction(self, address: int) -> str:
        """Name a program counter."""
        code = self.regions[0]
        if code.address <= address < code.address + len(code.pages):
            return f"code+{address - self.code:#x}"
        return f"{address:#x}, outside the code, {self.where(address)}"


def place_job(job: Job, base: int, page: int, trap: bytes) -> Layout:
    """Place a job from address base (page-aligned) up. trap: byte that fills the code's page."""
    regions: list[Region] = []
    addresses: dict[int, int] = {}
    cursor = base

    def add(
        name: str,
        data: bytes,
        protection: str,
        place: str = "end",
        fill: bytes = FILL,
        buffer: Buffer | None = None,
    ) -> Region:
        nonlocal cursor
        length = -(-len(data) // page) * page
        start = length - len(data) if place == "end" else 0
        pages = fill * start + data + fill * (length - start - len(data))
        region = Region(name, cursor + page, pages, start, len(data), protection, buffer)
        regions.append(region)
        cursor = region.address + length
        return region

    # Code starts a page: constants in it keep whatever alignment they have relative to its start.
    code = add("code", job.code, "rx", place="start", fill=trap)
    for name, buffer in _buffers(job):
        data = np.ascontiguousarray(buffer.data).tobytes()
        protection = "rw" if buffer.write else "r"
        region = add(name, data, protection, buffer.place, buffer=buffer)
        addresses[id(buffer)] = region.first
    words = []
    for i, word in enumerate(job.words):
        if isinstance(word, Pointers):
            targets = [addresses[id(target)] for target in word.targets]
            array = struct.pack(f"<{len(targets)}Q", *targets)
            words.append(add(f"words[{i}]", array, "r").first)
        elif isinstance(word, Buffer):
            words.append(addresses[id(word)])
        else:
            words.append(int(word) % 2**64)
    arguments = add("the argument struct", struct.pack(f"<{len(words)}Q", *words), "r")
    outputs = [region for region in regions if region.buffer is not None and region.buffer.write]
    return Layout(base, cursor + page, regions, outputs, code.first, arguments.first)


def judge(layout: Layout, value: int, violations: list[str], pages: list[bytes]) -> Result:
    """Judge a call that came back. value: result register; pages: of each output region."""
    errors = list(violations)
    arrays = []
    for region, content in zip(layout.outputs, pages, strict=True):
        array, wrong = region.read_back(content)
        arrays.append(array)
        if wrong:
            errors.append(wrong)
    status = value % 2**32
    if status:
        errors.append(f"returned status {status - (status >> 31 << 32)}")
    signed = value - (value >> 63 << 64)
    return Result(not errors, "; ".join(errors), signed, arrays, returned=True)


def changed(names: list[str], want: list[int], got: list[int]) -> list[str]:
    """Compare callee-saved registers; return the violations."""
    pairs = zip(names, want, got, strict=True)
    bad = [name for name, before, after in pairs if before != after]
    if bad:
        return ["clobbered callee-saved " + ", ".join(bad)]
    return []


def signal_text(layout: Layout, number: int, code: int, address: int, pc: int) -> str:
    """Describe a signal by number, si_code, si_addr and program counter."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    text = f"{name} at {layout.instruction(pc)}"
    if number not in (signal.SIGSEGV, signal.SIGBUS):
        return text
    if code == 128:  # SI_KERNEL: x86 general protection, which has no address
        return f"{text}, general protection (misaligned or non-canonical address)"
    return f"{text}, address {layout.where(address)}"


def _buffers(job: Job) -> Iterator[tuple[str, Buffer]]:
    seen: set[int] = set()
    for i, word in enumerate(job.words):
        named: list[tuple[str, Buffer]] = []
        if isinstance(word, Buffer):
            named = [(f"words[{i}]", word)]
        elif isinstance(word, Pointers):
            named = [(f"words[{i}].targets[{j}]", each) for j, each in enumerate(word.targets)]
        for name, buffer in named:
            if id(buffer) not in seen:
                seen.add(id(buffer))
                yield name, buffer


def _distance(region: Region, address: int) -> int:
    return max(region.first - address, address - (region.first + region.size) + 1, 0)
