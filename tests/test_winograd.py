"""Winograd convolution: its transforms on every tier, layers in all passes, against float64.

Bounds are those of the sums that are computed: transforms of absolute values. Pixels that do not
exist lie behind guard pages, outputs begin as NaN. Not here: direct convolution
(`test_convolution`).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, block, execute, poison
from oracle import FUNCTIONS, stepped
from random_cases import SEED
from rig import count
from test_convolution import EPS, HERE, KINDS, Reference, as_job, stored
from tiers import TIERS, need

from jitgen import Convolution
from jitgen.kernels.winograd import KINDS as TRANSFORMS, Grid, Squares, emit_winograd
from jitgen.primitives.conv import winograd
from jitgen.primitives.layers.convolution import PASSES
from jitgen.target import TARGETS, Target, parse_target

Array = np.ndarray[Any, Any]
B, A, G = (np.array(TRANSFORMS[kind]) for kind in ("input", "output", "weights"))
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 67)
EPILOGUES: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (), (("bias",),), (("bias",), ("relu",)), (("bias",), ("residual",), ("relu",)),
    (("residual",),), (("bias",), ("silu",)), (("residual",), ("gelu_tanh",)), (("tanh",),),
    (("bias",), ("clip", 0.0, 6.0)), (("residual",), ("leaky_relu", 0.25)), (("scale", 0.5),),
    (("bias",), ("hardswish",)), (("elu", 0.5), ("residual",)), (("mish",),), (("hardsigmoid",),),
    (("clip", -2.0, 2.0), ("exp",)),
)  # fmt: skip
#: (target, part): 40 configurations each
PARTS = [(target, i) for target in HERE for i in range(6 if target == "avx2" else 2)]
#: tier -> layers whose three passes are replayed
AMOUNT = {"avx512 bochs": 5, "sve128 qemu": 4, "sve256 qemu": 4, "sve512 qemu": 4,
          "neon qemu": 4}  # fmt: skip


# ---- transforms ---------------------------------------------------------------------------------


def transform(kind: str, x: Array, absolute: bool = False) -> Array:
    """L x L^T of squares (..., side, side) in float64."""
    matrix = np.array(TRANSFORMS[kind])
    matrix, x = (np.abs(matrix), np.abs(x)) if absolute else (matrix, x)
    return np.einsum("ri,...ij,sj->...rs", matrix, x, matrix)


class Case:
    """Random squares for one kernel: `call`. Rows of channels are blocks with gaps of poison."""

    def __init__(self, rng: random.Random, target: Target) -> None:
        self.rng, self.numbers = rng, np.random.default_rng(rng.randrange(1 << 30))
        self.kind = rng.choice(list(TRANSFORMS))
        self.dtype = rng.choice(("f32", "f64"))
        self.channels, self.squares = rng.choice(CHANNELS), rng.randint(1, 6)
        self.pitch = [self.channels + rng.choice((0, 0, 1, 5)) for _ in "ac"]
        self.exact = rng.random() < 0.5
        self.epilogue = rng.choice(EPILOGUES) if self.kind == "output" else ()
        self.exact &= not any(step in FUNCTIONS for step, *_ in self.epilogue)
        self.lead = 0
        matrix = TRANSFORMS[self.kind]
        self.out, self.side = len(matrix), len(matrix[0])
        if self.kind in ("input", "gradient"):
            x, a, grid_a, seen = self.image()
        else:
            x = self.data(self.squares, self.side, self.side, self.channels)
            seen = ((self.squares, (0, self.side), (0, self.side)),)
            a = block(x.transpose(1, 2, 0, 3).reshape(-1, self.channels), self.pitch[0])
            right = self.squares * self.pitch[0]
            grid_a = Grid(self.side * right, right, self.pitch[0])
        value = transform(self.kind, x.transpose(0, 3, 1, 2).astype(np.float64))
        size = transform(self.kind, x.transpose(0, 3, 1, 2).astype(np.float64), absolute=True)
        if self.kind == "output":
            seen, index, grid_c = self.part_of_an_image()
        else:
            spare = rng.choice((0, 1))  # a row of channels between the planes stays as it is
            rows = self.squares + spare
            index = np.arange(self.out**2)[None, :] * rows + np.arange(self.squares)[:, None]
            right = rows * self.pitch[1]
            grid_c = Grid(self.out * right, right, self.pitch[1])
        self.finish(target, a, value, size, index, seen, grid_a, grid_c)

    def data(self, *shape: int) -> Array:
        pick = self.numbers
        made = pick.integers(-8, 9, shape) if self.exact else pick.standard_normal(shape)
        return made.astype(FLOATS[self.dtype])

    def image(self) -> tuple[Array, Array, Grid, Any]:
        """Squares two pixels apart along an image that they overlap somewhere, or nowhere."""
        high, wide = (self.rng.randint(1, 2 * self.squares + 3) for _ in "hw")
        top, left = self.rng.randint(-3, high + 1), self.rng.randint(-3, 2)
        pixels = self.data(high, wide, self.channels)
        whole = np.zeros((high + 12, wide + 2 * self.squares + 12, self.channels), pixels.dtype)
        whole[4 : 4 + high, 4 : 4 + wide] = pixels
        side, number = self.side, range(self.squares)
        top = min(top, high)
        x = np.stack([
            whole[top + 4 : top + 4 + side, left + 4 + 2 * q : left + 4 + 2 * q + side]
            for q in number
        ])  # fmt: skip

        def inside(at: int, size: int) -> tuple[int, int]:
            there = [i for i in range(side) if 0 <= at + i < size]
            return (there[0], there[-1] + 1) if there else (0, 0)

        seen = tuple((1, inside(top, high), inside(left + 2 * q, wide)) for q in number)
        first = min(max(top, 0), high - 1) * wide + min(max(left, 0), wide - 1)
        corner = top * wide + left
        self.lead = (first - corner) * self.pitch[0]
        last = max([first, *((top + r[1] - 1) * wide + left + 2 * q + c[1] - 1
                    for q, (_, r, c) in enumerate(seen) if r[1] and c[1])])  # fmt: skip
        flat = block(pixels.reshape(-1, self.channels), self.pitch[0])
        flat = flat[first * self.pitch[0] : last * self.pitch[0] + self.channels]
        return x, flat, Grid(wide * self.pitch[0], self.pitch[0], 2 * self.pitch[0]), seen

    def part_of_an_image(self) -> tuple[Any, Array, Grid]:
        """Where results go: two rows or one, the last square perhaps without its right column."""
        high, wide = self.rng.randint(1, 2), 2 * self.squares - self.rng.randint(0, 1)
        seen = tuple(
            (1, (0, high), (0, min(2, wide - 2 * q))) for q in range(self.squares)
        )  # fmt: skip
        index = np.full((self.squares, 2, 2), -1)
        for q, (_, _, (_, behind)) in enumerate(seen):
            for r, s in np.ndindex(high, behind):
                index[q, r, s] = r * wide + 2 * q + s
        line = wide * self.pitch[1]
        return seen, index.reshape(self.squares, 4), Grid(line, self.pitch[1], 2 * self.pitch[1])

    def finish(
        self, target: Target, a: Array, value: Array, size: Array, index: Array, seen: Any,
        grid_a: Grid, grid_c: Grid,
    ) -> None:  # fmt: skip
        rows = int(index.max()) + 1
        eps = float(np.finfo(FLOATS[self.dtype]).eps)
        wanted, bound = np.full((rows, self.channels), np.nan), np.zeros((rows, self.channels))
        flat, sizes = (v.reshape(self.squares, self.channels, -1) for v in (value, size))
        for q, i in np.argwhere(index >= 0):
            wanted[index[q, i]], bound[index[q, i]] = flat[q, :, i], 8 * eps * sizes[q, :, i]
        words = {"a": a, "c": block(poison(rows, self.channels, self.dtype), self.pitch[1])}
        for step, *parameters in self.epilogue:
            if step in FUNCTIONS:
                kind = FLOATS[self.dtype]
                wanted, bound = stepped((step, *parameters), wanted, bound, kind)
            elif step in ("relu", "clip"):
                wanted = np.clip(wanted, *(parameters or (0, np.inf)))
            elif step in ("leaky_relu", "scale"):
                small = (wanted < 0) | (step == "scale")
                wanted = np.where(small, wanted * parameters[0], wanted)
            else:
                added = self.data(*((self.channels,) if step == "bias" else wanted.shape))
                words[step] = added if step == "bias" else block(added, self.pitch[1])
                wanted = wanted + added
                bound = bound + 2 * eps * (np.abs(added) + np.abs(wanted))
            bound = bound + eps * (np.abs(wanted) + 1)
        parts: list[Squares] = []
        for number, r, c in seen:
            if parts and parts[-1][1:] == (r, c):
                parts[-1] = Squares(parts[-1].number + number, r, c)
            else:
                parts.append(Squares(number, r, c))
        routine = emit_winograd(
            self.kind, self.channels, tuple(parts), grid_a, grid_c, self.dtype, target,
            lead=self.lead, epilogue=self.epilogue,
        )  # fmt: skip
        result = Wanted(wanted, self.pitch[1], 0.0 if self.exact else bound)
        label = f"{self.kind} {self.channels} channels {self.dtype} {parts} {self.epilogue}"
        place = self.rng.choice(("end", "start"))
        self.call = Call(routine, words, {"c": result}, label, place)


@pytest.mark.parametrize("tier", EVERYWHERE)
def test_random_transforms(tier: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} transforms")
    target = parse_target(TIERS[tier].target)
    calls = [Case(rng, target).call for _ in range(200 if "native" in tier else 40)]
    for call in calls:
        assert len(call.code) < 8192, call.label
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


def test_a_wrong_transform_is_found() -> None:
    """One sign of one matrix changed: most cases of that kind fail."""
    tier = "avx2 native"
    need(TIERS[tier])
    rng, target, calls = random.Random(SEED), parse_target("avx2"), []
    while len(calls) < 20:
        case = Case(rng, target)
        if case.kind == "output" and case.squares > 1:
            wanted = case.call.wanted["c"]
            wanted.value[0, 0] *= -1
            calls.append(case.call)
    assert len(execute(tier, calls)) >= 15


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "inverse"}, "kind='inverse'"), ({"channels": 0}, "columns=0"),
        ({"dtype": "bf16"}, "bf16"), ({"lead": 1 << 30}, "2 GiB"),
        ({"squares": (Squares(0, (0, 4), (0, 4)),)}, "at least one"),
        ({"squares": (Squares(1, (0, 5), (0, 4)),)}, "part of 4 x 4"),
        ({"a": Grid(1 << 28, 4, 8)}, "a=Grid"), ({"c": Grid(16, 4, 1 << 30)}, "c=Grid"),
        ({"epilogue": (("relu",),)}, "epilogue step 'relu': kind='input' has no epilogue"),
        ({"kind": "output", "squares": (Squares(1, (0, 2), (0, 2)),),
          "epilogue": (("bias_row",),)}, "epilogue step 'bias_row': its operand lies by row"),
    ],
)  # fmt: skip
def test_bad_transforms(change: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {
        "kind": "input", "channels": 4, "squares": (Squares(1, (0, 4), (0, 4)),),
        "a": Grid(40, 4, 8), "c": Grid(16, 4, 4), "dtype": "f32",
    }  # fmt: skip
    assert emit_winograd(**good, target=TARGETS["avx2"])
    with pytest.raises(ValueError, match=r".") as error:
        emit_winograd(**{**good, **change}, target=TARGETS["avx2"])
    assert words in str(error.value)


# ---- layers -------------------------------------------------------------------------------------


def random_layer(rng: random.Random, target: str, most: int, **given: Any) -> Convolution:
    """Any size, border, layout and epilogue; often as many channels as features."""
    while True:
        c = rng.choice([1, 3, rng.randint(1, most), rng.randint(1, 3 * most)])
        k = rng.choice([c, rng.randint(1, most), rng.randint(1, 3 * most)])
        side = lambda: (rng.randint(0, 3), rng.randint(0, 3))  # noqa: E731
        try:
            return Convolution(
                rng.randint(1, 3), c, rng.randint(1, most), rng.randint(1, most), k, 3,
                padding=rng.choice(["same", 0, 1, 1, (side(), side())]), bias=rng.random() < 0.7,
                activation=rng.choice([None, "relu", "relu6", ("leaky_relu", 0.5)]),
                residual=rng.random() < 0.3,
                dtype=rng.choice(["f32", "f64"]), layout=rng.choice(["nchw", "nhwc"]),
                algorithm="winograd", target=target,
                **{"threads": rng.randint(1, 3), **given},
            )  # fmt: skip
        except ValueError as error:
            assert "smaller than the kernel's reach" in str(error)


class Bounds(Reference):
    """How far off each result may be: every sum that is computed, of absolute values, by its length
    and the roundings of the transforms. `y`, `dx`, `dw` of the base class are the right results."""

    def __init__(self, layer: Convolution, seed: int, whole_numbers: bool = False) -> None:
        super().__init__(layer, seed, whole_numbers)
        conv, eps = layer.conv, 2 * EPS[layer.conv.dtype]
        x, w, dy = (self.data[name].astype(np.float64) for name in ("x", "w", "dy"))
        top, left = conv.padding
        pixels = self.tiles(x, (top, left), conv.out)
        gradient = self.tiles(dy, (2 - top, 2 - left), conv.size)
        mirrored = w[:, :, ::-1, ::-1].swapaxes(0, 1)
        added = np.abs(self.y) + 8
        self.y_bound = eps * ((conv.channels + 16) * self.product(pixels, w, conv.out) + added)
        self.dx_bound = eps * (conv.features + 16) * self.product(gradient, mirrored, conv.size)
        whole_y = np.zeros((*dy.shape[:2], *(2 * -(-o // 2) for o in conv.out)))
        whole_y[:, :, : conv.out[0], : conv.out[1]] = np.abs(dy)
        n, k, high, wide = whole_y.shape
        squares = whole_y.reshape(n, k, high // 2, 2, wide // 2, 2).transpose(0, 1, 2, 4, 3, 5)
        planes = transform("gradient", squares, absolute=True)
        total = np.einsum("nkhwab,nchwab->kcab", planes, transform("input", pixels, absolute=True))
        terms = n * squares.shape[2] * squares.shape[3] + 16
        self.dw_bound = eps * terms * transform("weight gradient", total, absolute=True)

    @staticmethod
    def tiles(x: Array, border: tuple[int, int], out: tuple[int, int]) -> Array:
        """Absolute pixels that each tile of 2 x 2 results sees."""
        rows, columns = (-(-o // 2) for o in out)
        far = max(x.shape[2:]) + max(out) + 12
        whole = np.zeros((*x.shape[:2], far, far))
        whole[:, :, 4 : 4 + x.shape[2], 4 : 4 + x.shape[3]] = np.abs(x)
        top, left = 4 - border[0], 4 - border[1]
        return np.stack([
            np.stack([whole[:, :, top + 2 * i : top + 2 * i + 4, left + 2 * j : left + 2 * j + 4]
                      for j in range(columns)], axis=2)
            for i in range(rows)
        ], axis=2)  # fmt: skip

    @staticmethod
    def product(tiles: Array, w: Array, out: tuple[int, int]) -> Array:
        """The sums of absolute values of a pass."""
        planes = transform("input", tiles, absolute=True)
        weights = transform("weights", w, absolute=True)
        squares = transform(
            "output", np.einsum("nchwab,kcab->nkhwab", planes, weights), absolute=True
        )
        n, k, rows, columns = squares.shape[:4]
        whole = squares.transpose(0, 1, 2, 4, 3, 5).reshape(n, k, 2 * rows, 2 * columns)
        return np.ascontiguousarray(whole[:, :, : out[0], : out[1]])


def check(layer: Convolution, what: str, got: Array, exact: Array, bound: Array | float) -> None:
    if layer.conv.nhwc and what in ("y", "dx"):
        got = got.transpose(0, 3, 1, 2)
    error = np.abs(got - exact)
    assert (error <= bound).all(), f"JITGEN_SEED={SEED} {what} off by {error.max()}: {layer.conv}"


def passes(layer: Convolution, r: Reference) -> list[tuple[str, Array]]:
    """What each pass makes of the data, with plain and packed weights, in outputs of NaN."""
    x, dy, residual = (stored(layer, r.data[name]) for name in ("x", "dy", "residual"))
    w, b = r.data["w"], r.data["b"] if layer.conv.bias else None
    found = []
    for weights in (w, layer.pack_weights(w)):
        y, dx = (np.full(s, np.nan, x.dtype) for s in (layer.y_shape, layer.x_shape))
        layer.forward(x, weights, b, residual if layer.residual else None, out=y)
        layer.backward_data(dy, weights, out=dx)
        found += [("y", y), ("dx", dx)]
    dw, db = layer.backward_weights(dy, x)
    return [*found, ("dw", dw), *([("db", db)] if db is not None else [])]


@pytest.mark.parametrize(("target", "part"), PARTS)
def test_random_layers(target: str, part: int) -> None:
    rng = random.Random(f"{SEED} {target} {part} winograd")
    for i in range(40):
        layer = random_layer(rng, target, 17)
        r = Bounds(layer, SEED + 100 * part + i)
        bounds = {"y": r.y_bound, "dx": r.dx_bound, "dw": r.dw_bound, "db": r.bound}
        for what, got in passes(layer, r):
            check(layer, what, got, getattr(r, what), bounds[what])
        count.count(target, "winograd convolutions", 5)


@pytest.mark.parametrize("target", HERE)
def test_integers_are_exact(target: str) -> None:
    rng = random.Random(f"{SEED} {target} integers")
    for i in range(15):
        layer = random_layer(rng, target, 9)
        r = Bounds(layer, SEED + i, whole_numbers=True)
        for what, got in passes(layer, r):
            check(layer, what, got, getattr(r, what), 0.0)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize(("size", "c", "k"), [
    (28, 128, 64), (14, 130, 256), (7, 512, 200), (56, 20, 64), (13, 300, 300), (130, 16, 5),
])  # fmt: skip
def test_layers_of_networks(size: int, c: int, k: int, target: str) -> None:
    """Several panels, blocks of channels, and blocks of tiles that span images."""
    for batch, threads in ((1, 1), (3, 2)):
        layer = Convolution(
            batch, c, size, size, k, 3, padding=1, layout="nhwc", threads=threads, target=target,
            algorithm="winograd",
        )  # fmt: skip
        r = Bounds(layer, SEED)
        bounds = {"y": r.y_bound, "dx": r.dx_bound, "dw": r.dw_bound, "db": r.bound}
        for what, got in passes(layer, r):
            check(layer, what, got, getattr(r, what), bounds[what])


def test_errors_are_those_of_direct_convolution() -> None:
    """On random numbers no larger than twice the largest error of the direct passes."""
    if not HERE:
        need(TIERS["avx2 native"])
    for c, size in ((64, 14), (256, 7)):
        found = {}
        for algorithm in ("direct", "winograd"):
            layer = Convolution(2, c, size, size, c, 3, padding=1, algorithm=algorithm)
            r = Reference(layer, SEED)
            for what, got in passes(layer, r):
                found[algorithm, what] = np.abs(got - getattr(r, what)).max()
        for what in ("y", "dx", "dw"):
            assert 0 < found["winograd", what] <= 2 * found["direct", what], found


def test_any_number_of_threads_gives_the_same_bits() -> None:
    if not HERE:
        need(TIERS["avx2 native"])
    for size, c, k in ((9, 37, 70), (14, 130, 200), (30, 8, 64)):
        results = []
        for threads in (1, 2, 3, 5):
            layer = Convolution(
                2, c, size, size, k, 3, padding=1, threads=threads, algorithm="winograd"
            )
            results.append(passes(layer, Reference(layer, SEED)))
        for other in results[1:]:
            for (_, one), (_, two) in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_results_that_see_it(bad: float) -> None:
    """And no others, wherever in its tiles the pixel lies."""
    if not HERE:
        need(TIERS["avx2 native"])
    layers = [
        Convolution(1, 1, 9, 9, 1, 3, padding=1, bias=False, algorithm=name)
        for name in ("direct", "winograd")
    ]
    w = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    for row, column in np.ndindex(9, 9):
        x = np.ones((1, 1, 9, 9), np.float32)
        x[0, 0, row, column] = bad
        expected = np.zeros((9, 9), bool)
        expected[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
        for layer in layers:
            np.testing.assert_array_equal(~np.isfinite(layer.forward(x, w)[0, 0]), expected)


@pytest.mark.parametrize("tier", AMOUNT)
def test_replay(tier: str) -> None:
    """The streams of other instruction sets: the same layers, in memory between guard pages."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} winograd")
    jobs, expected = [], []
    for i in range(AMOUNT[tier]):
        layer = random_layer(rng, TIERS[tier].target, 8, threads=1)
        r, conv = Bounds(layer, SEED + i), layer.conv
        x, dy, residual = (stored(layer, r.data[name]) for name in ("x", "dy", "residual"))
        given = {"image": x, "w": r.data["w"], "bias": r.data["b"], "residual": residual}
        for what, run, arrays, outputs, exact, bound in (
            ("y", winograd.forward(conv, False), given, {"result": layer.y_shape}, r.y, r.y_bound),
            ("dx", winograd.backward_data(conv, False), {**given, "image": dy},
             {"result": layer.x_shape}, r.dx, r.dx_bound),
            ("dw", winograd.backward_weights(conv), {"image": x, "dy": dy},
             {"dw": layer.w_shape, "db": (conv.features,)}, r.dw, r.dw_bound),
        ):  # fmt: skip
            jobs.append(as_job(run, arrays, outputs))
            written = [n for n in run.stream.tensors if n in outputs or n in run.scratch]
            shape = next(iter(outputs.values()))
            expected.append((layer, what, exact, bound, written.index(next(iter(outputs))), shape))
    results = TIERS[tier].run(jobs, isa=TIERS[tier].target)
    for (layer, what, exact, bound, i, shape), result in zip(expected, results, strict=True):
        assert result.ok, f"JITGEN_SEED={SEED} {what} {layer.conv}: {result.error}"
        check(layer, what, result.outputs[i].reshape(shape), exact, bound)


