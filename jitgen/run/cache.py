"""Bounded caches, safe for many threads, that make each value once; what they hold, and forgetting.

All caches of the process are here: `KERNELS`, `CODE`, `STREAMS`, `PLANS`. Each is bounded in bytes,
and in entries where these have a size of their own. Not here: a cache on disk (`jitgen.run.disk`),
scratch memory (`jitgen.run.scratch`).

>>> cache = Cache("squares", entries=2)
>>> square = cache.of(lambda x: x * x)
>>> [square(x) for x in (1, 2, 3)], len(cache)
([1, 4, 9], 2)
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

from jitgen.run import shared

P = ParamSpec("P")
V = TypeVar("V")
MIB = 1 << 20
#: What an entry takes beside its value, in bytes, about
ENTRY_BYTES = 500


class lazy(Generic[V]):
    """A property that is computed when it is first asked for, and kept in the object.

    functools.cached_property takes a lock before Python 3.12, which a child that is forked by
    another thread would wait for forever.
    """

    def __init__(self, compute: Callable[[Any], V]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> V:
        if instance is None:
            return self  # type: ignore[return-value]  # the class's own attribute, for pydoc
        # not a data descriptor: from now on the object's own entry is found first
        value = instance.__dict__[self._name] = self._compute(instance)
        return value


class Cache:
    """The most recently used values, at most so many entries and bytes.

    Whoever asks for a missing value makes it under the lock: generating holds the interpreter
    anyway, and others find it made. A value's bytes are its `nbytes`, or its length if it is bytes,
    when it comes in.
    """

    def __init__(self, name: str, entries: int = 1 << 20, most_bytes: int = 1 << 62) -> None:
        self.name = name
        self.entries = entries
        self.most_bytes = most_bytes
        self.bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, made by `make()` if it is not there."""
        found: V | None = self.peek(key)
        if found is not None:
            return found
        with shared.lock:
            found = self.peek(key)
            if found is None:
                found = make()
                self._put(key, found)
            return found

    def peek(self, key: Hashable) -> Any:
        """The value of `key` if it is there, else None. Takes no lock."""
        entry = self._values.get(key)
        if entry is None:
            return None
        try:  # noqa: SIM105 - suppress() takes longer than all of this
            self._values.move_to_end(key)
        except KeyError:
            pass  # another thread's value has just pushed it out
        return entry[0]

    def _put(self, key: Hashable, value: Any) -> None:
        own = len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0)
        size = ENTRY_BYTES + own
        self._values[key] = value, size
        self.bytes += size
        if self.bytes > self.most_bytes:
            # anew: an exception at the wrong moment may have spoilt the sum. Not by the ordered
            # dict's own iterator, as `peek` changes the order without the lock
            self.bytes = sum(each for _, each in list(dict.values(self._values)))
        # the newest one stays, whatever its size: whoever asked for it has it anyway
        while len(self._values) > 1 and (
            len(self._values) > self.entries or self.bytes > self.most_bytes
        ):
            self.bytes -= self._values.popitem(last=False)[1][1]

    def of(self, function: Callable[P, V]) -> Callable[P, V]:
        """Decorator: keep what `function` returns for each set of arguments, which hash."""

        @functools.wraps(function)
        def cached(*args: P.args, **kwargs: P.kwargs) -> V:
            key = (function, args, *kwargs.items())
            return self.get(key, lambda: function(*args, **kwargs))

        return cached

    def clear(self) -> None:
        """Forget everything."""
        with shared.lock:
            self._values.clear()
            self.bytes = 0

    def info(self) -> dict[str, int]:
        """Entries and bytes, and how many there may be at most."""
        return {
            "entries": len(self._values), "bytes": self.bytes, "most_bytes": self.most_bytes,
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self._values)


#: Kernels of `jitgen.brgemm`
KERNELS = Cache("kernels", 4096, 64 * MIB)
#: Machine code of what layers call beside: packing, cells, pooling, ...
CODE = Cache("code", most_bytes=32 * MIB)
#: Streams of layers and what replays them
STREAMS = Cache("streams", most_bytes=64 * MIB)
#: Choices: widths of panels, blocks, curves
PLANS = Cache("plans", 8192, 16 * MIB)
ALL = (KERNELS, CODE, STREAMS, PLANS)
