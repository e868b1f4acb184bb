"""Bad input is refused by an error that names the argument, its value and the rule, and leaves C as
it was. Not here: random garbage (`test_fuzz`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jitgen

HUGE = 1 << 40
INF, NAN = float("inf"), float("nan")

#: options of jitgen.brgemm beside m = 3, n = 5, k = 4 -> error, texts that its message must hold
REQUESTS: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    *(({name: bad}, ValueError, (f"{name}={bad}", rule))
      for name in "mnk"
      for bad, rule in ((0, "smaller than 1"), (-3, "smaller than 1"), (HUGE, "larger than"))),
    *(({name: bad}, TypeError, (f"{name}={bad!r}", "integer"))
      for name in "mnk" for bad in (2.0, NAN, INF, "4", True, None, [3], np.array([1, 2]))),
    ({"m": 1 << 16, "n": 1 << 16}, ValueError, ("C spans", "2147483647")),
    ({"k": 1 << 30, "m": 2}, ValueError, ("A spans", "2147483647")),
    ({"m": 1 << 10, "ldr": 1 << 20, "epilogue": ("residual",)}, ValueError, ("residual spans",)),
    ({"dtype": "f16"}, ValueError, ("dtype='f16'", "f32, f64")),
    ({"dtype": float}, TypeError, ("dtype=",)),
    ({"dtype": []}, (TypeError, ValueError), ("dtype=[]",)),
    *(({name: bad}, ValueError, (f"{name}={bad}", f"smaller than {least}"))
      for name, bad, least in (("lda", 3, 4), ("ldb", 4, 5), ("ldc", 4, 5), ("ldr", 4, 5))),
    *(({name: 0}, ValueError, (f"{name}=0",)) for name in ("lda", "ldb", "ldc", "ldr")),
    ({"lda": 2, "trans_a": True}, ValueError, ("lda=2", "smaller than 3")),
    ({"ldb": 3, "trans_b": True}, ValueError, ("ldb=3", "smaller than 4")),
    *(({name: bad}, TypeError, (f"{name}={bad!r}", "integer"))
      for name in ("lda", "ldb", "ldc", "ldr", "stride_a", "stride_b")
      for bad in (64.0, "64", NAN, True)),
    ({"lda": HUGE}, ValueError, (f"lda={HUGE}", "larger")),
    ({"batch": "list"}, ValueError, ("batch='list'", "stride, offset, address")),
    ({"batch": None}, TypeError, ("batch=None", "stride, offset, address")),
    ({"batch": []}, (TypeError, ValueError), ("batch=[]",)),
    ({"stride_a": -1}, ValueError, ("stride_a=-1", "from 0")),
    ({"stride_b": HUGE}, ValueError, (f"stride_b={HUGE}", "from 0")),
    ({"stride_a": 9, "batch": "offset"}, ValueError, ("stride_a=9", "offset")),
    ({"stride_b": 9, "batch": "address"}, ValueError, ("stride_b=9", "address")),
    *(({name: bad}, ValueError, (f"{name}={bad}", "finite"))
      for name in ("alpha", "beta") for bad in (NAN, INF, -INF)),
    *(({name: bad}, TypeError, (f"{name}={bad!r}", "real number"))
      for name in ("alpha", "beta") for bad in ("1.5", None, 1j, [1.0])),
    *(({name: 1e39}, ValueError, (f"{name}=1e+39", "f32")) for name in ("alpha", "beta")),
    *(({name: bad}, TypeError, (f"{name}={bad!r}", "bool"))
      for name in ("trans_a", "trans_b") for bad in (1, None, "no")),
    *(({"packed_b": bad}, (ValueError, TypeError), (f"packed_b={bad!r}", "panel"))
      for bad in (3, -8, 0, "yes", 8.0, None, HUGE + 1)),
    ({"packed_b": True, "trans_b": True}, ValueError, ("packed_b", "trans_b")),
    ({"packed_b": True, "ldb": 8}, ValueError, ("packed_b", "ldb")),
    ({"epilogue": "bias"}, TypeError, ("epilogue='bias'", "sequence")),
    *(({"epilogue": bad}, TypeError, (f"epilogue={bad}", "sequence")) for bad in (3, None)),
    *(({"epilogue": (bad,)}, TypeError, (f"epilogue step {bad}", "name")) for bad in (3, None)),
    ({"epilogue": ((),)}, (TypeError, ValueError), ("epilogue", "()")),
    ({"epilogue": ("softmax",)}, ValueError, ("epilogue", "'softmax'", "bias_row")),
    ({"epilogue": (([],),)}, (TypeError, ValueError), ("epilogue", "[]")),
    ({"epilogue": ("clip",)}, ValueError, ("'clip'", "low, high")),
    ({"epilogue": (("relu", 1),)}, ValueError, ("'relu'", "no parameter")),
    ({"epilogue": (("clip", 2, 1),)}, ValueError, ("clip", "low=2.0", "above 1.0")),
    ({"epilogue": (("clip", NAN, 1),)}, ValueError, ("clip low=nan",)),
    ({"epilogue": (("scale", "2"),)}, TypeError, ("scale factor='2'", "real number")),
    ({"epilogue": (("scale", 1e39),)}, ValueError, ("scale factor=1e+39", "f32")),
    ({"epilogue": ("bias", "bias")}, ValueError, ("'bias'", "once")),
    ({"target": "mmx"}, ValueError, ("target='mmx'", "avx2")),
    ({"target": 7}, TypeError, ("target=7",)),
    ({"target": "sve100"}, ValueError, ("sve100", "steps of 128")),
    ({"target": "sve4096"}, ValueError, ("sve4096", "2048")),
    ({"plan": {"tile": 1}}, ValueError, ("plan option 'tile'", "k_unroll")),
    ({"plan": [("rows", 1)]}, TypeError, ("plan=[('rows', 1)]",)),
    ({"plan": {1: 2, "rows": 3}}, (TypeError, ValueError), ("plan", "1")),
    *(({"plan": {name: bad}}, TypeError, ("plan", f"{name}={bad!r}", "integer"))
      for name in ("rows", "columns", "k_unroll", "k_split") for bad in (2.0, "2", None, True)),
    *(({"plan": {name: 0}}, ValueError, ("plan", f"{name}=0"))
      for name in ("rows", "columns", "k_unroll", "k_block")),
    *(({"plan": {name: -1}}, ValueError, ("plan", f"{name}=-1"))
      for name in ("rows", "columns", "k_unroll", "k_split", "k_block", "batch_chunk", "prefetch")),
    ({"m": 64, "plan": {"rows": 60}}, ValueError, ("plan", "rows=60", "vector registers")),
    ({"plan": {"k_split": 99}}, ValueError, ("plan", "k_split=99", "vector registers")),
    ({"plan": {"order": "xy"}}, ValueError, ("plan", "order='xy'", "nm, mn")),
    ({"plan": {"hold": []}}, (TypeError, ValueError), ("plan", "hold=[]")),
    ({"plan": {"prefetch": HUGE}}, ValueError, ("prefetch", str(HUGE))),
    ({"k": 1 << 28, "m": 1, "n": 1, "plan": {"k_unroll": 1 << 28}}, ValueError, ("k_unroll",)),
    ({"trans_b": True, "plan": {"batch_chunk": 2}}, ValueError, ("batch_chunk=2", "packed")),
    ({"trans_b": True, "plan": {"k_block": 1 << 20}}, ValueError, ("k_block=", "stack")),
    ({"trans_b": True, "plan": {"order": "mn"}}, ValueError, ("order='mn'", "packed")),
    ({"trans_b": True, "plan": {"pack": 0}}, ValueError, ("pack=0", "transposed")),
    ({"plan": {"pack": 2}}, ValueError, ("pack=2",)),
    ({"packed_b": True, "plan": {"pack": 1}}, ValueError, ("pack=1", "panels")),
    ({"assembler": "nasm"}, ValueError, ("assembler='nasm'", "peachpy")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "texts"), REQUESTS, ids=[str(i) for i in range(len(REQUESTS))]
)
def test_bad_requests(options: dict[str, Any], error: Any, texts: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        jitgen.brgemm(**{"m": 3, "n": 5, "k": 4, "target": "avx2", **options})
    message = str(caught.value)
    assert all(text in message for text in texts), f"{options}: {message!r} lacks one of {texts}"


def f32(*shape: int) -> np.ndarray:
    """An array of ones."""
    return np.ones(shape, np.float32)


Call = dict[str, Any]


def full_call() -> Call:
    """A right call of FULL: two matrices, every operand of an epilogue."""
    return {
        "a": f32(2, 3, 4), "b": f32(2, 4, 5), "c": f32(3, 5), "bias": f32(5), "bias_row": f32(3),
        "residual": f32(3, 5), "mask": np.zeros((3, 1), np.uint8),
    }  # fmt: skip


def offset_call() -> Call:
    """A right call of OFFSET."""
    return {
        "a": f32(40), "b": f32(60), "c": f32(3, 5), "a_offsets": np.array([0, 28]),
        "b_offsets": np.array([40, 3]),
    }  # fmt: skip


def address_call() -> Call:
    """A right call of ADDRESS."""
    return {"a": [f32(3, 4), f32(3, 4)], "b": [f32(4, 5), f32(4, 5)], "c": f32(3, 5)}


ALL_STEPS = ("bias", "bias_row", "residual", "relu_mask")
KERNELS: dict[str, tuple[dict[str, Any], Callable[[], Call]]] = {
    "full": ({"epilogue": ALL_STEPS}, full_call),
    "plain": ({}, lambda: {name: full_call()[name] for name in "abc"}),
    "offset": ({"batch": "offset"}, offset_call),
    "address": ({"batch": "address"}, address_call),
}


def swapped(array: np.ndarray) -> np.ndarray:
    """The same numbers in the other byte order."""
    return array.astype(array.dtype.newbyteorder())


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only array."""
    array.flags.writeable = False
    return array