# ---- the choice ---------------------------------------------------------------------------------


def test_the_choice() -> None:
    def chosen(*sizes: int, **more: Any) -> dict[str, str]:
        return Convolution(*sizes, **{"padding": 1, "target": "avx512", **more}).algorithms

    winograd_everywhere = dict.fromkeys(PASSES, "winograd")
    for size, c in ((56, 64), (28, 128), (14, 256), (7, 512)):
        assert chosen(1, c, size, size, c, 3) == winograd_everywhere
        assert chosen(1, c, size, size, c, 3, algorithm="direct") != winograd_everywhere
    direct = dict.fromkeys(PASSES, "direct")
    assert chosen(1, 512, 1, 1, 512, 3) == chosen(1, 3, 224, 224, 4, 3) == direct
    assert chosen(1, 64, 56, 56, 64, 3, stride=2) == direct
    # planes of weights that transforms cannot address
    assert chosen(1, 6144, 8, 8, 6144, 3, threads=1) == direct
    # three input channels: worth it where they are results only
    assert chosen(1, 3, 224, 224, 64, 3) == {**direct, "backward_data": "winograd"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"algorithm": "fft"}, "algorithm='fft' is not"),
        ({"algorithm": "winograd", "stride": 2}, "stride=(2, 2)"),
        ({"algorithm": "winograd", "dilation": 2}, "dilation=(2, 2)"),
        ({"algorithm": "winograd", "groups": 2}, "groups=2"),
        ({"algorithm": "winograd", "order": "NGKchw"}, "blocks, order: algorithm='winograd'"),
        ({"algorithm": "winograd", "kernel": (3, 1)}, "kernel=(3, 1)"),
    ],
)
def test_impossible_algorithms(more: dict[str, Any], words: str) -> None:
    given = {"kernel": 3, "target": "avx2", **more}
    with pytest.raises(ValueError, match="algorithm=") as error:
        Convolution(1, 4, 9, 9, 4, **given)
    assert words in str(error.value)


