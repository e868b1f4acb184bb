"""Who takes part in ``python -m tools.bench fc``: jitgen's layer, PyTorch, NumPy, LIBXSMM.

What it is: the data of one pass of one layer, and for each contestant the callables that compute it
on every copy of the weights, called as a Python program calls them. LIBXSMM has only the product
(no bias, no relu) on operands that were blocked before, and no Python between its calls.
What it is not: it times nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jitgen.primitives.layers.arrays import aligned
from jitgen.primitives.layers.fully_connected import FullyConnected
from tools.bench import peers as bench_peers, problem as bench_problem
from tools.bench.child import Way
from tools.bench.machine_code import drivers, ffi
from tools.bench.problem import last_level_cache_bytes

PASSES = ("forward", "data", "weights")
#: Contestants that take arrays as they are, and all that are called from Python
PLAIN_PEERS = ("torch", "autograd", "onednn", "numpy")
PEERS = (*PLAIN_PEERS, "onednn packed")
TOLERANCE = 1e-5
Calls = list[Callable[[], Any]]


@dataclass(frozen=True)
class Shape:
    """A layer: batch n, input features c, output features k."""

    n: int
    c: int
    k: int

    def __str__(self) -> str:
        return f"{self.n}x{self.c}x{self.k}"

    @property
    def flops(self) -> int:
        """Floating-point operations of the product, which all three passes have in common."""
        return 2 * self.n * self.c * self.k


class Problem:
    """The arrays of one pass, f32; `cold`: so many weights (weight gradients) as exceed the last
    cache twice, else one."""

    def __init__(self, shape: Shape, which: str, *, cold: bool = False) -> None:
        self.shape, self.which = shape, which
        n, c, k = shape.n, shape.c, shape.k
        self.weight_bytes = 4 * k * c
        self.sets = -(-2 * last_level_cache_bytes() // self.weight_bytes) if cold else 1
        rng = np.random.default_rng(1)
        self.x, self.b, self.dy = (_random(rng, size) for size in ((n, c), (k,), (n, k)))
        values = _random(rng, (k, c))
        rotating = [aligned((k, c), "f32") for _ in range(self.sets)]
        for array in rotating:
            array[...] = np.nan if which == "weights" else values
        self.w = [values] if which == "weights" else rotating
        self.dw = rotating if which == "weights" else []
        self.db = np.full(k, np.nan, np.float32)
        self.y = np.full((n, k), np.nan, np.float32)
        self.dx = np.full((n, c), np.nan, np.float32)

    def operands(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A (m x k) and B (k x n) of the pass's product, as views."""
        if self.which == "forward":
            return self.x, self.w[index].T
        if self.which == "data":
            return self.dy, self.w[index]
        return self.dy.T, self.x

    @cached_property
    def _product(self) -> tuple[np.ndarray, np.ndarray]:
        """The product in double precision, and the sum of absolute products."""
        a, b = (operand.astype(np.float64) for operand in self.operands(0))
        return a @ b, np.abs(a) @ np.abs(b)

    def check(self, compute: Callable[[], tuple[Any, ...]], epilogue: bool = True) -> str | None:
        """What is wrong with the arrays that `compute` returns, or None; outputs hold NaN before.

        Without `epilogue` there is neither bias and relu nor a gradient of the bias.
        """
        for array in (self.y, self.dx, self.db, *self.dw[:1]):
            array[...] = np.nan
        error = self._error(compute(), epilogue)
        return None if error <= TOLERANCE else f"wrong result, relative error {error:.1e}"

    def _error(self, results: tuple[Any, ...], epilogue: bool) -> float:
        product, sizes = self._product
        expected, scale = [product], [sizes]
        if self.which == "forward" and epilogue:
            expected[0] = np.maximum(product + self.b, 0)
            scale[0] = sizes + np.abs(self.b)
        elif self.which == "weights" and epilogue:
            expected.append(self.dy.sum(0, dtype=np.float64))
            scale.append(np.abs(self.dy).sum(0, dtype=np.float64))
        found = [np.asarray(result, np.float64) for result in results]
        if [f.shape for f in found] != [e.shape for e in expected]:
            return float("inf")
        pairs = zip(found, expected, scale, strict=True)
        worst = max(float(np.max(np.abs(f - e) / s)) for f, e, s in pairs)
        return worst if np.isfinite(worst) else float("inf")


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    result = aligned(shape, "f32")
    result[...] = rng.uniform(-1, 1, shape)
    return result


