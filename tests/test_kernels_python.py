"""The Python face: kernels called with NumPy arrays, bound, cached, shared by threads.

Random requests come from hypothesis; results are compared with the oracle. Not here: arguments that
must be refused (`test_bad_input`), memory for machine code (`test_executable_memory`).
"""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import Case, build, views
from child import run_child
from hypothesis import HealthCheck, given, note, seed, settings
from numpy.lib.stride_tricks import as_strided
from oracle import compare
from random_cases import SEED, cases
from rig.count import count

import jitgen
from jitgen.gemm import kernel as kernel_module
from jitgen.run.cache import Cache

USABLE = [name for name, reason in jitgen.targets().items() if not reason]
pytestmark = pytest.mark.skipif(not USABLE, reason=f"no target runs here: {jitgen.targets()}")


def run(case: Case, target: str, bound: bool = False) -> str:
    """Call the kernel of a case with NumPy arrays; what is wrong, or ""."""
    kernel = case.kernel(target)
    arrays = build(case, kernel.spec.panel)
    inputs = [*arrays.a.flats, *arrays.b.flats, arrays.bias, arrays.bias_row, arrays.residual]
    before = [each.tobytes() for each in inputs]
    untouched = build(case, kernel.spec.panel)
    positional, keywords = views(case, arrays)
    if bound:
        kernel.bind(*positional, **keywords)()
    else:
        assert kernel(*positional, **keywords) is positional[2]
    count(target, "called from Python", 1)
    if [each.tobytes() for each in inputs] != before:
        return "an input was changed"
    mask = arrays.mask if case.has("relu_mask") else None
    return compare(case, untouched, arrays.c, mask)


@pytest.mark.parametrize("bound", [False, True], ids=["call", "bind"])
@pytest.mark.parametrize("target", USABLE)
def test_random_calls(target: str, bound: bool) -> None:
    """kernel(a, b, c, ...) and kernel.bind(a, b, c, ...)() compute what the oracle does."""

    @seed(SEED)
    @settings(
        max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases())
    def check(case: Case) -> None:
        note(f"JITGEN_SEED={SEED} {target}: {case!r}")
        try:
            case.kernel(target)
        except ValueError as error:
            assert case.plan or case.packed > 0, error
            return
        assert run(case, target, bound) == ""

    check()


def test_readme_sized_example() -> None:
    """A batch of matrices, a view with its own leading dimension, and pack_b's panels."""
    random = np.random.default_rng(SEED)
    a = random.standard_normal((5, 13, 21)).astype(np.float32)
    b = random.standard_normal((5, 21, 34)).astype(np.float32)
    wide = np.zeros((13, 50), np.float32)
    want = np.einsum("imk,ikn->mn", a.astype(np.float64), b)
    kernel = jitgen.brgemm(13, 34, 21, ldc=50)
    kernel(a, b, wide[:, 3:37])
    np.testing.assert_allclose(wide[:, 3:37], want, atol=1e-4)
    assert not wide[:, :3].any() and not wide[:, 37:].any()
    packed = jitgen.brgemm(13, 34, 21, packed_b=True)
    c = np.full((13, 34), np.nan, np.float32)
    packed(a, jitgen.pack_b(b, packed), c)
    np.testing.assert_allclose(c, want, atol=1e-4)


def test_strides_beyond_two_gigabytes() -> None:
    """A pass over two matrices 1 GiB apart moves the pointer by more than 32 bits reach."""
    stride = 1 << 28
    # memory from calloc: only pages that are touched exist
    flat = np.zeros(2 * stride + 4, np.float32)
    a = as_strided(flat, (3, 2, 2), (4 * stride, 8, 4))
    a[:] = np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2)
    b = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    kernel = jitgen.brgemm(2, 2, 2, stride_a=stride, plan={"batch_chunk": 2})
    np.testing.assert_array_equal(kernel(a, b, np.empty((2, 2), np.float32)), (a @ b).sum(0))


