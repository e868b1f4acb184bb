"""Memory of layers that are gone comes back: caches bounded in bytes, scratch in a shared pool.

Not here: memory for machine code (test_executable_memory).
"""

from __future__ import annotations

import gc
import threading

import pytest
from child import run_child

import jitgen
from jitgen.run import cpu
from jitgen.run.cache import ENTRY_BYTES, Cache
from jitgen.run.scratch import Block, Pool, Seat

pytestmark = pytest.mark.skipif(
    not any(not why for why in cpu.targets().values()), reason="no target runs on this CPU"
)

COMMON = """
import gc, random
import numpy as np
import jitgen
from jitgen import Convolution
from jitgen import FullyConnected
from jitgen import MaxPool
from jitgen import Gru, Lstm

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

def bound():
    # what is stated: the bounds of all caches, and of idle scratch
    return sum(held.get("most_bytes", 0) for held in jitgen.cache_info().values()) >> 20

def forward(layer, *shapes):
    layer.forward(*(np.ones(shape, np.float32) for shape in shapes))

def convolution(batch, channels, height, width, **options):
    layer = Convolution(batch, channels, height, width, 64, 3, padding=1, threads=2, **options)
    forward(layer, layer.x_shape, layer.w_shape, (64,))
"""


def test_convolutions_that_are_gone() -> None:
    run_child(COMMON + """
convolution(1, 8, 8, 8)
start = resident()
for height in range(112, 132):
    convolution(8, 64, height, 112)
    # what the last call's arrays took may be there too
    assert resident() <= start + bound() + 64, resident()
jitgen.clear_caches()
assert resident() <= start + 64, resident()
""")


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_many_layers(count: int) -> None:
    """Made, used and dropped; all kinds."""
    run_child(COMMON + """
random.seed(7)
convolution(1, 8, 8, 8)
start = resident()
for i in range(COUNT):
    n, c, k, h = (random.randint(1, most) for most in (30, 200, 200, 16))
    match i % 5:
        case 0:
            forward(FullyConnected(n, c, k), (n, c), (k, c), (k,))
        case 1:
            convolution(random.randint(1, 4), c, h, random.randint(1, 40), layout="nhwc")
        case 2:
            layer = MaxPool(n, c, h + 2, h + 3, 3, stride=2, layout="nchw")
            forward(layer, layer.x_shape)
        case 3 | 4:
            layer = (Lstm if i % 5 == 3 else Gru)(n, h, c, k)
            forward(layer, *(layer.shapes[name] for name in "xwr"), layer.shapes["b"])
    assert resident() <= start + bound(), resident()
held = jitgen.cache_info()
assert all(each["bytes"] <= each.get("most_bytes", 1 << 40) for each in held.values()), held
assert any(each["bytes"] for each in held.values())
jitgen.clear_caches()
assert resident() <= start + 64, (start, resident())
held = jitgen.cache_info()
assert not any(held[name]["bytes"] for name in held if name != "executable"), held
""".replace("COUNT", str(count)), timeout=300)


@pytest.mark.parametrize("mib", ["0", "1", "512"])
def test_layers_that_take_each_others_memory(mib: str) -> None:
    """What one layer leaves in it, another must not see: borders are zeros."""
    run_child(COMMON + """
from jitgen.primitives.layers.convolution import PASSES
random.seed(3)
layers = [
    Convolution(2, 16, h, w, 24, taps, padding=taps // 2, stride=stride, bias=False, threads=2,
                algorithm=algorithm)
    for h, w, taps, stride, algorithm in (
        (13, 17, 3, 1, "direct"), (17, 13, 5, 1, None), (14, 16, 3, 2, None),
        (13, 17, 3, 1, "winograd"), (6, 30, 3, 1, "direct"),
    )
]
ones = {}
def run(i):
    layer = layers[i]
    y = layer.forward(np.ones(layer.x_shape, np.float32), np.ones(layer.w_shape, np.float32))
    dx = layer.backward_data(np.ones(layer.y_shape, np.float32), np.ones(layer.w_shape, np.float32))
    return np.append(y.ravel(), dx.ravel())
for i in range(len(layers)):
    jitgen.clear_caches()
    ones[i] = run(i)
    assert np.abs(ones[i] - np.round(ones[i])).max() < 1e-3
for _ in range(60):
    i = random.randrange(len(layers))
    assert (run(i) == ones[i]).all(), i
held = jitgen.cache_info()["scratch"]
assert held["bytes"] <= held["most_bytes"] == MIB << 20, held
""".replace("MIB", mib), JITGEN_SCRATCH_MIB=mib)  # fmt: skip


def test_a_bound_that_is_no_number() -> None:
    run_child(COMMON + """
try:
    convolution(1, 8, 8, 8)
except ValueError as error:
    assert "JITGEN_SCRATCH_MIB='plenty'" in str(error), error
else:
    raise SystemExit("accepted")
""", JITGEN_SCRATCH_MIB="plenty")  # fmt: skip


def pool_of(most_bytes: int) -> Pool:
    pool = Pool()
    pool.__dict__["most_bytes"] = most_bytes
    return pool


def use(pool: Pool, seat: Seat, size: int, leave: int = 7) -> Block:
    """What a layer does in a call."""
    block = seat.blocks.pop() if seat.blocks else pool.take(size)
    block.memory[:] = leave
    seat.used = next(pool.clock)
    if not pool.full:
        seat.blocks.append(block)
    return block


