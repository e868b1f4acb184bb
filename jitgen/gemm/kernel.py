"""Kernels: generated for a spec and a target, cached, loaded when first run, called with arrays.

Not here: how code comes about (`jitgen.gemm.emitted`), the checks of a call's arrays
(`jitgen.gemm.operands`) and the command line (`jitgen.cli`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jitgen import doors, records
from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.frozen import Frozen, uncopied
from jitgen.gemm.emitted import CODE_BYTES, EmittedKernel, emit
from jitgen.gemm.operands import make_arguments
from jitgen.gemm.plan import Plan, check_overrides, make_plan
from jitgen.gemm.spec import KernelSpec, make_epilogue, make_spec
from jitgen.run import cpu, disk, loader, shared
from jitgen.run.cache import KERNELS, PLANS
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import DTYPES, DTypeLike

#: Size from which on a matrix's panels are as wide as those of any larger one
LARGE = 1 << 12


class Bound(Frozen, functools.partial):  # type: ignore[type-arg]
    """A kernel bound to its arrays: call it without arguments.

    `args_struct` is the argument struct (cffi); the arrays stay alive with this object.
    """

    args_struct: Any
    keep: Any

    __reduce_ex__ = uncopied("copy the kernel and its arrays, and bind them")


class Kernel(EmittedKernel):
    """Machine code for one `KernelSpec` on one target.

    Build with `jitgen.brgemm`. Generating works for any target on any host; `address`, `bind` and
    a call need a host that can run it, and raise RuntimeError with the reason otherwise. A kernel
    never changes, so its copy is itself; it pickles as the request that it was made for.
    """

    def __init__(
        self, spec: KernelSpec, target: Target, plan: Plan | None, code: bytes,
        roles: dict[str, int] | None, overrides: tuple[tuple[str, Any], ...] = (),
        assembler: str = "jitgen",
    ) -> None:  # fmt: skip
        super().__init__(spec, target, plan, code, roles, overrides)
        self._assembler = assembler
        self._loaded: loader.Code | None = None
        self._function: Callable[[Any], Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the kernel holds, about: its code, here and as it is loaded, and facts."""
        return 2 * len(self.code) + 2048

    @property
    def address(self) -> int:
        """Address of the C function `int64_t kernel(const void *args)`; see docs/abi.md."""
        if self._loaded is None:
            reason = cpu.why_not(self.target)
            if reason:
                raise RuntimeError(f"cannot run a kernel for {self.target.name}: {reason}")
            with shared.lock:
                if self._loaded is None:
                    self._loaded = loader.load(self)
        return self._loaded.address

    def bind(
        self, a: Any, b: Any, c: Any, *, a_offsets: Any = None, b_offsets: Any = None,
        bias: Any = None, bias_row: Any = None, residual: Any = None, mask: Any = None,
    ) -> Bound:  # fmt: skip
        """Check the arrays once and return a callable without arguments.

        Shapes: a (count, m, k) or (m, k), (k, m) with trans_a; b (count, k, n), (n, k) with
        trans_b, panels as `jitgen.pack_b` returns them with packed_b; c (m, n). Lists of arrays for
        batch="address"; any contiguous arrays plus int64 element offsets for batch="offset".
        bias (n,), bias_row (m,), residual (m, n), mask (m, ceil(n / 8)) uint8, as the epilogue
        asks. c (and mask) are written; they may overlap nothing else.

        Raises TypeError or ValueError that names argument, value and rule.
        """
        extra = {
            "a_offsets": a_offsets, "b_offsets": b_offsets, "bias": bias, "bias_row": bias_row,
            "residual": residual, "mask": mask,
        }  # fmt: skip
        arguments = make_arguments(self.spec, a, b, c, extra)
        if self._function is None:
            # code can refuse a call where the vector length belongs to the thread
            refuses = self.target.scalable
            kind = loader.FUNCTION if refuses else loader.PROCEDURE
            function = loader.ffi.cast(kind, self.address)
            self._function = functools.partial(_checked, function) if refuses else function
        bound = Bound(self._function, loader.ffi.cast(loader.ADDRESS, arguments.struct))
        vars(bound).update(args_struct=arguments.struct, keep=(arguments, self))
        return bound

    def __call__(self, a: Any, b: Any, c: Any, **extra: Any) -> Any:
        """Run on NumPy arrays (see `bind`); returns c."""
        self.bind(a, b, c, **extra)()
        return c

    def __copy__(self) -> Kernel:
        return self

    def __deepcopy__(self, memo: Any) -> Kernel:
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if not self._assembler:
            raise TypeError("the code of this kernel was not generated from its spec: no pickle")
        # never the code: whoever can write a pickle could bring in any
        return _request, (self.spec, self.target, self._overrides, self._assembler)

    def __repr__(self) -> str:
        s = self.spec
        return (
            f"<jitgen.Kernel {s.m}x{s.n}x{s.k} {s.dtype} {s.batch} for {self.target.name}, "
            f"{len(self.code)} bytes>"
        )


