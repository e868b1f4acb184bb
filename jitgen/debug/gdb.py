"""gdb's interface for JIT compilers: an ELF image in memory for each function, and a hook.

gdb stops at the function `__jit_debug_register_code` and then reads `__jit_debug_descriptor`, a
list of images. It knows the two by their symbols only, so they stand in a shared object of their
own, written here and loaded. Images hold name, frames, lines and argument of a function. Source:
GDB manual, "JIT Compilation Interface".
"""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import cffi

from jitgen.debug import dwarf
from jitgen.debug.image import Details, Image
from jitgen.inspect.unwind import Function, debug_frame
from jitgen.isa import a64, x86
from jitgen.objects.elf import (
    ARCHITECTURES,
    CODE,
    FUNCTION,
    HEADER_BYTES,
    OBJECT,
    PROGBITS,
    READ,
    RELOCATED,
    SEGMENT_BYTES,
    SHARED,
    STRTAB,
    SYMBOL_BYTES,
    Header,
    Strings,
    Symbol,
    align,
    assemble_file,
    symbol_headers,
    symbol_table,
)  # fmt: skip

_REGISTER, _UNREGISTER = 1, 2
_EXECUTABLE = 2  # type of an ELF file whose addresses are final
_HASH, _DYNAMIC, _NOBITS, _DYNSYM = 5, 6, 8, 11
_HOOK, _DESCRIPTOR = "__jit_debug_register_code", "__jit_debug_descriptor"
_ffi = cffi.FFI()
_ffi.cdef(
    """
    struct jit_code_entry {
        struct jit_code_entry *next, *previous;
        const char *image;
        uint64_t size;
    };
    struct jit_descriptor {
        uint32_t version, action;
        struct jit_code_entry *relevant, *first;
    };
    extern struct jit_descriptor __jit_debug_descriptor;
    void __jit_debug_register_code(void);
    """
)


class Gdb:
    """The images that this process has registered."""

    inherited = True
    private = True  # or gdb could set no breakpoint in a kernel

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._directory = directory
        self._folder: Path | None = None
        self._process = 0
        self._library: Any = None
        #: list entries and images; newest last
        self._entries: list[tuple[Any, Any]] = []

    def add(self, image: Image) -> None:
        """Register a function. Raises OSError."""
        folder = self._folder or self._open(image.architecture)
        details = image.details()
        listing = image.write_listing(folder, details.listing)
        data = _ffi.from_buffer("char[]", elf_image(image, details, listing))
        entry = _ffi.new("struct jit_code_entry *", {"image": data, "size": len(data)})
        if self._entries:
            previous = self._entries[-1][0]
            previous.next, entry.previous = entry, previous
        self._entries.append((entry, data))
        self._tell(_REGISTER, entry)

    def close(self) -> None:
        """Take all images back."""
        while self._entries:
            entry, _ = self._entries.pop()
            if self._entries:
                self._entries[-1][0].next = _ffi.NULL
            self._tell(_UNREGISTER, entry)
        if self._library is not None:
            _ffi.dlclose(self._library)
            self._library = None
        if self._folder is not None:
            _remove(self._folder, self._process, self._directory is None)
            self._folder = None

    def _tell(self, action: int, entry: Any) -> None:
        descriptor = _ffi.addressof(self._library, _DESCRIPTOR)
        descriptor.first = self._entries[0][0] if self._entries else _ffi.NULL
        descriptor.relevant, descriptor.action = entry, action
        getattr(self._library, _HOOK)()

    def _open(self, architecture: str) -> Path:
        """Write the hook and load it."""
        if self._directory is None:
            folder = Path(tempfile.mkdtemp(prefix="jitgen-gdb-"))
        else:
            folder = Path(self._directory).resolve()
        self._process = os.getpid()
        path = _hook_file(folder, self._process)
        path.write_bytes(hook(architecture))
        # a process that a signal ends leaves its files, for the debugger of its core file
        atexit.register(_remove, folder, self._process, self._directory is None)
        self._library = _ffi.dlopen(str(path))
        self._folder = folder
        return folder


def _hook_file(folder: Path, process: int) -> Path:
    return folder / f"jitgen-gdb-{process}.so"


