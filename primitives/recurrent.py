"""Recurrent layers over whole sequences: LSTM, GRU and the simple RNN; forward and backward.

    Lstm   i, f, o = sigmoid, g = tanh of w x + b_0 + r h' + b_1   (h', c': the step before)
           c = f c' + i g,  h = o tanh(c)
    Gru    rr, z = sigmoid of the same, n = tanh(w_n x + b_0n + rr (r_n h' + b_1n)), or, with
           reset="before", tanh(w_n x + b_0n + r_n (rr h') + b_1n);  h = (1 - z) n + z h'
    Rnn    h = tanh(w x + b_0 + r h' + b_1)

Weights have PyTorch's shapes and order of gates (i, f, g, o and r, z, n); D = 2 directions stack
theirs along a first axis. ONNX's tensors: `primitives.recurrent_onnx`. Not here: the streams
(`primitives.recurrent_streams`, `primitives.recurrent_backward`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jitgen import cpu
from jitgen.loader import ffi
from jitgen.operands import NUMPY
from jitgen.spec import DTYPES, MATRIX_BYTES
from jitgen.target import Target
from jitgen.threads import check_threads
from primitives.arguments import one_of, positive
from primitives.arrays import aligned, buffer_of, check
from primitives.limits import made
from primitives.recurrent_backward import TENSORS, backward
from primitives.recurrent_streams import (
    STATES,
    Layer,
    Way,
    check_sizes,
    forward,
    pack_weights,
    packed_elements,
)
from primitives.run import Run

DIRECTIONS = ("forward", "reverse", "bidirectional")
RESETS = ("after", "before")


@dataclass(frozen=True)
class PackedRecurrent:
    """Weights of each direction as the forward pass reads them, the layer they are for, and the
    caller's arrays (not copies), for the backward pass."""

    panels: list[dict[str, np.ndarray]]
    layout: tuple[Any, ...]
    w: np.ndarray
    r: np.ndarray


@dataclass
class _Kept:
    """What the backward pass needs of a forward pass."""

    mask: np.ndarray | None
    directions: list[dict[str, Any]]


