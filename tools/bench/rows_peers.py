"""Who takes part in ``python -m tools.bench rows``: jitgen's layers, PyTorch, a copy.

What it is: the data of one pass of one function, what is right, and for each contestant a callable
that computes it, called as a Python program calls it.
What it is not: it times nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np

import jitgen
from jitgen.primitives.layers.arrays import aligned, buffer_of
from jitgen.primitives.layers.elementwise import elementwise
from jitgen.run import cpu
from tools.bench.child import Way
from tools.bench.problem import last_level_cache_bytes

EPS = 1e-5
#: Layer, and arrays of rows x columns that a pass must read or write: forward, backward
FUNCTIONS: dict[str, tuple[Any, int, int]] = {
    "softmax": (jitgen.Softmax, 2, 3), "log_softmax": (jitgen.LogSoftmax, 2, 3),
    "log_sum_exp": (jitgen.LogSumExp, 1, 2), "sum": (jitgen.RowSum, 1, 1),
    "layer_norm": (jitgen.LayerNorm, 2, 3), "rms_norm": (jitgen.RmsNorm, 2, 3),
}  # fmt: skip
#: Of results, relative to the largest of their array
TOLERANCE = 1e-4
Arrays = dict[str, np.ndarray]


class Problem:
    """The arrays of a pass; cold: in so many sets that they exceed the last cache twice."""

    def __init__(
        self, function: str, which: str, rows: int, columns: int, dtype: str, cold: bool
    ) -> None:
        self.function, self.which, self.dtype = function, which, dtype
        self.rows, self.columns = rows, columns
        kind, *wide = FUNCTIONS[function]
        self.kind = kind
        rng = np.random.default_rng(1)
        made = {"x": (rows, columns), "dy": (rows, columns), "value": (rows,), "scale": (columns,),
                "shift": (columns,)}  # fmt: skip
        arrays: Arrays = {}
        for name, shape in made.items():
            arrays[name] = aligned(shape, dtype)
            arrays[name][...] = rng.standard_normal(shape)
        self.nbytes = arrays["x"].nbytes
        #: bytes that must be read or written once
        self.moved = wide[which == "backward"] * self.nbytes
        with_y = forward({name: each.astype(np.float64) for name, each in arrays.items()}, function)
        for name, value in with_y.items():
            arrays[name] = aligned(value.shape, dtype)
            arrays[name][...] = value
        self.sets = -(-2 * last_level_cache_bytes() // self.moved) if cold else 1
        large = [name for name in ("x", "dy", "y") if arrays[name].shape == (rows, columns)]
        self.all = [arrays]
        for _ in range(1, self.sets):
            self.all.append({**arrays, **{name: arrays[name].copy() for name in large}})

    @cached_property
    def expected(self) -> list[np.ndarray]:
        """The results in double precision."""
        arrays = {name: each.astype(np.float64) for name, each in self.all[0].items()}
        if self.which == "forward":
            return [forward(arrays, self.function)["y"]]
        return backward(arrays, self.function)

    def check(self, compute: Callable[[], tuple[Any, ...]]) -> str | None:
        """What is wrong with the results of a contestant, or None."""
        worst = 0.0
        for result, expected in zip(compute(), self.expected, strict=True):
            found = np.asarray(result, np.float64).reshape(expected.shape)
            error = np.abs(found - expected).max() / np.abs(expected).max()
            worst = max(worst, float(error)) if np.isfinite(error) else np.inf
        return None if worst <= TOLERANCE else f"wrong result, relative error {worst:.1e}"


# ---- what is right ------------------------------------------------------------------------------


def forward(a: Arrays, function: str) -> Arrays:
    """y, and of norms mean and rstd."""
    x = a["x"]
    if function == "sum":
        return {"y": x.sum(1)}
    if function.endswith("norm"):
        mean = x.mean(1) if function == "layer_norm" else np.zeros(len(x))
        rstd = 1 / np.sqrt(np.square(x - mean[:, None]).mean(1) + EPS)
        y = (x - mean[:, None]) * rstd[:, None] * a["scale"]
        return {"y": y + a["shift"] * (function == "layer_norm"), "mean": mean, "rstd": rstd}
    top = x.max(1, keepdims=True)
    e = np.exp(x - top)
    total = e.sum(1, keepdims=True)
    if function == "softmax":
        return {"y": e / total}
    log = top + np.log(total)
    return {"y": x - log if function == "log_softmax" else log[:, 0]}


def backward(a: Arrays, function: str) -> list[np.ndarray]:
    """dx, and of norms the gradients of scale and shift."""
    x, dy, y = a["x"], a["dy"], a["y"]
    if function == "sum":
        return [a["value"][:, None] + np.zeros_like(x)]
    if function == "log_sum_exp":
        return [a["value"][:, None] * np.exp(x - y[:, None])]
    if function == "softmax":
        return [y * (dy - (dy * y).sum(1, keepdims=True))]
    if function == "log_softmax":
        return [dy - np.exp(y) * dy.sum(1, keepdims=True)]
    h = (x - a["mean"][:, None]) * a["rstd"][:, None]
    g = dy * a["scale"]
    mean = g.mean(1, keepdims=True) * (function == "layer_norm")
    dx = a["rstd"][:, None] * (g - mean - h * (g * h).mean(1, keepdims=True))
    sums = [(dy * h).sum(0), dy.sum(0)]
    return [dx, *sums[: 1 + (function == "layer_norm")]]


# ---- contestants --------------------------------------------------------------------------------


def _way(calls: list[Callable[[], Any]], read: Callable[[Any], Any] = lambda x: x) -> Way:
    def results(found: Any) -> tuple[Any, ...]:
        return tuple(map(read, found)) if isinstance(found, (tuple, list)) else (read(found),)

    return Way(calls[0], results, calls[1:])


def jitgen_way(problem: Problem, threads: int) -> Way:
    """A call of the layer."""
    name = problem.function
    layer = problem.kind(problem.rows, problem.columns, dtype=problem.dtype, threads=threads)
    operands = {
        "layer_norm": (("x", "scale", "shift"), ("dy", "x", "mean", "rstd", "scale")),
        "rms_norm": (("x", "scale"), ("dy", "x", "rstd", "scale")),
        "log_sum_exp": (("x",), ("value", "x", "y")), "sum": (("x",), ("value",)),
    }.get(name, (("x",), ("dy", "y")))  # fmt: skip
    call = layer.forward if problem.which == "forward" else layer.backward
    taken = operands[problem.which == "backward"]
    return _way([partial(call, *(arrays[each] for each in taken)) for arrays in problem.all])


def torch_way(problem: Problem) -> Way:
    """A call of PyTorch's function, or of its backward pass."""
    import torch

    given = [
        {name: torch.from_numpy(each) for name, each in arrays.items()} for arrays in problem.all
    ]
    name, columns = problem.function, (problem.columns,)
    functional = torch.nn.functional
    functions: dict[str, Callable[[Any], Any]] = {
        "softmax": lambda a: torch.softmax(a["x"], 1),
        "log_softmax": lambda a: torch.log_softmax(a["x"], 1),
        "log_sum_exp": lambda a: torch.logsumexp(a["x"], 1), "sum": lambda a: a["x"].sum(1),
        "layer_norm": lambda a: functional.layer_norm(a["x"], columns, a["scale"], a["shift"], EPS),
        "rms_norm": lambda a: functional.rms_norm(a["x"], columns, a["scale"], EPS),
    }  # fmt: skip
    if problem.which == "backward":
        aten, kind = torch.ops.aten, given[0]["x"].dtype
        derivatives: dict[str, Callable[[Any], Any]] = {
            "softmax": lambda a: aten._softmax_backward_data(a["dy"], a["y"], 1, kind),
            "log_softmax": lambda a: aten._log_softmax_backward_data(a["dy"], a["y"], 1, kind),
            "layer_norm": lambda a: aten.native_layer_norm_backward(
                a["dy"], a["x"], columns, a["mean"][:, None], a["rstd"][:, None], a["scale"],
                a["shift"], [True] * 3,
            ),
            # autograd gives a view of one number for each row
            "sum": lambda a: a["value"][:, None].expand(a["x"].shape).contiguous(),
        }  # fmt: skip
        functions = {
            name: derivatives.get(name) or _by_autograd(functions[name], name, given)
        }
    calls = [partial(functions[name], a) for a in given]
    return _way(calls, lambda result: result.detach().numpy())


