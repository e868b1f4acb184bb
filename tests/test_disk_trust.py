"""What lies in the cache on disk and must not be believed: never loaded, never a crash.

Not here: files of another generator (`test_disk_generator`).
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from child import run_child
from disk_cache import SETTLED, again, enabled, small, spied, stored
from random_cases import SEED

from jitgen.run import disk

folder = pytest.fixture(enabled)
loads = pytest.fixture(spied)


def corrupt(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Damage a stored kernel in a way drawn at random; says which."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("bit", "bits", "cut", "longer", "other", "zeros", "all zeros", "noise",
                       "empty", "head", "wrong key"))  # fmt: skip
    if kind == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "bits":
        for at in rng.sample(range(len(data)), 20):
            data[at] ^= rng.randint(1, 255)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "longer":
        data += rng.randbytes(rng.choice((1, 8, 4096)))
    elif kind == "other":
        data = bytearray(rng.choice([o for o in others if o != path]).read_bytes())
    elif kind == "zeros":
        at = rng.choice([i for i, byte in enumerate(data) if byte])
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "all zeros":
        data = bytearray(len(data))
    elif kind == "noise":
        data = bytearray(rng.randbytes(len(data)))
    elif kind == "empty":
        data.clear()
    elif kind == "head":
        del data[: len(disk.MAGIC)]
    else:
        store = disk.store()
        assert store is not None
        data = bytearray(store._sealed(rng.randbytes(32), bytes(data[40:])))
    path.write_bytes(data)
    return kind


def test_a_thousand_corruptions_are_found(
    folder: Path, loads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None loads, none crashes, each gives a warning and is replaced."""
    rng = random.Random(SEED)
    good: dict[Path, tuple[float, bytes, bytes]] = {}
    for number in range(12):
        before = set(stored(folder))
        kernel = small(float(number))
        (path,) = set(stored(folder)) - before
        good[path] = (float(number), kernel.code, path.read_bytes())
    for number in range(1000):
        path = rng.choice(list(good))
        alpha, code, data = good[path]
        kind = corrupt(rng, path, list(good))
        monkeypatch.setattr(disk, "_warned", set())
        note = f"seed {SEED}, corruption {number}: {kind}"
        with pytest.warns(RuntimeWarning, match="is ignored"):
            kernel = again(lambda alpha=alpha: small(alpha))
        assert not loads[-1] and kernel.code == code, note
        assert path.read_bytes() == data, note
    again(lambda: small(3.0))
    assert loads[-1]


def test_the_corruption_test_can_fail(
    folder: Path, loads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the digest, a flipped bit is loaded."""
    code = small().code
    (path,) = stored(folder)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    class Equal(bytes):
        def __eq__(self, other: object) -> bool:
            return True

    monkeypatch.setattr(disk.Store, "_sealed", lambda *arguments: Equal())
    kernel = again(small)
    assert loads[-1] and kernel.code != code


def _link(path: Path) -> None:
    """The very bytes that belong there, behind a link."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _huge(path: Path) -> None:
    os.truncate(path, 1 << 33)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_link, "ymbolic"),
        (_pipe, "no regular file"),
        (_huge, "bytes, more than a kernel"),
        (lambda path: path.chmod(0o644), "mode is 0644, not 0600"),
        (lambda path: path.chmod(0o620), "mode is 0620"),
        (lambda path: path.chmod(0o602), "mode is 0602"),
        (lambda path: path.chmod(0o700), "mode is 0700"),
    ],
    ids=["link", "pipe", "huge", "readable", "group writes", "others write", "executable"],
)
def test_what_is_no_file_of_ours_is_replaced(
    folder: Path, loads: list[bool], damage: Callable[[Path], None], reason: str
) -> None:
    code = small().code
    (path,) = stored(folder)
    data = path.read_bytes()
    damage(path)
    with pytest.warns(RuntimeWarning, match=reason):
        assert again(small).code == code
    assert not loads[-1]
    found = path.lstat()
    assert stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    assert path.read_bytes() == data
    assert again(small).code == code and loads[-1]