def test_two_dimensional_operands_are_a_batch_of_one() -> None:
    a, b = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)
    np.testing.assert_array_equal(
        jitgen.brgemm(3, 5, 4)(a, b, np.full((3, 5), np.nan, np.float32)), 4.0
    )


@pytest.mark.parametrize("batch", ["stride", "offset", "address"])
def test_an_empty_batch_scales_c(batch: str) -> None:
    """A count of 0 is a sum of nothing: C = epilogue(beta C)."""
    kernel = jitgen.brgemm(3, 5, 4, batch=batch, beta=-2.0, epilogue=("relu",))
    c = np.arange(-7, 8, dtype=np.float32).reshape(3, 5)
    want = np.maximum(-2.0 * c, 0)
    none = np.zeros(0, np.int64)
    if batch == "stride":
        kernel(np.zeros((0, 3, 4), np.float32), np.zeros((0, 4, 5), np.float32), c)
    elif batch == "offset":
        data = np.zeros(0, np.float32)
        kernel(data, data, c, a_offsets=none, b_offsets=none)
    else:
        kernel([], [], c)
    np.testing.assert_array_equal(c, want)


def test_a_bound_kernel_reads_its_arrays_anew_and_keeps_them_alive() -> None:
    kernel = jitgen.brgemm(2, 3, 4, epilogue=("bias",))
    c = np.zeros((2, 3), np.float32)
    a, bias = np.ones((1, 2, 4), np.float32), np.zeros(3, np.float32)
    bound = kernel.bind(a, np.ones((1, 4, 3), np.float32), c, bias=bias)
    gc.collect()
    for value in (1.0, 2.0):
        a[:] = value
        bias[:] = 10 * value
        bound()
        np.testing.assert_array_equal(c, 14 * value)
    jitgen.run.cache.KERNELS.clear()
    del kernel
    gc.collect()
    bound()
    np.testing.assert_array_equal(c, 28.0)


def test_offsets_are_copied_when_bound() -> None:
    """Nobody can move the offsets out of the arrays after the check."""
    kernel = jitgen.brgemm(2, 2, 2, batch="offset")
    data, c = np.ones(4, np.float32), np.zeros((2, 2), np.float32)
    offsets = np.zeros(1, np.int64)
    bound = kernel.bind(data, data, c, a_offsets=offsets, b_offsets=offsets)
    offsets[:] = 1 << 60
    bound()
    np.testing.assert_array_equal(c, 2.0)


def test_flops_repr_and_attributes() -> None:
    kernel = jitgen.brgemm(3, 5, 7, "f64", batch="address", target="avx512")
    assert kernel.flops() == 2 * 3 * 5 * 7 and kernel.flops(count=4) == 4 * kernel.flops()
    text = repr(kernel)
    for part in ("3x5x7", "f64", "address", "avx512", str(len(kernel.code))):
        assert part in text
    assert kernel.spec.m == 3 and kernel.target.name == "avx512"


def test_the_same_request_is_the_same_kernel() -> None:
    first = jitgen.brgemm(6, 7, 8, epilogue=["bias", ("clip", 0, 6)], plan={"rows": 2})
    again = jitgen.brgemm(6, 7, 8, epilogue=("bias", ("clip", 0, 6)), plan={"rows": 2})
    normal = jitgen.brgemm(6, 7, 8, epilogue=(("bias",), ("clip", 0.0, 6.0)), plan={"rows": 2})
    other = jitgen.brgemm(6, 7, 8, epilogue=("bias",), plan={"rows": 2})
    assert first.code == again.code == normal.code and first is normal
    assert other is not first and other is jitgen.brgemm(
        6, 7, 8, epilogue=("bias",), plan={"rows": 2}
    )


def test_clear_caches_forgets_kernels() -> None:
    before = jitgen.brgemm(6, 7, 9)
    jitgen.clear_caches()
    after = jitgen.brgemm(6, 7, 9)
    assert after is not before and after.code == before.code


