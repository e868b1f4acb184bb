"""What becomes of a process around a layer: how it ends, forks, is interrupted. Programs for child
processes; each prints "fine" if all went well.

    run("fork after jitgen used threads", runs=3)

`NAMES` lists them. A child that hangs is ended after a while and counts as a failure, and so does
one that leaves a message of an exception behind. Not here: which runs are tests (test_processes,
test_soak).
"""

from __future__ import annotations

import glob
import importlib.util
import os
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Seconds after which a child counts as hanging, and what a run of a program may take beyond
LIMIT, LIMIT_A_RUN = 40.0, 4.0

#: What all programs have: a layer that two threads share, with a barrier, and exact results
COMMON = """
import ctypes, gc, os, random, signal, sys, threading, time
import numpy as np
from jitgen.run import threads
from jitgen import FullyConnected

RUNS = int(sys.argv[1])
SHAPE = 64, 64, 80
WITHOUT = "WITHOUT_OPENMP" in os.environ

def layer(count=2):
    made = FullyConnected(*SHAPE, threads=count)
    assert count == 1 or made.stream(packed=False).threads == count
    return made

def without_openmp():
    # what a process finds that was forked, or has no runtime
    threads.usable_openmp = lambda: None

def data():
    n, c, k = SHAPE
    rng = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))
    return [rng.integers(-8, 9, s).astype(np.float32) for s in ((n, c), (k, c), (k,))]

def right(made, arrays=None, out=None):
    x, w, b = arrays or data()
    y = made.forward(x, w, b, out)
    return bool((y == x.astype(np.float64) @ w.T + b).all())

def in_a_child(work):
    # the child's answer; it ends by itself where it would hang
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(30)
            code = 0 if work() else 2
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]

def tasks():
    return len(os.listdir("/proc/self/task"))

if WITHOUT:
    without_openmp()
"""

EXIT = """
for packed in (False, True):
    made = layer()
    x, w, b = data()
    made.forward(x, made.pack_weights(w) if packed else w, b)
"""

EXIT_WITH_THREADS_INSIDE = """
# the interpreter ends while threads that nobody waits for are in the middle of layers
made, arrays = layer(), data()
going = threading.Event()
def work():
    while True:
        right(made, arrays)
        going.set()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
going.wait()
"""

FORK_BEFORE = """
for _ in range(RUNS):
    assert in_a_child(lambda: right(layer())) == 0
"""

FORK_AFTER_JITGEN = """
made = layer()
assert right(made)
for _ in range(RUNS):
    assert in_a_child(lambda: right(made) and right(layer()) and in_a_child(
        lambda: right(made)) == 0) == 0
    assert right(made)
"""

FORK_AFTER_TORCH = """
import torch
torch.set_num_threads(2)
a = torch.rand(500, 500)
made = layer()
for _ in range(RUNS):
    a @ a
    (a + 1).sum()
    assert in_a_child(lambda: right(made) and right(layer())) == 0
    assert right(made) or _ % 2
"""


#: Another library makes a team, as PyTorch does: GNU's runtime, called past jitgen
OTHERS_TEAM = """
import ctypes, os, signal, sys
def others_team():
    try:
        library = ctypes.CDLL("libgomp.so.1")
    except OSError:
        return  # there is no runtime that could be in the way
    seen = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    library.GOMP_parallel(kind(lambda _: seen.append(1)), None, 2, 0)
    assert len(seen) == 2
"""

FORK_AFTER_OTHERS = OTHERS_TEAM + """
for _ in range(RUNS):
    others_team()
    assert in_a_child(lambda: right(layer())) == 0
made = layer()
assert right(made)
others_team()
assert in_a_child(lambda: right(made)) == 0
"""

FORK_FIRST = """
child = os.fork()
if child:
    sys.stdout.flush()
    os._exit(0 if os.waitpid(child, 0)[1] == 0 else 1)
signal.alarm(30)
"""

