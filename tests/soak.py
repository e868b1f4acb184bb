"""The soak: random layers of random sizes, made, run by several threads, interrupted, forked,
dropped.

    PYTHONPATH=. python tests/soak.py [seconds] [layers] [seed]     # ends with the first of both

Results are compared with NumPy's, exactly, on small integers; memory must stay flat and no thread
may be left. Prints what it did as JSON. Not here: any test (test_soak).
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import jitgen
from jitgen import AveragePool, Convolution, FullyConnected, Gru, Lstm, MaxPool, Rnn
from jitgen.run import scratch

#: MiB by which memory may have grown at the end, caches cleared
GROWTH = 64
#: Layers after which memory is looked at
EPOCH = 100


@dataclass
class Work:
    """A layer's pass on new data: what it is, the call, and whether a result is right."""

    name: str
    call: Callable[[], Any]
    right: Callable[[Any], bool]


def _integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)


def _windows(x: np.ndarray, taps: int, stride: int, padding: int, fill: float) -> np.ndarray:
    """Windows of NCHW images: n, c, rows, columns, taps, taps."""
    sides = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    wide = np.pad(x, sides, constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(wide, (taps, taps), axis=(2, 3))
    return seen[:, :, ::stride, ::stride]


def fully_connected(rnd: random.Random, rng: np.random.Generator) -> Work:
    n, c, k = (rnd.randint(1, 150) for _ in range(3))
    layer = FullyConnected(n, c, k, activation="relu", threads=rnd.randint(1, 3))
    x, w, b = _integers(rng, n, c), _integers(rng, k, c), _integers(rng, k)
    given = layer.pack_weights(w) if rnd.random() < 0.5 else w
    want = np.maximum(x.astype(float) @ w.T + b, 0)
    return Work(repr(layer), lambda: layer.forward(x, given, b), lambda y: bool((y == want).all()))


def convolution(rnd: random.Random, rng: np.random.Generator) -> Work:
    n, c, k = (rnd.randint(1, most) for most in (3, 40, 40))
    taps, stride = rnd.choice((1, 3, 5)), rnd.choice((1, 1, 2))
    h, w = (rnd.randint(taps, 30) for _ in range(2))
    layer = Convolution(
        n, c, h, w, k, taps, stride=stride, padding=taps // 2, bias=False, algorithm="direct",
        threads=rnd.randint(1, 3),
    )  # fmt: skip
    x, filters = _integers(rng, n, c, h, w), _integers(rng, *layer.w_shape)
    seen = _windows(x.astype(float), taps, stride, taps // 2, 0)
    want = np.einsum("nchwrs,kcrs->nkhw", seen, filters, optimize=True)
    return Work(
        repr(layer), lambda: layer.forward(x, filters), lambda y: bool((y == want).all())
    )


def winograd(rnd: random.Random, rng: np.random.Generator) -> Work:
    n, c, k, h, w = (rnd.randint(1, most) for most in (2, 30, 30, 30, 30))
    layer = Convolution(
        n, c, h, w, k, 3, padding=1, bias=False, algorithm="winograd", threads=rnd.randint(1, 3)
    )
    x, filters = _integers(rng, n, c, h, w), _integers(rng, *layer.w_shape)
    want = np.einsum(
        "nchwrs,kcrs->nkhw", _windows(x.astype(float), 3, 1, 1, 0), filters, optimize=True
    )
    near = 1e-4 * (np.abs(want).max() + 1)
    return Work(
        repr(layer), lambda: layer.forward(x, filters),
        lambda y: bool(np.abs(y - want).max() < near),
    )  # fmt: skip


def pooling(rnd: random.Random, rng: np.random.Generator) -> Work:
    n, c = rnd.randint(1, 3), rnd.randint(1, 40)
    taps, stride = rnd.choice((2, 3)), rnd.choice((1, 2))
    h, w = (rnd.randint(taps, 30) for _ in range(2))
    largest = rnd.random() < 0.5
    made: Any = MaxPool if largest else AveragePool
    layer = made(n, c, h, w, taps, stride=stride, padding=taps // 2, threads=rnd.randint(1, 3))
    x = _integers(rng, n, c, h, w)
    seen = _windows(x, taps, stride, taps // 2, -np.inf if largest else 0)
    want = seen.max(axis=(4, 5)) if largest else seen.mean(axis=(4, 5))
    return Work(
        repr(layer), lambda: layer.forward(x), lambda y: bool(np.abs(y - want).max() < 1e-5)
    )


def recurrent(rnd: random.Random, rng: np.random.Generator) -> Work:
    n, t, c, k = (rnd.randint(1, most) for most in (20, 8, 40, 40))
    kind: Any = rnd.choice((Lstm, Gru, Rnn))
    layer, other = kind(n, t, c, k, threads=rnd.randint(1, 3)), kind(n, t, c, k, threads=1)
    x, w, r = (_integers(rng, *layer.shapes[name]) / 16 for name in "xwr")
    b = _integers(rng, *layer.shapes["b"]) / 16
    lengths = rng.integers(0, t + 1, n) if rnd.random() < 0.5 else None
    want = other.forward(x, w, r, b, lengths=lengths)[0]
    return Work(
        repr(layer), lambda: layer.forward(x, w, r, b, lengths=lengths)[0],
        lambda y: bool(np.abs(y - want).max() < 1e-5),
    )  # fmt: skip


KINDS = (fully_connected, convolution, winograd, pooling, recurrent)


# ---- what is done with it -----------------------------------------------------------------------


def alone(work: Work, rnd: random.Random) -> None:
    """Called twice."""
    for _ in range(2):
        assert work.right(work.call()), work.name


def threads(work: Work, rnd: random.Random) -> None:
    """Called by several Python threads at the same time."""
    wrong: list[str] = []

    def run() -> None:
        if not all(work.right(work.call()) for _ in range(3)):
            wrong.append(work.name)

    others = [threading.Thread(target=run) for _ in range(rnd.randint(2, 4))]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert not wrong, wrong


def interrupted(work: Work, rnd: random.Random) -> None:
    """Interrupted at a random moment, then called again."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + rnd.random() / 200)
        while True:
            work.call()
    except KeyboardInterrupt:
        pass
    assert work.right(work.call()), work.name


def forked(work: Work, rnd: random.Random) -> None:
    """Called in a child, while other threads call it here."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            work.call()

    other = threading.Thread(target=run)
    other.start()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if work.right(work.call()) else 1)
    status = os.waitpid(child, 0)[1]
    stop.set()
    other.join()
    assert status == 0, (status, work.name)


ACTIONS = (alone, threads, interrupted, forked)


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def _tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def _start_of_memory(rnd: random.Random, rng: np.random.Generator) -> int:
    for kind in KINDS:  # what is imported and made once
        alone(kind(rnd, rng), rnd)
    # the runtime keeps the largest team that this thread had
    layer = FullyConnected(64, 64, 80, threads=3)
    layer.forward(_integers(rng, 64, 64), _integers(rng, 80, 64), _integers(rng, 80))
    jitgen.clear_caches()
    return _resident()


def main(seconds: float, layers: int, seed: int) -> None:
    """Soak; raises at the first thing that is wrong."""
    rnd, rng = random.Random(seed), np.random.default_rng(seed)
    start, idle = _start_of_memory(rnd, rng), _tasks()
    done: Counter[str] = Counter()
    most, end, count = start, time.monotonic() + seconds, 0
    while time.monotonic() < end and count < layers:
        kind, action = rnd.choice(KINDS), rnd.choice(ACTIONS)
        action(kind(rnd, rng), rnd)
        done[f"{kind.__name__}, {action.__name__}"] += 1
        count += 1
        if count % EPOCH == 0:
            if count % (10 * EPOCH) == 0:
                jitgen.clear_caches()
                assert _resident() <= start + GROWTH, (count, start, _resident())
            most = max(most, _resident())
            held = jitgen.cache_info()
            assert all(h["bytes"] <= h.get("most_bytes", 1 << 60) for h in held.values()), held
    jitgen.clear_caches()
    left = _resident()
    assert left <= start + GROWTH, (start, left)
    assert scratch.POOL.bytes == 0, scratch.POOL.bytes
    for _ in range(100):  # the runtime's threads end a little after their callers
        if _tasks() <= idle:
            break
        time.sleep(0.05)
    assert _tasks() <= idle, (idle, _tasks())
    print(json.dumps({"seed": seed, "layers": count, "MiB": [start, most, left], "done": done}))


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:]]
    limits = (*given, *(600.0, 1e9, random.randrange(1 << 32))[len(given) :])
    main(limits[0], int(limits[1]), int(limits[2]))