def test_eight_threads_generate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    generate = kernel_module.generate

    def slow(*arguments: object) -> jitgen.Kernel:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return generate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_module, "generate", slow)
    monkeypatch.setattr(kernel_module, "KERNELS", Cache("kernels", 8))
    barrier = threading.Barrier(8)

    def ask(_: int) -> jitgen.Kernel:
        barrier.wait()
        return jitgen.brgemm(5, 6, 7)

    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(ask, range(8)))
    assert len(made) == 1 and len({id(each) for each in kernels}) == 1


def test_a_failed_request_fails_for_each_thread_and_is_forgotten() -> None:
    def ask(_: int) -> str:
        with pytest.raises(ValueError) as caught:
            jitgen.brgemm(64, 64, 64, plan={"rows": 60})
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        messages = set(pool.map(ask, range(16)))
    assert len(messages) == 1 and "rows=60" in messages.pop()


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("kernels", 4)
    monkeypatch.setattr(kernel_module, "KERNELS", cache)
    kernels = [jitgen.brgemm(1, 1, k) for k in range(1, 8)]
    assert len(cache) == 4
    assert jitgen.brgemm(1, 1, 7) is kernels[6] and jitgen.brgemm(1, 1, 4) is kernels[3]
    assert jitgen.brgemm(1, 1, 1) is not kernels[0]
    # k = 5 was used least recently
    assert jitgen.brgemm(1, 1, 4) is kernels[3] and jitgen.brgemm(1, 1, 5) is not kernels[4]


def test_many_threads_run_one_kernel() -> None:
    """Calls drop the interpreter lock; each thread has its own arrays."""
    kernel = jitgen.brgemm(33, 47, 29, epilogue=("bias", "gelu"))

    def work(number: int) -> bool:
        random = np.random.default_rng(number)
        a = random.standard_normal((3, 33, 29)).astype(np.float32)
        b = random.standard_normal((3, 29, 47)).astype(np.float32)
        bias = random.standard_normal(47).astype(np.float32)
        first = kernel(a, b, np.zeros((33, 47), np.float32), bias=bias)
        return all(
            np.array_equal(first, kernel(a, b, np.zeros((33, 47), np.float32), bias=bias))
            for _ in range(20)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


def test_targets_and_host() -> None:
    listed = jitgen.targets()
    assert {"avx512", "avx2", "sve128", "sve256", "sve512"} <= set(listed)
    assert jitgen.host().name in listed and listed[jitgen.host().name] == ""
    assert jitgen.brgemm(1, 1, 1).target is jitgen.host()
    for name, reason in listed.items():
        if not reason:
            continue
        kernel = jitgen.brgemm(1, 1, 1, target=name)
        one = np.ones((1, 1), np.float32)
        with pytest.raises(RuntimeError) as caught:
            kernel(one, one, np.zeros((1, 1), np.float32))
        assert name in str(caught.value) and reason in str(caught.value)
        with pytest.raises(RuntimeError, match=name):
            _ = kernel.address


@pytest.mark.parametrize("name", USABLE)
def test_jitgen_isa_caps_the_target(name: str) -> None:
    printed = run_child("import jitgen; print(jitgen.host().name)", JITGEN_ISA=name)
    assert printed.strip() == name


@pytest.mark.parametrize(
    ("value", "error"), [("sse9", "sse9"), ("sve4096", "sve4096"), ("other", "JITGEN_ISA=")]
)
def test_jitgen_isa_that_cannot_be(value: str, error: str) -> None:
    """An unknown name is refused, and a target that this host lacks is not replaced by another."""
    if value == "other":
        missing = [name for name, reason in jitgen.targets().items() if reason]
        value = missing[-1]
    printed = run_child(
        """
        import jitgen
        try:
            jitgen.brgemm(1, 1, 1)
        except (ValueError, RuntimeError) as error:
            print(error)
        else:
            raise SystemExit("was accepted")
        """,
        JITGEN_ISA=value,
    )
    assert error in printed