class _Recurrent:
    """What the layers share. A pass allocates its results; `training` keeps x, w, r, p and y, which
    must not change before `backward`, and is for one Python thread at a time."""

    def __init__(
        self, kind: str, batch: int, steps: int, in_features: int, hidden: int, direction: str,
        bias: bool, peephole: bool, dtype: str, threads: int | None, target: str | Target | None,
    ) -> None:  # fmt: skip
        positive(batch=batch, steps=steps, in_features=in_features, hidden=hidden)
        one_of("direction", direction, DIRECTIONS)
        one_of("dtype", dtype, DTYPES)
        chosen = cpu.choose(target)
        both = direction == "bidirectional"
        self.layer = Layer(
            kind, batch, steps, in_features, hidden, 1 + both, bool(peephole), dtype,
            check_threads(threads), chosen,
        )  # fmt: skip
        check_sizes(self.layer)
        self.bias = bool(bias)
        self.forget_bias = 0.0
        self._reversed = (False, True) if both else (direction == "reverse",)
        lead, rows = (2,) if both else (), self.layer.gates * hidden
        #: shapes of the arguments by name
        self.shapes = {
            "x": (steps, batch, in_features), "w": (*lead, rows, in_features),
            "r": (*lead, rows, hidden), "b": (*lead, 2, rows), "p": (*lead, 3, hidden),
            "h0": (*lead, batch, hidden), "y": (steps, batch, (1 + both) * hidden),
        }  # fmt: skip
        self._numpy = NUMPY[dtype]
        #: elements of packed weights, and of what is kept for the backward pass, by tensor
        self._packed = packed_elements(self.layer)
        self._saved = {name: size for name, size in self.layer.sizes.items() if size}
        self._layout = (
            kind, in_features, hidden, self.layer.directions, self.layer.width, dtype
        )  # fmt: skip
        #: streams by direction and use: hashing the layer at each call would cost a microsecond
        self._runs: dict[tuple[Any, ...], Run] = {}
        self._zeros = np.zeros((batch, hidden), self._numpy)
        self._kept: _Kept | None = None
        self._slabs: list[dict[str, np.ndarray]] = [{} for _ in self._reversed]

    def pack_weights(self, w: np.ndarray, r: np.ndarray) -> PackedRecurrent:
        """w and r as the forward pass reads them: pass the result as its w, and r=None."""
        for name, array in (("w", w), ("r", r)):
            check(name, array, self.shapes[name], self.layer.dtype)
        packed = []
        for d in range(len(self._reversed)):
            # the columns behind the last unit are read: as zeros
            panels = {n: aligned((s,), self.layer.dtype) for n, s in self._packed.items()}
            for array in panels.values():
                array.fill(0)
            given = self._one(w, d), self._one(r, d)
            self._run(pack_weights)(tuple(buffer_of(a) for a in (*given, *panels.values())))
            packed.append(panels)
        return PackedRecurrent(packed, self._layout, w, r)

    def _run(self, make: Any, *how: Any) -> Run:
        key = (make, *how)
        run = self._runs.get(key)
        if run is None:
            sizes = {name: getattr(self.layer, name) for name in ("batch", "steps", "hidden")}
            run = self._runs[key] = made(partial(make, self.layer, *how), make.__name__, sizes)
        return run

    def _one(self, array: Any, d: int) -> Any:
        """One direction's part of an argument."""
        return array[d] if array is not None and len(self._reversed) == 2 else array

    # ---- passes ---------------------------------------------------------------------------------

    def _forward(
        self, x: np.ndarray, w: np.ndarray | PackedRecurrent, r: np.ndarray | None,
        b: np.ndarray | None, states: dict[str, np.ndarray | None], p: np.ndarray | None,
        lengths: Any, training: bool,
    ) -> list[Any]:  # fmt: skip
        """y and the last states."""
        layer = self.layer
        packed = w if isinstance(w, PackedRecurrent) else None
        if packed is not None:
            if r is not None:
                raise ValueError("r is given, but w holds both packed weights; it must be None")
            if packed.layout != self._layout:
                raise ValueError(f"w is packed for {packed.layout}; this layer is {self._layout}")
            w, r = packed.w, packed.r
            for panels in packed.panels:
                for name, size in self._packed.items():
                    check(f"w (packed, {name})", panels[name], (size,), layer.dtype)
        for name, array in (("x", x), ("w", w), ("r", r)):
            check(name, array, self.shapes[name], layer.dtype)
        for name, array, wanted in (("b", b, self.bias), ("p", p, layer.peephole)):
            if wanted:
                check(name, array, self.shapes[name], layer.dtype)
            elif array is not None:
                raise ValueError(f"{name} is given, but the layer was made without")
        for name, array in states.items():
            if array is not None:
                check(name, array, self.shapes["h0"], layer.dtype)
        if training:
            size = layer.steps * layer.batch * layer.gates * layer.units * layer.element
            if size >= MATRIX_BYTES:
                raise ValueError(
                    f"training=True: the gates of steps={layer.steps} and batch={layer.batch} with "
                    f"hidden={layer.hidden} take {size} bytes, 2 GiB or more; split the batch"
                )
        mask, begin = self._mask(lengths), states
        if training:  # the caller may put the next states into these arrays
            begin = {n: None if a is None else a.copy() for n, a in states.items()}
        if mask is not None:
            # what lies behind a sequence must not reach sums over all steps, nor what an empty one
            # begins with
            some, zero = mask[0, :, None] > 0, self._numpy.type(0)
            x = np.where(mask[:, :, None] > 0, x, zero)
            begin = {n: None if a is None else np.where(some, a, zero) for n, a in states.items()}
        y = np.empty(self.shapes["y"], self._numpy)
        last: dict[str, list[np.ndarray]] = {name: [] for name in states}
        kept = []
        for d, reverse in enumerate(self._reversed):
            given = {name: self._one(array, d) for name, array in begin.items()}
            arrays = self._arrays(d, training)
            arrays |= {"x": x, "y": y, "mask": mask, "p": self._one(p, d)}
            arrays |= {n: self._zeros if a is None else a for n, a in given.items()}
            arrays |= self._biases(self._one(b, d))
            arrays |= {"w": self._one(w, d), "r": self._one(r, d)}
            if packed is not None:
                arrays |= packed.panels[d]
            started = any(array is not None for array in given.values())
            way = Way(reverse, d * layer.hidden, started, mask is not None)
            run = self._run(forward, way, training, packed is not None)
            names = ["x", *(self._packed if packed else ("w", "r")), *STATES]
            names += [n for n in self._saved if n != "c"] if training else []
            run(tuple(_pointer(arrays.get(name)) for name in names))
            end = 0 if reverse else layer.steps - 1
            columns = slice(d * layer.hidden, (d + 1) * layer.hidden)
            last["h0"].append(y[end, :, columns])
            if "c0" in last:
                last["c0"].append(arrays["c"][end] if training else arrays["c"])
            kept.append(arrays)
        if training:
            self._kept = _Kept(mask, kept)
        results: list[Any] = [y if mask is None else np.where(mask[:, :, None] > 0, y, 0)]
        for name, parts in last.items():
            state = np.stack(parts) if len(parts) == 2 else np.array(parts[0])
            given_state = states[name]
            if mask is not None and given_state is not None:
                state = np.where(some, state, given_state)
            results.append(state)
        return results

    def _arrays(self, d: int, training: bool) -> dict[str, Any]:
        """Arrays that the forward pass leaves to the backward pass; the states of the cells."""
        layer = self.layer
        if training:
            result = {name: self._slab(d, name, size) for name, size in self._saved.items()}
            if "c" in result:
                result["c"] = result["c"].reshape(layer.steps, layer.batch, layer.hidden)
            return result
        return {"c": np.empty_like(self._zeros)} if "c" in self._saved else {}

    def _biases(self, b: np.ndarray | None) -> dict[str, np.ndarray]:
        """The biases in panels of gates."""
        layer = self.layer
        pair = np.zeros((2, layer.gates * layer.hidden), self._numpy) if b is None else b
        if layer.kind == "gru":
            return {"bias": self._panels(pair[0]), "bias_r": self._panels(pair[1])}
        both = pair[0] + pair[1]
        if self.forget_bias:
            both[layer.hidden : 2 * layer.hidden] += self.forget_bias
        return {"bias": self._panels(both)}

    def _panels(self, b: np.ndarray) -> np.ndarray:
        layer = self.layer
        wide = np.zeros((layer.gates, layer.units), self._numpy)
        wide[:, : layer.hidden] = b.reshape(layer.gates, layer.hidden)
        return np.ascontiguousarray(
            wide.reshape(layer.gates, -1, layer.width).transpose(1, 0, 2)
        )

    def _mask(self, lengths: Any) -> np.ndarray | None:
        """1 where a step (row) is within a sequence (column), else 0; None without lengths."""
        if lengths is None:
            return None
        layer = self.layer
        array = np.asarray(lengths)
        if array.shape != (layer.batch,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"lengths has shape {array.shape} and dtype {array.dtype}; it must be "
                f"({layer.batch},) integers"
            )
        if not 0 <= int(array.min()) <= int(array.max()) <= layer.steps:
            raise ValueError(f"lengths={array.tolist()}: each must be 0 .. steps={layer.steps}")
        return (np.arange(layer.steps)[:, None] < array).astype(self._numpy)

    def _backward(self, dy: np.ndarray, given: dict[str, np.ndarray | None]) -> list[Any]:
        """dx, dw, dr, db, the gradients of the first states, and dp with peepholes."""
        layer, kept = self.layer, self._kept
        if kept is None:
            raise ValueError("backward needs a forward pass with training=True before it")
        check("dy", dy, self.shapes["y"], layer.dtype)
        for name, array in given.items():
            if array is not None:
                check(name, array, self.shapes["h0"], layer.dtype)
        h, rows = layer.hidden, layer.gates * layer.hidden
        result = {name: np.empty(self.shapes[name], self._numpy) for name in ("w", "r", "b", "p")}
        first = {
            n: np.zeros(self.shapes["h0"], self._numpy) if a is None else np.array(a)
            for n, a in given.items()
        }
        dx: Any = None
        for d, arrays in enumerate(kept.directions):
            dw, dr, db = (self._one(result[n], d) for n in ("w", "r", "b"))
            more = {
                "dy": dy, "dw": dw, "dr": dr, "dr_n": dr[2 * h :], "db": db[0], "db_r": db[1],
                "r_n": arrays["r"].reshape(rows, h)[2 * h :],  # the caller may have reshaped it
                "dx": np.empty(self.shapes["x"], self._numpy),
                "dgates": self._slab(d, "dgates", layer.steps * layer.batch * rows),
            }  # fmt: skip
            more |= {name: self._one(array, d) for name, array in first.items()}
            way = Way(self._reversed[d], d * h, True, kept.mask is not None)
            every = {**arrays, **more}
            self._run(backward, way)(tuple(_pointer(every.get(name)) for name in TENSORS))
            if layer.kind != "gru":
                db[1] = db[0]
            if layer.peephole:
                self._peepholes(every, self._one(result["p"], d), self._reversed[d])
            dx = more["dx"] if d == 0 else np.add(dx, more["dx"], out=dx)
        results = [dx, result["w"], result["r"], result["b"] if self.bias else None]
        return [*results, *first.values(), *([result["p"]] if layer.peephole else [])]

    def _slab(self, d: int, name: str, size: int) -> np.ndarray:
        """Memory that training passes use again."""
        slabs = self._slabs[d]
        if name not in slabs:
            slabs[name] = aligned((size,), self.layer.dtype)
            slabs[name].fill(0)
        return slabs[name]

    def _peepholes(self, arrays: dict[str, Any], dp: np.ndarray, reverse: bool) -> None:
        """The gradient of the peepholes' weights: sums of the gates' times the cells' states."""
        layer = self.layer
        gates = arrays["dgates"].reshape(layer.steps, layer.batch, layer.gates, layer.hidden)
        c, c0 = arrays["c"], arrays["c0"][None]
        before = np.concatenate([c[1:], c0] if reverse else [c0, c[:-1]])
        for i, (gate, state) in enumerate(((0, before), (1, before), (3, c))):
            np.einsum("tnh,tnh->h", gates[:, :, gate], state, out=dp[i])