def _remove(folder: Path, process: int, whole: bool) -> None:
    """Remove the hook, or the whole folder; but not in a process that was forked since."""
    if os.getpid() == process:
        _hook_file(folder, process).unlink(missing_ok=True)
        if whole:
            shutil.rmtree(folder, ignore_errors=True)


def elf_image(image: Image, details: Details, listing: Path) -> bytes:
    """What gdb reads of one function: an ELF file whose code lies elsewhere, at its address."""
    size = len(image.code)
    # a section without bytes in the file; the header's size is that of the code
    headers = [Header(".text", _NOBITS, CODE, image.code, image.address, align=64)]
    if details.rows:
        functions = [Function(image.address, size, details.rows)]
        frames = debug_frame(functions, image.architecture)
        headers.append(Header(".debug_frame", PROGBITS, 0, frames, align=8))
    if details.lines:
        sections = dwarf.sections(image, details.lines, listing)
        headers += [Header(name, PROGBITS, 0, data) for name, data in sections.items()]
    names = Strings()
    symbol = Symbol(image.name, ".text", 0, size, FUNCTION, True)
    table, local, _ = symbol_table([symbol], {".text": 1}, {".text": image.address}, names)
    headers += symbol_headers(table, local, names, len(headers) + 2)
    return assemble_file(_EXECUTABLE, image.architecture, headers)


def hook(architecture: str) -> bytes:
    """The shared object that defines the two symbols, the descriptor in writable memory."""
    if architecture == "x86_64":
        code = x86.nops(1) + x86.FORMS["ret"].encode(())
    else:
        code = a64.nops(4) + a64.FORMS["ret"].encode(())
    names = Strings()
    symbols = [
        Symbol(_HOOK, ".text", 0, len(code), FUNCTION, True),
        Symbol(_DESCRIPTOR, ".data", 0, 24, OBJECT, True),
    ]
    # one bucket: symbol 1, then symbol 2
    chain = struct.pack("<6I", 1, 3, 1, 0, 2, 0)
    headers = [
        Header(".hash", _HASH, READ, chain, link=2, align=8, entry=4),
        Header(".dynsym", _DYNSYM, READ, bytes(3 * SYMBOL_BYTES), link=3, info=1, align=8,
               entry=SYMBOL_BYTES),
        Header(".dynstr", STRTAB, READ, b""),
        Header(".text", PROGBITS, CODE, code, align=16),
        Header(".data", PROGBITS, RELOCATED, struct.pack("<2I2Q", 1, 0, 0, 0), align=16),
        Header(".dynamic", _DYNAMIC, RELOCATED, bytes(6 * 16), link=3, align=8, entry=16),
    ]  # fmt: skip
    by_name = {header.name: header for header in headers}
    indices = {header.name: i for i, header in enumerate(headers, 1)}
    symbol_table(symbols, indices, {}, names)
    by_name[".dynstr"].data = bytes(names.data)
    page = ARCHITECTURES[architecture].page
    at = HEADER_BYTES + SEGMENT_BYTES * 4
    for header in headers:
        if header is by_name[".data"]:
            at = align(at, page)
        at = header.offset = header.address = align(at, header.align)
        at += len(header.data)
    addresses = {name: header.address for name, header in by_name.items()}
    by_name[".dynsym"].data = symbol_table(symbols, indices, addresses, Strings())[0]
    tags = [
        (4, addresses[".hash"]), (5, addresses[".dynstr"]), (6, addresses[".dynsym"]),
        (10, len(names.data)), (11, SYMBOL_BYTES), (0, 0),
    ]  # fmt: skip
    by_name[".dynamic"].data = b"".join(struct.pack("<2Q", *tag) for tag in tags)
    text, data, dynamic = (by_name[name] for name in (".text", ".data", ".dynamic"))
    segments = [
        _segment(1, 5, 0, text.address + len(text.data), page),
        _segment(1, 6, data.address, at - data.address, page),
        _segment(2, 6, dynamic.address, len(dynamic.data), 8),
        _segment(0x6474E551, 6, 0, 0, 16),  # needs no executable stack
    ]
    return assemble_file(SHARED, architecture, headers, segments)


def _segment(kind: int, access: int, at: int, size: int, alignment: int) -> bytes:
    return struct.pack("<2I6Q", kind, access, at, at, at, size, size, alignment)
