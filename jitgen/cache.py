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
    """The `size` most recently used values. Threads that ask for the same missing key wait for
    the one that makes it; if that fails, each of them sees the error of its own attempt."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, made by `make()` if it is not there."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
                return value
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                value = self._values.get(key)
            if value is not None:
                return value
            try:
                value = make()
            except BaseException:
                with self._lock:
                    self._making.pop(key, None)
                raise
            with self._lock:
                # at once, so that nobody finds neither the value nor its maker
                self._making.pop(key, None)
                self._values[key] = value
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
        """In a forked child: locks that other threads held there are gone."""
        self._lock = threading.Lock()
        self._making = {}

    def __len__(self) -> int:
        return len(self._values)