def test_a_block_begins_with_zeros_and_comes_back_as_it_was_left() -> None:
    pool = pool_of(10_000)
    seat = Seat(pool)
    block = pool.take(1000)
    assert not block.memory.any() and block.memory.__array_interface__["data"][0] % 4096 == 0
    assert pool.bytes == 1000 and pool.info()["bytes"] == 0
    seat.blocks.append(block)
    assert use(pool, seat, 1000) is block
    assert pool.info() == {"entries": 1, "bytes": 1000, "most_bytes": 10_000}
    # what an exception loses is not lost to the pool
    seat.blocks.pop()
    del block
    assert pool.bytes == 0


def test_another_layer_sees_zeros() -> None:
    """It takes the memory of the one that has waited longest, where a new block is too much."""
    pool = pool_of(2500)
    first, second, third = (Seat(pool) for _ in range(3))
    longest = use(pool, first, 1000)
    use(pool, second, 1000)
    use(pool, second, 1000)
    taken = pool.take(900)
    assert taken is longest and not taken.memory[:900].any() and not first.blocks
    assert taken.views is None and pool.bytes == 2000
    third.blocks.append(taken)
    del longest, taken
    # nobody has one that suits: others go until a new one fits
    large = pool.take(2400)
    assert pool.bytes == 2400 and not second.blocks and not large.memory.any()


def test_the_pool_is_bounded_and_can_be_emptied() -> None:
    pool = pool_of(3000)
    seats = [Seat(pool) for _ in range(9)]
    # nine calls at the same time get what they need; afterwards three blocks stay
    blocks = [pool.take(1000) for _ in seats]
    assert pool.bytes == 9000
    while blocks:
        block, seat = blocks.pop(), seats[len(blocks)]
        if not pool.full:
            seat.blocks.append(block)
        del block
    assert pool.info()["entries"] == 3 and pool.bytes == 3000
    pool.clear()
    assert pool.info()["entries"] == pool.bytes == 0
    # a layer that is gone leaves nothing
    use(pool, seats[0], 500)
    assert pool.bytes == 500
    del seats, seat
    gc.collect()
    assert pool.bytes == 0


def test_what_fails_or_is_interrupted_is_not_counted() -> None:
    pool = pool_of(1 << 62)
    for _ in range(3):
        with pytest.raises((OSError, OverflowError, ValueError)):
            pool.take(1 << 60)
    assert pool.bytes == 0 and not pool.full
    run_child("""
    import signal
    from jitgen.run.scratch import POOL, Seat
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    seat, interrupts = Seat(POOL), 0
    for _ in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, 2e-4)
            while True:
                block = POOL.take(1 << 16)
                del block
        except KeyboardInterrupt:
            interrupts += 1
    block = None
    assert interrupts == 300 and POOL.bytes == 0, (interrupts, POOL.bytes)
    """)


def test_layers_that_are_gone_are_forgotten() -> None:
    pool = pool_of(1000)
    for _ in range(1000):
        Seat(pool)
    keep = [Seat(pool) for _ in range(500)]
    for _ in range(3000):
        keep.append(Seat(pool))
        keep.pop(0)
    assert len(pool._seats) < 3 * len(keep)


def test_looking_while_others_make_layers_and_values() -> None:
    """Neither the pool nor a cache minds what other threads do to it meanwhile."""
    run_child("""
    import sys, threading
    sys.setswitchinterval(1e-5)
    from jitgen.run import cache, scratch
    pool = scratch.POOL
    keep = [scratch.Seat(pool) for _ in range(500)]
    full = cache.Cache("full", most_bytes=500 * 600)
    for i in range(500):
        full.get(i, lambda: b"x" * 100)
    stop = False
    def work():
        while not stop:
            scratch.Seat(pool)
            full.get(499, lambda: b"x" * 100)
    others = [threading.Thread(target=work) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for i in range(500, 2500):
            full.get(i, lambda: b"x" * 100)
            if i % 10 == 0:
                pool.info(), pool._another(1 << 20)
    finally:
        stop = True
        for other in others:
            other.join()
    assert full.bytes <= full.most_bytes
    """)


def test_many_threads_at_the_pool() -> None:
    """Nobody gets what another one has."""
    pool, wrong = pool_of(6000), []
    seats = [Seat(pool) for _ in range(4)]

    def work(number: int) -> None:
        for i in range(1500):
            seat = seats[i % 4]
            try:
                block = seat.blocks.pop()
            except IndexError:
                block = pool.take(500 + 300 * (i % 4))
            block.memory[:] = number
            if not (block.memory == number).all():
                wrong.append(number)
            seat.used = next(pool.clock)
            if not pool.full:
                seat.blocks.append(block)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pool.bytes == pool.info()["bytes"] <= 6000


def test_a_cache_is_bounded_in_bytes() -> None:
    cache = Cache("texts", most_bytes=10 * (1000 + ENTRY_BYTES))
    make = cache.of(lambda letter: letter * 1000)
    for i in range(50):
        make(bytes([i]))
        assert cache.bytes <= cache.most_bytes
    assert len(cache) == 10
    made = make(bytes([49]))
    assert make(bytes([49])) is made
    # the newest one stays even where it alone is too large
    assert len(make(b"x" * 100)) == 100_000 and len(cache) == 1
    cache.clear()
    assert cache.info() == {"entries": 0, "bytes": 0, "most_bytes": cache.most_bytes}


def test_what_is_held_has_names() -> None:
    held = jitgen.cache_info()
    assert list(held) == ["kernels", "code", "streams", "plans", "scratch", "executable"]
    before = held["kernels"]["entries"]
    jitgen.clear_caches()
    jitgen.brgemm(3, 4, 5)
    assert jitgen.cache_info()["kernels"]["entries"] == 1 <= before + 1