def _checked(function: Callable[[Any], int], args: Any) -> None:
    if function(args):
        raise RuntimeError(
            f"this thread's SVE vectors have {cpu.vector_length()} bits; the kernel was generated "
            "for another length and did nothing"
        )


def generate(
    spec: KernelSpec, target: Target, overrides: tuple[tuple[str, Any], ...] = ()
) -> Kernel:
    """Generate a kernel, past all caches. Raises ValueError as `emit` does."""
    made = emit(spec, target, overrides)
    return Kernel(spec, target, made.plan, made.code, made.roles, overrides)


def _load_or_generate(
    spec: KernelSpec, target: Target, overrides: tuple[tuple[str, Any], ...]
) -> tuple[Kernel, str]:
    """A kernel, and where it came from."""
    store = disk.store()
    if store is None:
        return generate(spec, target, overrides), "new"
    key = store.key(spec, target, overrides)
    code = store.load(key, CODE_BYTES)
    if code is not None:
        return Kernel(spec, target, None, code, None, overrides), "disk"
    kernel = generate(spec, target, overrides)
    store.save(key, kernel.code)
    return kernel, "new"


def _title(spec: KernelSpec) -> str:
    """What tells kernels of one shape apart."""
    words = [f"{x}={value:g}" for x, value, plain in (
        ("alpha", spec.alpha, 1.0), ("beta", spec.beta, 0.0)) if value != plain]  # fmt: skip
    words += [x for x in ("trans_a", "trans_b") if getattr(spec, x)]
    words += ["packed_b"] if spec.panel else []
    return " ".join([spec.batch, *words, *(name for name, *_ in spec.epilogue)])


