"""What the layers over sequences share: states, directions, passes of one and both directions.

Not here: the layers' own arguments (`jitgen.primitives.layers.recurrent`), the streams
(`jitgen.primitives.rnn.streams`, `jitgen.primitives.rnn.backward`).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.primitives.layers import base
from jitgen.primitives.layers.arrays import aligned
from jitgen.primitives.layers.described import Key, Shape, Sized
from jitgen.primitives.layers.exporting import PACKED
from jitgen.primitives.layers.passes import Argument, Pass, Use
from jitgen.primitives.nest.run import Stopwatch, stopwatch
from jitgen.primitives.rnn.arguments import MEANINGS, UPDATED, WRITTEN, biases, peepholes, pointer
from jitgen.primitives.rnn.backward import backward
from jitgen.primitives.rnn.biases import with_biases
from jitgen.primitives.rnn.kept import Kept, PackedRecurrent
from jitgen.primitives.rnn.lengths import Lengths, Whole
from jitgen.primitives.rnn.steps import Layer, Way, check_sizes
from jitgen.primitives.rnn.streams import forward, pack_weights
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.target import Target
from jitgen.types import NUMPY, DTypeLike

DIRECTIONS = ("forward", "reverse", "bidirectional")
#: Ends the names of passes of the second one of two directions
REVERSE = " reverse"
#: Arrays of steps and rows that may have gaps between them
SEQUENCES = ("x", "dy")


class Recurrent(base.Layer):
    """What the layers share; steps and batch of a call need not be those of the layer. A pass
    allocates its results; `training` keeps x, w, r, p and y, which must not change before
    `backward`, and is for one Python thread at a time; copies of the layer have it too."""

    _free = 2
    _trained = ("w", "r", "b", "p")
    _packed_as = {"w": "w_panels", "r": "r_panels", "b": "bias"}
    _exported = with_biases

    def __init__(
        self, kind: str, batch: int, steps: int, in_features: int, hidden: int, direction: str,
        bias: bool, peephole: bool, dtype: DTypeLike, threads: int | None,
        target: str | Target | None, forget_bias: float = 0.0,
    ) -> None:  # fmt: skip
        batch, steps, in_features, hidden = doors.sizes(
            batch=batch, steps=steps, in_features=in_features, hidden=hidden
        )
        direction = doors.one_of("direction", direction, DIRECTIONS)
        dtype = doors.dtype("dtype", dtype)
        bias, peephole = doors.flag("bias", bias), doors.flag("peephole", peephole)
        chosen = cpu.choose(target)
        both = direction == "bidirectional"
        self.layer = Layer(
            kind, batch, steps, in_features, hidden, 1 + both, peephole, dtype,
            check_threads(threads), chosen,
        )  # fmt: skip
        self.bias, self.direction = bias, direction
        self.forget_bias = doors.number("forget_bias", forget_bias, dtype=dtype)
        self._reversed = (False, True) if both else (direction == "reverse",)
        self._layout = (
            kind, in_features, hidden, self.layer.directions, self.layer.width, dtype
        )  # fmt: skip
        super().__init__(self.layer, self.layer.shapes["x"])
        self._kept: Kept | None = None
        self._slabs: list[dict[str, np.ndarray]] = [{} for _ in self._reversed]

    def pack_weights(self, w: np.ndarray, r: np.ndarray) -> PackedRecurrent:
        """w and r as the forward pass reads them: pass the result as its w, and r=None."""
        w, r = (self._checked(n, a, self.layer.shapes[n]) for n, a in (("w", w), ("r", r)))
        packed = []
        watch = stopwatch()
        for d in range(len(self._reversed)):
            # the columns behind the last unit are read: as zeros
            panels = {n: aligned((t.elements,), self.dtype) for n, t in self.layer.panels.items()}
            for array in panels.values():
                array.fill(0)
            arrays = {"w": self._one(w, d), "r": self._one(r, d), **panels}
            self._replay(self._own(), (pack_weights,), arrays, None, watch)
            packed.append(panels)
        self._tell(watch, self._own(), (pack_weights,))
        return PackedRecurrent(packed, self._layout, w, r)

    def _replay(
        self, sized: Sized, key: Key, arrays: dict[str, Any], flags: np.ndarray | None,
        watch: Stopwatch | None,
    ) -> None:  # fmt: skip
        """Run a stream on those of the arrays that are its tensors; it reads no others."""
        apart = {n: a for n in SEQUENCES if (a := arrays.get(n)) is not None}
        strides = tuple(
            (n, doors.strides(n, a)) for n, a in apart.items() if not a.flags.c_contiguous
        )
        run = self._run(sized, key, strides)
        run({name: pointer(arrays.get(name)) for name in run.tensors}, flags, watch)

    def _arguments(self, at: Layer) -> dict[str, object]:
        return {
            "batch": at.batch, "steps": at.steps, "in_features": at.inputs, "hidden": at.hidden,
        }  # fmt: skip

    def _how(self, key: Key) -> dict[str, object]:
        make, *way = key
        more: dict[str, object] = {"direction": self.direction}
        if make is forward:
            more["w"] = "packed" if way[2] else "plain"
            more["training"] = "yes" if way[1] else "no"
        return more | ({"lengths": "given"} if way and way[0].masked else {})

    def _resized(self, given: Shape) -> Layer:
        return replace(self.layer, steps=given[0], batch=given[1])

    def _check_sizes(self, at: Layer) -> None:
        check_sizes(at)

    def _words(self) -> list[str]:
        at = self.layer
        return [f"{at.steps}x{at.batch}x{at.inputs} -> {at.hidden} {self.direction}"]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the arguments by name."""
        return MappingProxyType(self.layer.shapes)

    def _states(
        self, given: dict[str, Any], shapes: dict[str, Shape]
    ) -> dict[str, np.ndarray | None]:
        """States, or their gradients, as arrays."""
        return {
            n: a if a is None else self._checked(n, a, shapes["h0"]) for n, a in given.items()
        }  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        # the copy's `_kept` may be this one's arrays: the next training pass takes new memory. In
        # this order even while a pass runs, as that one has forgotten `_kept` before
        self._slabs = [{} for _ in self._reversed]
        return super().__getstate__() | {"_slabs": [{} for _ in self._reversed]}

    def _one(self, array: Any, d: int) -> Any:
        """One direction's part of an argument."""
        return array[d] if array is not None and len(self._reversed) == 2 else array

    # ---- passes, for tools ----------------------------------------------------------------------

    def _baked(self, taken: Pass, given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        d, shapes = int(taken.name.endswith(REVERSE)), self.layer.shapes
        made = {n: self._one(self._checked(n, a, shapes[n]), d) for n, a in given.items()}
        if PACKED in taken.name:
            plain: list[Any] = [given.get(n) for n in "wr"]  # None: an error that names it
            made |= self.pack_weights(*plain).panels[d]
        return made | biases(self.layer, made["b"], self.forget_bias) if "b" in made else made

    def _uses(self) -> dict[str, Use]:
        given = {n: self._zeros(n) for n in ("x", "w", "r", "h0")}
        x, w, r, h0 = given.values()
        b = self._zeros("b") if self.bias else None
        more: dict[str, Any] = {"p": self._zeros("p")} if self.layer.peephole else {}
        more |= {"c0": h0} if self.layer.kind == "lstm" else {}

        def train(own: Any) -> object:
            own.forward(x, w, r, b, h0, **more, training=True)
            return own.backward(self._zeros("y"))

        uses = {
            "forward": Use(lambda own: own.forward(x, w, r, b, h0, **more)),
            "forward packed": Use(
                lambda own: own.forward(x, own.pack_weights(w, r), None, b, h0, **more)
            ),
            "forward training": Use(
                lambda own: own.forward(x, w, r, b, h0, **more, training=True)
            ),
            "backward": Use(train),
            "pack_weights": Use(lambda own: own.pack_weights(w, r)),
        }
        return uses if len(self._reversed) == 1 else {
            name + more: use for name, use in uses.items() for more in ("", REVERSE)
        }

    def _zeros(self, name: str) -> np.ndarray:
        return np.zeros(self.layer.shapes[name], NUMPY[self.dtype])

    def _pass(self, use: Use, name: str) -> Pass:
        calls: list[tuple[Key, dict[str, Any]]] = []

        def note(sized: Sized, key: Key, arrays: dict[str, Any], *_: Any) -> None:
            calls.append((key, arrays))

        noting = copy(self)
        # what training keeps may be gigabytes
        blank = {"_slab": lambda d, name, size: self._blank((size,))}
        vars(noting).update(blank, _replay=note, _tell=lambda *_: None)
        with np.errstate(all="ignore"):  # nothing has written the results
            use.call(noting)
        key, arrays = calls[-len(self._reversed) :][name.endswith(REVERSE)]
        run = self._run(self._own(), key)
        read = {ref.tensor for each in run.stream.parts for ref in each.part.refs()}
        taken = [(t, arrays[t]) for t in run.tensors if t in read]
        written = WRITTEN[key[0]]
        return Pass(name, run, tuple(
            Argument(t, t, a.shape, t in written, t in UPDATED, MEANINGS.get(t, ""))
            for t, a in taken
        ))  # fmt: skip

    # ---- passes ---------------------------------------------------------------------------------

    def _forward(
        self, x: np.ndarray, w: np.ndarray | PackedRecurrent, r: np.ndarray | None,
        b: np.ndarray | None, states: dict[str, np.ndarray | None], p: np.ndarray | None,
        lengths: Any, training: bool,
    ) -> list[Any]:  # fmt: skip
        """y and the last states."""
        training = doors.flag("training", training)
        sized = self._sized("x", x, self.layer.shapes["x"])
        layer: Layer = sized.at
        shapes = layer.shapes
        packed = w if isinstance(w, PackedRecurrent) else None
        if packed is not None:
            if r is not None:
                raise ValueError("r is given, but w holds both packed weights; it must be None")
            if packed.layout != self._layout or len(packed.panels) != len(self._reversed):
                raise ValueError(
                    f"w is packed for {packed.layout}, {len(packed.panels)} directions; this layer "
                    f"is {self._layout}, {len(self._reversed)} directions"
                )
            w, r = packed.w, packed.r
            for panels in packed.panels:
                for name, tensor in self.layer.panels.items():
                    self._checked(f"w (packed, {name})", panels.get(name), (tensor.elements,))
        x = self._loose("x", x, shapes["x"])[0]
        w, r = (self._checked(n, a, shapes[n]) for n, a in (("w", w), ("r", r)))
        if self._wanted("b", b, self.bias, "bias=False"):
            b = self._checked("b", b, shapes["b"])
        if self._wanted("p", p, layer.peephole, "peephole=False"):
            p = self._checked("p", p, shapes["p"])
        states = self._states(states, shapes)
        if training:
            size = layer.steps * layer.batch * layer.gates * layer.units * layer.element
            if size >= MATRIX_BYTES:
                raise ValueError(
                    f"training=True: the gates of steps={layer.steps} and batch={layer.batch} with "
                    f"hidden={layer.hidden} take {size} bytes, 2 GiB or more; split the batch"
                )
        rows = Whole() if lengths is None else Lengths(layer, lengths)
        # sums over all steps must not see what lies behind a sequence; the caller may put the next
        # states into the arrays of the first ones
        x = rows.cleared(x) if training else rows.rows(x[: rows.steps])
        begin = {n: a if a is None else rows.first(a, training) for n, a in states.items()}
        y = rows.new(shapes["y"], sized.kind, training)
        last: dict[str, list[np.ndarray]] = {name: [] for name in states}
        kept, watch = [], stopwatch()
        zeros = np.zeros((layer.batch, layer.hidden), sized.kind)
        if training:
            self._kept = None  # its memory is written again
        for d, reverse in enumerate(self._reversed):
            given = {name: self._one(array, d) for name, array in begin.items()}
            first = {n: zeros if a is None else a for n, a in given.items()}
            column = d * layer.hidden
            # by first state, those after each step; an LSTM's inference has one c for all steps
            after: dict[str, Any] = {"h0": y[:, :, column : column + layer.hidden]}
            arrays: dict[str, Any]
            if training:
                arrays = self._saved_arrays(layer, d, rows)
                after |= {"c0": arrays["c"]} if "c" in arrays else {}
            else:
                arrays = {"c": np.array(first["c0"])} if "c0" in first else {}
            if reverse:
                for name, steps in after.items():
                    rows.begin(steps, first[name])
            arrays |= {"x": x, "y": y, "mask": rows.mask, "p": self._one(p, d), **first}
            arrays |= biases(layer, self._one(b, d), self.forget_bias)
            arrays |= {"w": self._one(w, d), "r": self._one(r, d)}
            if packed is not None:
                arrays |= {name: packed.panels[d][name] for name in self.layer.panels}
            started = any(array is not None for array in given.values())
            way = Way(reverse, d, started, rows.mask is not None)
            key = (forward, way, training, packed is not None)
            self._replay(sized, key, arrays, rows.flags, watch)
            for name, ends in last.items():
                ends.append(rows.last(after[name], reverse) if name in after else arrays["c"])
            kept.append(arrays)
        self._tell(watch, sized, key)
        if training:
            self._kept = Kept(rows, kept, layer)
        results: list[Any] = [rows.result(y, training)]
        for name, parts in last.items():
            state = np.stack(parts) if len(parts) == 2 else np.array(parts[0])
            results.append(rows.back(state, states[name]))
        return results

    def _saved_arrays(
        self, layer: Layer, d: int, rows: Whole | Lengths
    ) -> dict[str, np.ndarray]:
        """Arrays that the forward pass leaves to the backward pass."""
        result = {name: self._slab(d, name, size) for name, size in layer.sizes.items()}
        for name in result.keys() & {"c", "reset"}:  # which sums over all steps read
            result[name] = result[name].reshape(layer.steps, layer.batch, layer.hidden)
            rows.clear(result[name])
        return result

    def _backward(self, dy: np.ndarray, given: dict[str, np.ndarray | None]) -> list[Any]:
        """dx, dw, dr, db, the gradients of the first states, and dp with peepholes."""
        kept = self._kept
        if kept is None:
            raise ValueError("backward needs a forward pass with training=True before it")
        kept.check()
        layer, shapes = kept.layer, kept.layer.shapes
        sized = self._another(shapes["x"], shapes["x"])
        dy = self._loose("dy", dy, shapes["y"])[0]
        given = self._states(given, shapes)
        h, wide, rows = layer.hidden, layer.gates * layer.hidden, kept.rows
        result = {name: np.empty(shapes[name], sized.kind) for name in ("w", "r", "b", "p")}
        dy = rows.rows(dy[: rows.steps])
        first = {
            n: np.zeros(shapes["h0"], sized.kind) if a is None else np.array(rows.rows(a))
            for n, a in given.items()
        }
        dx: Any = None
        watch = stopwatch()
        for d, arrays in enumerate(kept.directions):
            dw, dr, db = (self._one(result[n], d) for n in ("w", "r", "b"))
            more = {
                "dy": dy, "dw": dw, "dr": dr, "dr_n": dr[2 * h :], "db": db[0], "db_r": db[1],
                "r_n": arrays["r"].reshape(wide, h)[2 * h :],  # the caller may have reshaped it
                "dx": rows.new(shapes["x"], sized.kind, d > 0),
            }  # fmt: skip
            for name in ("dgates", "dgates_r") if layer.kind == "gru" else ("dgates",):
                slab = self._slab(d, name, layer.steps * layer.batch * wide)
                more[name] = slab.reshape(layer.steps, layer.batch, wide)
                rows.clear(more[name])
            more |= {name: self._one(array, d) for name, array in first.items()}
            way = Way(self._reversed[d], d, True, rows.mask is not None)
            every = {**arrays, **more}
            self._replay(sized, (backward, way), every, rows.flags, watch)
            if layer.kind != "gru":
                db[1] = db[0]
            if layer.peephole:
                dp = self._one(result["p"], d)
                peepholes(layer, every, dp, self._reversed[d], rows.longest)
            if d == 0:
                dx = more["dx"]
            else:
                dx[: rows.steps] += more["dx"][: rows.steps]
        self._tell(watch, sized, (backward, way))
        results = [
            rows.result(dx, False), result["w"], result["r"], result["b"] if self.bias else None
        ]
        results += [rows.back(first[name], array) for name, array in given.items()]
        return [*results, *([result["p"]] if layer.peephole else [])]

    def _slab(self, d: int, name: str, size: int) -> np.ndarray:
        """Memory that training passes use again."""
        slabs = self._slabs[d]
        if name not in slabs or slabs[name].size != size:
            slabs[name] = aligned((size,), self.layer.dtype)
            slabs[name].fill(0)
        return slabs[name]