# ---- jitgen -------------------------------------------------------------------------------------


def jitgen(problem: Problem, threads: int, packed: bool) -> Calls:
    """The layer on plain arrays, or with packed weights (packed input for the weight update)."""
    p, shape = problem, problem.shape
    layer = FullyConnected(shape.n, shape.c, shape.k, activation="relu", threads=threads)
    if p.which == "weights":
        x = layer.pack_input(p.x) if packed else p.x
        return [lambda out=(dw, p.db): layer.backward_weights(p.dy, x, out) for dw in p.dw]
    weights = [layer.pack_weights(w) for w in p.w] if packed else p.w
    if p.which == "forward":
        return [lambda w=w: (layer.forward(p.x, w, p.b, p.y),) for w in weights]
    return [lambda w=w: (layer.backward_data(p.dy, w, p.dx),) for w in weights]


# ---- PyTorch and NumPy --------------------------------------------------------------------------


def torch_ways(problem: Problem) -> Iterator[tuple[str, Callable[[], Calls]]]:
    """PyTorch's ways, by name: its BLAS, autograd, oneDNN on plain arrays and on packed weights.

    The oneDNN operator is the one to which torch.compile turns a frozen layer on a CPU.
    """
    import torch

    lp = torch.ops.mkldnn._linear_pointwise
    pack = torch.ops.mkldnn._reorder_linear_weight
    p, n = problem, problem.shape.n
    x, b, dy = (torch.from_numpy(array) for array in (p.x, p.b, p.dy))
    ws = [torch.from_numpy(w) for w in p.w]
    if p.which == "forward":
        linear = torch.nn.functional.linear
        yield "torch", lambda: [lambda w=w: (linear(x, w, b).relu_(),) for w in ws]
        yield "onednn", lambda: [lambda w=w: (lp(x, w, b, "relu", [], ""),) for w in ws]
        yield "onednn packed", lambda: [
            lambda w=w: (lp(x, w, b, "relu", [], ""),) for w in [pack(w, n) for w in ws]
        ]
    elif p.which == "data":
        dx, mm = torch.from_numpy(p.dx), torch.mm
        yield "torch", lambda: [lambda w=w: (mm(dy, w, out=dx),) for w in ws]
        yield "autograd", lambda: [_autograd(p, w, "x") for w in p.w]
        wts = [w.t() for w in ws]
        yield "onednn", lambda: [lambda w=w: (lp(dy, w, None, "none", [], ""),) for w in wts]
        yield "onednn packed", lambda: [
            lambda w=w: (lp(dy, w, None, "none", [], ""),)
            for w in [pack(w.contiguous(), n) for w in wts]
        ]
    else:
        dws, db = [torch.from_numpy(dw) for dw in p.dw], torch.from_numpy(p.db)
        # of one row an outer product, which broadcasting makes faster than a matrix product
        mm, total = torch.mul if n == 1 else torch.mm, torch.sum
        yield "torch", lambda: [
            lambda dw=dw: (mm(dy.t(), x, out=dw), total(dy, 0, out=db)) for dw in dws
        ]
        yield "autograd", lambda: [_autograd(p, p.w[0], "w")] * p.sets
        yield "onednn", lambda: [
            lambda: (lp(dy.t(), x.t(), None, "none", [], ""), total(dy, 0, out=db))
        ] * p.sets


def _autograd(p: Problem, w: np.ndarray, wanted: str) -> Callable[[], Any]:
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        inputs = [torch.from_numpy(array).requires_grad_() for array in (p.x, w, p.b)]
        y = torch.nn.functional.linear(*inputs)
        dy = torch.from_numpy(p.dy)
    towards = inputs[:1] if wanted == "x" else inputs[1:]
    gradient = torch.autograd.grad
    return lambda: gradient(y, towards, dy, retain_graph=True)


