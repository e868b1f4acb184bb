"""The disk image of one Bochs boot: code, buffers and page tables of many jobs.

bochs_rom.S documents the header and the job entries. Physical order: header, read-only pages
(equal pages once), writable pages, job entries, page tables; so what is to be written back is one
piece. Virtual addresses follow `layout`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from . import x86
from .job import Job, Result, failed
from .layout import Layout, judge, place_job

PAGE = 4096
STACK_BYTES = 1 << 16
LIMIT = 900 << 20  # the ROM's first page tables reach 1 GiB

_IMAGE = 0x100000  # physical address
_FIRST = 0x10_0000_0000  # first virtual address of the jobs
_PRESENT, _WRITABLE, _USER, _USED, _NO_EXECUTE = 1, 2, 4, 0x60, 1 << 63
_ENTRY_BYTES = 256
_XSAVE_PAGES = 3  # newer Bochs touches the whole area, tiles included
_VECTORS = {
    0: "#DE divide error",
    1: "#DB debug",
    3: "#BP breakpoint",
    6: "#UD illegal instruction",
    7: "#NM device not available",
    12: "#SS stack fault",
    13: "#GP general protection",
    14: "#PF page fault",
    16: "#MF x87 exception",
    17: "#AC alignment",
    19: "#XM floating-point exception",
}


@dataclass
class _Placed:
    layout: Layout
    outputs: list[int]  # offset of each output's pages among the writable pages


class Image:
    """Jobs for one boot: add() them, write data(), boot, read result(i)."""

    def __init__(self) -> None:
        self.jobs: list[_Placed] = []
        self._constant = bytearray()
        self._writable = bytearray()
        self._shared: dict[bytes, int] = {}
        self._pages: dict[int, tuple[bool, int, int]] = {}  # (in writable part, offset, flags)
        self._next = _FIRST
        self._return_at = self._add(b"\xcd\x1f".ljust(PAGE, b"\xcc"), _USER)
        stack = self._add(b"\xff" * STACK_BYTES, _USER | _WRITABLE | _NO_EXECUTE, shared=False)
        self._stack = stack + STACK_BYTES
        xsave = _poison().ljust(_XSAVE_PAGES * PAGE, b"\0")
        self._xsave = self._add(xsave, _WRITABLE | _NO_EXECUTE, shared=False)

    def size(self) -> int:
        """Bytes of the image so far, page tables not counted."""
        return PAGE + len(self._constant) + len(self._writable)

    def add(self, job: Job) -> None:
        """Place one more job."""
        layout = place_job(job, self._next, PAGE, b"\xcc")
        self._next = layout.end
        outputs = []
        for region in layout.regions:
            if region.protection == "rw":
                outputs.append(len(self._writable))
                flags = _USER | _WRITABLE | _NO_EXECUTE
                self._map(region.address, True, len(self._writable), len(region.pages), flags)
                self._writable += region.pages
            else:
                flags = _USER if region.protection == "rx" else _USER | _NO_EXECUTE
                self._map_constant(region.address, region.pages, flags)
        self.jobs.append(_Placed(layout, outputs))

    def data(self) -> bytes:
        """Return the image, a whole number of sectors."""
        entries = bytearray()
        for job in self.jobs:
            entry = struct.pack("<3Q", job.layout.code, job.layout.words, self._stack)
            entries += entry.ljust(_ENTRY_BYTES, b"\0")
        self._entries = len(self._writable)
        entries += bytes(-len(entries) % PAGE)
        jobs_at = self._next + PAGE
        self._writable_at = PAGE + len(self._constant)
        head = _IMAGE + self._writable_at
        tables = _Tables(head + len(self._writable) + len(entries))
        for address, (written, offset, flags) in self._pages.items():
            base = head if written else _IMAGE + PAGE
            tables.map(address, base + offset, flags)
        for offset in range(0, len(entries), PAGE):
            physical = head + self._entries + offset
            tables.map(jobs_at + offset, physical, _WRITABLE | _NO_EXECUTE)
        for page in [0x7000, *range(0x70000, 0x90000, PAGE), _IMAGE]:  # the ROM's own memory
            tables.map(page, page, _WRITABLE | _NO_EXECUTE)
        for page in range(0xF0000, 0x100000, PAGE):
            tables.map(page, page, 0)
        back = len(self._writable) + len(entries)
        total = self._writable_at + back + len(tables.data)
        header = struct.pack(
            "<18Q",
            0x676972,
            total // 512,
            tables.root,
            jobs_at,
            len(self.jobs),
            0,
            0,
            self._writable_at // 512,
            back // 512,
            self._return_at,
            self._xsave,
            *x86.SENTINELS,
            x86.POISON,
        )
        head_page = header.ljust(PAGE, b"\0")
        return head_page + bytes(self._constant + self._writable + entries + tables.data)

    def done(self, data: bytes) -> int:
        """Return how many jobs were run, from the image after the boot."""
        return int(struct.unpack_from("<Q", data, 48)[0])

    def result(self, i: int, data: bytes) -> Result:
        """Return the result of job i from the image after the boot."""
        job = self.jobs[i]
        at = self._writable_at + self._entries + i * _ENTRY_BYTES
        status, vector, error, rip, cr2, rsp, mxcsr, rflags, rax, *saved = struct.unpack_from(
            "<15Q", data, at + 64
        )
        if status != 1:
            return failed(_fault_text(job.layout, vector, error, rip, cr2))
        pages = []
        for region, offset in zip(job.layout.outputs, job.outputs, strict=True):
            start = self._writable_at + offset
            pages.append(data[start : start + len(region.pages)])
        found = x86.violations(saved, rsp, self._stack, mxcsr, rflags)
        return judge(job.layout, rax, found, pages)

    def _add(self, pages: bytes, flags: int, shared: bool = True) -> int:
        address = self._next + PAGE
        self._next = address + len(pages)
        self._map_constant(address, pages, flags, shared)
        return address

    def _map_constant(self, address: int, pages: bytes, flags: int, shared: bool = True) -> None:
        for at in range(0, len(pages), PAGE):
            page = pages[at : at + PAGE]
            offset = self._shared.get(page) if shared else None
            if offset is None:
                offset = len(self._constant)
                self._constant += page
                if shared:
                    self._shared[page] = offset
            self._map(address + at, False, offset, PAGE, flags)

    def _map(self, address: int, written: bool, offset: int, size: int, flags: int) -> None:
        for at in range(0, size, PAGE):
            self._pages[address + at] = (written, offset + at, flags)


class _Tables:
    """Page tables that will lie at a physical address. root: physical address of the PML4."""

    def __init__(self, physical: int) -> None:
        self.data = bytearray(PAGE)
        self.root = physical
        self._physical = physical
        self._offsets: dict[tuple[int, int], int] = {}

    def map(self, address: int, physical: int, flags: int) -> None:
        number = address >> 12
        table = self._table(1, number >> 9)
        struct.pack_into(
            "<Q", self.data, table + 8 * (number & 511), physical | flags | _PRESENT | _USED
        )

    def _table(self, level: int, key: int) -> int:
        """Return the offset of a table; key: the address bits above what it translates."""
        if level == 4:
            return 0
        offset = self._offsets.get((level, key))
        if offset is None:
            offset = len(self.data)
            self.data += bytes(PAGE)
            self._offsets[level, key] = offset
            above = self._table(level + 1, key >> 9)
            entry = (self._physical + offset) | _PRESENT | _WRITABLE | _USER | 0x20
            struct.pack_into("<Q", self.data, above + 8 * (key & 511), entry)
        return offset


def _poison() -> bytes:
    """XSAVE area, standard format: NaN in all vector registers, a pattern in the masks."""
    area = bytearray(2688)
    struct.pack_into("<H", area, 0, 0x37F)  # x87 control word
    struct.pack_into("<II", area, 24, x86.MXCSR, 0xFFFF)
    area[160:416] = b"\xff" * 256  # xmm0-15
    struct.pack_into("<Q", area, 512, 0xE7)  # XSTATE_BV; tiles stay empty
    area[576:832] = b"\xff" * 256  # ymm0-15, high halves
    area[1088:1152] = struct.pack("<Q", x86.MASK_POISON) * 8
    area[1152:1664] = b"\xff" * 512  # zmm0-15, high halves
    area[1664:2688] = b"\xff" * 1024  # zmm16-31
    return bytes(area)


def _fault_text(layout: Layout, vector: int, error: int, rip: int, cr2: int) -> str:
    text = f"{_VECTORS.get(vector, f'vector {vector}')} at {layout.instruction(rip)}"
    if vector != 14:
        return text
    access = "fetch" if error & 16 else "write" if error & 2 else "read"
    return f"{text}, {access} of address {layout.where(cr2)}"


def images(jobs: Sequence[Job], limit: int) -> list[Image]:
    """Distribute jobs, in order, over images of about `limit` bytes."""
    made = [Image()]
    for job in jobs:
        if made[-1].jobs and made[-1].size() > limit:
            made.append(Image())
        made[-1].add(job)
        if made[-1].size() > LIMIT:
            raise ValueError(f"job {job.label!r}: its buffers exceed {LIMIT >> 20} MiB")
    return made
