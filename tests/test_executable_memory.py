"""Memory for machine code: freed with its kernel, never writable and executable, safe over a fork.

Each test runs in a child process of its own, so that no other kernel is in the way.
"""

from __future__ import annotations

import os

import pytest
from child import run_child

import jitgen

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/maps") or not any(not r for r in jitgen.targets().values()),
    reason="needs Linux and a target that runs here",
)

COMMON = """
import gc, os, sys, threading, time
import numpy as np
import jitgen
from jitgen.gemm import kernel as kernel_module
from jitgen.run import loader

A, B = np.ones((2, 5, 7), np.float32), np.ones((2, 7, 9), np.float32)

def make(factor, **plan):
    return jitgen.brgemm(5, 9, 7, alpha=float(factor), plan=plan)

def right(kernel, factor):
    return bool((kernel(A, B, np.zeros((5, 9), np.float32)) == 14 * factor).all())

def mappings():
    with open("/proc/self/maps") as file:
        return [line.split() for line in file]

def jitgen_mappings():
    return sum("/dev/zero" in line for line in mappings())  # anonymous shared memory
"""


def test_a_dead_kernels_place_is_used_again() -> None:
    run_child(COMMON + """
addresses, arenas = set(), set()
for i in range(3000):
    kernel = make(i + 1)
    assert i % 100 or right(kernel, i + 1)
    addresses.add(kernel.address)
    del kernel
    jitgen.run.cache.KERNELS.clear()
    arenas.add(jitgen_mappings())
assert len(addresses) <= 3, len(addresses)
assert max(arenas) <= 4, arenas
""")


def test_a_handler_loads_code_in_the_midst_of_loading() -> None:
    """Each gets a place of its own."""
    run_child(COMMON + """
import builtins, signal
first, hole, last = (loader.place(b"\\xc3" * 64) for _ in range(3))
del hole
inside = []
signal.signal(signal.SIGALRM, lambda *_: inside.append(loader.place(b"\\x90" * 64)))
def interrupted(slots):
    for i, slot in enumerate(builtins.sorted(slots)):
        if i == 1 and not inside:
            signal.raise_signal(signal.SIGALRM)
        yield slot
loader.sorted = interrupted
placed = loader.place(b"\\xcc" * 64)
del loader.sorted
assert inside, "the handler did not come in between"
more = [loader.place(b"\\xcc" * 64) for _ in range(3)]
places = [code.address for code in (first, last, placed, *inside, *more)]
assert len({*places}) == len(places), places
assert bytes(loader.ffi.buffer(loader.ffi.cast("char *", inside[0].address), 64)) == b"\\x90" * 64
""")


def test_arenas_that_are_full_go_when_their_kernels_do() -> None:
    run_child(COMMON + """
kernels = [make(i + 1) for i in range(3000)]
assert len({k.address for k in kernels}) == 3000
assert all(right(k, i + 1) for i, k in enumerate(kernels) if i % 50 == 0)
assert jitgen_mappings() > 2
del kernels
jitgen.run.cache.KERNELS.clear()
gc.collect()
assert jitgen_mappings() <= 2, jitgen_mappings()
""")


def test_nothing_is_writable_and_executable() -> None:
    """Neither at one address, nor is a file descriptor left open."""
    run_child(COMMON + """
before = set(os.listdir("/proc/self/fd"))
assert right(make(3), 3)
assert set(os.listdir("/proc/self/fd")) == before
assert jitgen_mappings() == 2
both = [line for line in mappings() if "w" in line[1] and "x" in line[1]]
assert not both, both
""")


REFUSE = """
class Refusing:
    # the C library, but that it refuses to map pages twice, or a number of mprotects
    def __init__(self, mremap=False, mprotects=0):
        self.c, self.no_mremap, self.mprotects = loader.ffi.dlopen(None), mremap, mprotects
    def __getattr__(self, name):
        return getattr(self.c, name)
    def mprotect(self, address, size, protection):
        if not self.mprotects:
            return self.c.mprotect(address, size, protection)
        self.mprotects -= 1
        loader.ffi.errno = 13
        return -1
    def mremap(self, *arguments):
        if not self.no_mremap:
            return self.c.mremap(*arguments)
        loader.ffi.errno = 1
        return loader.ffi.cast("void *", -1)

def no_memory_file(*arguments):
    raise OSError(38, "no memory files here")
"""


