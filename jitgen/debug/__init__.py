"""Names of emitted functions for perf and gdb: kernels, packing, the drivers of layers.

    JITGEN_DEBUG=perf,jitdump,gdb JITGEN_DEBUG_DIR=folder python program.py

or, at any point of a program, `jitgen.debug.enable("gdb")`. "perf" writes the map that
`perf report` reads, "jitdump" a dump for `perf inject` with code, listing and frames, "gdb"
registers an ELF image of each function with debuggers. Functions loaded before are announced too.
While a tool is on, they stay in memory, so that no address gets a second name. A process that
is forked writes files of its own. A tool that fails is turned off with one warning. See
docs/debugging.md. Not here: what the tools write.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Sequence
from typing import Protocol

from jitgen import doors
from jitgen.debug.image import Image, images
from jitgen.emit.routine import Routine
from jitgen.run import loader, shared

#: tool -> module, class
TOOLS = {
    "perf": ("jitgen.debug.perf", "PerfMap"),
    "jitdump": ("jitgen.debug.jitdump", "Jitdump"),
    "gdb": ("jitgen.debug.gdb", "Gdb"),
}
TOOLS_VARIABLE, DIRECTORY_VARIABLE = "JITGEN_DEBUG", "JITGEN_DEBUG_DIR"


class Tool(Protocol):
    """What is told of each function. It opens its files with the first one."""

    #: a forked child goes on with what its parent announced
    inherited: bool
    #: routines should have pages of their own (jitgen.run.loader.share)
    private: bool

    def add(self, image: Image) -> None:
        """Announce a function."""

    def close(self) -> None:
        """Announce no more; files stay as far as they are of use. `add` begins anew."""


#: All of it is guarded by shared.lock
_tools: dict[str, Tool] = {}
_images: list[Image] = []


def enable(*tools: str, directory: str | os.PathLike[str] | None = None) -> None:
    """Turn tools on ("perf", "jitdump", "gdb"), in addition to those that are.

    directory: where jitdump and gdb put their files; default for jitdump the current one, for gdb
    a temporary one that is removed when the process ends. A tool that is on stays as it is.

    Raises ValueError for another name, or a directory that is none.
    """
    for name in tools:
        doors.one_of("tool", name, TOOLS)
    if not tools:
        raise ValueError(f"name at least one tool: {', '.join(TOOLS)}")
    if directory is not None and not os.path.isdir(doors.path("directory", directory)):
        raise ValueError(f"directory={os.fspath(directory)!r} is no directory")
    with shared.lock:
        new = [name for name in dict.fromkeys(tools) if name not in _tools]
        for name in new:
            module, kind = TOOLS[name]
            _tools[name] = getattr(importlib.import_module(module), kind)(directory)
        _set_sharing()
        if loader.on_load is None:  # no tool was on: what is loaded is not known yet
            for code, known in list(loader.loaded.items()):
                routine = known()
                if routine is not None:
                    _images.extend(images(routine, code))
            loader.on_load = _on_load
        _announce(list(_images), new)


def disable() -> None:
    """Turn all tools off. Map and dump stay for perf; gdb forgets the functions."""
    with shared.lock:
        for name in list(_tools):
            _turn_off(name)


def enable_from_environment() -> None:
    """Turn on what JITGEN_DEBUG names; warn of what it should not."""
    wanted = [name.strip() for name in os.environ.get(TOOLS_VARIABLE, "").split(",")]
    good = [name for name in wanted if name in TOOLS]
    bad = [name for name in wanted if name and name not in TOOLS]
    if bad:
        _warn(f"{TOOLS_VARIABLE}: {', '.join(bad)} is not one of {', '.join(TOOLS)}")
    directory = os.environ.get(DIRECTORY_VARIABLE) or None
    if directory is not None and not os.path.isdir(directory):
        _warn(f"{DIRECTORY_VARIABLE}={directory!r} is no directory and is not used")
        directory = None
    if good:
        enable(*good, directory=directory)


def _on_load(routine: Routine, code: loader.Code) -> None:
    """Announce a routine that has been loaded; called with shared.lock held."""
    new = images(routine, code)
    _images.extend(new)
    _announce(new, list(_tools))


def _announce(new: Sequence[Image], tools: Sequence[str]) -> None:
    for name in tools:
        try:
            for image in new:
                _tools[name].add(image)
        except Exception as error:
            # whatever becomes of its name, a kernel must load and run
            reason = str(error) if isinstance(error, OSError) else repr(error)
            _turn_off(name)
            _warn(f"{name} is turned off: {reason}")


def _turn_off(name: str) -> None:
    tool = _tools.pop(name)
    with contextlib.suppress(OSError):
        tool.close()
    _set_sharing()
    if not _tools:
        loader.on_load = None
        _images.clear()


def _set_sharing() -> None:
    loader.share = not any(tool.private for tool in _tools.values())


def _after_fork() -> None:
    with shared.lock:
        again = [name for name, tool in _tools.items() if not tool.inherited]
        for name in again:
            _tools[name].close()
        _announce(list(_images), again)


def _warn(text: str) -> None:
    warnings.warn(f"jitgen.debug: {text}", RuntimeWarning, stacklevel=2)


if hasattr(os, "register_at_fork"):
    # behind the loader's own, which sets its lock free
    os.register_at_fork(after_in_child=_after_fork)
