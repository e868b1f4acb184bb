"""Every argument of every public function, with every bad value: refused by name, or right.

Not here: single doors and their words (`test_bad_input`, the tests of each layer).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jitgen import cpu

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(
    not any(not why for why in cpu.targets().values()), reason="no target runs on this CPU"
)
#: Children at a time, calls of one, seconds that one may take
CHILDREN, CALLS_EACH, LIMIT = 2, 12, 300.0


def _try(keys: list[str]) -> tuple[int, list[str]]:
    """Number of cases, and faults, of the calls of these names in a child."""
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    text = f"import door_walk; door_walk.main({keys!r})"
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", text], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    try:
        out, errors = child.communicate(timeout=LIMIT)
        end = f"ended with {child.returncode}: {errors.decode()[-2000:]}"
    except subprocess.TimeoutExpired:
        child.kill()
        out, errors = child.communicate()
        end = f"hung for {LIMIT:.0f} s"
    lines = [json.loads(line) for line in out.splitlines()]
    faults, case, count = [], "", 0
    for line in lines:
        case = line.get("case", case)
        count += "case" in line
        if "wrong" in line:
            faults.append(f"{case}: {line['wrong']}")
    if not lines or "done" not in lines[-1]:
        faults.append(f"{case or keys}: inner: {end}")
    return count, faults


def test_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    import door_walk

    keys = list(door_walk.CALLS)
    groups = [keys[i::-(-len(keys) // CALLS_EACH)] for i in range(-(-len(keys) // CALLS_EACH))]
    with ThreadPoolExecutor(CHILDREN) as pool:
        found = list(pool.map(_try, groups))
    faults = sorted(fault for _, some in found for fault in some)
    silent = [fault for fault in faults if ": silent: " in fault]
    inner = [fault for fault in faults if ": silent: " not in fault]
    with capsys.disabled():
        print(f"\n{sum(count for count, _ in found)} cases of {len(keys)} calls")
        for title, some in (("accepted silently", silent), ("inner errors", inner)):
            print(f"{title}: {len(some)}", *some, sep="\n  ")
    assert not faults


def test_every_public_function_has_a_call() -> None:
    import door_walk

    assert not door_walk.faults_of_the_table()
