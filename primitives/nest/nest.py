"""Nests: kernels in loops over tensors. What a call reads and writes is said once, by axis;
offsets, leading dimensions, batches and counts follow.

    loops = {"m": Loop(64, (16,)), "n": Loop(100, (32,)), "k": Loop(50, (50,))}
    nest = Nest("MNk", loops, "f32", target, sums="k")
    x, w, y = Tensor("x", "n c", "f32", n=64, c=50), ...
    part = nest.gemm(x.at(n="m", c="k"), w.at(k="n", c="k"), y.at(n="m", k="n"))

Not here: streams of parts (`jitgen.primitives.nest.stream`), which order and blocks to take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

from jitgen import doors
from jitgen.emit.frame import ARGUMENTS
from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.emit.steps import STEPS
from jitgen.gemm.kernel import brgemm
from jitgen.gemm.plan import check_overrides
from jitgen.gemm.spec import make_epilogue
from jitgen.kernels.relayout import Moved, emit_relayout
from jitgen.primitives.nest.along import Along, Sizes, along, on
from jitgen.primitives.nest.batch import make_lists
from jitgen.primitives.nest.fit import check_columns, check_factors, check_operand, check_type
from jitgen.primitives.nest.loops import Loop, check_sums
from jitgen.primitives.nest.rows import row_calls, written
from jitgen.primitives.nest.stream import Made, MakeCode, Part
from jitgen.primitives.nest.tables import check_table
from jitgen.primitives.nest.tensor import Access, Tensor
from jitgen.run import cpu
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import DTYPES


@dataclass(frozen=True, init=False)
class Nest:
    """Loops in an order (`jitgen.primitives.nest.loops`), and the type and target of the kernels in
    them: a `Target`, its name, None for this CPU's best. `sums` names the loops whose calls add to
    the same results."""

    order: str
    loops: Mapping[str, Loop]
    dtype: str
    target: Target
    sums: str

    def __init__(
        self, order: str, loops: Mapping[str, Loop], dtype: str,
        target: Target | str | None = None, sums: str = "",
    ) -> None:  # fmt: skip
        for name, loop in doors.mapping("loops", loops).items():
            doors.instance(f"loops[{doors.shown(name)}]", loop, Loop)
        doors.settle(
            self, order=doors.text("order", order), sums=doors.text("sums", sums), loops=loops,
            dtype=doors.one_of("dtype", dtype, DTYPES), target=cpu.choose(target),
        )  # fmt: skip
        check_sums(self.order, self.sums)

    def call(
        self, title: str, code: MakeCode, words: Mapping[str, Access], *,
        before: tuple[Part, ...] = (), after: tuple[Part, ...] = (), when: Access | None = None,
        variants: Mapping[str, Any] | None = None, writes: Sequence[str] | None = None,
    ) -> Part:  # fmt: skip
        """A kernel at each iteration, as `code` makes it; `words` of its argument struct, and those
        through which it `writes` (None: "c"). `before`, `after`, `variants` and `when` are those of
        `Part`.

        Raises TypeError or ValueError for a loop that is missing, an index beyond its axis, and a
        sum that threads would share.
        """
        variants = {} if variants is None else doors.mapping("variants", variants)
        results = [word for word in ("c",) if word in doors.mapping("words", words)]
        if writes is not None:
            results = [
                doors.one_in(f"writes[{i}]", word, "words", words)
                for i, word in enumerate(doors.items("writes", writes))
            ]
        refs = {}
        for word, access in words.items():
            if word not in ARGUMENTS:
                doors.one_of("words: word", word, ARGUMENTS)
            # only what variants, or flags, say of a call lets it read nothing; it writes even so
            exact = when is None and (not variants or word in results)
            refs[word] = doors.instance(f"words[{word!r}]", access, Access).ref(self.loops, exact)
        flag = None if when is None else doors.instance("when", when, Access).ref(self.loops)
        for name, variant in variants.items():
            what = f"variants[{doors.shown(name)}]"
            loop, values = doors.items(what, variant, 2)
            extent = self.loops[doors.one_in(f"{what}: loop", loop, "loops", self.loops)].extent
            check_table(what, values, extent)
        for name, others in (("before", before), ("after", after)):
            for i, other in enumerate(doors.items(name, others)):
                doors.instance(f"{name}[{i}]", other, Part)
        return Part(
            doors.text("title", title), self.order, self.loops, doors.function("code", code), refs,
            self.sums, tuple(before), tuple(after), variants, flag, target=self.target,
            writes=tuple(results),
        )  # fmt: skip

    def gemm(
        self, a: Access, b: Access, c: Access, *, m: str = "m", n: str = "n", k: str = "k",
        outer: str = "", taps: str = "", batch: Mapping[str, Any] | None = None, columns: int = 0,
        alpha: float = 1.0, beta: float = 0.0,
        epilogue: tuple[Any, ...] = (), plan: Mapping[str, Any] | None = None,
        words: Mapping[str, Access] | None = None, title: str = "multiply", **beside: Any,
    ) -> Part:  # fmt: skip
        """c = epilogue(alpha a b + beta c), a call for each block; `m`, `n`, `k` name loops, or
        axes that a call takes whole. Panels of b ("n/16 k n", or of several axes, "u/16 k g u") and
        of c, and blocks along k in a ("k/16 m k": a batch), are those of their layouts.

        outer: a loop outside m, or k, of which a call takes a block too: m, or k, of each of its
        positions. Where these do not follow one another they are a batch along k, and an error
        along m. Two names, "s t", in m, n or k: a loop, and an axis that is whole in each of its
        positions.
        taps: the variant, or loop, that says how many matrices a batch with offsets has (words
        "a_offsets", "b_offsets"). batch: the same, made of lists, {name: (loop, pointers)}: in
        position r of the loop a call sums the matrices pointers[r] to before pointers[r + 1],
        perhaps none; a and b go along that name, by tables, (name, table), or one after the other.
        columns: those of a call where they are not the loop's. beta: before the first call of a
        sum. words: further ones, for the epilogue. beside: arguments of `call`.
        """
        for name, access in (("a", a), ("b", b), ("c", c)):
            check_type(self.dtype, name, access)
        more = {} if words is None else doors.mapping("words", words)
        columns = doors.size("columns", columns, 0)
        alpha, beta = (
            doors.number(name, value, dtype=self.dtype)
            for name, value in (("alpha", alpha), ("beta", beta))
        )
        epilogue = make_epilogue(epilogue, self.dtype)
        plan = None if plan is None else dict(check_overrides(plan))
        if batch is not None:
            return self._lists(
                a, b, c, batch, m=m, n=n, k=k, outer=outer, taps=taps, columns=columns,
                alpha=alpha, beta=beta, epilogue=epilogue, plan=plan, words=more, title=title,
                **beside,
            )  # fmt: skip
        if doors.text("taps", taps):
            known = {**self.loops, **beside.get("variants", {})}
            doors.one_in("taps", taps, "loops and variants", known)
        m, n, k = doors.text("m", m), doors.text("n", n), doors.text("k", k)
        if len({m, n, k}) < 3:
            raise ValueError(f"m={m!r}, n={n!r}, k={k!r}: a product has three loops or axes")
        for name, loop in (("m", m), ("n", n)):
            if set(loop.split()) & set(self.sums):
                raise ValueError(
                    f"{name}={doors.shown(loop)}: each position of that loop has results of its "
                    f"own, but sums={self.sums!r} adds them up"
                )
        rows, depth, wide = self._along(a, m, "m"), self._along(a, k, "k"), self._along(b, n, "n")
        # what is own lies still: it has the axis, not the loop
        in_b = k if b.axis(k) or k in b.tensor.sizes else (a.axis(k) or (k,))[0]
        of_b, of_c = self._along(b, in_b, "k"), self._along(c, m, "m")
        for name, x, y in ((m, rows, of_c), (k, depth, of_b)):
            if not (x.loop or y.loop or x.extent == y.extent):
                raise ValueError(
                    f"{name!r}: a call takes all of the axis, which has {x.extent} in {a.tensor!r} "
                    f"and {y.extent} in {(b if name == k else c).tensor!r}"
                )
        if not columns:
            check_columns(self.loops, c, n, wide, b)
        if beta == 0.0 or epilogue:
            self._check_sums(c, a, b, *more.values())
        how: dict[str, Any] = {"trans_a": depth.rank < rows.rank, "ldc": of_c.stride}
        if alpha != 1.0:
            how["alpha"] = alpha
        how["lda"] = depth.stride if how["trans_a"] else rows.stride
        check_factors(
            self.loops, (a, rows, depth), (b, of_b, wide), (c, of_c),
            (how["trans_a"], not wide.block and wide.rank < of_b.rank),
        )  # fmt: skip
        if wide.block:
            how["packed_b"] = of_b.stride
        else:
            how["trans_b"] = wide.rank < of_b.rank
            how["ldb"] = wide.stride if how["trans_b"] else of_b.stride
        if "residual" in more:
            how["ldr"] = self._along(more["residual"], m, "m").stride
        if taps:
            how["batch"] = "offset"
        if doors.text("outer", outer):
            doors.one_in("outer", outer, "loops", self.loops)
        summed = bool(outer) and b.axis(outer) is not None
        if summed:
            how["stride_a"] = self._along(a, outer, "outer").stride
            how["stride_b"] = self._along(b, outer, "outer").stride
        joined = not outer or self._joined(k if summed else m, outer, a, b if summed else c)
        if not joined and not summed:
            raise ValueError(
                f"outer={outer!r}: a call takes some of its positions, and rows {m} of each, which "
                f"do not follow one another in {a.tensor!r} and {c.tensor!r}"
            )
        block = depth.block
        if block and depth.apart * a.tensor.element < MATRIX_BYTES:
            how |= {"stride_a": depth.apart, "stride_b": block * of_b.stride}
        extents = {m: rows.extent, n: columns or wide.extent, k: depth.extent}

        def code(sizes: Sizes, first: bool, last: bool) -> Made:
            high, width, length = (_size(sizes, name, x) for name, x in extents.items())
            count = sizes[taps] if taps else 1
            if not joined:
                count = sizes[outer]
            elif summed:
                length *= sizes[outer]
            elif outer:
                high *= sizes[outer]
            if block and length >= block:
                length, count = block, length // block
            kernel = brgemm(
                high, columns or width, length, self.dtype,
                beta=beta if first else 1.0, epilogue=epilogue if last else (), plan=plan,
                target=self.target, **how,
            )  # fmt: skip
            return kernel, {"count": count}

        writes = ["c"]
        for step, *_ in epilogue:
            operand = STEPS[step].operand
            check_operand(self.loops, self.dtype, step, more, (m, rows), (n, wide), columns)
            if operand and operand.place == "bit":
                writes.append(operand.word)
        return self.call(title, code, {"a": a, "b": b, "c": c, **more}, writes=writes, **beside)

    def _lists(self, a: Access, b: Access, c: Access, batch: Any, **how: Any) -> Part:
        """`gemm` with batches by lists."""
        for name in ("outer", "taps"):
            if how[name]:
                raise ValueError(f"{name}={doors.shown(how[name])}: a product with batch= has none")
        lists = make_lists(batch, self.loops, a, b, c, self.sums)
        if self._along(a, how["k"], "k").block:
            raise ValueError(f"batch={doors.shown(batch)}: {a.tensor!r} has blocks along "
                             f"{how['k']}, a batch of their own")  # fmt: skip
        words, tables = dict(how.pop("words")), {}
        for word, access in (("a_offsets", a), ("b_offsets", b)):
            if word in words:
                raise ValueError(f"words has {word!r}, which batch= makes")
            place, values = lists.offsets(access, self.loops)
            words[word], tables[place.tensor.name] = place, values
        given = how.pop("variants", None)
        variants = {} if given is None else doors.mapping("variants", given)
        variants = {**variants, lists.name: (lists.loop, lists.counts)}
        how |= {"taps": lists.name, "words": words, "variants": variants}
        part = self.gemm(a.without(lists.name), b.without(lists.name), c, **how)
        return replace(part, tables=tables)

    def _check_sums(self, c: Access, *others: Access) -> None:
        """Raise ValueError if calls would overwrite what others left in the same place."""
        for name, loop in self.loops.items():
            moves = any(other.moves(name) for other in others)
            if moves and not (c.moves(name) or c.tensor.own or name in self.sums) and (
                loop.extent > loop.blocks[-1]
            ):
                raise ValueError(
                    f"order={self.order!r}: loop {name!r} is missing in sums={self.sums!r}; what "
                    "is read depends on it and c does not: each of its calls would overwrite c"
                )

    def _joined(self, inner: str, outer: str, *accesses: Access) -> bool:
        """Whether positions of two loops follow one another in a call: it takes one of the outer
        loop, or all of the inner one, whose last position is as far from the next as others."""
        loop = self.loops[inner]
        follow = loop.blocks[-1] >= loop.extent and all(
            self._along(x, outer, "outer").stride
            == loop.extent * self._along(x, inner, "m, k").stride
            for x in accesses
        )
        return follow or self.loops[outer].blocks[-1] == 1

    def relayout(
        self, source: Access, to: Access, *, title: str, fill: bool = True, **beside: Any
    ) -> Part:
        """`to` = `source`, in the layout that it has. A call moves two axes at the most: the one
        along which neighbours lie together in either, and one more; others are loops. fill: panels
        of the result are filled up with zeros. beside: arguments of `call`."""
        check_type(self.dtype, "source", source)
        check_type(self.dtype, "to", to)
        for x, y in ((source, to), (to, source)):
            if x.tensor.inner not in y.tensor.sizes:
                raise ValueError(
                    f"{source.tensor!r} to {to.tensor!r}: {x.tensor.inner}, along which neighbours "
                    "lie together in one of them, is no axis of the other"
                )
            for axis, size in x.tensor.sizes.items():
                if axis not in y.tensor.sizes and axis not in x.index and size > 1:
                    raise ValueError(
                        f"{source.tensor!r} to {to.tensor!r}: {axis} is an axis of one of them; "
                        "take one position of it, or a loop"
                    )
        p, q = source.tensor.inner, to.tensor.inner
        inner, transposed = self._on(source, p), p != q
        for access, near in ((source, inner), (to, self._on(to, q))):
            if near.stride != 1 and self._count(access, p if access is source else q) > 1:
                raise ValueError(f"{access!r}: a call's elements lie {near.stride} apart")
        other = q if transposed else self._other(source, to, p)
        outer = self._on(source, other) if other else Along()
        lead = self._on(to, p if transposed else other) if other else outer
        fill = doors.flag("fill", fill)
        panel = self._panel(source, to, p if transposed else other) if fill else 0
        for access, axis, most in ((source, p, 0), (to, q, panel)):
            run = access.tensor.run(axis)
            if run and run != most and self._count(access, axis) > run:
                raise ValueError(
                    f"{access.tensor!r}: a call moves more of {axis} than lies together in a block "
                    f"of {run}; take a loop over the blocks"
                )

        def code(sizes: Sizes, first: bool, last: bool) -> Made:
            rows, columns = outer.size(sizes), inner.size(sizes)
            moved = Moved(rows, columns, outer.stride or columns, lead.stride or columns,
                          transposed, panel)  # fmt: skip
            return emit_relayout(moved, self.dtype, self.target), {"count": 1} if panel else {}

        return self.call(title, code, {"a": source, "c": to}, **beside)

    def rows(
        self, function: str, operands: Mapping[str, Access], *, rows: str = "m", over: str = "n",
        eps: float = 1e-5, title: str = "", **beside: Any,
    ) -> Part:  # fmt: skip
        """A function of rows (softmax, a norm, a sum; docs/primitives.md lists them with their
        operands), a call for each block. `operands` are places by name.

        rows, over: loops, or axes that a call takes whole; what is summed goes along `over`, all of
        which is in a call. One of them is the axis along which neighbours lie together. y may be x,
        dx what it is made from; dscale and dshift are added to. eps: of norms. beside: arguments of
        `call`. Raises TypeError or ValueError that names argument, value and rule.
        """
        code, words = row_calls(
            self.loops, self.dtype, self.target, function, operands, doors.text("rows", rows),
            doors.text("over", over), eps,
        )  # fmt: skip
        writes = written(function, words)
        return self.call(doors.text("title", title) or function, code, words, writes=writes,
                         **beside)  # fmt: skip

    def _panel(self, source: Access, to: Access, depth: str) -> int:
        """Columns of the result's panels, if it has any that are to be filled up; `depth` is the
        other axis that a call moves."""
        tensor, axis = to.tensor, to.tensor.inner
        block, lanes = tensor.run(axis), self.target.machine(self.dtype, ANY_WIDTH).lanes
        (row,) = tensor.layout.split()[-2:-1] or [""]
        whole = block == tensor.blocks(axis) and (
            axis not in to.index or self._count(to, axis) % (block or 1) == 0
        )
        panels = block and block % lanes == 0 and whole and row == depth
        padded = {x for x, size in tensor.sizes.items() if size % (tensor.blocks(x) or 1)}
        if padded - ({axis} if panels else set()):
            raise ValueError(
                f"{source.tensor!r} to {tensor!r}: only panels of whole vectors, of {lanes} "
                "elements, with their rows one behind the other, are filled up with zeros"
            )
        return block if panels else 0

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

    def _along(self, access: Access, name: str, argument: str) -> Along:
        """How a call goes along the axis of a loop, or along the axis of that name, whole."""
        return along(self.loops, access, name, argument)

    def _on(self, access: Access, axis: str) -> Along:
        """How a call goes along an axis."""
        return on(self.loops, access, axis)


def _size(sizes: Sizes, name: str, extent: int) -> int:
    """Positions in a call of a loop, or of an axis of that extent, in each position of a loop."""
    *outer, inner = name.split()
    return prod([sizes.get(inner, extent), *(sizes[loop] for loop in outer)])


def relayout(
    source: Tensor, to: Tensor, dtype: str, target: Target | str | None = None, fill: bool = True
) -> Part:
    """A tensor moved to the layout of another one of the same axes, whatever both are: threads
    share the loops over all axes but the two along which neighbours lie together. fill: padding of
    the result is zeros, else left as it is.

    Raises ValueError where the tensors have other axes or extents, or padding cannot be filled.
    """
    doors.instance("source", source, Tensor)
    if source.sizes != doors.instance("to", to, Tensor).sizes:
        raise ValueError(f"{source!r} and {to!r} differ in axes or extents")
    ends = (source.inner, to.inner)
    letters = dict(zip(source.sizes, "abcdefghijklmnopqrstuvwxyz", strict=False))
    loops, source_at, to_at = {}, {}, {}
    for axis, size in source.sizes.items():
        block = gcd(source.run(axis), to.run(axis))
        if axis not in ends or block:
            loops[letters[axis]] = Loop(size, (block if axis in ends else 1,))
            source_at[axis] = to_at[axis] = letters[axis]
    nest = Nest("".join(loops).upper(), loops, dtype, target)
    title = f"{source.layout} to {to.layout}"
    return nest.relayout(source.at(**source_at), to.at(**to_at), title=title, fill=fill)