MATRIX = {"a": (2, 3, 4), "b": (2, 4, 5), "c": (3, 5), "residual": (3, 5)}
VECTOR = {"bias": (5,), "bias_row": (3,)}
WRONG_STRIDE = {
    "a": f32(2, 3, 8)[:, :, ::2], "b": f32(4, 4, 5)[::2], "c": f32(3, 7)[:, :5],
    "residual": f32(5, 3).T, "bias": f32(10)[::2], "bias_row": f32(6)[::-2],
}  # fmt: skip

#: kernel, arguments to replace -> error, texts that its message must hold
CALLS: list[tuple[str, Call, Any, tuple[str, ...]]] = [
    *(("full", {name: f32(*shape).astype(np.float64)}, TypeError, (name, "float64", "float32"))
      for name, shape in (MATRIX | VECTOR).items()),
    *(("full", {name: swapped(f32(*shape))}, TypeError, (name, ">f4", "float32"))
      for name, shape in (MATRIX | VECTOR).items()),
    *(("full", {name: f32(*shape).tolist()}, TypeError, (name, "list", "numpy.ndarray"))
      for name, shape in (MATRIX | VECTOR).items()),
    *(("full", {name: f32(*shape).astype(object)}, TypeError, (name, "object"))
      for name, shape in (MATRIX | VECTOR).items()),
    *(("full", {name: f32(*shape, 2)}, ValueError, (name, f"{(*shape, 2)}", "shape"))
      for name, shape in (MATRIX | VECTOR).items()),
    *(("full", {name: f32(*(n + 1 for n in shape))}, ValueError,
       (name, "shape", f"{shape[-2:]}"[1:]))
      for name, shape in (MATRIX | VECTOR).items()),
    *(("full", {name: f32()}, ValueError, (name, "()")) for name in MATRIX | VECTOR),
    *(("full", {name: WRONG_STRIDE[name]}, ValueError, (name, "contiguous"))
      for name in ("bias", "bias_row")),
    ("full", {"a": WRONG_STRIDE["a"]}, ValueError, ("a has a stride of 96", "48", "stride_a")),
    ("full", {"residual": WRONG_STRIDE["residual"]}, ValueError, ("residual", "20", "ldr")),
    ("full", {"b": WRONG_STRIDE["b"]}, ValueError, ("b has a stride of 160", "80", "stride_b")),
    ("full", {"c": WRONG_STRIDE["c"]}, ValueError, ("c has a stride of 28", "20", "ldc")),
    ("full", {"a": np.asfortranarray(f32(2, 3, 4))}, ValueError, ("a has a stride", "axis 0")),
    ("full", {"a": f32(3, 3, 4)}, ValueError, ("a holds 3", "b 2")),
    ("full", {"a": None}, TypeError, ("a is NoneType",)),
    ("full", {"c": frozen(f32(3, 5))}, ValueError, ("c is read-only",)),
    ("full", {"mask": frozen(np.zeros((3, 1), np.uint8))}, ValueError, ("mask is read-only",)),
    ("full", {"mask": np.zeros((3, 1), np.int8)}, TypeError, ("mask", "int8", "uint8")),
    ("full", {"mask": np.zeros((3, 2), np.uint8)}, ValueError, ("mask", "(3, 2)", "(3, 1)")),
    ("full", {"mask": np.zeros((6, 1), np.uint8)[::2]}, ValueError, ("mask", "strides")),
    *(("full", {name: None}, ValueError, (f"{name} is missing", "step"))
      for name in ("bias", "bias_row", "residual", "mask")),
    *(("plain", {name: full_call()[name]}, ValueError, (f"{name} is given", "no step"))
      for name in ("bias", "bias_row", "residual", "mask")),
    *(("plain", {name: np.zeros(2, np.int64)}, ValueError, (name, "batch='stride'"))
      for name in ("a_offsets", "b_offsets")),
    *(("offset", {name: None}, ValueError, (f"{name} is missing",))
      for name in ("a_offsets", "b_offsets")),
    *(("offset", {name: bad}, TypeError, (name, "int64"))
      for name in ("a_offsets", "b_offsets")
      for bad in ([0, 1], np.zeros(2, np.int32), np.zeros(2), swapped(np.zeros(2, np.int64)), 3)),
    ("offset", {"a_offsets": np.zeros((2, 1), np.int64)}, ValueError, ("a_offsets", "(2, 1)")),
    ("offset", {"a_offsets": np.array([0, 29])}, ValueError, ("a_offsets", "29", "28")),
    ("offset", {"b_offsets": np.array([-1, 0])}, ValueError, ("b_offsets", "-1", "from 0 to 40")),
    ("offset", {"b_offsets": np.array([0, 41])}, ValueError, ("b_offsets", "41", "40")),
    ("offset", {"a_offsets": np.array([2**62, 0])}, ValueError, ("a_offsets", str(2**62))),
    ("offset", {"a_offsets": np.zeros(3, np.int64)}, ValueError, ("3 entries", "b_offsets 2")),
    ("offset", {"a": f32(80)[::2]}, ValueError, ("a has strides", "contiguous")),
    ("offset", {"a": f32(11)}, ValueError, ("a_offsets", "a has 11")),
    ("offset", {"a": f32(40).astype(">f4")}, TypeError, ("a has dtype >f4",)),
    ("address", {"a": f32(2, 3, 4)}, TypeError, ("a is ndarray", "list")),
    ("address", {"b": "text"}, TypeError, ("b is str", "list")),
    ("address", {"b": 5}, TypeError, ("b is int", "list")),
    ("address", {"a": [f32(3, 4)]}, ValueError, ("a holds 1", "b 2")),
    ("address", {"a": [f32(3, 4), f32(4, 3)]}, ValueError, ("a[1]", "(4, 3)", "(3, 4)")),
    ("address", {"a": [f32(3, 4), None]}, TypeError, ("a[1] is NoneType",)),
    ("address", {"b": [f32(5, 4).T, f32(4, 5)]}, ValueError, ("b[0]", "stride")),
    ("address", {"b": [f32(4, 5), f32(4, 5).astype(int)]}, TypeError, ("b[1]", "int64")),
]  # fmt: skip


