"""Arrays of 2 GiB and more: how products of them are cut, and kernels that reach far.

The slow tests run them, on memory of which few pages are ever touched. Not here: what is refused
(test_limits).
"""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from child import run_child
from spans import check_run, recorded

from jitgen import FullyConnected
from jitgen.emit.frame import ARGUMENTS
from jitgen.emit.routine import Routine
from jitgen.kernels.dot import emit_dot, possible
from jitgen.kernels.elementwise import emit_column_sums
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.pack import emit_packer
from jitgen.primitives.fc import streams as fc_streams
from jitgen.run import cpu, loader, shared

#: batch, in_features, out_features: x, w, y or several of them take 2 GiB or more, or a panel does
SIZES = [
    (524291, 2049, 8), (8, 2049, 524291), (8, 524291, 2049), (2049, 524291, 8), (2049, 8, 524291),
    (65537, 65535, 3), (65536, 3, 65536), (4, 65536, 65536), (2048, 65536, 65536),
    (1, 150_000_000, 5), (3, 5, 150_000_000), (30, 9_000_000, 40), (20, 9_000_000, 40),
    (40, 30, 9_000_000), (9_000_000, 70, 64), (1 << 25, 100, 2), (1 << 27, 8, 8),
    (200_000, 3, 20_000), (5000, 3, 200_000), ((1 << 21) + 3, 16, 2000),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "target"),
    [(sizes, "avx512") for sizes in SIZES]
    + [(sizes, target) for sizes in SIZES[:6] for target in ("avx2", "sve256")],
    ids=str,
)  # fmt: skip
def test_every_call_of_a_large_layer_spans_less_than_2_gib(
    sizes: tuple[int, int, int], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All passes and layouts: blocks that kernels reach, within the arrays, and every product."""
    n, c, k = sizes
    dtype, threads = ("f64", 1) if target == "avx2" else ("f32", 2)

    def panels(rows: int, columns: int, width: int) -> int:
        return -(-columns // width) * width * rows

    with recorded(monkeypatch):
        layer = FullyConnected(n, c, k, dtype=dtype, threads=threads, target=target).layer
        w_f, w_b, w_x = (
            fc_streams.panels_for(layer, *s) for s in ((n, k, c), (n, c, k), (k, c, n))
        )
        x, dz, w = n * c, n * k, k * c
        cases = [(fc_streams.pack_weights, (False, w_f), {"b": w, "c": panels(c, k, w_f)}),
                 (fc_streams.pack_weights, (True, w_b), {"b": w, "c": panels(k, c, w_b)}),
                 (fc_streams.pack_input, (w_x,), {"b": x, "c": panels(n, c, w_x)})]  # fmt: skip
        for width in (0, w_f):
            of_w = panels(c, k, width) if width else w
            cases += [
                (fc_streams.forward, (0, width, False), {"a": x, "b": of_w, "c": dz, "bias": k}),
                (fc_streams.forward, (w_x, width, True),
                 {"a": panels(n, c, w_x), "b": of_w, "c": panels(n, k, width or w_f), "bias": k}),
            ]  # fmt: skip
        for width in (0, w_b):
            of_w = panels(k, c, width) if width else w
            cases += [
                (fc_streams.backward_data, (0, width, False), {"a": dz, "b": of_w, "c": x}),
                (fc_streams.backward_data, (w_f, width, True),
                 {"a": panels(n, k, w_f), "b": of_w, "c": panels(n, c, width or w_b)}),
            ]  # fmt: skip
        for width in (0, w_x):
            of_x = panels(n, c, width) if width else x
            cases += [
                (fc_streams.backward_weights, (0, width), {"a": dz, "b": of_x, "c": w, "db": k}),
                (fc_streams.backward_weights, (w_f, width),
                 {"a": panels(n, k, w_f), "b": of_x, "c": w, "db": k}),
            ]  # fmt: skip
        for make, how, elements in cases:
            if max(elements.values()) > 1 << 32:
                continue  # refused at the door
            run = make.__wrapped__(layer, *how)  # not kept: streams of a million calls
            work = check_run(run, elements)
            assert work == (0 if "pack" in make.__name__ else n * c * k), (make.__name__, how)


def sparse(elements: int) -> np.ndarray:
    """Zeros (f32) that take no memory until they are written; pages of 4 KiB."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return np.frombuffer(mmap.mmap(-1, 4 * elements, flags=flags), np.float32)


def call(routine: Routine, **words: np.ndarray | int) -> None:
    """Run a routine."""
    with shared.lock:
        loaded = loader.load(routine)
    struct = loader.ffi.new("uint64_t[]", len(ARGUMENTS))
    for name, value in words.items():
        at = value if isinstance(value, int) else value.__array_interface__["data"][0]
        struct[ARGUMENTS[name] // 8] = at
    assert not loader.ffi.cast("int64_t (*)(void *)", loaded.address)(struct)


@pytest.mark.parametrize("leading", [(1 << 25) + 3, (1 << 26) + 1, (1 << 28) - 5, (1 << 29) - 1])
def test_kernels_walk_down_rows_that_lie_far_apart(leading: int) -> None:
    """Rows 128 MiB to 2 GiB apart: transposed, packed, and summed, natively."""
    target, rows, columns = cpu.host(), 18, 21
    memory = sparse((rows - 1) * leading + columns)
    a = np.random.default_rng(1).integers(1, 9, (rows, columns)).astype(np.float32)
    for i, row in enumerate(a):
        memory[i * leading : i * leading + columns] = row
    turned = np.empty((columns, rows), np.float32)
    call(emit_transpose(rows, columns, "f32", target, lda=leading), a=memory, c=turned)
    np.testing.assert_array_equal(turned, a.T)
    sums = np.empty(columns, np.float32)
    call(emit_column_sums(rows, columns, "f32", target, lda=leading), a=memory, c=sums)
    np.testing.assert_array_equal(sums, a.sum(axis=0))
    back = sparse((rows - 1) * leading + columns)
    call(emit_transpose(columns, rows, "f32", target, ldc=leading), a=turned, c=back)
    for i, row in enumerate(a):
        np.testing.assert_array_equal(back[i * leading : i * leading + columns], row)
    for trans, m in ((True, a.T), (False, a)):
        k, n = m.shape
        packed = np.full((-(-n // 32), k, 32), np.nan, np.float32)
        call(emit_packer(k, n, leading, 0, 32, "f32", trans, target), a=memory, c=packed, count=1)
        np.testing.assert_array_equal(packed[0, :, :n], m)
    if possible("f32", target) and leading < 1 << 27:
        y, x = np.empty(rows, np.float32), np.arange(columns, dtype=np.float32)
        call(emit_dot(rows, columns, leading, "f32", target), a=x, b=memory, c=y)
        np.testing.assert_array_equal(y, a @ x)


SPARSE = """
import numpy as np
from test_large import sparse as zeros
from jitgen import FullyConnected

rng = np.random.default_rng(1)
def sparse(rows, columns):
    return zeros(rows * columns).reshape(rows, columns)
def some(size):
    return sorted({0, size - 1, size // 2, *rng.integers(0, size, 6).tolist()})
def scatter(rows, columns, of_rows, of_columns):
    a = sparse(rows, columns)
    for i in of_rows:
        a[i, of_columns] = rng.integers(1, 4, len(of_columns))
    return a, a[np.ix_(of_rows, of_columns)].astype(float)
def check(result, of_rows, of_columns, expected):
    # what was scattered, and zeros in those rows otherwise
    assert (result[np.ix_(of_rows, of_columns)] == expected).all()
    assert sum(np.count_nonzero(result[i]) for i in of_rows) == np.count_nonzero(expected)
"""

#: memory: the arrays that are written
PASSES = """
n, c, k = {sizes}
ns, cs, ks = some(n), some(c), some(k)
x, at_x = scatter(n, c, ns, cs)
w, at_w = scatter(k, c, ks, cs)
dz, at_dz = scatter(n, k, ns, ks)
b = np.zeros(k, np.float32)
layer = FullyConnected(n, c, k, threads=2)
check(layer.forward(x, w, b), ns, ks, at_x @ at_w.T)
check(layer.backward_data(dz, w), ns, cs, at_dz @ at_w)
dw, db = layer.backward_weights(dz, x)
check(dw, ks, cs, at_dz.T @ at_x)
assert (db[ks] == at_dz.sum(0)).all() and np.count_nonzero(db) == len(ks)
del dw
y = sparse(n, k)
y[ns[0], ks[0]] = 1
relu = FullyConnected(n, c, k, activation="relu", threads=2)
relu.backward_activation(dz, y, out=dz)
assert np.count_nonzero(dz[ns[0]]) == 1 and np.count_nonzero(dz[ns[1]]) == 0
"""

LAYOUTS = """
n, c, k = {sizes}
ns, cs, ks = some(n), some(c), some(k)
x, at_x = scatter(n, c, ns, cs)
w, at_w = scatter(k, c, ks, cs)
dz, at_dz = scatter(n, k, ns, ks)
b = np.zeros(k, np.float32)
layer = FullyConnected(n, c, k, threads=2)
expected = at_x @ at_w.T
packed = layer.pack_weights(w, backward={backward})
check(layer.forward(x, packed, b), ns, ks, expected)
if {backward}:
    check(layer.backward_data(dz, packed), ns, cs, at_dz @ at_w)
if {blocked}:
    panels = layer.pack_input(x)
    check(layer.forward(panels, packed, b).plain(), ns, ks, expected)
    check(layer.forward(panels, w, b).plain(), ns, ks, expected)
    dw, _ = layer.backward_weights(dz, panels)
    check(dw, ks, cs, at_dz.T @ at_x)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [(524291, 2049, 8), (8, 2049, 524291), (8, 524291, 2049), (20, 14_000_000, 20),
     (9_000_000, 70, 64)],
    ids=str,
)  # fmt: skip
def test_passes_over_2_gib(sizes: tuple[int, int, int]) -> None:
    """x, w, y or several are large; the results of a few elements that are not zero, exactly."""
    run_child(SPARSE + PASSES.format(sizes=sizes), 600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "backward", "blocked"),
    [((524291, 2049, 8), True, True), ((8, 2049, 262147), True, False),
     ((8, 262147, 2049), False, True)],
)  # fmt: skip
def test_packed_layouts_over_2_gib(
    sizes: tuple[int, int, int], backward: bool, blocked: bool
) -> None:
    run_child(SPARSE + LAYOUTS.format(sizes=sizes, backward=backward, blocked=blocked), 600)


@pytest.mark.slow
def test_an_optimizer_over_2_gib() -> None:
    run_child(
        SPARSE
        + """
from jitgen import Sgd
p, g = sparse(1, (1 << 29) + 7)[0], sparse(1, (1 << 29) + 7)[0]
at = some(len(p))
p[at], g[at] = 1, 2
Sgd([p], lr=0.25).step([g])
assert (p[at] == 0.5).all() and np.count_nonzero(p) == len(at)
""",
        600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_a_convolution_over_2_gib(layout: str) -> None:
    """1 x 1 taps over 4 GiB; results, weight and bias gradients."""
    run_child(
        SPARSE
        + f"""
from jitgen import Convolution
layer = Convolution(1, 32, 6000, 5700, 4, 1, layout={layout!r}, threads=2)
x, dy = zeros(6000 * 5700 * 32).reshape(layer.x_shape), zeros(6000 * 5700 * 4)
dy = dy.reshape(layer.y_shape)
w = rng.integers(1, 4, layer.w_shape).astype(np.float32)
if {layout!r} == "nhwc":
    x[0, 5999, 5699], dy[0, 5999, 5699] = np.arange(32), np.arange(4)
    y = layer.forward(x, w, np.zeros(4, np.float32))[0, 5999, 5699]
else:
    x[0, :, 5999, 5699], dy[0, :, 5999, 5699] = np.arange(32), np.arange(4)
    y = layer.forward(x, w, np.zeros(4, np.float32))[0, :, 5999, 5699]
assert (y == w[:, :, 0, 0] @ np.arange(32)).all()
dw, db = layer.backward_weights(dy, x)
assert (dw[:, :, 0, 0] == np.outer(np.arange(4), np.arange(32))).all()
assert (db == np.arange(4)).all()
""",
        600,
    )