FORK_WHILE_OTHERS_RUN = """
made, arrays = layer(), data()
stop = threading.Event()
wrong = []
def work():
    while not stop.is_set():
        if not right(made, arrays):
            wrong.append(1)
others = [threading.Thread(target=work) for _ in range(3)]
for other in others:
    other.start()
for _ in range(RUNS):
    time.sleep(random.random() / 500)
    assert in_a_child(lambda: right(made) and right(layer())) == 0
stop.set()
for other in others:
    other.join()
assert not wrong
"""

DATA_LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __init__(self):
        self.layer = None
    def __len__(self):
        return 4
    def __getitem__(self, i):
        self.layer = self.layer or layer()
        return torch.tensor(float(right(self.layer)))

if __name__ == "__main__":
    torch.set_num_threads(2)
    a = torch.rand(500, 500)
    a @ a
    for _ in range(RUNS):
        a @ a
        loader = DataLoader(
            Squares(), num_workers=1, multiprocessing_context=sys.argv[2], timeout=60
        )
        assert all(bool(part.all()) for part in loader)
"""

INTERRUPT = """
# Ctrl-C at random moments: afterwards nobody writes to the arrays any more
made = layer()
assert right(made)
seen = 0
for _ in range(RUNS):
    x, w, b = data()
    y = np.empty((SHAPE[0], SHAPE[2]), np.float32)
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, random.random() / 400 + 1e-6)
        while True:
            made.forward(x, w, b, y)
    except KeyboardInterrupt:
        seen += 1
    y.fill(7)
    x.fill(np.nan)
    for _ in range(3):
        assert (y == 7).all()
    del x, w, b, y
    assert right(made)
assert seen == RUNS
"""

INTERRUPT_OFTEN = """
# a handler that raises every 1.1 ms
made, arrays = layer(), data()
assert right(made, arrays)
class Again(Exception):
    pass
armed = False
def again(*_):
    global armed
    if armed:
        armed = False
        raise Again
signal.signal(signal.SIGALRM, again)
signal.setitimer(signal.ITIMER_REAL, 0.0011, 0.0011)
calls = interrupted = 0
end = time.monotonic() + 0.2 * RUNS
while time.monotonic() < end:
    try:
        armed = True
        made.forward(*arrays)
        armed = False
        calls += 1
    except Again:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert interrupted, calls
assert right(made, arrays)
assert tasks() < 8, tasks()
"""

HANDLER_CALLS = """
# a handler that runs the layer itself, whatever it interrupts
made, arrays = layer(), data()
inside = []
signal.signal(signal.SIGALRM, lambda *_: inside.append(right(made, arrays)))
for _ in range(RUNS):
    begun = len(inside)
    signal.setitimer(signal.ITIMER_REAL, random.random() / 500 + 1e-6)
    while len(inside) == begun:
        assert right(made, arrays)
assert all(inside)
"""

HANDLER_MAKES = """
# a handler that makes layers, and forgets others', whatever it interrupts
import jitgen
inside = []
def again(*_):
    made = FullyConnected(*(s + random.randrange(9) for s in SHAPE), threads=2)
    n, c, k = made.layer.batch, made.layer.in_features, made.layer.out_features
    made.forward(*(np.ones(s, np.float32) for s in ((n, c), (k, c), (k,))))
    jitgen.cache_info()
    if random.random() < 0.3:
        jitgen.clear_caches()
    inside.append(right(layer()))
stop = threading.Event()
wrong = []
def work():
    while not stop.is_set():
        if not right(FullyConnected(*SHAPE, threads=1)):
            wrong.append(1)
again()  # imports what is imported late: Python 3.11's own import fails in a handler
other = threading.Thread(target=work, daemon=True)
other.start()
signal.signal(signal.SIGALRM, again)
for _ in range(RUNS):
    begun = len(inside)
    signal.setitimer(signal.ITIMER_REAL, random.random() / 50 + 1e-6)
    while len(inside) == begun:
        jitgen.clear_caches()
        assert right(layer())
