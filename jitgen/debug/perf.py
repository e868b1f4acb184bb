"""perf's map of names: a line for each function, which `perf report` reads.

The file is /tmp/perf-PID.map whatever TMPDIR says: perf looks nowhere else. Others in this process
may write it too (CPython with -X perf, other JIT compilers), so lines are only ever added. Source:
tools/perf/Documentation/jit-interface.txt of Linux.
"""

from __future__ import annotations

import os
import time

from jitgen.debug.image import Image

FOLDER = "/tmp"


class PerfMap:
    """The map of this process."""

    inherited = private = False

    def __init__(self, directory: object) -> None:  # which the name of the map leaves no use for
        self._file = -1

    def add(self, image: Image) -> None:
        """Write a function's line. Raises OSError."""
        if self._file < 0:
            self._file = _open(f"{FOLDER}/perf-{os.getpid()}.map")
        os.write(self._file, f"{image.address:x} {len(image.code):x} {image.name}\n".encode())

    def close(self) -> None:
        """End; the file stays, for `perf report`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _open(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        if os.fstat(file).st_mtime < _started() - 1:
            os.ftruncate(file, 0)  # left by an earlier process of the same number
    except BaseException:
        os.close(file)
        raise
    return file


def _started() -> float:
    """When this process began, as `time.time` counts."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        # field 22; the second, the name, may hold spaces and parentheses
        ticks = int(file.read().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age