def test_another_users_files_are_not_believed(
    folder: Path, loads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = small().code
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.warns(RuntimeWarning, match="belongs to user"):
        assert again(small).code == code
    assert not loads[-1]
    with pytest.warns(RuntimeWarning, match="kernels is not used .it belongs to user"):
        disk.enable(folder)
    assert disk.store() is None


def test_a_warning_comes_once_for_each_file(folder: Path) -> None:
    small()
    (path,) = stored(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            path.write_bytes(b"no kernel")
            again(small)
    assert [str(path) in str(each.message) for each in caught] == [True]


def test_modes_are_private_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0)
    try:
        small()
    finally:
        os.umask(old)
    (path,) = stored(folder)
    for each, mode in ((folder, 0o700), (path.parent, 0o700), (path, 0o600)):
        assert stat.S_IMODE(each.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720])
def test_a_directory_that_others_may_write_to_is_refused(
    folder: Path, tmp_path: Path, mode: int
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    with pytest.warns(RuntimeWarning, match=f"shared is not used .*{mode:04o}"):
        disk.enable(shared)
    assert small().code and stored(shared) == stored(folder) == []


def test_directories_that_are_none(folder: Path, tmp_path: Path) -> None:
    """A file, something below a file, and a link to a directory."""
    code = small().code
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("not a directory")
    link.symlink_to(folder)
    for path, reason in ((file, "exists"), (file / "below", "directory"), (link, "no directory")):
        with pytest.warns(RuntimeWarning, match=f"{path.name} is not used .*{reason}"):
            disk.enable(path)
        assert disk.store() is None
        assert again(small).code == code
    assert file.read_text() == "not a directory"


def test_a_directory_that_vanishes_is_made_again(folder: Path, loads: list[bool]) -> None:
    small()
    shutil.rmtree(folder)
    code = again(small).code
    assert not loads[-1]
    assert again(small).code == code and loads[-1]


def test_a_read_only_directory_is_read(tmp_path: Path) -> None:
    """As a user for whom permissions count. Kernels load; new ones are generated with a warning."""
    text = f"""
        import os, shutil, sys, tempfile, warnings
        import jitgen, jitgen.gemm.kernel
        {SETTLED}
        top = tempfile.mkdtemp()
        try:
            folder = top + "/kernels"
            disk.enable(folder)
            one = jitgen.brgemm(3, 5, 7, target="avx2").code
            names = [top] + [os.path.join(d, n) for d, ds, fs in os.walk(top) for n in ds + fs]
            if not os.geteuid():
                for name in names:
                    os.chown(name, 65534, 65534)
            for name in names:
                if os.path.isdir(name):
                    os.chmod(name, 0o500)
            if not os.geteuid():
                os.seteuid(65534)
            jitgen.clear_caches()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                disk.enable(folder)
                generate = jitgen.gemm.kernel.generate
                jitgen.gemm.kernel.generate = None
                assert jitgen.brgemm(3, 5, 7, target="avx2").code == one
                jitgen.gemm.kernel.generate = generate
                for n in range(9, 19):
                    assert jitgen.brgemm(3, n, 7, target="avx2").code
            texts = [str(each.message) for each in caught]
            assert len(texts) == 1 and "takes no kernels" in texts[0], texts
            assert "Permission denied" in texts[0], texts
        finally:
            os.seteuid(os.getuid())
            for name in names:
                if os.path.isdir(name):
                    os.chmod(name, 0o700)
            shutil.rmtree(top)
    """
    run_child(text)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on file sizes stands for it: writing fails in the middle, and is not tried again."""
    run_child(f"""
        import resource, warnings
        import jitgen
        {SETTLED}
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        disk.enable({str(tmp_path)!r})
        write, tried = disk.Store._write, []
        disk.Store._write = lambda self, *rest: tried.append(1) or write(self, *rest)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for n in range(1, 9):
                assert jitgen.brgemm(3, n, 7, target="avx2").code
        assert len(tried) == 1
        texts = [str(each.message) for each in caught]
        assert len(texts) == 1 and "File too large" in texts[0], texts
    """)
    assert stored(tmp_path) == []
