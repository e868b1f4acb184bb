"""The fully connected layer: forward, backward by data, weight update.

    y = activation(x w^T + b + r)   x: batch x in_features, w: out_features x in_features
    dx = dz w                       dz = dy * activation'(...), from `backward_activation`
    dw = dz^T x, db = column sums of dz

Every pass is one stream: the product, and before it the packing of what is not packed. Figures for
comparison: arXiv:1906.06440, section on fully connected layers. Not here: the streams
(`jitgen.primitives.fc.streams`), training (`jitgen.primitives.train.mlp`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.fc import streams
from jitgen.primitives.fc.layouts import Blocked, PackedWeights
from jitgen.primitives.fc.streams import Layer, panels_for
from jitgen.primitives.layers import base
from jitgen.primitives.layers.arrays import aligned
from jitgen.primitives.layers.described import Key, Operand, Shape, Sized
from jitgen.primitives.layers.elementwise import (
    backward_activation,
    derived_from,
    make_activation,
    shown_activation,
)
from jitgen.primitives.layers.exporting import is_packed, panels_of
from jitgen.primitives.layers.passes import Pass, Use
from jitgen.primitives.nest.limits import check_elements, check_reach
from jitgen.primitives.nest.loops import check_order
from jitgen.primitives.nest.stream import Stream
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import DTypeLike


class FullyConnected(base.Layer):
    """A fully connected layer y = activation(x w^T + b), made for a batch size; it takes others.

    activation: None, a name of `jitgen.primitives.layers.elementwise.ACTIVATIONS`, or (name,
    parameter, ...). residual: forward adds an array like y before the activation. threads: None for
    OMP_NUM_THREADS or all CPUs; blocks: rows and columns of a kernel call (columns are rounded up
    to whole panels), order: the loops over them (`jitgen.primitives.nest.loops`; letters m and n),
    both None for the automatic choice.
    Arrays are of `dtype` ("f32", "f64"), with any distance between their rows. A call's own batch
    need not be `batch`, for which blocks and packed weights are chosen. Methods may be called from
    several Python threads at once. Raises TypeError or ValueError that names argument, value and
    rule.

    >>> layer = FullyConnected(2, 3, 4, activation="relu")
    >>> x, w, b = (np.ones(shape, np.float32) for shape in ((2, 3), (4, 3), (4,)))
    >>> layer.forward(x, w, b).tolist()
    [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]
    """

    _trained = ("w", "b")
    _strided = {
        streams.forward: ("a", "b", "c", "residual"), streams.backward_data: ("a", "b", "c"),
        streams.backward_weights: ("a", "b", "c"),
    }  # fmt: skip

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
        self.layer = Layer(
            batch, in_features, out_features, doors.flag("bias", bias),
            doors.flag("residual", residual), step, dtype, check_threads(threads),
            cpu.choose(target), blocks, order,
        )  # fmt: skip
        super().__init__(self.layer, (batch, in_features))
        self._w_shape = (out_features, in_features)
        #: what must agree between the layer that packed weights and the one that reads them
        self._layout = (in_features, out_features, dtype)
        self._lanes = self.layer.target.machine(dtype, ANY_WIDTH).lanes

    def _arguments(self, at: Layer) -> dict[str, object]:
        names = ("batch", "in_features", "out_features", *(["blocks"] if at.blocks else []))
        return {name: getattr(at, name) for name in names}

    def _check_sizes(self, at: Layer) -> None:
        n, c, k = at.batch, at.in_features, at.out_features
        sizes = {"batch": n, "in_features": c, "out_features": k}
        check_elements(sizes, x=(n, c), w=(k, c), y=(n, k))
        check_reach(sizes, at.dtype, a_row_of_x=c, a_row_of_y=k)
        streams.check_blocks(at)

    def _words(self) -> list[str]:
        at = self.layer
        sizes = f"{at.batch}x{at.in_features} -> {at.out_features}"
        return [f"{sizes}, {'residual, ' * at.residual}{shown_activation(at.activation)}"]

    def _how(self, key: Key) -> dict[str, object]:
        make, *how = key
        if make is streams.pack_weights:
            return {"for": "backward_data" if how[0] else "forward"}
        if make in (streams.forward, streams.backward_data):
            return {"w": "packed" if how[1] else "plain"}
        return {}

    def stream(self, name: str = "forward", *, packed: bool = True) -> Stream:
        """The stream of "forward", "backward_data" or "backward_weights" on plain x and dz, with
        packed weights (x for the update) or plain ones; print its `text()`."""
        layer = self.layer
        n, c, k = layer.batch, layer.in_features, layer.out_features
        sizes = {"forward": (n, k, c), "backward_data": (n, c, k), "backward_weights": (k, c, n)}
        name = doors.one_of("name", name, sizes)
        width = panels_for(layer, *sizes[name]) if doors.flag("packed", packed) else 0
        layout = (0, width) if name == "backward_weights" else (0, width, False)
        return self._run(self._own(), (getattr(streams, name), *layout)).stream

    def _baked(self, taken: Pass, given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if is_packed(taken, given):
            return given
        return {**given, "w": panels_of(self, taken, given["w"]).array}

    def _uses(self) -> dict[str, Use]:
        at = self.layer
        x, dz = (self._blank((at.batch, n)) for n in (at.in_features, at.out_features))
        w, b = self._blank(self._w_shape), self._blank((at.out_features,)) if at.bias else None
        more = {"residual": dz} if at.residual else {}
        gradients = ("dw", "db")[: 1 + at.bias]
        return {
            "forward": Use(lambda own: own.forward(x, w, b, **more), ("y",)),
            "forward packed": Use(
                lambda own: own.forward(x, own.pack_weights(w, backward=False), b, **more), ("y",)
            ),
            "backward_data": Use(lambda own: own.backward_data(dz, w), ("dx",)),
            "backward_data packed": Use(
                lambda own: own.backward_data(dz, own.pack_weights(w)), ("dx",)
            ),
            "backward_weights": Use(lambda own: own.backward_weights(dz, x), gradients),
            "backward_weights packed": Use(
                lambda own: own.backward_weights(dz, own.pack_input(x)), gradients
            ),
            **self._use_of_gradient(at.activation, dz.shape),
            "pack_weights": Use(lambda own: own.pack_weights(w, backward=False), ("panels",)),
            "pack_weights backward": Use(lambda own: own.pack_weights(w), ("panels",)),
            "pack_input": Use(lambda own: own.pack_input(x), ("panels",)),
        }

    # ---- layouts ------------------------------------------------------------------------

    def pack_weights(self, w: np.ndarray, *, backward: bool = True) -> PackedWeights:
        """w (out_features x in_features) as the passes read it at any batch; without `backward` for
        the forward pass only."""
        at = self.layer
        n, c, k = at.batch, at.in_features, at.out_features
        backward = doors.flag("backward", backward)
        packed = []
        for is_backward, size in ((False, (n, k, c)), (True, (n, c, k)))[: 1 + backward]:
            width = panels_for(at, *size)
            packed.append(self._packed(
                self._own(), (streams.pack_weights, is_backward, width),
                [("b", "w", w, self._w_shape)], size[1], size[2], width,
            ))  # fmt: skip
        return PackedWeights(packed[0], packed[1] if backward else None, self._layout)

    def pack_input(self, x: np.ndarray) -> Blocked:
        """x (batch x in_features) in panels, which `forward` and `backward_weights` take."""
        sized, _, _, shape = self._operand("x", x, self.layer.in_features)
        at = sized.at
        width = panels_for(at, at.out_features, at.in_features, at.batch)
        return self._packed(
            sized, (streams.pack_input, width), [("b", "x", x, shape)], at.in_features, at.batch,
            width,
        )  # fmt: skip

    def _packed(
        self, sized: Sized, key: Key, inputs: Sequence[Operand], columns: int, rows: int, width: int
    ) -> Blocked:
        """A stream's result (tensor "c") of rows x columns, in panels."""
        shape = (-(-columns // width), rows, width)
        check_elements(self._arguments(sized.at), an_array_in_panels=shape)
        panels = aligned(shape, self.dtype)
        self._call(sized, key, inputs, [("c", "panels", panels, shape)])
        return Blocked(panels, columns)

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
        at = self.layer
        more: tuple[Operand, ...] = ()
        if at.bias:
            more = (("bias", "b", b, (at.out_features,)),)
        elif b is not None:
            self._wanted("b", b, False, "bias=False")
        if at.residual or residual is not None:
            self._wanted("residual", residual, at.residual, "residual=False")
            if out is residual and out is not None and not isinstance(out, Blocked):
                residual = np.array(doors.view("residual", residual))
        return self._multiply(
            streams.forward, "x", x, at.in_features, w, False, at.out_features, out, more, residual
        )

    def backward_data(
        self, dz: np.ndarray | Blocked, w: np.ndarray | PackedWeights,
        out: np.ndarray | None = None,
    ) -> Any:  # fmt: skip
        """dx = dz w: batch x in_features, in `out` if that is given; a blocked dz gives a blocked
        dx. `dz` is the gradient before the activation (`backward_activation`)."""
        at = self.layer
        return self._multiply(
            streams.backward_data, "dz", dz, at.out_features, w, True, at.in_features, out, ()
        )

    def _weights(self, w: Any, backward: bool) -> tuple[int, Operand]:
        """Panel width (0: plain) and operand of weights."""
        if not isinstance(w, PackedWeights):
            return 0, ("b", "w", w, self._w_shape)
        if w.layout != self._layout:
            raise ValueError(f"w was packed for {w.layout}; this layer is {self._layout}")
        panels = w.backward if backward else w.forward
        if panels is None:
            raise ValueError("w was packed with backward=False")
        rows, columns = self._w_shape if backward else self._w_shape[::-1]
        array = panels.array
        width: int = array.shape[2]
        if width % self._lanes:
            self._check_width("w", panels)
        return width, ("b", "w (packed)", array, (-(-columns // width), rows, width))

    def _check_width(self, name: str, panels: Blocked) -> None:
        """Raise ValueError unless these panels can be the kernel's B."""
        if panels.width % self._lanes:
            raise ValueError(
                f"{name} was packed for another target, in panels of {panels.width} columns; "
                f"{self.target.name} takes multiples of {self._lanes}"
            )

    def _multiply(
        self, make: Any, name: str, a: Any, depth: int, w: Any, backward: bool, columns: int,
        out: Any, more: tuple[Operand, ...], residual: Any = None,
    ) -> Any:  # fmt: skip
        """A product of rows `a` and weights."""
        shape: Shape
        sized = self._sizes.get(a.shape) if type(a) is np.ndarray else None
        if sized is not None:  # as `_operand` would say
            a_width, shape = 0, (sized.at.batch, depth)
        else:
            sized, a_width, a, shape = self._operand(name, a, depth)
        b_width, weights = self._weights(w, backward)
        inputs = (("a", name, a, shape), weights, *more)
        key = (make, a_width, b_width, a_width > 0)
        n = sized.at.batch
        width = (b_width or panels_for(sized.at, n, columns, depth)) if a_width else 0
        if self.layer.residual and make is streams.forward:
            _, own, array, shape = self._operand("residual", residual, columns, sized)
            if own != width:
                raise ValueError(f"residual has panels of {own}, y of {width} (0: none)")
            inputs = (*inputs, ("residual", "residual", array, shape))
        if a_width:
            self._no_blocked_out(out)
            return self._packed(sized, key, inputs, columns, n, width)
        return self._call(sized, key, inputs, (("c", "out", out, (n, columns)),))[0]

    def _no_blocked_out(self, out: Any) -> None:
        if out is not None:
            raise ValueError("out: a blocked result is always a new one")

    def _operand(
        self, name: str, value: Any, columns: int, sized: Sized | None = None
    ) -> tuple[Sized, int, Any, Shape]:
        """The layer at the batch of an operand (None: find out), panel width (0: plain), array and
        shape."""
        if not isinstance(value, Blocked):
            sized = sized or self._sized(name, value, (self.layer.batch, columns))
            return sized, 0, value, (sized.at.batch, columns)
        if value.columns != columns:
            raise ValueError(f"{name} has {value.columns} columns; the layer has {columns}")
        _, rows, width = value.array.shape
        sized = sized or self._another((rows, columns), (self.layer.batch, columns))
        return sized, width, value.array, (-(-columns // width), sized.at.batch, width)

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
        at = self.layer
        name, known = derived_from(at.activation, y, z)
        if not (isinstance(dy, Blocked) and isinstance(known, Blocked)):
            shape = (at.batch, at.out_features)
            return self._gradient(at.activation, shape, dy, y, z, out)
        columns = at.out_features
        sized, width, a, in_panels = self._operand("dy", dy, columns)
        _, other, b, _ = self._operand(name, known, columns, sized)
        if width != other:
            raise ValueError(f"dy and {name} have panels of {width} and {other}")
        self._no_blocked_out(out)
        key = (backward_activation, at.activation, prod(in_panels))
        inputs = (("a", "dy", a, in_panels), ("b", name, b, in_panels))
        return self._packed(sized, key, inputs, columns, sized.at.batch, width)

    def backward_weights(
        self, dz: np.ndarray | Blocked, x: np.ndarray | Blocked,
        out: tuple[np.ndarray, np.ndarray | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
        """dw = dz^T x (out_features x in_features) and db = column sums of dz (None without bias);
        `out` may give the two arrays."""
        at = self.layer
        sized, a_width, a, a_shape = self._operand("dz", dz, at.out_features)
        _, b_width, b, b_shape = self._operand("x", x, at.in_features, sized)
        if b_width and isinstance(x, Blocked):
            self._check_width("x", x)
        dw, db = (None, None) if out is None else doors.items("out", out, 2, ": dw, db")
        results: list[Operand] = [("c", "out[0]", dw, self._w_shape)]
        if at.bias:
            results.append(("db", "out[1]", db, (at.out_features,)))
        if out is not None:
            self._wanted("out[1]", db, at.bias, "bias=False")
            for _, name, value, _ in results:
                doors.view(name, value)  # no None
        inputs = (("a", "dz", a, a_shape), ("b", "x", b, b_shape))
        found = self._call(sized, (streams.backward_weights, a_width, b_width), inputs, results)
        return found[0], found[1] if at.bias else None
