"""Runs a kernel one instruction at a time under qemu-user, through its gdb server.

The kernel and its memory are a static ELF file; registers are set and read through gdb's remote
protocol, so neither gdb nor a compiler is needed. Not here: what must hold at each step.

    with Guest(kernel) as guest:
        while guest.step(): ...
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import jitgen
from jitgen.emit.frame import ARGUMENTS

CODE, MEMORY, MEMORY_BYTES = 0x400000, 0x600000, 1 << 20
STACK = MEMORY + MEMORY_BYTES - 0x1000  # the caller's; it grows downwards, towards the matrices
ARGS, MATRICES = MEMORY, MEMORY + 0x1000
RETURN = CODE + 0x100000  # is never run: stepping ends there
#: architecture -> ELF machine, emulator, numbers in the remote protocol: of stack pointer, program
#: counter, argument; DWARF number -> remote number of the registers a function must keep
X86 = (62, "qemu-x86_64", 7, 16, 5, {3: 1, 6: 6, **{r: r for r in range(12, 16)}})
A64 = (183, "qemu-aarch64", 31, 32, 0, {
    **{r: r for r in range(19, 31)}, **{64 + r: 34 + r for r in range(8, 16)}
})  # fmt: skip
ARCHITECTURES = {"x86_64": X86, "aarch64": A64}


def available() -> str | None:
    """Why kernels cannot be stepped through here, or None."""
    missing = [a[1] for a in ARCHITECTURES.values() if not shutil.which(a[1])]
    return f"{', '.join(missing)} not installed (Debian, Ubuntu: qemu-user)" if missing else None


class Guest:
    """A process that stands before the first instruction of a kernel.

    vector_bits: of the thread, for SVE; default the kernel's.
    """

    def __init__(self, kernel: jitgen.Kernel, count: int = 2, vector_bits: int = 0) -> None:
        self._kernel = kernel
        values = ARCHITECTURES[kernel.target.architecture]
        self._machine, self._emulator, self.sp, self.pc, self._argument, self._kept = values
        self._count = count
        self._bits = vector_bits or kernel.target.vector_bits
        #: the value of each register to keep, by DWARF number, as it was at entry
        self.expected = {r: 0x5A5A_0000_0000_0000 | r << 8 | 0x77 for r in self._kept}
        #: general-purpose registers at this step, once they have been asked for
        self._words: tuple[int, ...] = ()

    def __enter__(self) -> Guest:
        self._folder = tempfile.TemporaryDirectory(prefix="jitgen-step-")
        program, door = (Path(self._folder.name, name) for name in ("kernel", "door"))
        program.write_bytes(self._elf())
        program.chmod(0o755)
        cpu = "max" if self._machine == 62 else f"max,sve-default-vector-length={self._bits // 8}"
        self._process = subprocess.Popen(
            [self._emulator, "-cpu", cpu, "-g", str(door), str(program)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._socket = _connect(door)
            self._ask("qXfer:features:read:target.xml:0,ffb")  # or it refuses "p"
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if hasattr(self, "_socket"):
            self._socket.close()
        self._folder.cleanup()

    def _elf(self) -> bytes:
        code = self._kernel.code
        header = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
            "<HHIQQQIHHHHHH", 2, self._machine, 1, CODE, 64, 0, 0, 64, 56, 2, 64, 0, 0
        )
        segments = struct.pack("<2I6Q", 1, 5, 0x1000, CODE, CODE, len(code), len(code), 0x1000)
        segments += struct.pack("<2I6Q", 1, 6, 0, MEMORY, MEMORY, 0, MEMORY_BYTES, 0x1000)
        return (header + segments).ljust(0x1000, b"\0") + code

    def _set_up(self) -> None:
        words = [0] * len(ARGUMENTS)
        for name, at in ARGUMENTS.items():
            words[at // 8] = self._count if name == "count" else MATRICES
        self.write(ARGS, struct.pack(f"<{len(words)}Q", *words))
        for register, value in self.expected.items():
            self._set(self._kept[register], value)
        stack = STACK
        if self._machine == 62:
            stack -= 8
            self.write(stack, struct.pack("<Q", RETURN))
        else:
            self.expected[30] = RETURN
            self._set(30, RETURN)
        for register, value in ((self._argument, ARGS), (self.sp, stack), (self.pc, CODE)):
            self._set(register, value)

    # ---- what a test looks at --------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Where in the kernel the next instruction is."""
        return self.general_at(self.pc) - CODE

    def step(self) -> bool:
        """Run one instruction; False once the kernel has returned."""
        self._words = ()
        answer = self._ask("s")
        assert answer[:3] == "T05", f"stopped with {answer}"
        return self.general_at(self.pc) != RETURN

    def general_at(self, number: int) -> int:
        """A general-purpose register, by its number in the remote protocol."""
        if not self._words:
            count = max(self.pc, self.sp) + 1
            self._words = struct.unpack_from(f"<{count}Q", bytes.fromhex(self._ask("g")))
        return self._words[number]

    def register(self, dwarf: int) -> int:
        """A general-purpose register, or the low half of a vector, by its DWARF number."""
        if dwarf >= 64:
            vector = bytes.fromhex(self._ask(f"p{dwarf - 64 + 34:x}"))
            return int.from_bytes(vector[:8], "little")
        if self._machine == 62 and dwarf < 4:
            dwarf = (0, 3, 2, 1)[dwarf]  # the remote protocol has rax, rbx, rcx, rdx
        return self.general_at(dwarf)

    def read(self, address: int) -> int:
        """A word of memory."""
        return int.from_bytes(bytes.fromhex(self._ask(f"m{address:x},8")), "little")

    def write(self, address: int, data: bytes) -> None:
        """Write memory."""
        assert self._ask(f"M{address:x},{len(data):x}:{data.hex()}") == "OK"

    # ---- the remote protocol ---------------------------------------------------------------------

    def _set(self, number: int, value: int) -> None:
        old = bytes.fromhex(self._ask(f"p{number:x}"))
        new = value.to_bytes(8, "little") + old[8:]
        assert self._ask(f"P{number:x}={new.hex()}") == "OK", f"register {number}"
        self._words = ()

    def _ask(self, request: str) -> str:
        data = request.encode()
        self._socket.sendall(b"$%b#%02x" % (data, sum(data) & 0xFF))
        answer = b""
        while not (answer.rpartition(b"#")[1] and len(answer.rpartition(b"#")[2]) == 2):
            part = self._socket.recv(1 << 16)
            assert part, "the emulator has ended"
            answer += part
        self._socket.sendall(b"+")
        return answer.partition(b"$")[2].rpartition(b"#")[0].decode("latin-1")


def _connect(door: Path) -> socket.socket:
    end = time.monotonic() + 20
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(door))
            client.settimeout(20)
            return client
        except OSError:
            client.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
