"""The arrays of a call: checked against the spec, turned into the argument struct.

Every rule that keeps machine code inside the arrays is here; an error names the argument, its value
and the rule. Not here: the call itself (`jitgen.gemm.kernel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.emit.frame import ARGUMENTS
from jitgen.emit.steps import STEPS
from jitgen.gemm.spec import KernelSpec
from jitgen.run.loader import WORDS, ffi
from jitgen.types import NUMPY

_BYTES, _OFFSETS = np.dtype(np.uint8), np.dtype(np.int64)
#: Keyword of a run-time operand, a word of the argument struct -> the epilogue step that takes it
STEP_OF = {step.operand.word: name for name, step in STEPS.items() if step.operand}


class Arguments:
    """The argument struct of one call, and all that must stay alive while it is used."""

    __slots__ = ("keep", "struct")

    def __init__(self, words: dict[str, int], keep: list[Any]) -> None:
        self.struct = ffi.new(WORDS, len(ARGUMENTS))
        for name, word in words.items():
            self.struct[ARGUMENTS[name] // 8] = word
        self.keep = keep


def make_arguments(
    spec: KernelSpec, a: Any, b: Any, c: Any, extra: dict[str, Any]
) -> Arguments:
    """Check the arrays of a call and fill its argument struct.

    `extra` holds a_offsets, b_offsets, bias, bias_row, residual and mask, or None for each. Raises
    TypeError or ValueError; nothing is touched then.
    """
    words: dict[str, int] = {}
    keep: list[Any] = []
    inputs: list[tuple[str, np.ndarray]] = []
    if spec.batch == "stride":
        count = _strided(spec, a, b, inputs, words)
    elif spec.batch == "address":
        count = _addressed(spec, a, b, inputs, words, keep)
    else:
        count = _offset(spec, a, b, extra, inputs, words, keep)
    for name in ("a_offsets", "b_offsets"):
        if spec.batch != "offset" and extra[name] is not None:
            raise ValueError(f"{name} is given; batch={spec.batch!r} takes none")
    c = _matrix("c", c, spec.ldc, spec, "ldc")
    outputs = [("c", c)]
    for name, step in STEP_OF.items():
        value = extra[name]
        if not spec.has(step):
            if value is not None:
                raise ValueError(f"{name} is given, but the epilogue has no step {step!r}")
            continue
        if value is None:
            raise ValueError(f"{name} is missing: the epilogue has a step {step!r}")
        if name == "mask":
            value = doors.array(name, value, (spec.m, spec.mask_bytes), _BYTES)
            outputs.append((name, value))
        elif name == "residual":
            value = _matrix(name, value, spec.ldr, spec, "ldr")
            inputs.append((name, value))
        else:
            shape = (spec.n if name == "bias" else spec.m,)
            value = doors.array(name, value, shape, NUMPY[spec.c_type])
            inputs.append((name, value))
        words[name] = address(value)
    words["c"] = address(c)
    _no_overlap(inputs, outputs)
    keep.extend(array for _, array in (*inputs, *outputs))
    words["count"] = count
    return Arguments(words, keep)


def address(array: np.ndarray) -> int:
    """Address of the first element."""
    return int(array.__array_interface__["data"][0])


def _matrix(name: str, value: Any, leading: int, spec: KernelSpec, what: str) -> np.ndarray:
    array, shape = doors.typed(name, value, NUMPY[spec.c_type]), (spec.m, spec.n)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; the kernel wants {shape}")
    _strides(name, array, (leading,), f"{what}, {spec.c_type}")
    return array


def _strides(name: str, array: np.ndarray, leading: tuple[int, ...], what: str) -> None:
    """Strides must be `leading` elements, then 1; a dimension of length 1 has none that counts."""
    wanted, size = (*leading, 1), array.itemsize
    for axis, stride in enumerate(wanted):
        if array.shape[axis] > 1 and array.strides[axis] != stride * size:
            raise ValueError(
                f"{name} has a stride of {array.strides[axis]} bytes in axis {axis}; the kernel "
                f"wants {stride * size} ({what})"
            )


def _strided(
    spec: KernelSpec, a: Any, b: Any, inputs: list[tuple[str, np.ndarray]], words: dict[str, int]
) -> int:
    counts: list[int] = []
    for name, value, dtype, shape, leading, stride in (
        ("a", a, spec.a_type, spec.a_shape, (spec.lda,), spec.stride_a),
        ("b", b, spec.b_type, spec.b_shape, spec.b_leading, spec.stride_b),
    ):
        given = doors.typed(name, value, NUMPY[dtype])
        array = given[np.newaxis] if given.ndim == len(shape) else given
        if array.shape[1:] != shape:
            raise ValueError(
                f"{name} has shape {given.shape}; the kernel wants (count, "
                f"{', '.join(map(str, shape))})"
            )
        if array.shape[0]:
            _strides(name, array, (stride, *leading), f"stride_{name}, ld{name}, {dtype}")
        counts.append(array.shape[0])
        inputs.append((name, given))
        words[name] = address(given)
    if counts[0] != counts[1]:
        raise ValueError(f"a holds {counts[0]} matrices and b {counts[1]}; they must be as many")
    return counts[0]


def _addressed(
    spec: KernelSpec, a: Any, b: Any, inputs: list[tuple[str, np.ndarray]], words: dict[str, int],
    keep: list[Any],
) -> int:  # fmt: skip
    for name, arrays in (("a", a), ("b", b)):
        if not isinstance(arrays, Sequence) or isinstance(arrays, (str, bytes)):
            raise TypeError(
                f"{name} is {type(arrays).__name__}; batch='address' wants a list of arrays"
            )
    if len(a) != len(b):
        raise ValueError(f"a holds {len(a)} matrices and b {len(b)}; they must be as many")
    for name, arrays, dtype, shape, leading in (
        ("a", a, spec.a_type, spec.a_shape, (spec.lda,)),
        ("b", b, spec.b_type, spec.b_shape, spec.b_leading),
    ):
        taken = []
        for i, value in enumerate(arrays):
            array = doors.typed(f"{name}[{i}]", value, NUMPY[dtype])
            if array.shape != shape:
                raise ValueError(
                    f"{name}[{i}] has shape {array.shape}; the kernel wants {shape}"
                )
            _strides(f"{name}[{i}]", array, leading, f"ld{name}, {dtype}")
            inputs.append((f"{name}[{i}]", array))
            taken.append(array)
        pointers = np.array([address(x) for x in taken], np.uint64)
        keep.append(pointers)
        words[name] = address(pointers)
    return len(a)


def _offset(
    spec: KernelSpec, a: Any, b: Any, extra: dict[str, Any],
    inputs: list[tuple[str, np.ndarray]], words: dict[str, int], keep: list[Any],
) -> int:  # fmt: skip
    counts = []
    for name, value, dtype, shape, leading in (
        ("a", a, spec.a_type, spec.a_shape, (spec.lda,)),
        ("b", b, spec.b_type, spec.b_shape, spec.b_leading),
    ):
        array = doors.typed(name, value, NUMPY[dtype])
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} has strides {array.strides}; it must be C-contiguous")
        offsets = extra[f"{name}_offsets"]
        if offsets is None:
            raise ValueError(f"{name}_offsets is missing: batch='offset' wants element offsets")
        offsets = doors.typed(f"{name}_offsets", offsets, _OFFSETS)
        if offsets.ndim != 1:
            raise ValueError(f"{name}_offsets has shape {offsets.shape}; it must have one axis")
        span = 1 + sum((n - 1) * step for n, step in zip(shape, (*leading, 1), strict=True))
        if offsets.size:
            low, high = int(offsets.min()), int(offsets.max())
            if low < 0 or high + span > array.size:
                raise ValueError(
                    f"{name}_offsets reach from {low} to {high}; with {span} elements a matrix, "
                    f"they must lie from 0 to {array.size - span} ({name} has {array.size}, "
                    f"shape {array.shape})"
                )
        # a copy, so that nobody can move the offsets out of the array after this check
        offsets = np.array(offsets, np.int64)
        counts.append(offsets.size)
        inputs.append((name, array))
        keep.append(offsets)
        words[name] = address(array)
        words[f"{name}_offsets"] = address(offsets)
    if counts[0] != counts[1]:
        raise ValueError(
            f"a_offsets has {counts[0]} entries and b_offsets {counts[1]}; they must be as many"
        )
    return counts[0]


def _no_overlap(
    inputs: list[tuple[str, np.ndarray]], outputs: list[tuple[str, np.ndarray]]
) -> None:
    for i, (name, out) in enumerate(outputs):
        doors.writable(name, out)
        doors.apart(name, out, (*inputs, *outputs[:i]))
