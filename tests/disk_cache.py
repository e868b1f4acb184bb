"""Help for tests of the cache on disk: an enabled cache, what it loads, small kernels to put in.

Fixtures are made of `enabled` and `spied` where they are used. Not here: any test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jitgen
from jitgen.run import disk

#: in a child: the sources may have been copied a moment ago
SETTLED = "from jitgen.run import disk; disk.UNCHANGED_SINCE += 1e6\n"


def enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An enabled cache's directory; whoever edits the sources while tests run does not matter."""
    monkeypatch.setattr(disk, "UNCHANGED_SINCE", disk.UNCHANGED_SINCE + 1e6)
    monkeypatch.setattr(disk, "_store", None)
    monkeypatch.setattr(disk, "_decided", False)
    monkeypatch.setattr(disk, "_warned", set())
    jitgen.clear_caches()
    folder = tmp_path / "kernels"
    disk.enable(folder)
    yield folder
    jitgen.clear_caches()


def spied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request so far found its code on disk."""
    found: list[bool] = []
    load = disk.Store.load

    def spy(self: disk.Store, key: bytes, largest: int) -> bytes | None:
        code = load(self, key, largest)
        found.append(code is not None)
        return code

    monkeypatch.setattr(disk.Store, "load", spy)
    return found


def stored(folder: Path) -> list[Path]:
    """All files of a cache."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def again(make: Callable[[], jitgen.Kernel]) -> jitgen.Kernel:
    """The kernel as a process finds it that has nothing in memory."""
    jitgen.clear_caches()
    return make()


def small(alpha: float = 1.0, **more: Any) -> jitgen.Kernel:
    """A kernel that is quickly generated, another one for each alpha."""
    return jitgen.brgemm(3, 5, 7, alpha=alpha, target="avx2", **more)


def disk_bytes(folder: Path) -> int:
    """Bytes of disk that a cache's files take."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in stored(folder))
