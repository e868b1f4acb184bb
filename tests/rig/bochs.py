"""Runs x86-64 jobs in the Bochs emulator, which has AVX-512 whatever this computer has.

Many jobs share a boot of a ROM of our own (bochs_rom.S); each runs in ring 3 with poisoned
registers. The model decides which instructions exist. It checks results and ABI rules; time in
Bochs says nothing about a real processor.

    results = bochs.run([Job(code, [a, b, c])])
"""

from __future__ import annotations

import functools
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .bochs_image import Image, images
from .bochs_rom import rom
from .count import count
from .job import Job, Result, RigError, failed

IMAGE_BYTES = 32 << 20  # of one boot, about

_CONFIGURATION = """\
display_library: term
config_interface: textconfig
romimage: file=rom.bin
vgaromimage: file=vga.bin
memory: guest={megabytes}, host={megabytes}
cpu: model={model}, count=1, ips=50000000, reset_on_triple_fault=0
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=disk.img, mode=flat, cylinders={cylinders}, heads=16, \
spt=63, translation=lba
ata1: enabled=0
boot: disk
clock: sync=none, time0=1
port_e9_hack: enabled=1
log: bochs.log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
mouse: enabled=0
plugin_ctrl: speaker=0
"""
_CYLINDER = 16 * 63 * 512
_STARTED = b"\x01"  # the ROM's sign that the jobs begin; a dot follows after each


def available(model: str = "corei7_skylake_x") -> str | None:
    """Return None if jobs can run on a Bochs processor model, else why not."""
    program = _program()
    if program is None:
        return "bochs is not installed (Debian, Ubuntu: bochs and bochs-term)"
    if model not in _models(program):
        return f"this bochs has no processor model {model}"
    return None


def run(
    jobs: Sequence[Job],
    model: str = "corei7_skylake_x",
    *,
    timeout: float = 60.0,
    isa: str = "",
) -> list[Result]:
    """Run jobs and return their results in the same order.

    model: a Bochs processor; an instruction it lacks is reported as illegal. timeout: seconds for
    one job; jobs that shared a boot with one that hangs are run again without it. isa: name under
    which kernels that returned are counted, "" for not at all. RigError: no emulator or model, or
    it does not start.
    """
    reason = available(model)
    if reason is not None:
        raise RigError(reason)
    results: dict[int, Result] = {}
    while len(results) < len(jobs):
        left = [i for i in range(len(jobs)) if i not in results]
        at = 0
        for image in images([jobs[i] for i in left], IMAGE_BYTES):
            for offset, result in _boot(image, model, timeout).items():
                results[left[at + offset]] = result
            at += len(image.jobs)
    ordered = [results[i] for i in range(len(jobs))]
    if isa:
        count(isa, f"bochs {model}", sum(result.returned for result in ordered))
    return ordered


def _boot(image: Image, model: str, timeout: float) -> dict[int, Result]:
    """Boot once. Returns the results of all jobs, or only of the one that cut the boot short."""
    data = image.data()
    with tempfile.TemporaryDirectory(prefix="rig-bochs-") as name:
        folder = Path(name)
        cylinders = -(-len(data) // _CYLINDER)
        disk = folder / "disk.img"
        with open(disk, "wb") as file:
            file.write(data)
            file.truncate(cylinders * _CYLINDER)
        (folder / "rom.bin").write_bytes(rom())
        (folder / "vga.bin").write_bytes(bytes(512))  # must exist
        text = _CONFIGURATION.format(
            model=model,
            megabytes=max(4, 2 + -(-len(data) >> 20)),
            cylinders=cylinders,
        )
        (folder / "bochsrc").write_text(text)
        transfer = len(data) / 5e6  # seconds for the disk, on a slow computer
        printed, hung = _watch(folder, timeout + transfer, loading=10.0 + timeout + transfer)
        after = disk.read_bytes()
        number = len(image.jobs)
        if not hung and image.done(after) == number:
            return {i: image.result(i, after) for i in range(number)}
        _, started, dots = printed.partition(_STARTED)
        stopped_at = dots.count(b".")
        if started and stopped_at < number:
            reason = f"hung: not back within {timeout:g} s" if hung else "stopped the emulator"
            return {stopped_at: failed(reason)}
        log = folder / "bochs.log"
        told = log.read_text(errors="replace")[-1500:] if log.exists() else ""
        raise RigError(f"bochs did not run its jobs: {printed[-500:]!r}\n{told}")


def _watch(folder: Path, timeout: float, loading: float) -> tuple[bytes, bool]:
    """Run Bochs to its end. Returns what it printed, and whether it was ended for silence.

    timeout: seconds of silence allowed once the jobs run; loading: before that.
    """
    program = _program()
    assert program is not None
    # The term display wants a known terminal type though it shows nothing.
    environment = dict(os.environ, TERM="xterm")
    environment.setdefault("BXSHARE", "/usr/share/bochs")
    process = subprocess.Popen(
        [program, "-q", "-f", "bochsrc"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    printed = bytearray()
    ended = False
    try:
        try:
            process.stdin.write(b"c\n")  # builds with the debugger (Debian 12) wait for it
            process.stdin.close()
        except BrokenPipeError:
            pass  # ended already: the log says why
        started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                allowed = timeout
                if _STARTED not in printed:
                    allowed = loading - (time.monotonic() - started)
                if not selector.select(max(0.0, allowed)):
                    break
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    ended = True
                    break
                printed += chunk
    finally:
        if not ended:
            process.kill()
        process.stdout.close()
        process.wait()
    return bytes(printed), not ended


def _program() -> str | None:
    for name in ("bochs-bin", "/usr/bin/bochs-bin", "bochs", "/usr/bin/bochs"):
        found = shutil.which(name)
        if found is not None:
            return found
    return None


@functools.cache
def _models(program: str) -> frozenset[str]:
    told = subprocess.run(
        [program, "--help", "cpu"],
        check=False,  # its exit status means nothing
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return frozenset((told.stdout + told.stderr).split())
