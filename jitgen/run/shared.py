"""The one lock of what all threads share: caches, the scratch pool, memory for machine code.

One, so that a signal handler that makes a layer in the midst of making another cannot wait for a
thread that waits for this one. It is re-entrant for the same reason, so what it guards must stand
at every step: a handler may find it half done. A fork waits for the lock, so that a child finds
nothing half done by threads that it does not have. Not here: what is guarded.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

#: Take it as `shared.lock`: a child may have another one
lock = threading.RLock()
#: Called before a fork, with the lock held
before_fork: list[Callable[[], None]] = []


def _before_fork() -> None:
    lock.acquire()
    for each in before_fork:
        each()


def _after_fork_in_parent() -> None:
    with contextlib.suppress(RuntimeError):  # an interrupt may have come before it was taken
        lock.release()


def _after_fork_in_child() -> None:
    global lock
    try:
        lock.release()
    except RuntimeError:  # not taken: a thread that is not there may have it
        lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )  # fmt: skip
