"""jitdump files: code, lines and frames of functions, which `perf inject --jit` makes ELF files of.

    perf record -k CLOCK_MONOTONIC ...; perf inject --jit -i perf.data -o jit.data; perf annotate

The listing of each function is written beside the dump; its lines are what perf shows as source.
Source: tools/perf/Documentation/jitdump-specification.txt of Linux.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from pathlib import Path

from jitgen.debug.image import Details, Image
from jitgen.inspect.unwind import Function, eh_frame, eh_frame_hdr
from jitgen.objects.elf import ARCHITECTURES

_MAGIC, _VERSION, _HEADER_BYTES = 0x4A695444, 1, 40
_LOAD, _DEBUG_INFO, _UNWINDING = 0, 2, 4


class Jitdump:
    """The dump of this process, jit-PID.dump in `directory`."""

    inherited = False
    private = True  # perf maps the frames behind the code

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._folder = Path(directory or ".").resolve()
        self._file = -1
        self._marker: mmap.mmap | None = None
        self._number = 0

    def add(self, image: Image) -> None:
        """Write a function's records. Raises OSError; then the file is as it was."""
        if self._file < 0:
            self._open(image.architecture)
        details = image.details()
        listing = image.write_listing(self._folder, details.listing)
        lines = _lines(image, details, listing)
        self._append(lines + _frames(image, details) + self._load(image))
        self._number += 1

    def close(self) -> None:
        """End; the files stay, for perf."""
        if self._marker is not None:
            self._marker.close()
            self._marker = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self, architecture: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._folder / f"jit-{os.getpid()}.dump", flags, 0o600)
        machine = ARCHITECTURES[architecture].machine
        self._append(struct.pack(
            "<6I2Q", _MAGIC, _VERSION, _HEADER_BYTES, machine, 0, os.getpid(), _now(), 0
        ))  # fmt: skip
        # perf finds the file because it is mapped executable
        self._marker = mmap.mmap(self._file, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)

    def _append(self, data: bytes) -> None:
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _load(self, image: Image) -> bytes:
        process, thread = os.getpid(), threading.get_native_id()
        place = (image.address, image.address, len(image.code), self._number)
        body = struct.pack("<2I4Q", process, thread, *place)
        return _record(_LOAD, body + image.name.encode() + b"\0" + image.code)


def _lines(image: Image, details: Details, listing: Path) -> bytes:
    if not details.lines:
        return b""
    body = struct.pack("<2Q", image.address, len(details.lines))
    name = os.fsencode(listing) + b"\0"
    for offset, line in details.lines:
        body += struct.pack("<Q2I", image.address + offset, line, 0) + name
    return _record(_DEBUG_INFO, body)


def _frames(image: Image, details: Details) -> bytes:
    """Unwind information: perf puts .eh_frame behind the code, .eh_frame_hdr behind that."""
    if not details.rows:
        return b""
    address = -(-len(image.code) // 8) * 8
    functions = [Function(0, len(image.code), details.rows)]
    frames = eh_frame(functions, image.architecture, address)
    header = eh_frame_hdr(functions, frames, address, address + len(frames.data))
    data = frames.data + header
    # perf looks for frames in what it takes for the mapping of the code; it must not cover others'
    mapped = len(data) if address + len(data) <= image.room else 0
    body = struct.pack("<3Q", len(data), len(header), mapped)
    return _record(_UNWINDING, body + data)


def _record(kind: int, body: bytes) -> bytes:
    return struct.pack("<2IQ", kind, 16 + len(body), _now()) + body


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