def kernel_and_call(name: str) -> tuple[jitgen.Kernel, Call]:
    """A kernel of KERNELS and arguments that it accepts."""
    options, call = KERNELS[name]
    return jitgen.brgemm(3, 5, 4, **options), call()


def refused(kernel: jitgen.Kernel, call: Call, error: Any, texts: tuple[str, ...]) -> None:
    """Check that a call is refused with these texts, touching neither C nor the mask."""
    outputs = [call[n] for n in ("c", "mask") if isinstance(call.get(n), np.ndarray)]
    before = [each.tobytes() for each in outputs]
    for attempt in (kernel, kernel.bind):
        with pytest.raises(error) as caught:
            attempt(**call)
        message = str(caught.value)
        assert all(text in message for text in texts), f"{message!r} lacks one of {texts}"
        assert [each.tobytes() for each in outputs] == before


@pytest.mark.parametrize(
    ("name", "change", "error", "texts"), CALLS, ids=[f"{c[0]} {i}" for i, c in enumerate(CALLS)]
)
def test_bad_calls(name: str, change: Call, error: Any, texts: tuple[str, ...]) -> None:
    kernel, call = kernel_and_call(name)
    refused(kernel, {**call, **change}, error, texts)


@pytest.mark.parametrize("name", KERNELS)
def test_the_unchanged_calls_are_right(name: str) -> None:
    kernel, call = kernel_and_call(name)
    steps = 3 if name == "full" else 0
    np.testing.assert_array_equal(kernel(**call), 8.0 + steps)


