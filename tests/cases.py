"""Cases: one request for a kernel with its data, laid out in memory as the kernel finds it.

A `Case` is a value whose repr rebuilds it. `build` makes its arrays from its seed, `job` turns them
into a call for the rig, `views` into NumPy arguments for the Python face. Layouts are computed here
from the documented rules, not by asking jitgen. Not here: what the result must be (`oracle`) and
which cases to try (`random_cases`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from rig.job import Buffer, Job, Pointers

import jitgen
from jitgen.emit.frame import ARGUMENTS

DTYPES = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
#: fills what a kernel must neither use nor change: a signalling NaN
POISON = {"f32": 0x7FA5A5A5, "f64": 0x7FF5A5A5A5A5A5A5}
#: goes where the argument struct has a word that the kernel must not use: no valid address
NO_ADDRESS = 0xDEAD_A5A5_A5A5_A5A5
DENORMAL = {"f32": 1e-39, "f64": 1e-310}


@dataclass(frozen=True, repr=False)
class Case:
    """One kernel and one call. Sizes in elements, as for `jitgen.brgemm`.

    data: "normal" (standard normal), "integer" (from -4 to 4: sums are exact) or "special" (NaN,
    infinities, zeros of both signs, denormal numbers among normal ones). seed: of the data. packed:
    0 no, -1 packed_b=True, else the panel width in vectors of the target. place: which end of each
    buffer touches an unmapped page.
    """

    m: int
    n: int
    k: int
    count: int = 1
    dtype: str = "f32"
    batch: str = "stride"
    data: str = "normal"
    seed: int = 0
    lda: int | None = None
    ldb: int | None = None
    ldc: int | None = None
    ldr: int | None = None
    stride_a: int | None = None
    stride_b: int | None = None
    alpha: float = 1.0
    beta: float = 0.0
    trans_a: bool = False
    trans_b: bool = False
    packed: int = 0
    epilogue: tuple[Any, ...] = ()
    plan: tuple[tuple[str, Any], ...] = ()
    place: str = "end"

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        given = (f"{f.name}={values[f.name]!r}" for f in fields(self)
                 if f.name in "mnk" or values[f.name] != f.default)  # fmt: skip
        return f"Case({', '.join(given)})"

    def kernel(self, target: str) -> jitgen.Kernel:
        """Ask jitgen for the kernel."""
        packed: bool | int = self.packed < 0
        if self.packed > 0:
            vector = jitgen.target.parse_target(target).vector_bits // 8
            packed = self.packed * vector // DTYPES[self.dtype].itemsize
        return jitgen.brgemm(
            self.m, self.n, self.k, self.dtype, lda=self.lda, ldb=self.ldb, ldc=self.ldc,
            ldr=self.ldr, batch=self.batch, stride_a=self.stride_a, stride_b=self.stride_b,
            alpha=self.alpha, beta=self.beta, trans_a=self.trans_a, trans_b=self.trans_b,
            packed_b=packed, epilogue=self.epilogue, target=target, plan=dict(self.plan),
        )  # fmt: skip

    def has(self, step: str) -> bool:
        """Whether the epilogue holds a step."""
        return any(step in (each, each[0]) for each in self.epilogue)


@dataclass
class Operand:
    """The matrices A_i or B_i in memory.

    flats: one flat array, or one for each distinct matrix of an address batch. index: element of
    each entry of op(matrix) within its matrix. starts: first element of each matrix of the batch.
    picks: which flat each matrix is in. leading: strides of the stored matrix in elements.
    """

    index: np.ndarray
    shape: tuple[int, ...]
    leading: tuple[int, ...]
    stride: int
    flats: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    picks: list[int] = field(default_factory=list)

    @property
    def span(self) -> int:
        """Elements from the first to the last of one stored matrix, both included."""
        steps = (*self.leading, 1)
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, steps, strict=True))

    def matrices(self) -> np.ndarray:
        """op(matrix) for the whole batch, in float64."""
        found = [
            self.flats[pick][start + self.index]
            for pick, start in zip(self.picks, self.starts, strict=True)
        ]
        return np.array(found, np.float64).reshape(-1, *self.index.shape)

    def view(self, i: int) -> np.ndarray:
        """Matrix i as stored."""
        flat = self.flats[self.picks[i]][self.starts[i] :]
        return as_strided(flat, self.shape, [s * flat.itemsize for s in (*self.leading, 1)])


@dataclass
class Arrays:
    """All arrays of a call. c and residual are flat, with their leading dimensions ldc and ldr."""

    a: Operand
    b: Operand
    c: np.ndarray
    ldc: int
    ldr: int
    bias: np.ndarray
    bias_row: np.ndarray
    residual: np.ndarray
    mask: np.ndarray

    def c_index(self, case: Case) -> np.ndarray:
        """Element of each entry of C."""
        return np.arange(case.m)[:, None] * self.ldc + np.arange(case.n)


def _operands(case: Case, panel: int) -> tuple[Operand, Operand]:
    m, n, k = case.m, case.n, case.k
    i, j, t = np.arange(m)[:, None], np.arange(n), np.arange(k)
    if case.trans_a:
        lda = case.lda or m
        a = Operand(t * lda + i, (k, m), (lda,), k * lda)
    else:
        lda = case.lda or k
        a = Operand(i * lda + t, (m, k), (lda,), m * lda)
    if panel:
        panels = -(-n // panel)
        index = j // panel * (k * panel) + j % panel + t[:, None] * panel
        b = Operand(index, (panels, k, panel), (k * panel, panel), panels * k * panel)
    elif case.trans_b:
        ldb = case.ldb or k
        b = Operand(j * ldb + t[:, None], (n, k), (ldb,), n * ldb)
    else:
        ldb = case.ldb or n
        b = Operand(t[:, None] * ldb + j, (k, n), (ldb,), k * ldb)
    a.stride = a.stride if case.stride_a is None else case.stride_a
    b.stride = b.stride if case.stride_b is None else case.stride_b
    return a, b


def _values(random: np.random.Generator, size: int, case: Case) -> np.ndarray:
    if case.data == "integer":
        return random.integers(-4, 5, size).astype(DTYPES[case.dtype])
    return random.standard_normal(size).astype(DTYPES[case.dtype])


def poisoned(size: int, dtype: str) -> np.ndarray:
    """A flat array of poison."""
    bits = np.uint32 if dtype == "f32" else np.uint64
    return np.full(size, POISON[dtype], bits).view(DTYPES[dtype])


def _fill(random: np.random.Generator, operand: Operand, case: Case, panel: int) -> None:
    """Place the matrices of a batch and give them values; what belongs to none is poison."""
    count, span = case.count, operand.span
    if case.batch == "address":
        operand.picks = [int(random.integers(0, i + 1)) for i in range(count)]
        operand.starts = [0] * count
        sizes = [span] * (max(operand.picks, default=-1) + 1)
    elif case.batch == "offset":
        gaps = random.integers(0, 9, count)
        places = [int(gaps[: i + 1].sum()) + i * span for i in range(count)]
        operand.starts = [places[int(i)] for i in random.integers(0, max(count, 1), count)]
        operand.picks = [0] * count
        sizes = [max(operand.starts, default=-span) + span]
    else:
        operand.starts = [i * operand.stride for i in range(count)]
        operand.picks = [0] * count
        sizes = [(count - 1) * operand.stride + span if count else 0]
    for pick, size in enumerate(sizes):
        flat = poisoned(size, case.dtype)
        starts = {s for s, p in zip(operand.starts, operand.picks, strict=True) if p == pick}
        for start in starts:
            if panel:
                flat[start : start + span] = 0.0
            at = start + operand.index.ravel()
            flat[at] = _values(random, at.size, case)
        operand.flats.append(flat)


def _make_special(random: np.random.Generator, arrays: Arrays, case: Case) -> None:
    """Make one row of C all but denormal, and put a few special values anywhere."""
    tiny = DENORMAL[case.dtype]
    row = int(random.integers(0, case.m))
    for pick, start in zip(arrays.a.picks, arrays.a.starts, strict=True):
        at = start + arrays.a.index[row]
        arrays.a.flats[pick][at] = 0.0
        arrays.a.flats[pick][at[int(random.integers(0, case.k))]] = tiny
    if case.beta:
        arrays.c[row * arrays.ldc : row * arrays.ldc + case.n] = -tiny
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny])
    places = [
        (operand.flats[pick], start + operand.index)
        for operand in (arrays.a, arrays.b)
        for pick, start in zip(operand.picks, operand.starts, strict=True)
    ]
    if case.beta:
        places.append((arrays.c, arrays.c_index(case)))
    places += [(arrays.bias, np.arange(case.n)), (arrays.bias_row, np.arange(case.m))]
    for flat, index in places:
        if random.random() < 0.3:
            flat[random.choice(index.ravel(), min(2, index.size))] = random.choice(values, 1)


def build(case: Case, panel: int) -> Arrays:
    """The arrays of a case, always the same for the same case; panel: width of B's panels or 0."""
    random = np.random.default_rng(case.seed)
    a, b = _operands(case, panel)
    _fill(random, a, case, 0)
    _fill(random, b, case, panel)
    ldc = case.ldc or case.n
    ldr = case.ldr or ldc
    c = poisoned((case.m - 1) * ldc + case.n, case.dtype)
    residual = poisoned((case.m - 1) * ldr + case.n, case.dtype)
    for flat, leading, wanted in ((c, ldc, case.beta != 0.0), (residual, ldr, True)):
        for i in range(case.m):
            row = flat[i * leading : i * leading + case.n]
            row[:] = _values(random, case.n, case) if wanted else np.nan
    mask = random.integers(0, 256, (case.m, -(-case.n // 8)), dtype=np.uint8)
    arrays = Arrays(
        a, b, c, ldc, ldr, _values(random, case.n, case), _values(random, case.m, case), residual,
        mask,
    )  # fmt: skip
    if case.data == "special":
        _make_special(random, arrays, case)
    return arrays


def job(case: Case, kernel: jitgen.Kernel, arrays: Arrays, code: bytes = b"") -> Job:
    """The call for the rig; its outputs are C and, with relu_mask, the mask. code: instead of the
    kernel's own."""

    def buffer(array: np.ndarray, write: bool = False) -> Buffer:
        return Buffer(array, write, "end" if case.place == "end" else "start")

    words: dict[str, Any] = {"count": case.count, "c": buffer(arrays.c, True)}
    for name, operand in (("a", arrays.a), ("b", arrays.b)):
        flats = [buffer(flat) for flat in operand.flats]
        if case.batch == "address":
            words[name] = Pointers([flats[pick] for pick in operand.picks])
            continue
        words[name] = flats[0]
        if case.batch == "offset":
            words[f"{name}_offsets"] = buffer(np.array(operand.starts, np.int64))
    for name in ("bias", "bias_row", "residual"):
        if case.has(name):
            words[name] = buffer(getattr(arrays, name))
    if case.has("relu_mask"):
        words["mask"] = buffer(arrays.mask, True)
    ordered = sorted(ARGUMENTS, key=ARGUMENTS.__getitem__)
    return Job(code or kernel.code, [words.get(name, NO_ADDRESS) for name in ordered], repr(case))


def views(case: Case, arrays: Arrays) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of `kernel(a, b, c, ...)`; C and the mask are views."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, operand in (("a", arrays.a), ("b", arrays.b)):
        if case.batch == "address":
            positional.append([operand.view(i) for i in range(case.count)])
        elif case.batch == "offset":
            positional.append(operand.flats[0])
            keywords[f"{name}_offsets"] = np.array(operand.starts, np.int64)
        else:
            flat = operand.flats[0]
            steps = [s * flat.itemsize for s in (operand.stride, *operand.leading, 1)]
            positional.append(as_strided(flat, (case.count, *operand.shape), steps))
    shape, item = (case.m, case.n), arrays.c.itemsize
    positional.append(as_strided(arrays.c, shape, (arrays.ldc * item, item)))
    for name in ("bias", "bias_row"):
        if case.has(name):
            keywords[name] = getattr(arrays, name)
    if case.has("residual"):
        keywords["residual"] = as_strided(arrays.residual, shape, (arrays.ldr * item, item))
    if case.has("relu_mask"):
        keywords["mask"] = arrays.mask
    return positional, keywords
