"""The fully connected layer: forward, backward by data, weight update.

    y = activation(x w^T + b + r)   x: batch x in_features, w: out_features x in_features
    dx = dz w                       dz = dy * activation'(...), from `backward_activation`
    dw = dz^T x, db = column sums of dz

Every pass is one stream: the product, and before it the packing of what is not packed. Figures for
comparison: arXiv:1906.06440, section on fully connected layers. Not here: the streams
(`jitgen.primitives.fc.streams`), training (`jitgen.primitives.train.mlp`).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.frozen import Frozen
from jitgen.primitives.fc import streams
from jitgen.primitives.fc.layouts import Blocked, PackedWeights
from jitgen.primitives.fc.streams import Layer, panels_for
from jitgen.primitives.layers.arrays import aligned, buffer_of, check, check_output, output
from jitgen.primitives.layers.elementwise import (
    activation_gradient,
    derived_from,
    make_activation,
    shown_activation,
)
from jitgen.primitives.nest.limits import MOST_ELEMENTS, check_elements, check_reach
from jitgen.primitives.nest.loops import check_order
from jitgen.primitives.nest.runs import Runs
from jitgen.primitives.nest.stream import Stream
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import NUMPY, DTypeLike


class FullyConnected(Frozen):
    """A fully connected layer y = activation(x w^T + b) for one batch size.

    activation: None, a name of `jitgen.primitives.layers.elementwise.ACTIVATIONS`, or (name,
    parameter, ...). residual: forward adds an array like y before the activation. threads: None for
    OMP_NUM_THREADS or all CPUs; blocks: rows and columns of a kernel call (columns are rounded up
    to whole panels), order: the loops over them (`jitgen.primitives.nest.loops`; letters m and n),
    both None for the automatic choice.
    Arrays are C-contiguous, of `dtype` ("f32", "f64"). Methods may be called from several Python
    threads at once. Raises TypeError or ValueError that names argument, value and rule.

    >>> layer = FullyConnected(2, 3, 4, activation="relu")
    >>> x, w, b = (np.ones(shape, np.float32) for shape in ((2, 3), (4, 3), (4,)))
    >>> layer.forward(x, w, b).tolist()
    [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]
    """

    def __init__(
        self, batch: int, in_features: int, out_features: int, *, bias: bool = True,
        activation: Any = None, residual: bool = False, dtype: DTypeLike = "f32",
        threads: int | None = None, blocks: tuple[int, int] | None = None,
        order: str | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        batch, in_features, out_features = doors.sizes(
            batch=batch, in_features=in_features, out_features=out_features
        )
        dtype = doors.dtype("dtype", dtype)
        step = make_activation(activation, dtype)
        if blocks is not None:
            blocks = doors.pair("blocks", blocks, " of sizes: rows, columns")
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
            batch, in_features, out_features, doors.flag("bias", bias),
            doors.flag("residual", residual), step, dtype, check_threads(threads), chosen, blocks,
            order,
        )  # fmt: skip
        streams.check_blocks(self.layer)
        if blocks is not None:
            self._sizes["blocks"] = blocks
        self._x_shape, self._w_shape = x, w
        #: what must agree between the layer that packed weights and the one that reads them
        self._layout = (in_features, out_features, dtype)
        self._lanes = chosen.machine(dtype, ANY_WIDTH).lanes
        self._runs = Runs(type(self).__name__, self._sizes)

    def __repr__(self) -> str:
        at, more = self.layer, "residual, " * self.layer.residual
        return (
            f"<primitives.FullyConnected {at.batch}x{at.in_features} -> {at.out_features}, "
            f"{more}{shown_activation(at.activation)}, {at.dtype} for {at.target.name}, "
            f"threads={at.threads}>"
        )

    def stream(self, name: str = "forward", *, packed: bool = True) -> Stream:
        """The stream of "forward", "backward_data" or "backward_weights" on plain x and dz, with
        packed weights (x for the update) or plain ones; print its `text()`."""
        layer = self.layer
        n, c, k = layer.batch, layer.in_features, layer.out_features
        sizes = {"forward": (n, k, c), "backward_data": (n, c, k), "backward_weights": (k, c, n)}
        name = doors.one_of("name", name, sizes)
        width = panels_for(layer, *sizes[name]) if doors.flag("packed", packed) else 0
        layout = (0, width) if name == "backward_weights" else (0, width, False)
        return self._runs.use(getattr(streams, name), layer, *layout).stream

    # ---- layouts ------------------------------------------------------------------------

    def pack_weights(self, w: np.ndarray, *, backward: bool = True) -> PackedWeights:
        """w (out_features x in_features) as the passes read it; without `backward` for the forward
        pass only."""
        layer = self.layer
        n, c, k = layer.batch, layer.in_features, layer.out_features
        backward = doors.flag("backward", backward)
        buffer = check("w", w, self._w_shape, layer.dtype)
        packed = []
        for is_backward, size in ((False, (n, k, c)), (True, (n, c, k)))[: 1 + backward]:
            width = panels_for(layer, *size)
            shape = (-(-size[1] // width), size[2], width)
            check_elements(self._sizes, w_in_panels=shape)
            array = aligned(shape, layer.dtype)
            run = self._runs.use(streams.pack_weights, layer, is_backward, width)
            run((buffer, buffer_of(array)))
            packed.append(Blocked(array, size[1]))
        return PackedWeights(packed[0], packed[1] if backward else None, self._layout)

    def pack_input(self, x: np.ndarray) -> Blocked:
        """x (batch x in_features) in panels, which `forward` and `backward_weights` take."""
        layer = self.layer
        width = panels_for(layer, layer.out_features, layer.in_features, layer.batch)
        buffer = check("x", x, self._x_shape, layer.dtype)
        array = self._panels(layer.in_features, width)
        self._runs.use(streams.pack_input, layer, width)((buffer, buffer_of(array)))
        return Blocked(array, layer.in_features)

    def _panels(self, columns: int, width: int) -> np.ndarray:
        shape = (-(-columns // width), self.layer.batch, width)
        if prod(shape) > MOST_ELEMENTS:
            check_elements(self._sizes, a_blocked_array=shape)
        return aligned(shape, self.layer.dtype)

    # ---- passes -------------------------------------------------------------------------

    def forward(
        self, x: np.ndarray | Blocked, w: np.ndarray | PackedWeights, b: np.ndarray | None = None,
        out: np.ndarray | None = None, *, residual: np.ndarray | Blocked | None = None,
    ) -> Any:  # fmt: skip
        """y = activation(x w^T + b + residual): batch x out_features, in `out` if that is given; it
        may be the residual, which is copied then.

        A blocked x gives a blocked y, and takes a residual in panels of the same width. w is plain,
        or from `pack_weights` (faster).
        """
        layer = self.layer
        more: tuple[Any, ...] = ()
        if layer.bias:
            more = (check("b", b, (layer.out_features,), layer.dtype),)
        elif b is not None:
            raise ValueError("b is given, but the layer was made with bias=False")
        weights = self._weights(w, False)
        inputs: dict[str, Any] = {"b": b}
        if layer.residual:
            if isinstance(out, np.ndarray) and out is residual:
                residual = out.copy()
            width, buffer = self._operand("residual", residual, layer.out_features)
            wanted = self._result_width(isinstance(x, Blocked), weights[0], layer.in_features,
                                        layer.out_features)  # fmt: skip
            if width != wanted:
                raise ValueError(f"residual has panels of {width}, y of {wanted} (0: none)")
            more, inputs = (*more, buffer), {**inputs, "residual": residual}
        elif residual is not None:
            raise ValueError("residual is given, but the layer was made with residual=False")
        return self._multiply(
            streams.forward, ("x", x, layer.in_features), weights, layer.out_features, out, more,
            inputs,
        )  # fmt: skip

    def _result_width(self, blocked: bool, b_width: int, depth: int, columns: int) -> int:
        """Panel width of a result (0: plain)."""
        return (b_width or panels_for(self.layer, self.layer.batch, columns, depth)) * blocked

    def backward_data(
        self, dz: np.ndarray | Blocked, w: np.ndarray | PackedWeights,
        out: np.ndarray | None = None,
    ) -> Any:  # fmt: skip
        """dx = dz w: batch x in_features, in `out` if that is given; a blocked dz gives a blocked
        dx. `dz` is the gradient before the activation (`backward_activation`)."""
        layer = self.layer
        return self._multiply(
            streams.backward_data, ("dz", dz, layer.out_features), self._weights(w, True),
            layer.in_features, out, (), {},
        )  # fmt: skip

    def _weights(self, w: Any, backward: bool) -> tuple[int, Any, np.ndarray]:
        """Panel width (0: plain), buffer and array of weights."""
        layer = self.layer
        if not isinstance(w, PackedWeights):
            return 0, check("w", w, self._w_shape, layer.dtype), w
        if w.layout != self._layout:
            raise ValueError(f"w was packed for {w.layout}; this layer is {self._layout}")
        panels = w.backward if backward else w.forward
        if panels is None:
            raise ValueError("w was packed with backward=False")
        rows, columns = self._w_shape if backward else self._w_shape[::-1]
        width: int = panels.array.shape[2]
        if width % self._lanes:
            self._check_width("w", panels)
        shape = (-(-columns // width), rows, width)
        return width, check("w (packed)", panels.array, shape, layer.dtype), panels.array

    def _check_width(self, name: str, panels: Blocked) -> None:
        """Raise ValueError unless these panels can be the kernel's B."""
        if panels.width % self._lanes:
            raise ValueError(
                f"{name} was packed for another target, in panels of {panels.width} columns; "
                f"{self.layer.target.name} takes multiples of {self._lanes}"
            )

    def _multiply(
        self, make: Any, a: tuple[str, Any, int], weights: tuple[int, Any, np.ndarray],
        columns: int, out: np.ndarray | None, more: tuple[Any, ...], others: dict[str, Any],
    ) -> Any:  # fmt: skip
        layer = self.layer
        a_width, first = self._operand(*a)
        b_width, second, array = weights
        blocked = a_width > 0
        run = self._runs.use(make, layer, a_width, b_width, blocked)
        if blocked:
            if out is not None:
                raise ValueError("out: a blocked result is always a new one")
            panels = self._panels(columns, self._result_width(True, b_width, a[2], columns))
            run((first, second, buffer_of(panels), *more))
            return Blocked(panels, columns)
        shape = (layer.batch, columns)
        # a new array overlaps nothing
        inputs = {} if out is None else {a[0]: a[1], "w": array, **others}
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
        self, dy: np.ndarray | Blocked, y: np.ndarray | Blocked | None = None,
        out: np.ndarray | None = None, *, z: np.ndarray | Blocked | None = None,
    ) -> Any:  # fmt: skip
        """dz = dy * activation'(z), batch x out_features, in `out` if that is given; it may be dy.

        Most activations take y, the layer's output; gelu, silu and hardswish, whose output does not
        tell, take z=, the output of the same layer without activation. Both plain, or both blocked.
        dz is the gradient of the residual too. ValueError for gelu_tanh and mish, whose gradients
        are not known here, and for leaky_relu and elu with a negative parameter.
        """
        layer = self.layer
        name, known = derived_from(layer.activation, y, z)
        if isinstance(dy, Blocked) and isinstance(known, Blocked):
            return self._backward_blocked(dy, name, known, out)
        shape = (layer.batch, layer.out_features)
        first = check("dy", dy, shape, layer.dtype)
        second = check(name, known, shape, layer.dtype)
        inputs = {name: known} if out is dy else {"dy": dy, name: known}
        result, third = output(out, shape, layer.dtype, inputs)
        self._gradient((first, second, third), result.size)
        return result

    def _backward_blocked(
        self, dy: Blocked, name: str, known: Blocked, out: np.ndarray | None
    ) -> Blocked:
        columns = self.layer.out_features
        width, first = self._operand("dy", dy, columns)
        other, second = self._operand(name, known, columns)
        if width != other:
            raise ValueError(f"dy and {name} have panels of {width} and {other}")
        if out is not None:
            raise ValueError("out: a blocked result is always a new one")
        panels = self._panels(columns, width)
        self._gradient((first, second, buffer_of(panels)), panels.size)
        return Blocked(panels, columns)

    def _gradient(self, buffers: tuple[Any, Any, Any], size: int) -> None:
        at = self.layer
        assert at.activation is not None  # `derived_from` has seen to it
        activation_gradient(at.activation, buffers, size, at.dtype, at.threads, at.target)

    def backward_weights(
        self, dz: np.ndarray | Blocked, x: np.ndarray | Blocked,
        out: tuple[np.ndarray, np.ndarray | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
        """dw = dz^T x (out_features x in_features) and db = column sums of dz (None without bias);
        `out` may give the two arrays."""
        layer = self.layer
        a_width, first = self._operand("dz", dz, layer.out_features)
        b_width, second = self._operand("x", x, layer.in_features)
        if isinstance(x, Blocked):
            self._check_width("x", x)
        dw: np.ndarray
        db: np.ndarray | None
        if out is None:
            dw = np.empty(self._w_shape, NUMPY[layer.dtype])
            db = np.empty(layer.out_features, dw.dtype) if layer.bias else None
            third, fourth = buffer_of(dw), buffer_of(db) if db is not None else None
        else:
            dw, db = doors.items("out", out, 2, ": dw, db")
            inputs = {"dz": getattr(dz, "array", dz), "x": getattr(x, "array", x)}
            third = check_output("out[0]", dw, self._w_shape, layer.dtype, inputs)
            fourth = None
            if layer.bias:
                shape = (layer.out_features,)
                fourth = check_output("out[1]", db, shape, layer.dtype, {**inputs, "out[0]": dw})
            elif db is not None:
                raise ValueError("out[1] is given, but the layer was made with bias=False")
        run = self._runs.use(streams.backward_weights, layer, a_width, b_width)
        run((first, second, third, *([fourth] if layer.bias else [])))
        return dw, db
