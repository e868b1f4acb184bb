"""Convolution in two dimensions: forward, backward by data, weight update.

    y[n, k, h, w] = sum over c, r, s of x[n, c, h stride + r dilation - padding, ...] w[k, c, r, s]

then bias, residual and activation. Arrays are as in PyTorch: NCHW, or NHWC with layout="nhwc";
weights are out_channels x in_channels / groups x rows x columns. Not here: the streams
(`jitgen.primitives.conv.streams`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.emit.steps import Step
from jitgen.primitives.conv import streams, winograd
from jitgen.primitives.conv.choosing import chosen, maker_of
from jitgen.primitives.conv.cost import SUMS, choose, letters
from jitgen.primitives.conv.layouts import WINOGRAD, Choice, Conv, packed_elements, packed_layout
from jitgen.primitives.conv.tiles import choose_algorithm
from jitgen.primitives.conv.windows import LAYOUTS, Pair, border, out_size, pair
from jitgen.primitives.layers.arrays import aligned, realigned
from jitgen.primitives.layers.base import DIRECT
from jitgen.primitives.layers.described import Key, Operand, Shape, Sized
from jitgen.primitives.layers.elementwise import make_activation, shown_activation
from jitgen.primitives.layers.exporting import is_packed, panels_of
from jitgen.primitives.layers.images import Images
from jitgen.primitives.layers.passes import Pass, Use
from jitgen.primitives.nest.limits import check_elements, check_reach, named
from jitgen.primitives.nest.loops import check_order
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Stream
from jitgen.primitives.nest.tables import MOST_CALLS
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.target import Target
from jitgen.types import DTypeLike

#: Elements of the longest vector
MOST_LANES = 64
#: Taps of a kernel, at most
MOST_TAPS = 1 << 20
PASSES = ("forward", "backward_data", "backward_weights")
ALGORITHMS = ("direct", "winograd")


def _by_pass(name: str, value: Any) -> dict[str, Any]:
    """The values by pass: a plain one is for the two passes that make images."""
    if value is None:
        return {}
    given = value if isinstance(value, dict) else dict.fromkeys(PASSES[:2], value)
    found: dict[str, Any] = {}
    for which, each in given.items():
        which = doors.one_of(f"{name}: pass", which, PASSES)
        what = f"{name}[{which!r}]" if isinstance(value, dict) else name
        if name == "blocks":
            found[which] = doors.pair(what, each, " of sizes: pixels, channels")
        else:
            found[which] = doors.text(what, each)
    return found


@dataclass(frozen=True, repr=False)
class PackedFilter:
    """Weights as the passes read them, for forward and for backward by data (or None), and their
    layouts."""

    forward: np.ndarray
    backward: np.ndarray | None
    layouts: tuple[tuple[int, ...], tuple[int, ...]]

    def __post_init__(self) -> None:
        doors.floats("forward", self.forward)
        if self.backward is not None:
            doors.floats("backward", self.backward)
        for i, layout in enumerate(doors.items("layouts", self.layouts, 2)):
            doors.instance(f"layouts[{i}]", layout, tuple)

    def __repr__(self) -> str:
        passes = "forward" if self.backward is None else "forward and backward"
        return f"<primitives.PackedFilter as {self.layouts[0]}, {passes}>"

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("forward", "backward"):
            if state[name] is not None:
                state[name] = realigned(state[name])
        self.__dict__.update(state)


class Convolution(Images):
    """A convolution for one size of images; a call's own batch need not be `batch`.

    kernel, stride, dilation: an int or a pair (rows, columns). padding: the same, or ((top,
    bottom), (left, right)), or "same" (the output has ceil(size / stride) pixels a side, as
    TensorFlow and ONNX SAME_UPPER). groups divides both channels. activation: None, a name of
    `jitgen.primitives.layers.elementwise.ACTIVATIONS`, or (name, parameter, ...). residual: forward
    adds an array like y before the activation. threads: None for OMP_NUM_THREADS or all CPUs.

    algorithm: "direct", or "winograd" for 3 x 3 kernels of stride 1 without groups: 16
    multiplications for 36 and roundings of its own (docs/primitives.md); None: whichever costs less
    in each pass (`jitgen.primitives.conv.tiles`), direct where blocks or order are given.

    How direct passes are cut is chosen by cost (`jitgen.primitives.conv.cost`) unless given:
    blocks, the pixels of a kernel call and the channels of its sum (weight update: the pixels of
    its sum and the output channels); order, the loops (`jitgen.primitives.nest.loops`) over n g k c
    h w (weight update: x g k c r s p, or x c n p k for 1 x 1 taps without border). Both are one
    value for forward and backward_data, or a dict by pass. tune: measure at the first use, the
    algorithms too unless one is asked for, and remember (`jitgen.primitives.nest.tuning`).

    Raises TypeError or ValueError that names argument, value and rule.

    >>> layer = Convolution(1, 2, 4, 4, 3, 3, padding=1, bias=False)
    >>> x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((3, 2, 3, 3), np.float32)
    >>> layer.forward(x, w)[0, 0].tolist()[:2]
    [[8.0, 12.0, 12.0, 8.0], [12.0, 18.0, 18.0, 12.0]]
    """

    _trained = ("w", "b")
    _strided = {
        "forward": ("image", "result", "residual"), "backward_data": ("image", "result"),
        "backward_weights": ("dy", "image"),
    }  # fmt: skip

    def __init__(
        self, batch: int, in_channels: int, height: int, width: int, out_channels: int,
        kernel: Pair, *, stride: Pair = 1, padding: Any = 0, dilation: Pair = 1, groups: int = 1,
        bias: bool = True, activation: Any = None, residual: bool = False,
        dtype: DTypeLike = "f32", layout: str = "nchw", threads: int | None = None,
        algorithm: str | None = None, blocks: Any = None, order: Any = None, tune: bool = False,
        target: str | Target | None = None,
    ) -> None:  # fmt: skip
        batch, in_channels, height, width, out_channels, groups = doors.sizes(
            batch=batch, in_channels=in_channels, height=height, width=width,
            out_channels=out_channels, groups=groups,
        )  # fmt: skip
        bias, residual = doors.flag("bias", bias), doors.flag("residual", residual)
        tune = doors.flag("tune", tune)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value % groups:
                raise ValueError(f"groups={groups} does not divide {name}={value}")
        dtype = doors.dtype("dtype", dtype)
        step = make_activation(activation, dtype)
        layout = doors.one_of("layout", layout, LAYOUTS)
        if algorithm is not None:
            algorithm = doors.one_of("algorithm", algorithm, ALGORITHMS)
        size = (height, width)
        taps, steps, spread = pair("kernel", kernel), pair("stride", stride), pair(
            "dilation", dilation
        )
        around = border(padding, size, taps, steps, spread)
        out = out_size(size, around, taps, steps, spread)
        epilogue: tuple[Step, ...] = (("bias",),) if bias else ()
        epilogue += (("residual",),) if residual else ()
        epilogue += (step,) if step else ()
        on = cpu.choose(target)
        self.conv = Conv(
            batch, in_channels, size, out_channels, taps, steps, (around[0][0], around[1][0]),
            out, spread, groups, bias, epilogue, dtype, layout == "nhwc",
            check_threads(threads), on,
        )  # fmt: skip
        self.residual = residual
        self.activation = step
        #: shapes of x, w and y
        self.x_shape = self._image(self.conv, in_channels, size)
        self.w_shape = (out_channels, in_channels // groups, *self._sides(taps))
        self.y_shape = self._image(self.conv, out_channels, self.conv.out)
        super().__init__(self.conv, self.x_shape)
        #: layout and shape of packed weights, by whether they are for backward by data
        self._packed: dict[bool, tuple[Shape, Shape]] = {}
        self._tune = tune
        self._choices: dict[str, Choice | None] = {}
        self._algorithm = algorithm
        self._blocks, self._order = _by_pass("blocks", blocks), _by_pass("order", order)
        cut = {*self._blocks, *self._order}
        if cut and algorithm == "winograd":
            raise ValueError("blocks, order: algorithm='winograd' has none")
        if algorithm is not None:
            choose_algorithm(self.conv, "forward", algorithm)
        if cut and self.conv.depthwise:
            raise ValueError(f"blocks, order: {min(cut, key=PASSES.index)} of a depthwise "
                             "convolution has none")  # fmt: skip
        for which, text in self._order.items():
            names = letters(streams.subject(self.conv, which)[0], which)
            check_order(text, names, SUMS[names])

    def _resized(self, given: Shape) -> Conv:
        # packed weights are for every batch
        own = self.conv
        if given[0] == own.batch:
            return own
        return replace(own, batch=given[0], widths=(own.width(False), own.width(True)))

    def _check_sizes(self, conv: Conv) -> None:
        sizes = self._arguments(conv)
        taps = prod(conv.kernel)
        if taps > MOST_TAPS:
            raise ValueError(f"kernel={conv.kernel} has {taps} taps; it has {MOST_TAPS} at most")
        x = (conv.batch, conv.channels)
        w = (conv.features, conv.group[0], *conv.kernel)
        check_elements(sizes, x=(*x, *conv.size), w=w, y=(conv.batch, conv.features, *conv.out))
        if not conv.depthwise:
            check_elements(sizes, x_with_its_border=(*x, *conv.padded))
        step = max(conv.stride[1] * conv.channels, conv.features)
        check_reach(sizes, conv.dtype, a_step_of_the_stride=step)
        if not conv.nhwc:
            planes = {"a_channel_of_an_image": prod(conv.size), "a_channel_of_y": prod(conv.out)}
            check_reach(sizes, conv.dtype, **planes)
        if taps > 1:
            check_reach(sizes, conv.dtype, the_weights_of_a_tap=conv.features * conv.group[0])
        rows = conv.batch * max(conv.size[0], conv.out[0])
        if rows > MOST_CALLS and not conv.flat and not conv.depthwise:
            raise ValueError(
                f"{named(sizes)}: images have {rows} rows, each a call of a kernel at the least; "
                f"a stream has {MOST_CALLS} calls at most"
            )

    def _words(self) -> list[str]:
        steps = [shown_activation(step) for step in self.conv.epilogue] or ["no epilogue"]
        return [*super()._words(), *steps]

    def _algorithm_of(self, key: Key) -> str:
        which = PASSES[key[1]] if key[0] == "pack_weights" else key[0]
        if which not in PASSES:
            return super()._algorithm_of(key)
        choice = self.choice(which)
        if choice is None:
            return "depthwise"
        return "winograd" if choice == WINOGRAD else DIRECT

    def _how(self, key: Key) -> dict[str, object]:
        which, *how = key
        if which == "pack_weights":
            return {"for": PASSES[how[0]]}
        return {"w": "packed" if how[0] else "plain"} if which in PASSES[:2] else {}

    def _make(self, sized: Sized, maker: Any, *how: Any, **more: Any) -> Run:
        if not isinstance(maker, str):
            return super()._make(sized, maker, *how, **more)
        if maker == "pack_weights":
            module = winograd if self.choice(PASSES[how[0]]) == WINOGRAD else streams
            return super()._make(sized, module.pack_weights, *how)
        make, choice = maker_of(maker, self._choice_of(sized.at, maker))
        return super()._make(sized, make, *choice, *how, **more)

    def _on(self, threads: int) -> Any:
        other = super()._on(threads)
        vars(other)["_choices"] = {which: self._choice_of(other.conv, which) for which in PASSES}
        return other

    def _choice_of(self, conv: Conv, which: str) -> Choice | None:
        """How a pass is cut for a batch or a number of threads: by the layer's algorithm, and of
        others than the layer's not measured."""
        own, same = self.choice(which), self.conv
        if own is None or own == WINOGRAD or (conv.batch, conv.threads) == (
            same.batch, same.threads
        ):  # fmt: skip
            return own
        subject, product = streams.subject(conv, which)
        return choose(subject, which, product, self._blocks.get(which), self._order.get(which))

    def _layout(self, backward: bool) -> tuple[Shape, Shape]:
        """Layout and shape of packed weights."""
        known = self._packed.get(backward)
        if known is None:  # 10 microseconds: once is enough
            if self.choice(PASSES[backward]) == WINOGRAD:
                known = winograd.packed_layout(self.conv, backward)
            else:
                size = packed_elements(self.conv, backward)
                known = packed_layout(self.conv, backward), (size,)
            self._packed[backward] = known
        return known

    @property
    def algorithms(self) -> dict[str, str]:
        """Pass -> "direct" or "winograd"."""
        found = {which: self.choice(which) for which in PASSES}
        return {w: "winograd" if at == WINOGRAD else "direct" for w, at in found.items()}

    def choice(self, which: str) -> Choice | None:
        """How a pass is cut, or `WINOGRAD` (None: a depthwise one, which leaves no choice)."""
        which = doors.one_of("which", which, PASSES)
        if which not in self._choices:
            blocks, order = self._blocks.get(which), self._order.get(which)
            self._choices[which] = None if self.conv.depthwise else chosen(
                self.conv, which, self._algorithm, blocks, order, self._tune
            )  # fmt: skip
        return self._choices[which]

    def stream(self, name: str = "forward", *, packed: bool = True) -> Stream:
        """The stream of "forward", "backward_data" (with packed weights or plain ones) or
        "backward_weights"; print its `text()`."""
        name, packed = doors.one_of("name", name, PASSES), doors.flag("packed", packed)
        how = () if name == "backward_weights" else (packed,)
        return self._run(self._own(), (name, *how)).stream

    def _baked(self, taken: Pass, given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if is_packed(taken, given):
            return given
        return {**given, "w": panels_of(self, taken, given["w"])}

    def _uses(self) -> dict[str, Use]:
        x, w, y = map(self._blank, (self.x_shape, self.w_shape, self.y_shape))
        b = self._blank((self.conv.features,)) if self.conv.bias else None
        more = {"residual": y} if self.residual else {}
        return {
            "forward": Use(lambda own: own.forward(x, w, b, **more), ("y",)),
            "forward packed": Use(
                lambda own: own.forward(x, own.pack_weights(w, backward=False), b, **more), ("y",)
            ),
            "backward_data": Use(lambda own: own.backward_data(y, w), ("dx",)),
            "backward_data packed": Use(
                lambda own: own.backward_data(y, own.pack_weights(w)), ("dx",)
            ),
            "backward_weights": Use(
                lambda own: own.backward_weights(y, x), ("dw", "db")[: 1 + self.conv.bias]
            ),
            **self._use_of_gradient(self.activation, self.y_shape),
            "pack_weights": Use(lambda own: own.pack_weights(w, backward=False), ("panels",)),
            "pack_weights backward": Use(lambda own: own.pack_weights(w), ("panels",)),
        }

    def pack_weights(self, w: np.ndarray, *, backward: bool = True) -> PackedFilter:
        """w as the passes read it at any batch; without `backward` for the forward pass only."""
        backward = doors.flag("backward", backward)
        inputs: list[Operand] = [("w", "w", w, self.w_shape)]
        packed = []
        for way in (False, True)[: 1 + backward]:
            shape = self._layout(way)[1]
            check_elements(self._arguments(self.conv), w_in_panels=shape)
            array = aligned(shape, self.dtype)
            self._call(
                self._own(), ("pack_weights", way), inputs, [("panels", "panels", array, shape)]
            )
            packed.append(array)
        layouts = self._layout(False)[0], self._layout(True)[0]
        return PackedFilter(packed[0], packed[1] if backward else None, layouts)

    def forward(
        self, x: np.ndarray, w: np.ndarray | PackedFilter, b: np.ndarray | None = None,
        residual: np.ndarray | None = None, out: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """y = activation(x * w + b + residual), in `out` if that is given; it may be the residual,
        which saves memory traffic."""
        sized, shape = self._images("x", x, self.x_shape)
        packed, weights = self._weights(w, "forward", False)
        y_shape = (shape[0], *self.y_shape[1:])
        inputs: list[Operand] = [("image", "x", x, shape), weights]
        if self._wanted("b", b, self.conv.bias, "bias=False"):
            inputs.append(("bias", "b", b, (self.conv.features,)))
        if self._wanted("residual", residual, self.residual, "residual=False"):
            if out is not None and out is residual and not self._in_place(sized.at):
                residual = self._loose("residual", residual, y_shape)[0].copy()
            inputs.append(("residual", "residual", residual, y_shape))
        results = (("result", "out", out, y_shape),)
        return self._result(sized, ("forward", packed), inputs, results, "residual")

    def _in_place(self, conv: Conv) -> bool:
        """Whether each element of the residual is read once, just before the result that takes its
        place is written: a sum in one piece, of which no part waits in memory (as kernels of many
        taps may have it), and no vectors that overlap at the last channel."""
        choice = self._choice_of(conv, "forward")
        whole = choice == WINOGRAD
        if choice is not None and len(conv.taps) == 1:
            whole = choice.channels >= conv.group[0]
        return not conv.nhwc or (whole and conv.group[1] % MOST_LANES == 0)

    def backward_activation(
        self, dy: np.ndarray, y: np.ndarray | None = None, out: np.ndarray | None = None, *,
        z: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """dy * activation'(z), the gradient of the residual too, in `out` if that is given; it may
        be dy. y or z as `FullyConnected.backward_activation` takes them; the residual is part of
        z."""
        return self._gradient(self.activation, self.y_shape, dy, y, z, out)

    def backward_data(
        self, dy: np.ndarray, w: np.ndarray | PackedFilter, out: np.ndarray | None = None
    ) -> np.ndarray:
        """dx, shaped like x; dy is the gradient before the activation (`backward_activation`)."""
        sized, shape = self._images("dy", dy, self.y_shape)
        packed, weights = self._weights(w, "backward", True)
        results = (("result", "out", out, (shape[0], *self.x_shape[1:])),)
        inputs = (("image", "dy", dy, shape), weights)
        return self._result(sized, ("backward_data", packed), inputs, results)

    def backward_weights(
        self, dy: np.ndarray, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """dw, shaped like w, and db = sums of dy by channel (None without bias)."""
        sized, shape = self._images("dy", dy, self.y_shape)
        inputs = (("dy", "dy", dy, shape), ("image", "x", x, (shape[0], *self.x_shape[1:])))
        results: list[Operand] = [("dw", "dw", None, self.w_shape)]
        if self.conv.bias:
            results.append(("db", "db", None, (self.conv.features,)))
        dw, *more = self._call(sized, ("backward_weights",), inputs, results)
        return dw, more[0] if more else None

    def _weights(self, w: Any, name: str, backward: bool) -> tuple[bool, Operand]:
        """Whether weights are packed, and their operand."""
        if not isinstance(w, PackedFilter):
            return False, ("w", "w", w, self.w_shape)
        array = getattr(w, name)
        if array is None:
            raise ValueError("w was packed with backward=False")
        wanted, shape = self._layout(backward)
        if w.layouts[backward] != wanted:
            raise ValueError(
                f"w is packed as {w.layouts[backward]}, by a layer of other channels, kernel, "
                f"groups, target or algorithm; this layer reads {wanted}"
            )
        return True, ("w", "w", array, shape)
