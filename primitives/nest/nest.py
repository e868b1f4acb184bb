"""Nests: kernels in loops over tensors. What a call reads and writes is said once, by axis;
offsets, leading dimensions, batches and counts follow.

    loops = {"m": Loop(64, (16,)), "n": Loop(100, (32,)), "k": Loop(50, (50,))}
    nest = Nest("MNk", loops, "f32", target, sums="k")
    x, w, y = Tensor("x", "n c", "f32", n=64, c=50), ...
    part = nest.gemm(x.at(n="m", c="k"), w.at(k="n", c="k"), y.at(n="m", k="n"))

Not here: streams of parts (`jitgen.primitives.nest.stream`), which order and blocks to take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, NamedTuple

from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.gemm.kernel import brgemm
from jitgen.kernels.relayout import Moved, emit_relayout
from jitgen.primitives.nest.loops import Loop, check_sums
from jitgen.primitives.nest.stream import MakeCode, Part
from jitgen.primitives.nest.tensor import Access, Tensor
from jitgen.target import ANY_WIDTH, Target

Sizes = dict[str, int]


class Along(NamedTuple):
    """How a call goes along an axis: elements from one position to the next; blocks of so many (0:
    none) that lie so far apart; its rank in the layout; the extent of the axis, all of which is in
    a call unless there is a loop."""

    stride: int = 0
    block: int = 0
    apart: int = 0
    rank: int = 0
    extent: int = 1
    loop: str = ""

    def size(self, sizes: Sizes) -> int:
        """Positions in a call."""
        return sizes[self.loop] if self.loop else self.extent


@dataclass(frozen=True)
class Nest:
    """Loops in an order (`jitgen.primitives.nest.loops`), and the type and target of the kernels in
    them. `sums` names the loops whose calls add to the same results."""

    order: str
    loops: Mapping[str, Loop]
    dtype: str
    target: Target
    sums: str = ""

    def call(
        self, title: str, code: MakeCode, words: Mapping[str, Access], *,
        before: tuple[Part, ...] = (), after: tuple[Part, ...] = (), when: Access | None = None,
        variants: Mapping[str, Any] | None = None,
    ) -> Part:  # fmt: skip
        """A kernel at each iteration, as `code` makes it; `words` of its argument struct. `before`,
        `after`, `variants` and `when` are those of `Part`.

        Raises ValueError for a loop that is missing, an index beyond its axis, and a sum that
        threads would share.
        """
        check_sums(self.order, self.sums)
        return Part(
            title, self.order, self.loops, code,
            {word: access.ref(self.loops) for word, access in words.items()}, self.sums, before,
            after, variants or {}, None if when is None else when.ref(self.loops),
        )  # fmt: skip

    def gemm(
        self, a: Access, b: Access, c: Access, *, m: str = "m", n: str = "n", k: str = "k",
        taps: str = "", columns: int = 0, beta: float = 0.0, epilogue: tuple[Any, ...] = (),
        plan: Mapping[str, Any] | None = None, words: Mapping[str, Access] | None = None,
        title: str = "multiply", **beside: Any,
    ) -> Part:  # fmt: skip
        """c = epilogue(a b + beta c), a call for each block; `m`, `n`, `k` name loops, or axes that
        a call takes whole. Panels of b ("n/16 k n") and of c, and blocks along k in a ("k/16 m k":
        a batch), are those of their layouts.

        taps: the variant, or loop, that says how many matrices a batch with offsets has (words
        "a_offsets", "b_offsets"). columns: those of a call where they are not the loop's. beta:
        before the first call of a sum. words: further ones, for the epilogue. beside: arguments of
        `call`. Two names, "s t": a loop, and an axis that is whole in each of its positions.
        """
        rows, depth, wide = self._along(a, m), self._along(a, k), self._along(b, n)
        # a panel that lies still has the axis, not the loop
        in_b = k if b.axis(k) or k in b.tensor.sizes else (a.axis(k) or (k,))[0]
        of_b, of_c = self._along(b, in_b), self._along(c, m)
        how: dict[str, Any] = {"trans_a": depth.rank < rows.rank, "ldc": of_c.stride}
        how["lda"] = depth.stride if how["trans_a"] else rows.stride
        if wide.block:
            how["packed_b"] = wide.block
        else:
            how["trans_b"] = wide.rank < of_b.rank
            how["ldb"] = wide.stride if how["trans_b"] else of_b.stride
        if taps:
            how["batch"] = "offset"
        block = depth.block
        if block and depth.apart * a.tensor.element < MATRIX_BYTES:
            how |= {"stride_a": depth.apart, "stride_b": block * of_b.stride}
        extents = {m: rows.extent, n: columns or wide.extent, k: depth.extent}

        def code(sizes: Sizes, first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
            high, width, length = (_size(sizes, name, x) for name, x in extents.items())
            count = sizes[taps] if taps else 1
            if block and length >= block:
                length, count = block, length // block
            kernel = brgemm(
                high, columns or width, length, self.dtype,
                beta=beta if first else 1.0, epilogue=epilogue if last else (), plan=plan,
                target=self.target, **how,
            )  # fmt: skip
            return kernel.code, {"count": count}

        return self.call(title, code, {"a": a, "b": b, "c": c, **(words or {})}, **beside)

    def relayout(
        self, source: Access, to: Access, *, title: str, fill: bool = True, **beside: Any
    ) -> Part:
        """`to` = `source`, in the layout that it has. A call moves two axes at the most: the one
        along which neighbours lie together in either, and one more; others are loops. fill: panels
        of the result are filled up with zeros. beside: arguments of `call`."""
        p, q = (access.tensor.layout.split()[-1] for access in (source, to))
        inner, transposed = self._along(source, p), p != q
        other = q if transposed else self._other(source, to, p)
        outer = self._along(source, other) if other else Along()
        lead = self._along(to, p if transposed else other) if other else outer
        panel = self._panel(source, to, q, outer if transposed else inner) if fill else 0

        def code(sizes: Sizes, first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
            rows, columns = outer.size(sizes), inner.size(sizes)
            moved = Moved(rows, columns, outer.stride or columns, lead.stride or columns,
                          transposed, panel)  # fmt: skip
            return emit_relayout(moved, self.dtype, self.target), {"count": 1} if panel else {}

        return self.call(title, code, {"a": source, "c": to}, **beside)

    def _panel(self, source: Access, to: Access, axis: str, along: Along) -> int:
        """Columns of the result's panels, if it has any that may be filled up."""
        block = self._along(to, axis).block
        lanes = self.target.machine(self.dtype, ANY_WIDTH).lanes
        if block % lanes and along.extent % block:
            raise ValueError(
                f"{source.tensor!r} to {to.tensor!r}: only panels of whole vectors, of {lanes} "
                f"elements, are filled up with zeros; {axis}={along.extent} leaves one of {block} "
                "unfilled"
            )
        return 0 if block % lanes else block

    def _other(self, source: Access, to: Access, inner: str) -> str:
        """The axis besides `inner` of which a call moves more than one position, or might."""
        others = [axis for axis in source.tensor.sizes
                  if axis != inner and axis in to.tensor.sizes]  # fmt: skip
        wide = [axis for axis in others if self._count(source, axis) > 1]
        wide = wide or [axis for axis in others if axis not in source.index][:1]
        wide = wide or others[-1:]
        if len(wide) > 1:
            raise ValueError(
                f"{source.tensor!r} to {to.tensor!r}: a call moves two axes; take loops over all "
                f"but one of {' '.join(wide)}"
            )
        return "".join(wide)

    def _count(self, access: Access, axis: str) -> int:
        """Positions of an axis in the largest call."""
        terms = access.index.get(axis)
        if terms is None:
            return access.tensor.sizes[axis]
        names = [term if isinstance(term, str) else term[0] for term in terms
                 if not isinstance(term, int)]  # fmt: skip
        return max((self.loops[name].blocks[-1] for name in names if name in self.loops), default=1)

    def _along(self, access: Access, name: str) -> Along:
        """How a call goes along the axis of a loop, or along the axis of that name, whole."""
        if " " in name:
            outer, inner = (self._along(access, each) for each in name.split())
            if outer.stride != inner.extent * inner.stride:
                raise ValueError(f"{access.tensor!r}: axes {name!r} have a gap between them")
            return inner
        tensor, found, loop = access.tensor, access.axis(name), name
        if found is None and name in tensor.sizes:
            # the axis of that name, along the loop that goes there, in the smallest steps
            steps = {x: at[1] for x in self.loops if (at := access.axis(x)) and at[0] == name}
            loop = min(steps, key=steps.__getitem__, default=name if name in self.loops else "")
            found = name, steps.get(loop, 1)
        if found is None:
            raise ValueError(f"{tensor!r}: no axis goes along loop {name!r}, or is called so")
        axis, step = found
        return Along(
            tensor.stride(axis) * step, tensor.blocks(axis),
            tensor.strides[axis] if tensor.blocks(axis) else 0, tensor.rank(axis),
            tensor.sizes[axis], loop,
        )  # fmt: skip


