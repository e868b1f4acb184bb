"""The fully connected layer: forward, backward by data, weight update.

    y = activation(x w^T + b)       x: batch x in_features, w: out_features x in_features
    dx = dz w                       dz = dy * activation'(...), from `backward_activation`
    dw = dz^T x, db = column sums of dz

Every pass is one stream: the product, and before it the packing of what is not packed. Figures for
comparison: arXiv:1906.06440, section on fully connected layers. Not here: the streams
(`primitives.fc_streams`), training (`primitives.mlp`).
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np

from jitgen import cpu
from jitgen.operands import NUMPY
from jitgen.spec import DTYPES
from jitgen.target import Target
from jitgen.threads import check_threads
from primitives import fc_streams as streams
from primitives.arguments import ACTIVATIONS, one_of, positive
from primitives.arrays import aligned, buffer_of, check, check_output, output
from primitives.elementwise import activation_gradient
from primitives.fc_streams import Layer, panels_for
from primitives.layouts import Blocked, PackedWeights
from primitives.limits import MOST_ELEMENTS, check_elements, check_reach, made
from primitives.loops import check_order
from primitives.run import Run
from primitives.stream import Stream


class FullyConnected:
    """A fully connected layer y = activation(x w^T + b) for one batch size.

    threads: None for OMP_NUM_THREADS or all CPUs; blocks: rows and columns of a kernel call
    (columns are rounded up to whole panels), order: the loops over them (`primitives.loops`;
    letters m and n), both None for the automatic choice.
    Arrays are C-contiguous, of `dtype` ("f32", "f64"). Methods may be called from several Python
    threads at once. Raises TypeError or ValueError that names argument, value and rule.

    >>> layer = FullyConnected(2, 3, 4, activation="relu")
    >>> x, w, b = (np.ones(shape, np.float32) for shape in ((2, 3), (4, 3), (4,)))
    >>> layer.forward(x, w, b).tolist()
    [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]
    """

    def __init__(
        self, batch: int, in_features: int, out_features: int, *, bias: bool = True,
        activation: str | None = None, dtype: str = "f32", threads: int | None = None,
        blocks: tuple[int, int] | None = None, order: str | None = None,
        target: str | Target | None = None,
    ) -> None:  # fmt: skip
        positive(batch=batch, in_features=in_features, out_features=out_features)
        if activation is not None:
            one_of("activation", activation, ACTIVATIONS)
        one_of("dtype", dtype, DTYPES)
        if blocks is not None and (
            type(blocks) is not tuple or [type(b) for b in blocks] != [int, int] or min(blocks) < 1
        ):
            raise ValueError(f"blocks={blocks!r} is not a pair of positive sizes: rows, columns")
        if order is not None:
            check_order(order, "mn")
        self._sizes: dict[str, object] = {
            "batch": batch, "in_features": in_features, "out_features": out_features,
        }  # fmt: skip
        x, w, y = (batch, in_features), (out_features, in_features), (batch, out_features)
        check_elements(self._sizes, x=x, w=w, y=y)
        check_reach(self._sizes, dtype, a_row_of_x=in_features, a_row_of_y=out_features)
        chosen = cpu.choose(target)
        self.layer = Layer(
            batch, in_features, out_features, bool(bias), activation, dtype,
            check_threads(threads), chosen, blocks, order,
        )  # fmt: skip
        streams.check_blocks(self.layer)
        if blocks is not None:
            self._sizes["blocks"] = blocks
        self._x_shape, self._w_shape = x, w
        self._y_shape: tuple[int, ...] = y
        self._numpy = NUMPY[dtype]
        #: streams by pass and layout: hashing the layer at each call would cost a microsecond
        self._runs: dict[tuple[Any, ...], Run] = {}

    def _run(self, make: Any, *layout: Any) -> Run:
        key = (make, *layout)
        run = self._runs.get(key)
        if run is None:
            run = made(partial(make, self.layer, *layout), make.__name__, self._sizes)
            self._runs[key] = run
        return run

    def stream(self, name: str = "forward", *, packed: bool = True) -> Stream:
        """The stream of "forward", "backward_data" or "backward_weights" on plain x and dz, with
        packed weights (x for the update) or plain ones; print its `text()`."""
        layer = self.layer
        n, c, k = layer.batch, layer.in_features, layer.out_features
        sizes = {"forward": (n, k, c), "backward_data": (n, c, k), "backward_weights": (k, c, n)}
        one_of("name", name, sizes)
        width = panels_for(layer, *sizes[name]) if packed else 0
        layout = (0, width) if name == "backward_weights" else (0, width, False)
        return self._run(getattr(streams, name), *layout).stream

    # ---- layouts ------------------------------------------------------------------------

    def pack_weights(self, w: np.ndarray, *, backward: bool = True) -> PackedWeights:
        """w (out_features x in_features) as the passes read it; without `backward` for the forward
        pass only."""
        layer = self.layer
        n, c, k = layer.batch, layer.in_features, layer.out_features
        buffer = check("w", w, self._w_shape, layer.dtype)
        packed = []
        for is_backward, size in ((False, (n, k, c)), (True, (n, c, k)))[: 1 + backward]:
            width = panels_for(layer, *size)
            shape = (-(-size[1] // width), size[2], width)
            check_elements(self._sizes, w_in_panels=shape)
            array = aligned(shape, layer.dtype)
            self._run(streams.pack_weights, is_backward, width)((buffer, buffer_of(array)))
            packed.append(Blocked(array, size[1]))
        return PackedWeights(packed[0], packed[1] if backward else None)

    def pack_input(self, x: np.ndarray) -> Blocked:
        """x (batch x in_features) in panels, which `forward` and `backward_weights` take."""
        layer = self.layer
        width = panels_for(layer, layer.out_features, layer.in_features, layer.batch)
        buffer = check("x", x, self._x_shape, layer.dtype)
        array = self._panels(layer.in_features, width)
        self._run(streams.pack_input, width)((buffer, buffer_of(array)))
        return Blocked(array, layer.in_features)

    def _panels(self, columns: int, width: int) -> np.ndarray:
        shape = (-(-columns // width), self.layer.batch, width)
        if prod(shape) > MOST_ELEMENTS:
            check_elements(self._sizes, a_blocked_array=shape)
        return aligned(shape, self.layer.dtype)

    # ---- passes -------------------------------------------------------------------------

    def forward(
        self, x: np.ndarray | Blocked, w: np.ndarray | PackedWeights, b: np.ndarray | None = None,
        out: np.ndarray | None = None,
    ) -> Any:  # fmt: skip
        """y = activation(x w^T + b): batch x out_features, in `out` if that is given.

        A blocked x gives a blocked y. w is plain, or from `pack_weights` (faster).
        """
        layer = self.layer
        weights = w.forward if isinstance(w, PackedWeights) else w
        bias: tuple[Any, ...] = ()
        if layer.bias:
            bias = (check("b", b, (layer.out_features,), layer.dtype),)
        elif b is not None:
            raise ValueError("b is given, but the layer was made with bias=False")
        return self._multiply(
            streams.forward, ("x", x, layer.in_features), ("w", weights, self._w_shape),
            layer.out_features, out, bias, {"b": b},
        )  # fmt: skip

    def backward_data(
        self, dz: np.ndarray | Blocked, w: np.ndarray | PackedWeights,
        out: np.ndarray | None = None,
    ) -> Any:  # fmt: skip
        """dx = dz w: batch x in_features, in `out` if that is given; a blocked dz gives a blocked
        dx. `dz` is the gradient before the activation (`backward_activation`)."""
        layer = self.layer
        weights = w.backward if isinstance(w, PackedWeights) else w
        if weights is None:
            raise ValueError("w was packed with backward=False")
        return self._multiply(
            streams.backward_data, ("dz", dz, layer.out_features), ("w", weights, self._w_shape),
            layer.in_features, out, (), {},
        )  # fmt: skip

    def _multiply(
        self, make: Any, a: tuple[str, Any, int], b: tuple[str, Any, tuple[int, int]], columns: int,
        out: np.ndarray | None, more: tuple[Any, ...], others: dict[str, Any],
    ) -> Any:  # fmt: skip
        layer = self.layer
        a_width, first = self._operand(*a)
        if isinstance(b[1], Blocked):
            if b[1].columns != columns:
                raise ValueError(f"w was packed for {b[1].columns} features; here are {columns}")
            b_width, b_array = b[1].width, b[1].array
            panels_shape = (-(-columns // b_width), a[2], b_width)
            second = check("w (packed)", b_array, panels_shape, layer.dtype)
        else:
            b_width, second, b_array = 0, check(b[0], b[1], b[2], layer.dtype), b[1]
        blocked = a_width > 0
        run = self._run(make, a_width, b_width, blocked)
        if blocked:
            if out is not None:
                raise ValueError("out: a blocked result is always a new one")
            width = b_width or panels_for(layer, layer.batch, columns, a[2])
            panels = self._panels(columns, width)
            run((first, second, buffer_of(panels), *more))
            return Blocked(panels, columns)
        shape = (layer.batch, columns)
        inputs = {a[0]: a[1], "w": b_array, **others}
        out, third = output(out, shape, layer.dtype, inputs)
        run((first, second, third, *more))
        return out

    def _operand(self, name: str, value: Any, columns: int) -> tuple[int, Any]:
        """Panel width (0: plain) and buffer of an operand of batch rows."""
        layer = self.layer
        if not isinstance(value, Blocked):
            return 0, check(name, value, (layer.batch, columns), layer.dtype)
        if value.columns != columns:
            raise ValueError(f"{name} has {value.columns} columns; the layer has {columns}")
        width = value.width
        shape = (-(-columns // width), layer.batch, width)
        return width, check(name, value.array, shape, layer.dtype)

    def backward_activation(
        self, dy: np.ndarray | Blocked, y: np.ndarray | Blocked, out: np.ndarray | None = None
    ) -> Any:
        """dz = dy * activation'(z), batch x out_features, in `out` if that is given; it may be dy.

        y is the layer's output for relu, sigmoid and tanh; for gelu and silu, whose output does not
        tell, it is z, the output of the same layer without activation. Both plain, or both blocked.
        """
        layer, shape = self.layer, self._y_shape
        first: Any = dy
        second: Any = y
        blocked = isinstance(dy, Blocked) and isinstance(y, Blocked)
        if blocked:
            widths = [self._operand(n, v, layer.out_features)[0] for n, v in (("dy", dy), ("y", y))]
            if widths[0] != widths[1]:
                raise ValueError(f"dy and y have panels of {widths[0]} and {widths[1]}")
            if out is not None:
                raise ValueError("out: a blocked result is always a new one")
            first, second, out = first.array, second.array, self._panels(shape[1], widths[0])
            shape = out.shape
        result = activation_gradient(
            layer.activation, first, second, out, shape, layer.dtype, layer.threads, layer.target
        )
        return Blocked(result, layer.out_features) if blocked else result

    def backward_weights(
        self, dz: np.ndarray | Blocked, x: np.ndarray | Blocked,
        out: tuple[np.ndarray, np.ndarray | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
        """dw = dz^T x (out_features x in_features) and db = column sums of dz (None without bias);
        `out` may give the two arrays."""
        layer = self.layer
        a_width, first = self._operand("dz", dz, layer.out_features)
        b_width, second = self._operand("x", x, layer.in_features)
        dw: np.ndarray
        db: np.ndarray | None
        if out is None:
            dw = np.empty(self._w_shape, self._numpy)
            db = np.empty(layer.out_features, self._numpy) if layer.bias else None
            third, fourth = buffer_of(dw), buffer_of(db) if db is not None else None
        else:
            dw, db = out
            inputs = {"dz": getattr(dz, "array", dz), "x": getattr(x, "array", x)}
            third = check_output("dw", dw, self._w_shape, layer.dtype, inputs)
            fourth = None
            if layer.bias:
                shape = (layer.out_features,)
                fourth = check_output("db", db, shape, layer.dtype, {**inputs, "dw": dw})
        run = self._run(streams.backward_weights, a_width, b_width)
        run((first, second, third, *([fourth] if layer.bias else [])))
        return dw, db