def _pointer(array: Any) -> Any:
    """The address of an array that a stream reads, or of none."""
    return ffi.NULL if array is None or not array.size else buffer_of(array)


class Lstm(_Recurrent):
    """A long short-term memory layer for one size of batch and number of steps.

    direction: "forward", "reverse" (from the last step to the first) or "bidirectional" (both; the
    results side by side). forget_bias is added to the forget gate's bias; peephole: the gates see
    the cell's state through weights p. threads: None for OMP_NUM_THREADS or all CPUs. Raises
    TypeError or ValueError that names argument, value and rule.

    >>> layer = Lstm(2, 3, 4, 5)
    >>> x, w, r = (np.ones(layer.shapes[name], np.float32) for name in "xwr")
    >>> y, h, c = layer.forward(x, w, r, np.zeros(layer.shapes["b"], np.float32))
    >>> y.shape, h.shape, bool((y[-1] == h).all())
    ((3, 2, 5), (2, 5), True)
    """

    def __init__(
        self, batch: int, steps: int, in_features: int, hidden: int, *,
        direction: str = "forward", bias: bool = True, forget_bias: float = 0.0,
        peephole: bool = False, dtype: str = "f32", threads: int | None = None,
        target: str | Target | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "lstm", batch, steps, in_features, hidden, direction, bias, peephole, dtype, threads,
            target,
        )  # fmt: skip
        if not isinstance(forget_bias, (int, float)):
            raise TypeError(f"forget_bias={forget_bias!r} is no number")
        if not math.isfinite(forget_bias):
            raise ValueError(f"forget_bias={forget_bias} is not finite")
        self.forget_bias = float(forget_bias)

    def forward(
        self, x: np.ndarray, w: np.ndarray | PackedRecurrent, r: np.ndarray | None,
        b: np.ndarray | None = None, h0: np.ndarray | None = None, c0: np.ndarray | None = None,
        *, p: np.ndarray | None = None, lengths: Any = None, training: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """y (steps x batch x D hidden), and the last h and c, shaped like h0.

        Arguments have the shapes of `shapes`: b is PyTorch's bias_ih and bias_hh, p the weights of
        i, f and o. lengths: steps of each sequence; behind it y is 0, and the states stay.
        training: `backward` may follow.
        """
        y, h, c = self._forward(x, w, r, b, {"h0": h0, "c0": c0}, p, lengths, training)
        return y, h, c

    def backward(
        self, dy: np.ndarray, dh: np.ndarray | None = None, dc: np.ndarray | None = None
    ) -> tuple[Any, ...]:
        """dx, dw, dr, db, dh0, dc0 and, with peepholes, dp: the gradients of the last forward pass
        with training=True, from those of y and of the last h and c (None: 0)."""
        return tuple(self._backward(dy, {"dh": dh, "dc": dc}))


class _WithoutCell(_Recurrent):
    """A layer whose only state is h."""

    def forward(
        self, x: np.ndarray, w: np.ndarray | PackedRecurrent, r: np.ndarray | None,
        b: np.ndarray | None = None, h0: np.ndarray | None = None, *, lengths: Any = None,
        training: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """y (steps x batch x D hidden) and the last h; see `Lstm.forward`."""
        y, h = self._forward(x, w, r, b, {"h0": h0}, None, lengths, training)
        return y, h

    def backward(self, dy: np.ndarray, dh: np.ndarray | None = None) -> tuple[Any, ...]:
        """dx, dw, dr, db, dh0; see `Lstm.backward`."""
        return tuple(self._backward(dy, {"dh": dh}))


class Gru(_WithoutCell):
    """A gated recurrent unit. reset: "after" the recurrent product, as PyTorch has it, or "before"
    (ONNX with linear_before_reset=0). Else as `Lstm`."""

    def __init__(
        self, batch: int, steps: int, in_features: int, hidden: int, *,
        direction: str = "forward", bias: bool = True, reset: str = "after", dtype: str = "f32",
        threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        one_of("reset", reset, RESETS)
        super().__init__(
            "gru" if reset == "after" else "gru_before", batch, steps, in_features, hidden,
            direction, bias, False, dtype, threads, target,
        )  # fmt: skip


class Rnn(_WithoutCell):
    """The simple recurrent layer, with tanh. Else as `Lstm`."""

    def __init__(
        self, batch: int, steps: int, in_features: int, hidden: int, *,
        direction: str = "forward", bias: bool = True, dtype: str = "f32",
        threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "rnn", batch, steps, in_features, hidden, direction, bias, False, dtype, threads, target
        )
