"""Runs AArch64 jobs under qemu-user: NEON, SVE at a chosen vector length, SME.

One emulator process serves many jobs: it runs a static ELF server made here, without assembler,
compiler or libc, that maps memory, calls and answers through pipes. It checks results and ABI
rules; speed under emulation says nothing about a real processor.

    results = qemu.run([Job(code, [a, b, c])], vector_bits=256)
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import selectors
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import a64
from .count import count
from .job import Job, Result, RigError, failed
from .layout import Layout, judge, place_job

PAGE = max(4096, mmap.PAGESIZE)
STACK_BYTES = 1 << 16
SIGNAL_STACK_BYTES = 1 << 18  # the signal frame holds ZA: up to 64 KiB

_TEXT, _DATA = 0x400000, 0x410000
_REQUEST = _DATA + 0x1000  # the request in work; the record lies at _DATA
_SCRATCH = _DATA + 0x1100  # structs for system calls
_EXIT, _POKE, _PEEK, _CALL, _SYSCALL = range(5)
_READ, _WRITE, _EXIT_GROUP, _SIGALTSTACK, _RT_SIGACTION = 63, 64, 94, 132, 134
_PRCTL, _MMAP, _MPROTECT = 167, 222, 226
_SVE_SET_VL, _SME_SET_VL, _SME_GET_VL = 50, 63, 64
_NONE, _R, _RW, _RX = 0, 1, 3, 5
_ANONYMOUS, _FIXED_ANONYMOUS = 0x22, 0x32
_SIGNALS = (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
_PROTECTION = {"r": _R, "rw": _RW, "rx": _RX}


def available() -> str | None:
    """Return None if jobs can run, else why not."""
    if _emulator() is None:
        return "qemu-aarch64 is not installed (Debian, Ubuntu: qemu-user)"
    return None


def run(
    jobs: Sequence[Job],
    vector_bits: int,
    cpu: str = "max",
    *,
    streaming_bits: int | None = None,
    timeout: float = 60.0,
    isa: str = "",
) -> list[Result]:
    """Run jobs in order and return their results.

    vector_bits: SVE vector length, whatever length the code was generated for; 0 leaves SVE alone
    (for a cpu without it). streaming_bits: SME's; default, where the cpu has SME: vector_bits
    rounded down to a power of two. cpu: a qemu model with options. timeout: seconds for one job.
    isa: name under which kernels that returned are counted, "" for not at all. RigError: no
    emulator, or it does not offer the vector length.
    """
    layouts = [place_job(job, 0, PAGE, b"\0") for job in jobs]
    span = max((layout.end for layout in layouts), default=0)
    results: list[Result] = []
    while len(results) < len(jobs):
        server = _Server(cpu, vector_bits, streaming_bits, span)
        with contextlib.closing(server):
            while len(results) < len(jobs) and server.alive:
                results.append(server.call(jobs[len(results)], timeout))
    if isa:
        count(isa, "qemu-user", sum(result.returned for result in results))
    return results


class _Server:
    """One emulator process. alive: it can take another job."""

    def __init__(self, cpu: str, vector_bits: int, streaming_bits: int | None, span: int) -> None:
        emulator = _emulator()
        if emulator is None:
            raise RigError(available())
        self.alive = True
        self._folder = tempfile.TemporaryDirectory(prefix="rig-qemu-")
        path = Path(self._folder.name, "server")
        path.write_bytes(_elf())
        path.chmod(0o755)
        self._process = subprocess.Popen(
            [emulator, "-cpu", cpu, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=self._folder.name,  # a core file, should there ever be one, goes with the folder
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        try:
            self._set_up(vector_bits, streaming_bits, span)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process and remove its files."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def call(self, job: Job, timeout: float) -> Result:
        """Run one job; afterwards alive is False if the process is of no more use."""
        layout = place_job(job, self._arena, PAGE, b"\0")
        answer_bytes = a64.RECORD_WORDS * 8 + sum(len(each.pages) for each in layout.outputs)
        request = self._request_of(layout)
        try:
            answer = self._exchange(request, answer_bytes, timeout)
        except TimeoutError:
            self.alive = False
            return failed(f"hung: no answer within {timeout:g} s")
        if len(answer) < a64.RECORD_WORDS * 8:
            self.alive = False
            return failed(self._death())
        words = struct.unpack_from(f"<{a64.RECORD_WORDS}Q", answer)
        if words[a64.SYSCALL_ERROR]:
            raise RigError(f"mapping memory failed: errno {2**64 - words[a64.SYSCALL_ERROR]}")
        if words[a64.STATUS] != a64.RETURNED:
            self.alive = False
            return failed(a64.signal_of(layout, words))
        pages = []
        at = a64.RECORD_WORDS * 8
        for region in layout.outputs:
            pages.append(answer[at : at + len(region.pages)])
            at += len(region.pages)
        found = a64.violations(words, self._stack)
        return judge(layout, words[a64.VALUE], found, pages)

    def _request_of(self, layout: Layout) -> bytes:
        """Return the request: map, fill, protect, call, read the outputs, unmap."""
        parts: list[bytes] = []
        for region in layout.regions:
            size = len(region.pages)
            if not size:
                continue
            parts.append(_mmap(region.address, size, _RW, _FIXED_ANONYMOUS))
            parts.append(_request(_POKE, region.address, size))
            parts.append(region.pages)
            protection = _PROTECTION[region.protection]
            if protection != _RW:
                parts.append(_request(_SYSCALL, _MPROTECT, region.address, size, protection))
        record = a64.record(layout.code, layout.words, self._stack, self._flags)
        parts.append(_request(_POKE, _DATA, len(record)))
        parts.append(record)
        parts.append(_request(_CALL))
        for region in layout.outputs:
            parts.append(_request(_PEEK, region.address, len(region.pages)))
        parts.append(_mmap(layout.base, layout.end - layout.base, _NONE, _FIXED_ANONYMOUS))
        return b"".join(parts)

    def _set_up(self, vector_bits: int, streaming_bits: int | None, span: int) -> None:
        self._flags = 0
        if vector_bits:
            self._set_length("vector_bits", _SVE_SET_VL, vector_bits)
            self._flags |= 1 << a64.HAS_SVE
        if self._system_call(_PRCTL, _SME_GET_VL) > 0:
            self._flags |= 1 << a64.HAS_SME
            length = streaming_bits
            if length is None:
                length = 1 << vector_bits.bit_length() >> 1
            if length:
                self._set_length("streaming_bits", _SME_SET_VL, length)
        elif streaming_bits:
            raise RigError(f"streaming_bits={streaming_bits}: the emulated cpu has no SME")
        # All memory is taken once and unreachable until mapped over, so that nothing else of the
        # emulator can come to lie where a guard page is meant to be.
        self._arena = self._allocate(span, _NONE)
        stack = self._allocate(STACK_BYTES + 2 * PAGE, _NONE)
        self._stack = stack + PAGE + STACK_BYTES
        self._system_call(_MPROTECT, stack + PAGE, STACK_BYTES, _RW)
        other = self._allocate(SIGNAL_STACK_BYTES, _RW)
        self._poke(_SCRATCH, struct.pack("<QQQ", other, 0, SIGNAL_STACK_BYTES))
        self._system_call(_SIGALTSTACK, _SCRATCH, 0)
        flags = 0x08000000 | 4  # SA_ONSTACK, SA_SIGINFO
        self._poke(_SCRATCH, struct.pack("<QQQQ", _stub()[1], flags, 0, 0))
        for number in _SIGNALS:
            self._system_call(_RT_SIGACTION, int(number), _SCRATCH, 0, 8)

    def _set_length(self, name: str, option: int, bits: int) -> None:
        if bits % 128 or not 128 <= bits <= 2048:
            raise ValueError(f"{name}={bits}: must be a multiple of 128 from 128 to 2048")
        got = self._system_call(_PRCTL, option, bits // 8)
        if got < 0:
            raise RigError(f"{name}={bits}: the emulated cpu refuses (errno {-got})")
        if (got & 0xFFFF) * 8 != bits:
            raise RigError(f"{name}={bits}: the emulated cpu offers {(got & 0xFFFF) * 8}")

    def _allocate(self, size: int, protection: int) -> int:
        address = self._system_call(_MMAP, 0, max(size, PAGE), protection, _ANONYMOUS, -1, 0)
        if address < 0:
            raise RigError(f"the emulator cannot map {size} bytes (errno {-address})")
        return address

    def _system_call(self, number: int, *arguments: int) -> int:
        request = _request(_SYSCALL, number, *arguments)
        result_at = _DATA + 8 * a64.SYSCALL_RESULT
        answer = self._exchange(request + _request(_PEEK, result_at, 8), 8, 60.0)
        if len(answer) < 8:
            raise RigError(self._death())
        return int(struct.unpack("<q", answer)[0])

    def _poke(self, address: int, data: bytes) -> None:
        self._exchange(_request(_POKE, address, len(data)) + data, 0, 60.0)

    def _exchange(self, request: bytes, size: int, timeout: float) -> bytes:
        """Send a request and return size bytes, fewer if the process ended before."""
        answer = bytearray()
        left = memoryview(request)
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_WRITE)
            selector.register(self._out, selectors.EVENT_READ)
            while left or len(answer) < size:
                events = selector.select(max(0.0, end - time.monotonic()))
                if not events:
                    raise TimeoutError
                for key, _ in events:
                    if key.fd == self._out:
                        chunk = os.read(self._out, 1 << 20)
                        if not chunk:
                            return bytes(answer)
                        answer += chunk
                        continue
                    try:
                        left = left[os.write(self._in, left) :]
                    except BrokenPipeError:
                        left = memoryview(b"")
                    if not left:
                        selector.unregister(self._in)
        return bytes(answer)

    def _death(self) -> str:
        code = self._process.wait()
        assert self._process.stderr is not None
        text = self._process.stderr.read().decode(errors="replace").strip()
        return f"the emulator ended with status {code}: {text[-300:]}"


def _emulator() -> str | None:
    for name in ("qemu-aarch64", "qemu-aarch64-static"):
        found = shutil.which(name) or shutil.which(f"/usr/bin/{name}")
        if found is not None:
            return found
    return None


def _request(operation: int, *operands: int) -> bytes:
    values = [operation, *(operand % 2**64 for operand in operands)]
    return struct.pack("<8Q", *values, *([0] * (8 - len(values))))


def _mmap(address: int, size: int, protection: int, flags: int) -> bytes:
    return _request(_SYSCALL, _MMAP, address, size, protection, flags, -1, 0)


@functools.cache
def _stub() -> tuple[bytes, int]:
    """Return the server's code (entry at its start, mapped at _TEXT) and its signal handler."""
    a = a64.Assembler()
    a.label("loop")
    a.constant(20, _REQUEST)
    a.constant(21, 64)
    a.branch("read", link=True)
    a.constant(10, _REQUEST)
    a.load(9, 10, 0)
    a.load(20, 10, 1)
    a.load(21, 10, 2)
    a.branch_if_zero(9, "exit")
    for operation, name in ((_POKE, "poke"), (_PEEK, "peek"), (_CALL, "call")):
        a.compare(9, operation)
        a.branch_if(0, name)
    a.load(8, 10, 1)
    for i in range(6):
        a.load(i, 10, 2 + i)
    a.system_call()
    a.constant(9, _DATA)
    a.store(0, 9, a64.SYSCALL_RESULT)
    a.branch_if_bit_clear(0, 63, "loop")
    a.store(0, 9, a64.SYSCALL_ERROR)
    a.branch("loop")
    a.label("poke")
    a.branch("read", link=True)
    a.branch("loop")
    a.label("peek")
    a.branch("write", link=True)
    a.branch("loop")
    a.label("call")
    a.branch("guarded call", link=True)
    a.branch("answer", link=True)
    a.branch("loop")
    a.label("handler")
    a64.emit_signal_handler(a, _DATA)
    a.branch("answer", link=True)
    a.label("exit")
    a.constant(0, 0)
    a.system_call(_EXIT_GROUP)

    a.label("answer")
    a.constant(20, _DATA)
    a.constant(21, a64.RECORD_WORDS * 8)
    a.branch("write")
    for name, file, number in (("read", 0, _READ), ("write", 1, _WRITE)):
        a.label(name)  # x20: memory, x21: bytes; x30 stays the return address
        a.branch_if_zero(21, f"{name} done")
        a.constant(0, file)
        a.move(1, 20)
        a.move(2, 21)
        a.system_call(number)
        a.compare(0, 0)
        a.branch_if(13, "exit")
        a.add(20, 20, 0)
        a.subtract(21, 21, 0)
        a.branch(name)
        a.label(f"{name} done")
        a.ret()
    a.label("guarded call")
    a64.emit_guarded_call(a, _DATA)
    return a.code(), _TEXT + _ELF_HEADER + 4 * a.labels["handler"]


_ELF_HEADER = 64 + 2 * 56


def _elf() -> bytes:
    """Return a static executable: the stub at _TEXT (read, execute), _DATA (read, write)."""
    code, _ = _stub()
    size = _ELF_HEADER + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    fields = (2, 183, 1, _TEXT + _ELF_HEADER, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    header = ident + struct.pack("<HHIQQQIHHHHHH", *fields)
    text = struct.pack("<IIQQQQQQ", 1, 5, 0, _TEXT, _TEXT, size, size, 0x1000)
    data = struct.pack("<IIQQQQQQ", 1, 6, 0, _DATA, _DATA, 0, 0x2000, 0x1000)
    return header + text + data + code
