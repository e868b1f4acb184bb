"""Random calls, right and wrong, of the public functions; run in a child process by `test_fuzz`.

Whatever is asked, the answer is a result or one of ALLOWED, a refused call leaves its outputs as
they were, and an accepted one writes nothing but C and the mask. Not here: whether results are
right (`test_kernels_python`).
"""

from __future__ import annotations

import contextlib
import random
import traceback
import warnings
from collections import Counter
from typing import Any

import numpy as np
from cases import Arrays, Case, build, views
from random_cases import random_case

import jitgen

ALLOWED = (TypeError, ValueError, RuntimeError, MemoryError)

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 8, 64, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 63, 1 << 70,
    -(1 << 63), 0.0, -0.0, 0.5, 1.0, 2.5, 1e-320, 1e39, 1e308, float("inf"), float("nan"), 1j, "",
    "f32", "f64", "stride", "offset", "address", "avx2", "avx512", "sve128", "sve0", "mmx", b"f32",
    (), [], {}, {"rows": 2}, ("bias",), ["relu", "bias"], (("clip", 0, 1),), (("clip", 1),),
    "3", ((), ()),
    (("scale", 1e300),), ("relu_mask",) * 2, [("leaky_relu", float("nan"))], [["bias", "relu"]],
    {"k_unroll": 1 << 40}, {"prefetch": 1 << 40}, {"columns": 1 << 40}, {"rows": 1 << 40},
    {"k_block": 1 << 40}, {"batch_chunk": 1 << 40}, {"k_split": 1 << 40}, {1: 2}, {"hold": 3},
    np.int64(5), np.float32(2), np.array(3), np.array([1, 2]), object(), int, range(3), ...,
]  # fmt: skip
OPTIONS = (
    "m", "n", "k", "dtype", "lda", "ldb", "ldc", "ldr", "batch", "stride_a", "stride_b", "alpha",
    "beta", "trans_a", "trans_b", "packed_b", "epilogue", "target", "plan", "assembler",
)  # fmt: skip
ARGUMENTS = ("a_offsets", "b_offsets", "bias", "bias_row", "residual", "mask")


def _garbage(rng: random.Random, near: Any, arrays: Arrays) -> Any:
    """Something in place of the argument `near`: a variation of it, an output, or any value."""
    kind = rng.randrange(9)
    if kind < 4 and isinstance(near, np.ndarray):
        return _variation(rng, near)
    if kind < 4 and isinstance(near, list) and near:
        changed = list(near)
        at = rng.randrange(len(changed))
        changed[at] = _garbage(rng, changed[at], arrays)
        return changed if rng.random() < 0.8 else changed[1:]
    if kind == 4:
        return rng.choice((arrays.c, arrays.mask, arrays.c[::-1], [arrays.c], arrays.bias))
    if kind == 5:
        shape = [rng.randint(0, 9) for _ in range(rng.randint(0, 4))]
        return np.zeros(shape, rng.choice((np.float32, np.float64, np.int64, np.uint8, ">f4", "O")))
    return rng.choice(VALUES)


def _variation(rng: random.Random, array: np.ndarray) -> Any:
    kind = rng.randrange(9)
    if kind == 0:
        return array.astype(rng.choice((np.float32, np.float64, np.int32, np.int64, np.bool_, "O")))
    if kind == 1:
        return array.T
    if kind == 2 and array.ndim:
        return array[:: rng.choice((-1, 2, -2))]
    if kind == 3 and array.ndim:
        return array[..., : rng.randint(0, array.shape[-1])]
    if kind == 4:
        copy = array.copy()
        copy.flags.writeable = False
        return copy
    if kind == 5:
        return np.broadcast_to(array[..., :1] if array.ndim else array, array.shape)
    if kind == 6:
        return array.tolist()
    if kind == 7:
        return array.reshape(-1) + array.dtype.type(rng.choice((0, 1, 100)))
    return array[None]


def _request(rng: random.Random) -> None:
    """jitgen.brgemm with some options replaced by anything."""
    case = random_case(rng, 12)
    options: dict[str, Any] = {
        "m": case.m, "n": case.n, "k": case.k, "dtype": case.dtype, "batch": case.batch,
        "trans_a": case.trans_a, "trans_b": case.trans_b, "epilogue": case.epilogue,
        "plan": dict(case.plan), "target": rng.choice((None, "avx2", "avx512", "sve256")),
    }  # fmt: skip
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(VALUES) if rng.random() < 0.6 else rng.randint(0, 40)
        options[rng.choice(OPTIONS)] = value
    kernel = jitgen.brgemm(**options)
    repr(kernel)
    size = max(kernel.spec.m, kernel.spec.n, kernel.spec.k)
    if size <= 64:
        shapes = kernel.spec.a_shape, kernel.spec.b_shape, (kernel.spec.m, kernel.spec.n)
        with contextlib.suppress(*ALLOWED):
            kernel(*(np.zeros(shape, np.float32) for shape in shapes))


def _call(rng: random.Random) -> None:
    """A right kernel, some of whose arguments are replaced by anything."""
    case = random_case(rng, 12)
    kernel = case.kernel(jitgen.host().name)
    arrays = build(case, kernel.spec.panel)
    positional, keywords = views(case, arrays)
    for _ in range(rng.choice((0, 1, 1, 2))):
        if rng.random() < 0.5:
            at = rng.randrange(3)
            positional[at] = _garbage(rng, positional[at], arrays)
        else:
            name = rng.choice(ARGUMENTS)
            keywords[name] = _garbage(rng, keywords.get(name), arrays)
    before = arrays.c.tobytes(), arrays.mask.tobytes()
    try:
        kernel(*positional, **keywords)
    except ALLOWED:
        assert (arrays.c.tobytes(), arrays.mask.tobytes()) == before, f"C was touched: {case!r}"
        raise
    _check_padding(case, arrays, before[0])


def _check_padding(case: Case, arrays: Arrays, before: bytes) -> None:
    old = np.frombuffer(before, np.uint8).reshape(arrays.c.size, -1).copy()
    new = arrays.c.view(np.uint8).reshape(arrays.c.size, -1).copy()
    index = arrays.c_index(case)
    old[index] = new[index] = 0
    assert np.array_equal(old, new), f"written outside C: {case!r}"


def _pack(rng: random.Random) -> None:
    """jitgen.pack_b with anything."""
    shape = [rng.randint(0, 20) for _ in range(rng.randint(1, 4))]
    b = np.ones(shape, rng.choice((np.float32, np.float64, np.int32)))
    if rng.random() < 0.4:
        b = _variation(rng, b)
    width = rng.choice((4, 8, 16, 32, rng.choice(VALUES)))
    out = rng.choice((None, None, b, np.zeros((3, 4, 8), np.float32)))
    jitgen.pack_b(b, width, trans=rng.random() < 0.5, out=out)


def main(seed: str, number: int) -> None:
    """Make `number` random calls; print how each kind of them ended."""
    warnings.simplefilter("ignore")
    ends: Counter[str] = Counter()
    for i in range(number):
        rng = random.Random(f"{seed} {i}")
        function = rng.choice((_request, _request, _call, _call, _call, _pack))
        try:
            with np.errstate(all="ignore"):
                function(rng)
        except ALLOWED as error:
            ends[f"{function.__name__} {type(error).__name__}"] += 1
        except BaseException:
            traceback.print_exc()
            raise SystemExit(f"call {i} of seed {seed!r}") from None
        else:
            ends[f"{function.__name__} accepted"] += 1
    print(dict(ends))