@PLANS.of
def panel_width(m: int, n: int, k: int, dtype: str, target: Target, masked: bool = False) -> int:
    """Columns of the panels that suit a kernel: the width of its register tile.

    `masked`: it stores a relu mask, whose bytes no two panels may share. Sizes may be larger than a
    kernel's.
    """
    # of a product that is too large for a kernel, a part: its calls are not larger
    if max(m * k, k * n, m * n) * DTYPES[dtype].size >= MATRIX_BYTES:
        m, n, k = (min(size, LARGE) for size in (m, n, k))
    spec = make_spec(m, n, k, dtype, epilogue=("relu_mask",) if masked else ())
    machine = target.machine(dtype, n)
    plan = make_plan(spec, target.facts(machine))
    columns = max(c.size for _, c in plan.tiles())
    lanes = target.machine(dtype, ANY_WIDTH).lanes
    return -(-columns // lanes) * lanes


def brgemm(
    m: int, n: int, k: int, dtype: DTypeLike = "f32", *, lda: int | None = None,
    ldb: int | None = None, ldc: int | None = None, ldr: int | None = None, batch: str = "stride",
    stride_a: int | None = None, stride_b: int | None = None, alpha: float = 1.0,
    beta: float = 0.0, trans_a: bool = False, trans_b: bool = False,
    packed_b: bool | int = False, epilogue: Any = (), target: str | Target | None = None,
    plan: Mapping[str, Any] | None = None, assembler: str = "jitgen",
) -> Kernel:  # fmt: skip
    """The batch-reduce GEMM kernel `C = epilogue(beta C + alpha sum_i op(A_i) op(B_i))`.

    Row-major; sizes, leading dimensions and strides in elements. `dtype` is "f32" or "f64", or
    NumPy's for them (np.float32, "float64"). `epilogue` is a sequence of steps
    (see `jitgen.emit.steps.STEPS`), `packed_b` says that B comes in panels from `jitgen.pack_b`
    (True, or the panel width), `plan` overrides fields of the plan to tune, `assembler` is "jitgen"
    or "peachpy" (x86 only). The result is cached; the same request from many threads is generated
    once.

    Raises ValueError or TypeError that names argument, value and rule.

    >>> kernel = brgemm(4, 8, 16, target="avx2")
    >>> kernel.flops(count=2)
    2048
    """
    chosen = cpu.choose(target)
    if type(epilogue) is not tuple or (epilogue and not all(type(s) is str for s in epilogue)):
        epilogue = make_epilogue(epilogue)
    overrides = () if plan is None else check_overrides(plan)
    if type(dtype) is not str or dtype not in DTYPES:
        dtype = doors.dtype("dtype", dtype)
    values = (
        m, n, k, dtype, lda, ldb, ldc, ldr, batch, stride_a, stride_b, alpha, beta, trans_a,
        trans_b, packed_b,
    )  # fmt: skip
    # 1, 1.0 and True are equal keys but not equally valid, so the types belong to the key
    key = (values, tuple(map(type, values)), epilogue, chosen, overrides, assembler)

    def make() -> Kernel:
        start = time.perf_counter()
        doors.one_of("assembler", assembler, ("jitgen", "peachpy"))
        panel = _panel(m, n, k, dtype, packed_b, epilogue, chosen)
        spec = make_spec(
            m, n, k, dtype, lda=lda, ldb=ldb, ldc=ldc, ldr=ldr, batch=batch, stride_a=stride_a,
            stride_b=stride_b, alpha=alpha, beta=beta, trans_a=trans_a, trans_b=trans_b,
            panel=panel, epilogue=epilogue,
        )  # fmt: skip
        if assembler == "jitgen":
            kernel, source = _load_or_generate(spec, chosen, overrides)
        else:
            kernel, source = _assemble_elsewhere(generate(spec, chosen, overrides)), assembler
        records.told_generation(
            "kernel", f"{kernel.name} {_title(spec)}", source, chosen.name, len(kernel.code),
            time.perf_counter() - start,
        )  # fmt: skip
        return kernel

    try:
        cached = KERNELS.peek(key)
    except (TypeError, ValueError):  # some of NumPy's scalars raise ValueError
        # an argument of a type that cannot be hashed: let the spec name it
        return make()
    return cached or KERNELS.get(key, make)


def _panel(
    m: Any, n: Any, k: Any, dtype: str, packed_b: Any, epilogue: Any, target: Target
) -> int:
    if isinstance(packed_b, np.bool_):
        packed_b = bool(packed_b)
    if packed_b is True:
        masked = make_spec(m, n, k, dtype, epilogue=epilogue).has("relu_mask")
        m, n, k = doors.sizes(m=m, n=n, k=k)
        return panel_width(m, n, k, dtype, target, masked)
    if packed_b is False:
        return 0
    lanes = target.machine(dtype, ANY_WIDTH).lanes
    rule = f"neither a bool nor a panel width, a multiple of {lanes} for {dtype} on {target.name}"
    try:
        width = doors.integer("packed_b", packed_b)
    except TypeError:
        raise TypeError(f"packed_b={doors.shown(packed_b)} is {rule}") from None
    if width < 1 or width % lanes:
        raise ValueError(f"packed_b={doors.shown(width)} is {rule}")
    return doors.size("packed_b", width)


def _assemble_elsewhere(kernel: Kernel) -> Kernel:
    from jitgen.peachpy import assemble

    code = assemble(kernel.program, kernel.target)
    return Kernel(
        kernel.spec, kernel.target, kernel.plan, code, kernel.roles, kernel._overrides, "peachpy"
    )


def _request(
    spec: KernelSpec, target: Target, overrides: tuple[tuple[str, Any], ...], assembler: str
) -> Kernel:
    """The kernel of a pickle, through the same checks and cache as any other."""
    strides = (spec.stride_a, spec.stride_b) if spec.batch == "stride" else (None, None)
    return brgemm(
        spec.m, spec.n, spec.k, spec.dtype, lda=spec.lda, ldb=None if spec.panel else spec.ldb,
        ldc=spec.ldc, ldr=spec.ldr, batch=spec.batch, stride_a=strides[0], stride_b=strides[1],
        alpha=spec.alpha, beta=spec.beta, trans_a=spec.trans_a, trans_b=spec.trans_b,
        packed_b=spec.panel or False, epilogue=spec.epilogue, target=target,
        plan=dict(overrides) or None, assembler=assembler,
    )  # fmt: skip
