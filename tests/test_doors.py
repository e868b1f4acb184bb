"""Every argument of every public function, with every bad value: refused by name, or right.

Not here: single doors and their words (`test_bad_input`, the tests of each layer).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jitgen
from jitgen import (
    Adam,
    Convolution,
    FullyConnected,
    Rnn,
    Sgd,
    convolution_1d,
    doors,
    fold_batch_norm,
)
from jitgen.primitives.fc.layouts import Blocked, PackedWeights
from jitgen.primitives.layers.convolution import PackedFilter
from jitgen.primitives.rnn.kept import PackedRecurrent
from jitgen.run import cpu

HERE = Path(__file__).resolve().parent
if all(cpu.targets().values()):
    pytest.skip("no target runs on this CPU", allow_module_level=True)
#: Children at a time, calls of one, seconds that one may take
CHILDREN, CALLS_EACH, LIMIT = 2, 12, 300.0


def _try(keys: list[str], folder: Path) -> tuple[int, list[str]]:
    """Number of cases, and faults, of these calls in a child that works in `folder`."""
    folder.mkdir()
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    text = f"import door_walk; door_walk.main({keys!r})"
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", text], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=folder, env={
            **os.environ, "PYTHONPATH": os.pathsep.join(paths),
            "JITGEN_TUNE_FILE": str(folder / "tuned.json"),
        },
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


def test_every_argument(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import door_walk

    keys = list(door_walk.CALLS)
    groups = [keys[i::-(-len(keys) // CALLS_EACH)] for i in range(-(-len(keys) // CALLS_EACH))]
    with ThreadPoolExecutor(CHILDREN) as pool:
        found = list(pool.map(_try, groups, [tmp_path / str(i) for i in range(len(groups))]))
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


def test_a_child_that_dies_or_stops_names_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "door_walk.py").write_text(DYING)
    monkeypatch.setattr("test_doors.HERE", tmp_path)
    monkeypatch.setattr("test_doors.LIMIT", 5.0)
    _, faults = _try(["die"], tmp_path / "a")
    assert faults[0].startswith("f(n=4): inner: ended with -11"), faults
    _, faults = _try(["stop"], tmp_path / "b")
    assert faults[0].startswith("f(n=4): inner: hung"), faults


DYING = """
import ctypes, time
def main(keys):
    print('{"case": "f(n=4)"}', flush=True)
    ctypes.string_at(0) if keys == ["die"] else time.sleep(99)