@pytest.mark.parametrize(
    "refusal", ["mremap=True", "mprotects=1"], ids=["no second mapping", "not executable"]
)
def test_without_shared_executable_memory_pages_of_its_own_do(refusal: str) -> None:
    run_child(f"""{COMMON}{REFUSE}
jitgen.host()
loader._arena = None  # the probe of the processor has begun an arena
refusing = Refusing({refusal})
loader.libc = lambda: refusing
loader.os.memfd_create = no_memory_file
kernels = [make(i + 1) for i in range(20)]
assert all(right(k, i + 1) for i, k in enumerate(kernels))
both = [line for line in mappings() if "w" in line[1] and "x" in line[1]]
assert not both, both
number = len(mappings())
del kernels
jitgen.run.cache.KERNELS.clear()
gc.collect()
assert len(mappings()) < number
""")


def test_a_process_whose_written_memory_may_not_become_executable() -> None:
    """PR_SET_MDWE (65), which systemd's MemoryDenyWriteExecute resembles: a memory file does."""
    run_child(COMMON + """
if loader.libc().prctl(65, 1, 0, 0, 0):
    sys.exit(0)  # kernels before 6.3
loader._arena = None
kernels = [make(i + 1) for i in range(20)]
assert all(right(k, i + 1) for i, k in enumerate(kernels))
assert type(loader._arena) is loader.FileArena
""")


def test_refused_executable_memory_is_an_error_with_its_reason() -> None:
    """The kernel still has its code; nothing is left mapped."""
    run_child(COMMON + REFUSE + """
jitgen.host()
loader._arena = None  # the probe of the processor has begun an arena
libc, refusing = loader.libc, Refusing(mprotects=99)
loader.libc = lambda: refusing
loader.os.memfd_create = no_memory_file
kernel = make(2)
assert kernel.code
c = np.zeros((5, 9), np.float32)
for attempt in range(3):
    try:
        kernel(A, B, c)
    except loader.ExecutableMemoryError as error:
        assert isinstance(error, OSError) and error.errno == 13, error
        assert "executable memory" in str(error) and "Permission denied" in str(error), error
    else:
        raise SystemExit("it ran")
    gc.collect()
    number = number if attempt else len(mappings())
    assert len(mappings()) == number
assert not c.any()
loader.libc = libc
assert right(kernel, 2)
""")


def test_kernels_survive_a_fork_on_both_sides() -> None:
    """Either side runs the kernels of before the fork and makes new ones that the other's do not
    overwrite."""
    run_child(COMMON + """
old = [make(i + 1) for i in range(4)]
assert all(right(k, i + 1) for i, k in enumerate(old))
late = make(50)  # generated before the fork, loaded after it
from_child, to_parent = os.pipe()
child = os.fork()
new = [make(100 + i + (500 if child else 0)) for i in range(200)]
first = 100 + (500 if child else 0)
good = (
    all(right(k, i + 1) for i, k in enumerate(old))
    and right(late, 50)
    and all(right(k, first + i) for i, k in enumerate(new))
)
# freeing a kernel of before the fork must not give its place to a new one while the other side
# still runs it
if not child:
    old.clear()
    jitgen.run.cache.KERNELS.clear()
    gc.collect()
    new += [make(2000 + i) for i in range(200)]
    good = good and all(right(k, 2000 + i) for i, k in enumerate(new[200:]))
    os.write(to_parent, b"!")
    os._exit(0 if good else 1)
os.read(from_child, 1)
assert os.waitpid(child, 0)[1] == 0, "wrong in the child"
assert good and all(right(k, i + 1) for i, k in enumerate(old)), "wrong in the parent"
""")


def test_a_fork_while_threads_generate_and_load() -> None:
    """No lock stays held in the child."""
    run_child(COMMON + """
stop = False

def work(number):
    i = 0
    while not stop:
        i += 1
        make(number * 100000 + i).address
        shared.address

shared = make(7)
threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 4)]
for thread in threads:
    thread.start()
for i in range(60):
    shared = make(i + 900000)
    child = os.fork()
    if not child:
        os._exit(0 if right(shared, i + 900000) and right(make(3), 3) else 1)
    end = time.monotonic() + 20
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid or time.monotonic() > end:
            break
        time.sleep(0.001)
    if not pid:
        os.kill(child, 9)
        os.waitpid(child, 0)
        status = "deadlock"
    if status:
        break
stop = True
for thread in threads:
    thread.join()
assert status == 0, status
""")