def numpy_way(problem: Problem) -> Calls:
    """NumPy with results in place."""
    p, matmul, add, most = problem, np.matmul, np.add, np.maximum
    if p.which == "forward":

        def forward(w: np.ndarray) -> tuple[np.ndarray]:
            matmul(p.x, w.T, out=p.y)
            add(p.y, p.b, out=p.y)
            return (most(p.y, 0, out=p.y),)

        return [lambda w=w: forward(w) for w in p.w]
    if p.which == "data":
        return [lambda w=w: (matmul(p.dy, w, out=p.dx),) for w in p.w]
    total = np.add.reduce
    if p.shape.n == 1:
        matmul = np.multiply
    return [lambda dw=dw: (matmul(p.dy.T, p.x, out=dw), total(p.dy, 0, out=p.db)) for dw in p.dw]


# ---- LIBXSMM ------------------------------------------------------------------------------------


class Blocks:
    """LIBXSMM's batch-reduce kernel over blocked operands, one thread: calls from machine code."""

    def __init__(self, library: bench_peers.Libxsmm, problem: Problem) -> None:
        a, b = problem.operands(0)
        (m, k), n = a.shape, b.shape[1]
        bm, bn, bk = _divisor(m), _divisor(n, vector=16), _divisor(k)
        count = k // bk
        kernel = library.dispatch(bench_problem.Shape(bm, bn, bk, count), "f32")
        self._function = ffi.cast("void *", kernel)
        self._tables: list[Any] = []
        self._keep: list[Any] = [library]
        self._blocks = (m // bm) * (n // bn)
        left = _blocked(a, bm, bk)
        c = self._first = aligned((m // bm, n // bn, bm, bn), "f32")
        c[...] = np.nan
        right = _blocked(b.T, bn, bk, swap=True)
        for index in range(problem.sets):
            # what rotates: weights, or their gradient
            if index and problem.which == "weights":
                c = aligned(c.shape, "f32")
            elif index:
                right = right.copy()
            arguments = [
                library.arguments(count, left[i], right[j], c[i, j])
                for j in range(n // bn) for i in range(m // bm)
            ]  # fmt: skip
            self._tables.append(ffi.new("void *[]", [ffi.cast("void *", x) for x in arguments]))
            self._keep += [arguments, left, right, c]

    def calls(self) -> Calls:
        """One call for each set; it returns nothing (see `result`)."""
        driver = drivers()
        each, stack, function, blocks = driver.each, driver.stack, self._function, self._blocks
        # the operands must live as long as the calls
        return [
            lambda t=table, keep=self: each(function, t, blocks, stack) for table in self._tables
        ]

    def result(self) -> np.ndarray:
        """The product of the first set as a plain array."""
        rows, columns, bm, bn = self._first.shape
        return self._first.transpose(0, 2, 1, 3).reshape(rows * bm, columns * bn)


def libxsmm_way(library: bench_peers.Libxsmm, problem: Problem) -> Way:
    """The product alone."""
    blocks = Blocks(library, problem)
    calls = blocks.calls()
    return Way(calls[0], lambda _: (blocks.result(),), calls[1:])


def _divisor(size: int, vector: int = 1) -> int:
    """The divisor up to 64 that fills vectors best; of several the largest."""
    found = [d for d in range(1, 65) if size % d == 0]
    return max(found, key=lambda d: (d / (-(-d // vector) * vector), d))


def _blocked(matrix: np.ndarray, rows: int, columns: int, swap: bool = False) -> np.ndarray:
    """[r / rows][c / columns][rows][columns]; with `swap` each block is transposed."""
    r, c = matrix.shape
    blocks = matrix.reshape(r // rows, rows, c // columns, columns)
    blocks = blocks.transpose(0, 2, 3, 1) if swap else blocks.transpose(0, 2, 1, 3)
    result = aligned(blocks.shape, "f32")
    result[...] = blocks
    return result
