"""A bounded cache, safe for many threads, that makes each value once.

Not here: what is cached (kernels, `jitgen.kernel`) or a cache on disk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """The `size` most recently used values. Whoever asks for a missing one makes it under the lock:
    generating holds the interpreter anyway, and others find it made."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, made by `make()` if it is not there."""
        with self._lock:
            value = self.peek(key)
            if value is None:
                value = self._values[key] = make()
                while len(self._values) > self.size:
                    self._values.popitem(last=False)
            return value

    def peek(self, key: Hashable) -> V | None:
        """The value of `key` if it is there."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()

    def after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that is not there."""
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._values)
