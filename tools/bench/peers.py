"""The libraries that jitgen is compared with: LIBXSMM (through PyPI's etops) and NumPy.

What it is: each peer gets the same problem in the layout it likes best. LIBXSMM is column-major,
so a row-major m x n x k product is its n x m x k with A and B exchanged: same bytes, no copy. The
etops wheel exports LIBXSMM's C functions, so its kernels are called without Python between. NumPy
gets one wide product (m, count*k) x (count*k, n), or count products and a sum, the faster one.
What it is not: it does not judge; a result is checked and timed elsewhere.

Set LIBXSMM_TARGET, OPENBLAS_CORETYPE and the thread counts before this module loads anything; see
`environment`.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from tools.bench.machine_code import COUNT_OFFSET, place
from tools.bench.problem import Problem, Shape
from tools.bench.timing import CompiledCall, Cursor, PythonCall, calls_for

# LIBXSMM_TARGET and OPENBLAS_CORETYPE that hold the peers to one instruction set. With AVX-512
# they choose by themselves.
ISA_ENVIRONMENT = {
    "avx2": {"LIBXSMM_TARGET": "hsw", "OPENBLAS_CORETYPE": "Haswell"},
    "avx512": {},
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

ffi = cffi.FFI()
ffi.cdef(
    """
    typedef struct { int m, n, k, lda, ldb, ldc, a_type, b_type, c_type, compute; } shape_t;
    typedef struct { int kind, stride_a, stride_b; unsigned char unroll_hint; } batch_t;
    typedef struct { int kind; unsigned flops; size_t bytes; unsigned reference; unsigned pad; }
        info_t;
    void libxsmm_init(void);
    const char *libxsmm_get_target_arch(void);
    void *libxsmm_dispatch_brgemm(shape_t, unsigned flags, unsigned prefetch, batch_t);
    int libxsmm_get_kernel_info(const void *kernel, info_t *);
    """
)

_BETA_0 = 4
_BATCH_STRIDE = 4
_TYPES = {"f64": 0, "f32": 1}

# Byte offsets in LIBXSMM's argument struct: {op, a, b, c}, op 4 pointers wide. Up to 1.17 each of
# a, b, c has 4 pointers, later 6. The slots of one form are unused by the other, so both are set.
_ARGUMENT_WORDS = 20
_COUNT_WORD = 2
_A_WORD = 4
_B_WORDS = (8, 10)
_C_WORDS = (12, 16)


class PeerMissing(RuntimeError):
    """A library to compare with is not installed, or cannot be used."""


def environment(isa: str) -> dict[str, str]:
    """Return the environment variables to set before any peer is loaded."""
    return {**ONE_THREAD, **ISA_ENVIRONMENT.get(isa, {})}


def _pointer(array: np.ndarray) -> Any:
    return ffi.cast("void *", array.ctypes.data)


class Libxsmm:
    """LIBXSMM's C interface: batch-reduce kernels by stride, beta = 0."""

    def __init__(self, library: str | None = None) -> None:
        """Open ``library``, else the one inside the etops wheel, else the system's libxsmm.

        Raises PeerMissing, naming what was tried.
        """
        self._counts: dict[int, Any] = {}
        path, self.origin = (library, library) if library else self.find()
        try:
            self._lib = ffi.dlopen(path)
            self._lib.libxsmm_init()
            self.arch = ffi.string(self._lib.libxsmm_get_target_arch()).decode()
        except (OSError, AttributeError) as error:
            raise PeerMissing(f"LIBXSMM's C interface is not reachable: {error}") from error

    @staticmethod
    def find() -> tuple[str, str]:
        """Path and origin of the library; PeerMissing, naming what was tried."""
        spec = importlib.util.find_spec("etops")
        if spec is not None and spec.origin is not None:
            for file in sorted(Path(spec.origin).parent.glob("libeinsum_ir*")):
                version = importlib.metadata.version("etops")
                return str(file), f"the C interface inside etops {version}"
        system = ctypes.util.find_library("xsmm")
        if system is not None:
            return system, f"the system's {system}"
        raise PeerMissing("LIBXSMM was not found: neither etops (pip install etops) nor libxsmm.so")

    def dispatch(self, shape: Shape, dtype: str) -> int:
        """Return the address of LIBXSMM's kernel for a row-major shape; PeerMissing if none."""
        m, n, k = shape.m, shape.n, shape.k
        size = 8 if dtype == "f64" else 4
        types = [_TYPES[dtype]] * 4
        problem = ffi.new("shape_t *", [n, m, k, n, k, n, *types])
        batch = ffi.new("batch_t *", [_BATCH_STRIDE, k * n * size, m * k * size, 0])
        kernel = self._lib.libxsmm_dispatch_brgemm(problem[0], _BETA_0, 0, batch[0])
        if kernel == ffi.NULL:
            raise PeerMissing(f"LIBXSMM has no kernel for {shape} {dtype}")
        info = ffi.new("info_t *")
        if self._lib.libxsmm_get_kernel_info(kernel, info) == 0 and info.reference:
            raise PeerMissing(f"LIBXSMM has only a slow reference kernel for {shape} {dtype}")
        return int(ffi.cast("uintptr_t", kernel))

    def arguments(self, count: int, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Any:
        """Return LIBXSMM's argument struct for row-major (count,m,k), (count,k,n), (m,n) arrays.

        The struct holds bare addresses: the caller keeps the arrays and this object alive.
        """
        if count not in self._counts:
            self._counts[count] = place(count.to_bytes(8, "little"), COUNT_OFFSET)
        words = ffi.new("void *[]", _ARGUMENT_WORDS)
        words[_COUNT_WORD] = self._counts[count]
        words[_A_WORD] = _pointer(b)
        for word in _B_WORDS:
            words[word] = _pointer(a)
        for word in _C_WORDS:
            words[word] = _pointer(c)
        return words

    def contestant(self, problem: Problem, cursor: Cursor | None) -> CompiledCall:
        """Return the contestant "libxsmm" for a problem."""
        kernel = self.dispatch(problem.shape, problem.dtype)
        sets = zip(problem.a, problem.b, problem.c, strict=True)
        arguments = [self.arguments(problem.shape.count, a, b, c) for a, b, c in sets]
        return CompiledCall("libxsmm", kernel, arguments, cursor, keep=(problem, self))


class Etops:
    """LIBXSMM through etops's Python call, f32, where its C interface cannot be reached."""

    origin = "etops's Python call, overhead of a 1x1x1 call taken out"

    def __init__(self) -> None:
        try:
            import etops
        except ImportError as error:
            raise PeerMissing(f"etops cannot be imported: {error}") from error
        self._etops = etops
        self.arch = "unknown"
        self._overhead_ns: dict[str, float] = {}

    def call(self, problem: Problem, index: int) -> Callable[[], Any]:
        """Return a callable without arguments for one set of a problem; PeerMissing for f64.

        Measured with etops 26.2.1: its f64 results are wrong and it writes past the end of C.
        """
        if problem.dtype != "f32":
            raise PeerMissing(f"etops's Python call is not safe for dtype={problem.dtype!r}")
        e, s = self._etops, problem.shape
        prim, dim = e.exec.prim, e.dim
        operation = e.TensorOperation(
            e.TensorOperationConfig(
                backend="tpp",
                data_type=e.float32,
                prim_first=e.prim.zero,
                prim_main=e.prim.brgemm,
                prim_last=e.prim.none,
                dim_types=(dim.k, dim.m, dim.n, dim.k),
                exec_types=(prim, prim, prim, prim),
                dim_sizes=(s.count, s.n, s.m, s.k),
                strides=(((s.k * s.n, 1, 0, s.n), (s.m * s.k, 0, s.k, 1), (0, 1, s.n, 0)),),
            )
        )
        a, b, c = problem.a[index], problem.b[index], problem.c[index]
        execute = operation.execute
        return lambda: execute(b, a, c)

    def contestant(self, problem: Problem, cursor: Cursor | None) -> PythonCall:
        """Return the contestant "libxsmm" for a problem."""
        if problem.dtype not in self._overhead_ns:
            smallest = Problem(Shape(1, 1, 1, 1), problem.dtype)
            empty = PythonCall("empty", [self.call(smallest, 0)])
            self._overhead_ns[problem.dtype] = best_ns(empty)
        calls = [self.call(problem, i) for i in range(problem.sets)]
        return PythonCall("libxsmm", calls, self._overhead_ns[problem.dtype], cursor)


def best_ns(contestant: PythonCall, rounds: int = 7, sample_ns: float = 5e5) -> float:
    """Return the best nanoseconds per call of a contestant on its own."""
    calls = calls_for(contestant, sample_ns)
    return min(contestant.run(calls) for _ in range(rounds)) / calls


def _one_wide_product(problem: Problem, index: int) -> Callable[[], Any]:
    s = problem.shape
    a = np.ascontiguousarray(problem.a[index].transpose(1, 0, 2).reshape(s.m, s.count * s.k))
    b = problem.b[index].reshape(s.count * s.k, s.n)
    out, matmul = problem.c[index], np.matmul
    return lambda: matmul(a, b, out=out)


def _products_and_sum(problem: Problem, index: int) -> Callable[[], Any]:
    a, b, out = problem.a[index], problem.b[index], problem.c[index]
    products = np.empty((problem.shape.count, *out.shape), out.dtype)
    matmul, total = np.matmul, np.add.reduce

    def call() -> None:
        matmul(a, b, out=products)
        total(products, axis=0, out=out)

    return call


class NumPy:
    """NumPy with one thread; the overhead of the same calls on 1x1x1 arrays is taken out."""

    origin = f"numpy {np.__version__}, one thread, overhead of a 1x1x1 call taken out"
    _WAYS = (_one_wide_product, _products_and_sum)

    def __init__(self) -> None:
        self._overhead_ns: dict[tuple[str, str], float] = {}

    def _overhead(self, way: Callable[..., Callable[[], Any]], dtype: str) -> float:
        key = (way.__name__, dtype)
        if key not in self._overhead_ns:
            smallest = Problem(Shape(1, 1, 1, 1), dtype)
            call = way(smallest, 0)
            self._overhead_ns[key] = best_ns(PythonCall("empty", [call]))
        return self._overhead_ns[key]

    def contestant(self, problem: Problem, cursor: Cursor | None) -> PythonCall:
        """Return the contestant "numpy": the faster of two ways to compute a problem."""
        ways = self._WAYS[:1] if problem.shape.count == 1 else self._WAYS
        trials = []
        for way in ways:
            overhead = self._overhead(way, problem.dtype)
            trial = PythonCall("trial", [way(problem, 0)], overhead)
            trials.append((best_ns(trial, rounds=3, sample_ns=2e5), overhead, way))
        _, overhead, way = min(trials, key=lambda trial: trial[0])
        calls = [way(problem, i) for i in range(problem.sets)]
        return PythonCall("numpy", calls, overhead, cursor)