def _size(sizes: Sizes, name: str, extent: int) -> int:
    """Positions in a call of a loop, or of an axis of that extent, in each position of a loop."""
    *outer, inner = name.split()
    return prod([sizes.get(inner, extent), *(sizes[loop] for loop in outer)])


def relayout(source: Tensor, to: Tensor, dtype: str, target: Target) -> Part:
    """A tensor moved to the layout of another one of the same axes, whatever both are: threads
    share the loops over all axes but the two along which neighbours lie together.

    Raises ValueError where the tensors have other axes or extents.
    """
    if source.sizes != to.sizes:
        raise ValueError(f"{source!r} and {to!r} differ in axes or extents")
    ends = [tensor.layout.split()[-1] for tensor in (source, to)]
    letters = dict(zip(source.sizes, "abcdefghijklmnopqrstuvwxyz", strict=False))
    loops, source_at, to_at = {}, {}, {}
    for axis, size in source.sizes.items():
        block = gcd(source.blocks(axis), to.blocks(axis))
        if axis not in ends or block:
            loops[letters[axis]] = Loop(size, (block if axis in ends else 1,))
            source_at[axis] = to_at[axis] = letters[axis]
    nest = Nest("".join(loops).upper(), loops, dtype, target)
    title = f"{source.layout} to {to.layout}"
    return nest.relayout(source.at(**source_at), to.at(**to_at), title=title)