"""


def _silent(n: Any) -> Any:
    return n if isinstance(n, int) else 4


def _inner(n: Any) -> Any:
    return [0] * n


def _mute(n: Any) -> Any:
    if type(n) is not int:
        raise ValueError("wrong")
    return n


def _wrong(n: Any) -> Any:
    if type(n) is np.int64:
        return int(n) + 1
    return doors.size("n", n)


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (_silent, "'4'", "silent: accepted"), (_inner, "None", "inner: TypeError"),
        (_mute, "1.5", "lacks the argument's name"),
        (_wrong, "np.int64(4)", "silent: another result"),
        (lambda n: 1 // 0, "1.5", "inner: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_the_walk_finds_faults(function: Callable[..., Any], value: str, words: str) -> None:
    import door_values
    import door_walk

    kind = door_values.size()
    call = door_walk.Call(function, lambda: {"n": 3}, {"n": kind})
    given = {name: (arguments, plain) for _, name, arguments, plain in door_walk.cases(call)}
    assert words in door_walk.attempt(call, "n", *given[value])
    right = door_walk.Call(lambda n: doors.size("n", n), lambda: {"n": 3}, {"n": kind})
    assert not door_walk.attempt(right, "n", *given[value])


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


ONE: dict[str, Any] = {"threads": 1}


def test_integers_of_numpy_become_ints() -> None:
    """A layer is a key of caches: equal numbers must not make it another one."""
    layer = FullyConnected(np.int64(4), np.uint8(4), np.array(4), bias=np.True_, **ONE)
    other = FullyConnected(4, 4, 4, **ONE)
    assert repr(layer.layer) == repr(other.layer)
    conv = Convolution(*map(np.int32, (1, 2, 5, 5, 2, 3)), padding=[np.int64(1), 1], **ONE)
    assert repr(conv.conv) == repr(Convolution(1, 2, 5, 5, 2, 3, padding=1, **ONE).conv)
    kernel = jitgen.brgemm(*map(np.int64, (3, 5, 4)), packed_b=np.True_, plan={"rows": np.int8(2)})
    assert kernel.spec == jitgen.brgemm(3, 5, 4, packed_b=True).spec
    assert type(kernel.spec.m) is int


PACKED = jitgen.brgemm(3, 40, 4, packed_b=True)
MEMORY = f32(8)
FC = FullyConnected(4, 6, 5, **ONE)
FIT = FC.pack_weights(f32(5, 6)).layout
CONV = Convolution(1, 2, 5, 5, 2, 3, bias=False, **ONE)
RNN = Rnn(2, 3, 4, 5, bias=False, **ONE)
X_RNN, RNN_PACKED = f32(3, 2, 4), RNN.pack_weights(f32(5, 4), f32(5, 5))


def _records() -> np.ndarray:
    """Rows of 16 floats, 65 bytes apart."""
    return np.zeros(5, [("pad", "u1"), ("row", "f4", 16)])["row"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jitgen.pack_b(_records(), 16), ValueError, "b has strides (65, 4)"),
        (lambda: jitgen.pack_b(np.zeros(2, [("pad", "u1"), ("b", "f4", (4, 16))])["b"], 16),
         ValueError, "b has strides (257, 64, 4)"),
        (lambda: jitgen.pack_b(f32(4, 41), PACKED), ValueError, "4 x 41"),
        (lambda: jitgen.pack_b(f32(5, 40), PACKED), ValueError, "5 x 40"),
        (lambda: jitgen.pack_b(f32(40, 4), PACKED), ValueError, "40 x 4"),
        (lambda: jitgen.pack_b(np.ones((4, 40)), PACKED), ValueError, "float64"),
        (lambda: jitgen.pack_b(f32(4, 5), jitgen.brgemm(3, 5, 4)), ValueError, "without packed_b"),
        (lambda: Sgd([f32(3)], None), TypeError, "lr=None"),
        (lambda: Sgd([f32(3)], np.nan), ValueError, "lr=nan"),
        (lambda: Sgd([f32(3)], 1e39), ValueError, "lr=1e+39 is too large for f32"),
        (lambda: Adam([f32(3)], betas=(1.0, 1.0)), ValueError, "betas[0]=1.0 is not below 1"),
        (lambda: Adam([f32(3)], eps=1e-50), ValueError, "eps=1e-50 is 0 in f32"),
        (lambda: Sgd([MEMORY[:4], MEMORY[3:]], 0.1), ValueError, "parameters[0] overlaps"),
        (lambda: Sgd([MEMORY[:4]], 0.1).step([MEMORY[1:5]]), ValueError, "gradients[0] overlaps"),
        (lambda: Sgd([MEMORY[:4], MEMORY[4:]], 0.1).step([f32(4), MEMORY[:4]]), ValueError,
         "gradients[1] overlaps parameters[0]"),
        (lambda: FC.backward_weights(f32(4, 5), f32(4, 6), 5), TypeError, "out=5 is no pair"),
        (lambda: FC.forward(Blocked(f32(1, 3, 8), 7), f32(5, 6), f32(5)), ValueError,
         "x has 7 columns"),
        (lambda: FC.forward(f32(4, 6), PackedWeights(Blocked(f32(1, 5, 16), 5), None, FIT), f32(5)),
         ValueError, "w (packed) has shape"),
        (lambda: PackedWeights(Blocked(f32(1, 5, 16), 5), None, (6, 5)), ValueError,
         "layout=(6, 5)"),
        (lambda: Blocked(5, "x"), TypeError, "array is int"),
        (lambda: Blocked(f32(4, 6), 6), ValueError, "array has shape (4, 6)"),
        (lambda: Blocked(np.ones((1, 4, 6), np.int32), 6), TypeError, "array has dtype int32"),
        (lambda: Blocked(f32(1, 4, 8), 9), ValueError, "columns=9"),
        (lambda: PackedWeights(f32(5, 6), None, FIT), TypeError, "forward="),
        (lambda: CONV.forward(f32(*CONV.x_shape), PackedFilter(f32(3), None, ((1,), (2,)))),
         ValueError, "w is packed as (1,)"),
        (lambda: RNN.forward(X_RNN, PackedRecurrent([{}], RNN_PACKED.layout, RNN_PACKED.w,
                                                    RNN_PACKED.r), None), TypeError, "w (packed,"),
        (lambda: RNN.forward(X_RNN, PackedRecurrent([], RNN_PACKED.layout, RNN_PACKED.w,
                                                    RNN_PACKED.r), None), ValueError, "directions"),
        (lambda: fold_batch_norm(np.ones((3, 2), int), None, *[f32(3)] * 4), TypeError, "int64"),
        (lambda: convolution_1d(1, 1, 3, 1, 5), ValueError, "length=3"),
        (lambda: convolution_1d(1, 1, 3, 1, 3, padding=(1, -1)), ValueError, "padding[1]=-1"),
        (lambda: FC.forward(np.ma.masked_equal(f32(4, 6), 0), f32(5, 6), f32(5)), TypeError,
         "x is MaskedArray"),
    ],
)  # fmt: skip
def test_single_doors(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_rates_assigned_later_are_checked_before_anything_changes() -> None:
    parameter, gradient = f32(3), f32(3)
    sgd, adam = Sgd([parameter], 0.1), Adam([parameter])
    for optimizer, name, value in (
        (sgd, "lr", None), (sgd, "momentum", float("nan")), (adam, "betas", (0.9, 1)),
        (adam, "eps", 0), (adam, "weight_decay", "0"),
    ):  # fmt: skip
        right = getattr(optimizer, name)
        setattr(optimizer, name, value)
        with pytest.raises((TypeError, ValueError), match=name):
            optimizer.step([gradient])
        assert (parameter == 1).all()
        setattr(optimizer, name, right)
    sgd.lr, sgd.momentum = np.float32(0.5), 0
    sgd.step([gradient])
    assert (parameter == 0.5).all()
    sgd.step([parameter])  # its own gradient
    assert (parameter == 0.25).all()