stop.set()
other.join()
assert all(inside) and not wrong
"""

THREADS_END = """
# threads of the program's own come and go: nothing stays behind
made, arrays = layer(), data()
assert right(made, arrays)
least = tasks()
found = []
def work():
    found.append(right(made, arrays))
for _ in range(RUNS):
    others = [threading.Thread(target=work) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
assert all(found) and len(found) == 4 * RUNS
for _ in range(100):
    if tasks() <= least:
        break
    time.sleep(0.05)
assert tasks() <= least, (tasks(), least)
"""

SUB_INTERPRETERS = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
made = layer()
assert right(made)
text = '''
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = {path!r}
import numpy as np
from jitgen import FullyConnected
layer = FullyConnected(64, 64, 80, threads=2)
x, w, b = (np.ones(s, np.float32) for s in ((64, 64), (80, 64), (80,)))
assert (layer.forward(x, w, b) == 65).all()
'''.format(path=sys.path)
refused = ""
for _ in range(RUNS):
    inner = interpreters.create()
    try:
        refused = refused or str(interpreters.run_string(inner, text) or "")
    except Exception as error:
        refused = str(error)
    interpreters.destroy(inner)
    assert right(made)
# NumPy may refuse to be imported there: then there is nothing of ours to run
assert not refused or "numpy" in refused.lower() or "more than once" in refused, refused
"""

#: Settings under which a program must end well
SETTINGS = {
    "active": {"OMP_WAIT_POLICY": "active"},
    "spinning": {"GOMP_SPINCOUNT": "10000000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "bound": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    "limited": {"OMP_THREAD_LIMIT": "1"},
}
OWN = {"WITHOUT_OPENMP": "1"}
#: LLVM's runtime, where it is installed, in place of GNU's
LLVM = next(iter(sorted(glob.glob("/usr/lib/llvm-*/lib/libomp.so.5"))), "")
WITH_LLVM = {"LD_PRELOAD": LLVM}


@dataclass(frozen=True)
class Scenario:
    """A program; with `each` every run is a process of its own. What it needs beside jitgen:
    `torch`, or in its environment LLVM's runtime."""

    program: str
    each: bool = False
    torch: bool = False
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    before: str = ""
    runs: int = 3


SCENARIOS: dict[str, Scenario] = {
    **{f"exit, {n}": Scenario(EXIT, True, environment=e) for n, e in SETTINGS.items()},
    "exit, threads of our own": Scenario(EXIT, True, environment=OWN),
    "exit with threads inside": Scenario(EXIT_WITH_THREADS_INSIDE, True),
    "exit with threads inside, spinning": Scenario(
        EXIT_WITH_THREADS_INSIDE, True, environment=SETTINGS["spinning"]
    ),
    "exit with threads of our own inside": Scenario(
        EXIT_WITH_THREADS_INSIDE, True, environment=OWN
    ),
    "fork before": Scenario(FORK_BEFORE),
    "fork after jitgen used threads": Scenario(FORK_AFTER_JITGEN),
    "fork after torch used threads": Scenario(FORK_AFTER_TORCH, torch=True),
    "fork after torch, before jitgen": Scenario(
        FORK_BEFORE, True, torch=True, before="import os, signal, sys, torch\n"
        "a = torch.rand(500, 500)\na @ a\n(a + 1).sum()\n" + FORK_FIRST,
    ),
    "fork after another library used threads": Scenario(FORK_AFTER_OTHERS),
    "fork after another library used threads, before jitgen": Scenario(
        FORK_BEFORE, True, before=OTHERS_TEAM + "others_team()\n" + FORK_FIRST
    ),
    "fork while others run": Scenario(FORK_WHILE_OTHERS_RUN),
    "fork while others run, threads of our own": Scenario(
        FORK_WHILE_OTHERS_RUN, environment=OWN
    ),
    "DataLoader, fork": Scenario(DATA_LOADER, torch=True, arguments=("fork",)),
    "DataLoader, spawn": Scenario(DATA_LOADER, torch=True, arguments=("spawn",), runs=1),
    "interrupt": Scenario(INTERRUPT, runs=20),
    "interrupt, threads of our own": Scenario(INTERRUPT, environment=OWN, runs=20),
    "interrupt, a limit": Scenario(INTERRUPT, environment=SETTINGS["limited"], runs=20),
    "interrupt often": Scenario(INTERRUPT_OFTEN),
    "interrupt often, threads of our own": Scenario(INTERRUPT_OFTEN, environment=OWN),
    "a handler that calls": Scenario(HANDLER_CALLS, runs=20),
    "a handler that calls, threads of our own": Scenario(
        HANDLER_CALLS, environment=OWN, runs=20
    ),
    "a handler that makes layers": Scenario(HANDLER_MAKES, runs=20),
    "a handler that makes layers, threads of our own": Scenario(
        HANDLER_MAKES, environment=OWN, runs=20
    ),
    "threads that end": Scenario(THREADS_END, runs=20),
    "threads that end, threads of our own": Scenario(THREADS_END, environment=OWN, runs=20),
    "sub-interpreters": Scenario(SUB_INTERPRETERS, runs=2),
    "exit, LLVM": Scenario(EXIT, True, environment=WITH_LLVM),
    "exit with threads inside, LLVM": Scenario(
        EXIT_WITH_THREADS_INSIDE, True, environment=WITH_LLVM
    ),
    "fork after jitgen used threads, LLVM": Scenario(FORK_AFTER_JITGEN, environment=WITH_LLVM),
    "fork while others run, LLVM": Scenario(FORK_WHILE_OTHERS_RUN, environment=WITH_LLVM),
    "interrupt, LLVM": Scenario(INTERRUPT, environment=WITH_LLVM, runs=20),
    "interrupt often, LLVM": Scenario(INTERRUPT_OFTEN, environment=WITH_LLVM),
    "a handler that calls, LLVM": Scenario(HANDLER_CALLS, environment=WITH_LLVM, runs=20),
}  # fmt: skip
NAMES = list(SCENARIOS)


def missing(name: str) -> tuple[str | None, bool]:
    """What a scenario needs and this machine lacks, and whether CI installs it."""
    scenario = SCENARIOS[name]
    if scenario.torch and importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed", False
    if scenario.environment is WITH_LLVM and not LLVM:
        return "LLVM's OpenMP runtime is not installed (Debian: libomp5)", True
    return None, True


def run(name: str, runs: int, root: Path = HERE.parent) -> list[str]:
    """Run a scenario so many times; what went wrong, a text for each."""
    scenario = SCENARIOS[name]
    if not scenario.each:
        wrong = _once(scenario, runs, root)
        return [wrong] if wrong else []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda _: _once(scenario, 1, root), range(runs))
        return [wrong for wrong in found if wrong]


def _once(scenario: Scenario, runs: int, root: Path) -> str:
    text = "\n".join([textwrap.dedent(scenario.before), COMMON, scenario.program])
    text += "\nif __name__ == '__main__':\n    print('fine', flush=True)\n"
    paths = [str(root), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **scenario.environment}
    with tempfile.TemporaryDirectory() as folder:
        # a file: what a program spawns imports it
        program = Path(folder) / "program.py"
        program.write_text(text)
        command = [
            sys.executable, "-X", "faulthandler", str(program), str(runs), *scenario.arguments
        ]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, env=environment,
                timeout=LIMIT + LIMIT_A_RUN * runs,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return f"it hangs: {error.stdout!r} {error.stderr!r}"
    if done.returncode or "fine" not in done.stdout or "Exception ignored" in done.stderr:
        return f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return ""
