"""Measured choices: candidates are timed once on a machine, the winner is kept in a JSON file.

The file may be read, shared and deleted: {"format": ..., "winners": {key: name of a candidate}}.
What it holds is never trusted further than to name one of the candidates at hand. Not here: what
the candidates are (`jitgen.primitives.conv.cost`).
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from jitgen import doors
from jitgen.run import cpu, disk

FORMAT = "jitgen winners 1"
#: Bytes of a file that is worth reading
LARGEST = 16 << 20
#: Candidates that come into the last rounds, and the number of these
FINALISTS, ROUNDS = 4, 4
#: Characters of the progress bar
BAR = 30

T = TypeVar("T")
_warned: set[tuple[str, str]] = set()


def path() -> str:
    """$JITGEN_TUNE_FILE, or tuned.json in the user's cache folder beside the kernels
    (`jitgen.run.disk`)."""
    asked = os.environ.get("JITGEN_TUNE_FILE", "")
    return os.path.abspath(asked) if asked else f"{disk.default_directory()}/tuned.json"


def tuned(key: str, candidates: Mapping[str, T], seconds: Callable[[T], float]) -> T:
    """The candidate that the file names under `key` and this CPU's name, or else the fastest by
    `seconds`, which is then written to the file.

    `seconds` measures a candidate once; it is called several times, in turns. A file that cannot be
    used is left alone, with a warning.
    """
    key = doors.text("key", key)
    for name in doors.mapping("candidates", candidates):
        doors.text("candidates: name", name)
    if not candidates:
        raise ValueError(f"candidates={doors.shown(candidates)} is empty; there must be some")
    doors.function("seconds", seconds)
    key = f"{cpu.name()}, {key}"
    where = path()
    known, why = _read(where)
    if why:
        _warn(where, f"is ignored ({why})")
    name = known.get(key, "")
    if name not in candidates:
        if name:
            _warn(where, f"names no candidate: {name!r} for {key}")
        name = _fastest(candidates, seconds)
        if not why:
            try:
                _write(where, key, name)
            except OSError as error:
                _warn(where, f"takes no winners ({error.strerror})")
    return candidates[name]


def _fastest(candidates: Mapping[str, T], seconds: Callable[[T], float]) -> str:
    names = list(candidates)
    finalists = min(len(names), FINALISTS)
    total = len(names) + finalists * (ROUNDS - 1)
    best: dict[str, float] = {}
    with _progress(total) as step:
        for turn in range(ROUNDS):
            for name in names:
                taken = doors.number("result of seconds", seconds(candidates[name]))
                best[name] = min(best.get(name, float("inf")), taken)
                step()
            if turn == 0:
                names = sorted(names, key=best.__getitem__)[:finalists]
    return min(names, key=best.__getitem__)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr if that is a terminal; call the result at each step."""
    out, done = sys.stderr, 0
    shown = out is not None and out.isatty()

    def step() -> None:
        nonlocal done
        done += 1
        if shown:
            bar = "#" * (BAR * done // total)
            out.write(f"\rtuning [{bar:{BAR}}] {done}/{total}")
            out.flush()

    try:
        yield step
    finally:
        if shown:
            out.write("\r" + " " * (BAR + 30) + "\r")
            out.flush()


def _read(where: str) -> tuple[dict[str, str], str]:
    """The winners in the file, and why it must not be used, or ""."""
    try:
        # without O_NONBLOCK a named pipe would wait for a writer
        with open(where, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return {}, "it is no regular file"
            if found.st_uid not in (os.geteuid(), 0):
                return {}, f"it belongs to user {found.st_uid}"
            if found.st_size > LARGEST:
                return {}, f"it has {found.st_size} bytes, more than {LARGEST}"
            data = file.read(LARGEST)
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, str(error.strerror)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}, "it is no JSON"
    winners = content.get("winners") if isinstance(content, dict) else None
    if not isinstance(winners, dict) or content.get("format") != FORMAT:
        return {}, f"its format is not {FORMAT!r}"
    return {key: name for key, name in winners.items() if isinstance(name, str)}, ""


def _write(where: str, key: str, name: str) -> None:
    """Add a winner; other processes may do so at the same time."""
    import fcntl

    folder = os.path.dirname(where)
    os.makedirs(folder, 0o700, exist_ok=True)
    # the lock is a file of its own, as the other one is replaced
    with open(f"{where}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        winners, why = _read(where)
        if why:
            raise OSError(0, why)
        content = {"format": FORMAT, "winners": dict(sorted({**winners, key: name}.items()))}
        new = f"{where}.{os.urandom(8).hex()}.new"
        try:
            with open(new, "x") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
            os.replace(new, where)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise


def _warn(where: str, what: str) -> None:
    """Warn once in a process of a file and what is wrong with it."""
    if (where, what) not in _warned:
        _warned.add((where, what))
        warnings.warn(f"tuning: {where} {what}", RuntimeWarning, stacklevel=4)
