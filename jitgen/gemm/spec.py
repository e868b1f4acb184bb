"""What a kernel computes: `KernelSpec`, its defaults and its rules.

    C = epilogue(beta * C + alpha * sum over i < count of op(A_i) op(B_i))

row-major: op(A_i) is m x k, op(B_i) k x n, C m x n; leading dimensions and strides are counted in
elements. A spec is a frozen value and the key of the kernel cache. Not here: how it is computed
(`jitgen.gemm.plan`).

>>> spec = make_spec(4, 8, 16)
>>> spec.lda, spec.ldb, spec.ldc, spec.stride_a
(16, 8, 8, 64)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from jitgen import doors
from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.emit.steps import SPELLINGS, STEPS, Step
from jitgen.types import DTYPES, DTypeLike

BATCH_KINDS = ("stride", "offset", "address")


@dataclass(frozen=True)
class KernelSpec:
    """A validated kernel; build one with `make_spec`. Sizes in elements; types of the elements of
    A, B, the accumulators and C are names of `jitgen.types.DTYPES`."""

    m: int
    n: int
    k: int
    a_type: str
    b_type: str
    acc_type: str
    c_type: str
    lda: int
    ldb: int
    ldc: int
    ldr: int
    batch: str
    stride_a: int
    stride_b: int
    alpha: float
    beta: float
    trans_a: bool
    trans_b: bool
    panel: int
    epilogue: tuple[Step, ...]

    @property
    def dtype(self) -> str:
        """The short form of all types, from which the others follow: that of A and B."""
        return self.a_type

    @property
    def a_bytes(self) -> int:
        """Bytes of an element of A."""
        return DTYPES[self.a_type].size

    @property
    def b_bytes(self) -> int:
        """Bytes of an element of B."""
        return DTYPES[self.b_type].size

    @property
    def acc_bytes(self) -> int:
        """Bytes of an accumulator."""
        return DTYPES[self.acc_type].size

    @property
    def c_bytes(self) -> int:
        """Bytes of an element of C, and of bias and residual."""
        return DTYPES[self.c_type].size

    @property
    def ku(self) -> int:
        """Reduction steps of one multiply-accumulate."""
        return DTYPES[self.a_type].ku

    def described(self) -> dict[str, Any]:
        """The fields by name, the types as their short form, `dtype`."""
        names = dict.fromkeys("dtype" if f.name.endswith("_type") else f.name for f in fields(self))
        return {name: getattr(self, name) for name in names}

    @property
    def steps(self) -> int:
        """Multiply-accumulates along the reduction of one product."""
        return self.k // self.ku

    @property
    def a_shape(self) -> tuple[int, int]:
        """Shape of one A_i as stored."""
        return (self.k, self.m) if self.trans_a else (self.m, self.k)

    @property
    def b_shape(self) -> tuple[int, ...]:
        """Shape of one B_i as stored: rows and columns, or panels, rows and panel width; where ku
        is not 1, a row holds the units of so many rows of B, and there is a last axis of ku."""
        unit = () if self.ku == 1 else (self.ku,)
        if self.panel:
            return (-(-self.n // self.panel), self.steps, self.panel, *unit)
        return (self.n, self.k) if self.trans_b else (self.steps, self.n, *unit)

    @property
    def b_leading(self) -> tuple[int, ...]:
        """Elements from one to the next in each axis of `b_shape` but the last."""
        unit = () if self.ku == 1 else (self.ku,)
        if self.panel:
            return (self.k * self.panel, self.panel * self.ku, *unit)
        return (self.ldb,) if self.trans_b else (self.ldb * self.ku, *unit)

    def has(self, name: str) -> bool:
        """Whether the epilogue holds a step of this name."""
        return any(step[0] == name for step in self.epilogue)

    @property
    def mask_bytes(self) -> int:
        """Bytes of one row of the relu bit mask."""
        return -(-self.n // 8)

    def flops(self, count: int) -> int:
        """Floating-point operations of the products of a batch of `count`."""
        count = doors.size("count", count, 0, None)
        return 2 * self.m * self.n * self.k * count


def make_spec(
    m: int,
    n: int,
    k: int,
    dtype: DTypeLike = "f32",
    *,
    lda: int | None = None,
    ldb: int | None = None,
    ldc: int | None = None,
    ldr: int | None = None,
    batch: str = "stride",
    stride_a: int | None = None,
    stride_b: int | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    trans_a: bool = False,
    trans_b: bool = False,
    panel: int = 0,
    epilogue: Any = (),
) -> KernelSpec:
    """Fill in defaults and check every rule. `dtype`, the short form of all types, is a name in
    `jitgen.types.DTYPES` or NumPy's for one (np.float32, "float64").

    Raises ValueError or TypeError that names the argument, its value and the rule.
    """
    m, n, k = doors.sizes(m=m, n=n, k=k)
    dtype = doors.dtype("dtype", dtype)
    batch = doors.one_of("batch", batch, BATCH_KINDS)
    trans_a, trans_b = doors.flag("trans_a", trans_a), doors.flag("trans_b", trans_b)
    panel = doors.size("panel", panel, 0)
    if panel and (trans_b or ldb is not None):
        raise ValueError(
            f"packed_b, panel={panel}: panels have their own layout; trans_b and ldb do not apply"
        )
    ku, acc_type = DTYPES[dtype].ku, DTYPES[dtype].arithmetic
    element, result = DTYPES[dtype].size, DTYPES[acc_type].size
    if k % ku or (ku > 1 and trans_a):
        raise ValueError(
            f"k={k}, trans_a={trans_a}: {dtype} takes {ku} steps at once; k must be a multiple of "
            f"{ku}, and those of a row of A must be neighbours"
        )
    a_rows, a_columns = (k, m) if trans_a else (m, k)
    b_rows, b_columns = (n, k) if trans_b else (k, n)
    alpha = doors.number("alpha", alpha, dtype=acc_type)
    beta = doors.number("beta", beta, dtype=acc_type)
    steps = make_epilogue(epilogue)
    for step in steps:
        make_step("epilogue step ", step, acc_type)
    if panel % 8 and panel < n and any(step[0] == "relu_mask" for step in steps):
        raise ValueError(
            f"packed_b={panel}: with a relu_mask, panels must have a multiple of 8 columns, "
            "because a byte of the mask holds 8"
        )
    lda = _leading("lda", lda, a_columns, f"A is {a_rows} x {a_columns}, row-major")
    ldb = _leading("ldb", ldb, b_columns, f"B is {b_rows} x {b_columns}, row-major")
    ldc = _leading("ldc", ldc, n, f"C is {m} x {n}, row-major")
    if ldr is None:
        ldr = ldc
    ldr = _leading("ldr", ldr, n, f"the residual is {m} x {n}, row-major")
    b_size = -(-n // panel) * k * panel if panel else (b_rows - 1) * ldb + b_columns
    for name, size in (
        ("A", ((a_rows - 1) * lda + a_columns) * element), ("B", b_size * element),
        ("C", ((m - 1) * ldc + n) * result), ("the residual", ((m - 1) * ldr + n) * result),
    ):  # fmt: skip
        if size >= MATRIX_BYTES:
            raise ValueError(
                f"{name} spans {size} bytes; one matrix of a kernel may span at most "
                f"{MATRIX_BYTES - 1}: split m, n or k"
            )
    return KernelSpec(
        m, n, k, dtype, dtype, acc_type, acc_type, lda, ldb, ldc, ldr, batch,
        _stride("stride_a", stride_a, a_rows * lda, batch, element),
        _stride("stride_b", stride_b, b_size if panel else b_rows * ldb, batch, element),
        alpha, beta, trans_a, trans_b, panel, steps,
    )  # fmt: skip


def make_epilogue(steps: Any, dtype: str | None = None) -> tuple[Step, ...]:
    """Normalise an epilogue: names or (name, parameter, ...) tuples, in the order applied. The
    steps: `jitgen.emit.steps.STEPS`; an operand's step may stand once. Parameters are finite in
    `dtype`, as `make_step` says.

    >>> make_epilogue(["bias", ("clip", 0, 6)])
    (('bias',), ('clip', 0.0, 6.0))
    """
    dtype = None if dtype is None else doors.dtype("dtype", dtype)
    if isinstance(steps, str):
        shown = doors.shown(steps)
        raise TypeError(f"epilogue={shown} is a string; give a sequence such as ({shown},)")
    result: list[Step] = []
    for step in doors.items("epilogue", steps):
        made = make_step("epilogue step ", step, dtype)
        if STEPS[made[0]].operand is not None and any(made[0] == s[0] for s in result):
            raise ValueError(f"epilogue step {made[0]!r} may stand only once")
        result.append(made)
    return tuple(result)


def make_step(
    what: str, step: Any, dtype: str | None = None, allowed: Collection[str] = STEPS
) -> Step:
    """Normalise one step, a name or (name, parameter, ...): one of the names `allowed`, parameters
    of which there is a default filled in, all of them finite in `dtype`, but for bounds and
    factors. `what` stands before it in errors (TypeError, ValueError).

    >>> make_step("activation=", "elu"), make_step("activation=", "relu6")
    (('elu', 1.0), ('clip', 0.0, 6.0))
    """
    name, *values = step if isinstance(step, (tuple, list)) and step else (step,)
    if not isinstance(name, str):
        raise TypeError(f"{what}{doors.shown(step)} is neither a name nor (name, parameter, ...)")
    if name in SPELLINGS and not values:
        name, *values = SPELLINGS[name]
    if name not in allowed:
        raise ValueError(f"{what}{doors.shown(name)} is not one of {', '.join(allowed)}")
    name = str.__str__(name)
    wanted = STEPS[name].parameters
    least = sum(default is None for default in wanted.values())
    if not least <= len(values) <= len(wanted):
        takes = f"takes {', '.join(wanted)}" if wanted else "takes no parameter"
        raise ValueError(f"{what}{name!r} {takes}; got {doors.shown(values)}")
    values += list(wanted.values())[len(values) :]
    parameters = [
        doors.number(f"{what}{name} {w}", v, infinite=STEPS[name].infinite, dtype=dtype)
        for w, v in zip(wanted, values, strict=True)
    ]
    if name == "clip" and not parameters[0] <= parameters[1]:
        raise ValueError(f"{what}clip: low={parameters[0]} is above {parameters[1]}")
    return (name, *parameters)


def _leading(name: str, value: Any, columns: int, what: str) -> int:
    if value is None:
        return columns
    size = doors.size(name, value)
    if size < columns:
        raise ValueError(f"{name}={size} is smaller than {columns} ({what})")
    return size


def _stride(name: str, value: Any, default: int, batch: str, element: int) -> int:
    if batch != "stride":
        if value is not None:
            raise ValueError(f"{name}={doors.shown(value)}: batch={batch!r} has no strides")
        return 0
    if value is None:
        value = default
    stride = doors.integer(name, value)
    if stride < 0 or stride * element >= MATRIX_BYTES:
        raise ValueError(
            f"{name}={doors.shown(stride)} elements; a stride is from 0 to "
            f"{(MATRIX_BYTES - 1) // element}"
        )
    return stride