def test_transformed_weights_are_less_than_2_gib() -> None:
    with pytest.raises(ValueError, match=r"2 GiB of transformed weights.*6144 and 6144"):
        Convolution(1, 6144, 4, 4, 6144, 3, algorithm="winograd", target="avx512")
    layer = Convolution(1, 6144, 4, 4, 6144, 3, target="avx512")
    assert set(layer.algorithms.values()) == {"direct"}


def test_packed_weights_of_the_other_algorithm_are_refused() -> None:
    if not HERE:
        need(TIERS["avx2 native"])
    layers = [
        Convolution(1, 16, 8, 8, 16, 3, padding=1, bias=False, algorithm=name)
        for name in ("direct", "winograd")
    ]
    w = np.ones(layers[0].w_shape, np.float32)
    x = np.ones(layers[0].x_shape, np.float32)
    for one, other in (layers, layers[::-1]):
        packed = one.pack_weights(w)
        one.forward(x, packed)
        for call in (other.forward, other.backward_data):
            with pytest.raises(ValueError, match="w is packed as"):
                call(x, packed)
    # another batch reads the same panels
    more = Convolution(3, 16, 8, 8, 16, 3, padding=1, bias=False, algorithm="winograd")
    more.forward(np.ones(more.x_shape, np.float32), layers[1].pack_weights(w))


assert FLOATS.keys() == KINDS.keys()