def _by_autograd(
    function: Callable[[Any], Any], name: str, given: list[dict[str, Any]]
) -> Callable[[Any], Any]:
    """The backward pass of a function, on graphs that are made before."""
    import torch

    wanted = ("x", "scale") if name == "rms_norm" else ("x",)
    for arrays in given:
        for each in wanted:
            arrays[each] = arrays[each].clone().requires_grad_()
        arrays["result"] = function(arrays)
        arrays["gradient"] = arrays["dy" if name == "rms_norm" else "value"]

    def call(a: Any) -> Any:
        inputs = [a[each] for each in wanted]
        return torch.autograd.grad(a["result"], inputs, a["gradient"], retain_graph=True)

    return call


def copies(problem: Problem, threads: int) -> list[Callable[[], Any]]:
    """Copies of x to another array, by NumPy; on several threads by a stream of ours."""
    targets = [np.zeros_like(arrays["x"]) for arrays in problem.all]
    sources = [arrays["x"] for arrays in problem.all]
    if threads == 1:
        return [partial(np.copyto, to, x) for to, x in zip(targets, sources, strict=True)]
    size = problem.rows * problem.columns
    run = elementwise("copy", size, ("a", "c"), "", problem.dtype, threads, cpu.host())
    return [
        partial(run, {"a": buffer_of(x), "c": buffer_of(to)})
        for to, x in zip(targets, sources, strict=True)
    ]