@pytest.mark.parametrize("other", ["a", "b", "residual", "bias", "bias_row", "mask"])
@pytest.mark.parametrize("shift", [0, 1, -1])
def test_outputs_may_overlap_nothing(other: str, shift: int) -> None:
    """Equal, or overlapping by one element at either end; arrays that only touch are accepted."""
    kernel, call = kernel_and_call("full")
    c_bytes, other_bytes = call["c"].nbytes, call[other].nbytes
    item = call[other].itemsize
    memory = np.zeros(c_bytes + 2 * other_bytes, np.uint8)
    c_at = other_bytes
    first = {0: c_at, 1: c_at + c_bytes - item, -1: c_at - other_bytes + item}[shift]
    call["c"] = memory[c_at : c_at + c_bytes].view(np.float32).reshape(3, 5)

    def put(at: int) -> None:
        part = memory[at : at + other_bytes].view(call[other].dtype)
        call[other] = part.reshape(call[other].shape)

    put(first)
    refused(kernel, call, ValueError, ("c", other, "overlap"))
    if shift:
        put(first + shift * item)
        kernel(**call)


def test_c_may_not_overlap_a_matrix_of_a_list() -> None:
    kernel, call = kernel_and_call("address")
    memory = np.zeros(24, np.float32)
    call["c"], call["b"][1] = memory[:15].reshape(3, 5), memory[4:].reshape(4, 5)
    refused(kernel, call, ValueError, ("c overlaps b[1]",))


def test_interleaved_views_do_not_overlap() -> None:
    """C in the left columns of an array and the residual in the right ones share no element."""
    memory = np.ones((3, 10), np.float32)
    kernel = jitgen.brgemm(3, 5, 4, ldc=10, epilogue=("residual",))
    kernel(f32(1, 3, 4), f32(1, 4, 5), memory[:, :5], residual=memory[:, 5:])
    np.testing.assert_array_equal(memory, np.repeat([[5.0, 1.0]], 5, 1).repeat(3, 0))
