"""Generated kernels kept on disk, for programs that start often: code in, the same code out.

Off unless asked for by `enable` or the environment variable JITGEN_CACHE (docs/disk-cache.md). What
lies on disk is executed, so it is believed only if it belongs to this user, has mode 0600 and
carries the digest of its bytes and of what was asked for; anything else is passed over with a
warning, and replaced. The digest finds damage, not malice: whoever can write this user's files can
run code anyway. Not here: the cache within a process (`jitgen.run.cache`) and what a kernel is
(`jitgen.gemm.kernel`).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
import time
import warnings
from collections.abc import Iterator
from typing import Any

from jitgen import doors
from jitgen.version import __version__

#: Bytes on disk that the cache may take, files rounded up to pages
LIMIT = 64 << 20
#: Folders that the kernels are spread over. Each keeps its part of the limit by itself, so that
#: nothing but storing a kernel costs a look around, and that at the files of one folder only.
FOLDERS = 64
PAGE = 4096
MAGIC = b"jitgen 1"
DIGEST = 32
#: Seconds after which a kernel's time of last use is worth a write
RECENT = 3600.0
#: What shapes code: packages, whole (None) or the modules told
SHAPING = {
    "jitgen.isa": None, "jitgen.emit": None, "jitgen.gemm": None,
    "jitgen": frozenset(("doors", "frozen", "records", "target", "types")),
}  # fmt: skip
#: Sources that changed after this time may not be the ones that run here: when this module was
#: imported, less what importing the others before it may have taken
UNCHANGED_SINCE = time.time() - 2.0


class Store:
    """Kernels in one directory: a file for each, named by the digest of what was asked for."""

    def __init__(self, directory: str, limit: int) -> None:
        try:
            from _blake2 import blake2b  # hashlib's own: hashlib itself loads OpenSSL, some 4 ms
        except ImportError:
            from hashlib import blake2b

        self.directory = directory
        self.part = limit // FOLDERS
        self._hash = blake2b
        self._failed = False
        text, self._files = _generator()
        self._stamp = blake2b(text, digest_size=DIGEST).digest()
        self._check_unchanged()

    def key(self, *request: object) -> bytes:
        """Digest of all that decides a kernel's code: the request and the generator."""
        text = " ".join(map(repr, request))
        return self._hash(text.encode(), key=self._stamp, digest_size=DIGEST).digest()

    def load(self, key: bytes, largest: int) -> bytes | None:
        """The code stored under `key`, of at most `largest` bytes; None if there is none to
        believe. Warns of a file that is there and cannot be believed."""
        path = self._path(key)
        try:
            # without O_NONBLOCK a named pipe would wait for a writer
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn(path, f"is ignored ({error.strerror})")
            return None
        try:
            found = os.fstat(fd)
            why = _why_not(found, largest + len(MAGIC) + DIGEST)
            data = b"" if why else os.read(fd, found.st_size + 1)
            if not why and time.time() - found.st_mtime > RECENT:
                with contextlib.suppress(OSError):
                    os.utime(fd)
        except OSError as error:
            why = str(error.strerror)
        finally:
            os.close(fd)
        if not why:
            code = data[len(MAGIC) + DIGEST :]
            if code and data == self._sealed(key, code):
                return code
            why = "it is damaged"
        _warn(path, f"is ignored ({why})")
        return None

    def save(self, key: bytes, code: bytes) -> None:
        """Store `code` under `key`, all of it or nothing; where that fails, warn and give up.

        Code larger than a folder's part of the limit is not stored.
        """
        data = self._sealed(key, code)
        if self._failed or _pages(len(data)) > self.part:
            return
        try:
            self._check_unchanged()
            path = self._path(key)
            self._write(path, data)
            self._trim(os.path.dirname(path))
        except OSError as error:
            self._failed = True
            _warn(self.directory, f"takes no kernels from this process ({error.strerror})")

    def _path(self, key: bytes) -> str:
        return f"{self.directory}/{key[0] % FOLDERS:02x}/{key.hex()}.code"

    def _sealed(self, key: bytes, code: bytes) -> bytes:
        """A file's bytes. Its digest is one of code and key, so no file passes for another."""
        return MAGIC + self._hash(code, key=key, digest_size=DIGEST).digest() + code

    def _check_unchanged(self) -> None:
        """Raises OSError unless the generator's files are what runs here.

        Python reads a module when it is first needed: once a file changes, this process may run
        what was there before, what is there now, or some of both.
        """
        if any(os.stat(path).st_ctime >= UNCHANGED_SINCE for path in self._files):
            raise OSError(0, "the generator's sources changed just before or since the start")

    def _write(self, path: str, data: bytes) -> None:
        folder = os.path.dirname(path)
        new = f"{folder}/{os.urandom(8).hex()}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(new, flags, 0o600)
        except FileNotFoundError:
            _make_directory(self.directory)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            fd = os.open(new, flags, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def _trim(self, folder: str) -> None:
        """Remove what was used longest ago until the folder keeps its part of the limit."""
        files = sorted(_files_in(folder))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.part:
                break
            with contextlib.suppress(FileNotFoundError):  # another process trims too
                os.unlink(path)
            total -= size


def _files_in(folder: str) -> Iterator[tuple[float, int, str]]:
    """(time of last use, bytes of disk, path) of our files in a folder, but for those that are
    being written."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                ours = entry.name.endswith(".code")
                left = entry.name.endswith(".new") and time.time() - found.st_mtime > RECENT
                if ours or left:
                    yield found.st_mtime, _pages(found.st_size), entry.path


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _why_not(found: os.stat_result, largest: int) -> str:
    """Why a file must not be read, or ""."""
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}"
    if stat.S_IMODE(found.st_mode) != 0o600:
        return f"its mode is {stat.S_IMODE(found.st_mode):04o}, not 0600"
    if found.st_size > largest:
        return f"it has {found.st_size} bytes, more than a kernel"
    return ""


def _generator() -> tuple[bytes, list[str]]:
    """The text that generates code, and the files it is in. Raises OSError if it cannot be read.

    Contents, not times: an installer may give two versions one time, and one size.
    """
    texts = [__version__.encode()]
    files: list[str] = []
    for name, wanted in SHAPING.items():
        package = importlib.import_module(name)
        folder = package.__path__[0]
        loader: Any = package.__loader__
        archive = getattr(loader, "archive", "")
        if archive:
            from importlib.resources import files as resources  # slow to import, seldom needed

            names = [each.name for each in resources(package).iterdir()]
        else:
            names = os.listdir(folder)
        modules = {name: name.partition(".")[0] for name in names if name.endswith((".py", ".pyc"))}
        wanted = wanted or frozenset(modules.values())
        if not wanted or not wanted <= set(modules.values()):
            raise OSError(0, f"the sources of {package.__name__} are not all there")
        for name in sorted(name for name, stem in modules.items() if stem in wanted):
            path = os.path.join(folder, name)
            texts += [name.encode(), loader.get_data(path), _older_bytecode(path)]
            files.append(archive or path)
    return b"".join(b"%d " % len(text) + text for text in texts), files


def _older_bytecode(path: str) -> bytes:
    """The bytecode of a module if its source has changed since, else nothing.

    Python runs such bytecode if size and second of the source's time are what they were.
    """
    from importlib.util import cache_from_source  # not needed where the cache is off

    try:
        compiled = cache_from_source(path)
        if os.stat(compiled).st_mtime > os.stat(path).st_ctime:
            return b""
        with open(compiled, "rb") as file:
            return file.read()
    except OSError:
        return b""


_warned: set[str] = set()


def _warn(path: str, what: str) -> None:
    """Warn once in a process of a file or directory."""
    if path not in _warned:
        _warned.add(path)
        warnings.warn(f"kernel cache: {path} {what}", RuntimeWarning, stacklevel=3)


def _make_directory(directory: str) -> None:
    """Make the directory if it is missing. Raises OSError if it is not this user's alone to write
    to."""
    os.makedirs(directory, 0o700, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(0, "it is no directory")
    if found.st_uid != os.geteuid():
        raise OSError(0, f"it belongs to user {found.st_uid}")
    if found.st_mode & 0o022:
        raise OSError(0, f"others may write to it: its mode is {stat.S_IMODE(found.st_mode):04o}")


_store: Store | None = None
_decided = False


def enable(directory: str | os.PathLike[str] | None = None, limit: int = LIMIT) -> None:
    """Keep kernels on disk from now on: in `directory` (default: $XDG_CACHE_HOME/jitgen, or
    ~/.cache/jitgen), in at most `limit` bytes.

    A directory that cannot be used gives a warning, and nothing is kept. Raises TypeError or
    ValueError for arguments that make no sense.
    """
    global _store, _decided
    limit = doors.size("limit", limit, FOLDERS * PAGE, None)
    path = default_directory() if directory is None else doors.path("directory", directory)
    _store, _decided = None, True
    path = os.path.abspath(path)
    if not hasattr(os, "geteuid"):
        _warn(path, "is not used (this system knows no owners of files)")
        return
    try:
        _make_directory(path)
        _store = Store(path, limit)
    except OSError as error:
        _warn(path, f"is not used ({error.strerror})")


def disable() -> None:
    """Keep no kernels on disk, and read none, from now on; what is there stays."""
    global _store, _decided
    _store, _decided = None, True


def default_directory() -> str:
    """$XDG_CACHE_HOME/jitgen, or ~/.cache/jitgen where that is unset or relative."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "jitgen")


def store() -> Store | None:
    """The store in use, if any: as `enable` and `disable` said, else as JITGEN_CACHE says ("1": the
    default directory; an absolute path: that one; unset, empty or "0": none)."""
    if not _decided:
        asked = os.environ.get("JITGEN_CACHE", "")
        if asked in ("", "0"):
            disable()
        elif asked == "1":
            enable()
        elif os.path.isabs(asked):
            enable(asked)
        else:
            disable()
            _warn(f"JITGEN_CACHE={asked}", "is ignored (it is neither 0, 1 nor an absolute path)")
    return _store
