"""One matrix product as a stream: the blocks that threads share, and B packed first if it is plain.

C (m x n) = epilogue(A (m x k) B (k x n)). B is read in panels "n/width k n"; a plain B is packed by
a part of the stream of its own. All three passes of a fully connected layer are such
products. Not here: which (`jitgen.primitives.layers.fully_connected`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.emit.steps import Step, operands
from jitgen.kernels.dot import emit_dot, possible, within_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Access, Tensor
from jitgen.run.cache import lazy
from jitgen.target import Target
from jitgen.types import DTYPES

#: Layouts of plain operands: a row, or a column, lies together
PLAIN = ("m k", "k m", "k n", "n k")
#: Rows of a kernel call: enough to use a panel of B well, few enough for A to stay in L2
MOST_ROWS = 256
#: Rows of a call that makes whole rows of C: a register tile
FEW_ROWS = 6
#: Second-level cache that a core has for itself, at the least
L2_BYTES = 1 << 20
#: Most rows of A for which a B stored by columns is read in place
DOT_ROWS = 7
#: A piece of a panel that is packed just before it is read, from L2
PANEL_BYTES = 1 << 18
#: Blocks of columns, and of rows by columns, at about the most: a stream of more calls would be no
#: faster, only larger
MOST_COLUMN_BLOCKS, MOST_BLOCKS = 1 << 16, 1 << 20
#: What a call costs beside its work, in units of a row's work on one column of B
CALL_COST = 2000


#: Elements from a row to the next of plain operands "a", "b", "c", "residual" that have gaps
#: between rows
Strides = tuple[tuple[str, tuple[int]], ...]


@dataclass(frozen=True)
class Product:
    """A product, and how its operands are stored.

    a, b, c: layouts (`jitgen.primitives.nest.tensor`) of axes m, n and k. A is "m k", "k m", or
    panels "k/w m k" or "m/w k m"; B panels of `width` columns (""), or plain, "k n" or "n k", and
    then packed first unless it is read `in_place`; C "m n" or panels "n/w m n". `gaps`: of
    plain ones whose rows do not follow one another. `blocks` are rows and columns of a kernel call,
    rounded to what the panels allow, `order` the order of the loops over them ("m", "n").
    """

    m: int
    n: int
    k: int
    dtype: str
    target: Target
    threads: int
    width: int
    a: str = "m k"
    b: str = ""
    c: str = "m n"
    in_place: bool = False
    gaps: Strides = ()
    epilogue: tuple[Step, ...] = ()
    blocks: tuple[int, int] | None = None
    order: str | None = None

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].size

    @property
    def packed_elements(self) -> int:
        """Elements of the panels of B."""
        return -(-self.n // self.width) * self.width * self.k

    @property
    def plan(self) -> dict[str, int]:
        """Accumulator sets of every kernel: what hides the latency of the FMA, as far as a row of
        a tile and its two operands fit the registers. Fixed for the product, so that its sums, and
        every bit of them, do not depend on blocks and threads."""
        rates, machine = self.target.rates, self.target.machine(self.dtype, self.n)
        vectors = -(-self.width // machine.lanes)
        split = 1
        while min(self.m, FEW_ROWS) * vectors * split < rates.latency * rates.fma and (
            split < 4 and 4 * split <= self.k and 2 * split * vectors + 2 <= machine.vectors
        ):
            split *= 2
        return {"k_split": split}

    @property
    def fits(self) -> bool:
        """All of B fits L2 beside what else passes through."""
        return self.k * self.n * self.element <= L2_BYTES // 2

    @property
    def panel_depth(self) -> int:
        """Rows of a panel of B that are packed at a time where `fused`."""
        return min(self.depth, max(1, PANEL_BYTES // (self.width * self.element)))

    @property
    def piece(self) -> int:
        """Elements of such a piece, of all panels of a block."""
        return self.least_columns * self.panel_depth

    @property
    def least_columns(self) -> int:
        """Columns of a block, at the least: whole panels."""
        panels = -(-self.n // self.width)
        return -(-panels // MOST_COLUMN_BLOCKS) * self.width

    def least_rows(self, columns: int) -> int:
        """Rows of a block beside so many columns, at the least, but for `most_rows`."""
        return -(-self.m * -(-self.n // columns) // MOST_BLOCKS)

    @property
    def most_rows(self) -> int:
        """Rows of a block, at the most: those of A and of C span less than 2 GiB."""
        longest = max(self.row("a") if self.a == "m k" else 1,
                      self.row("c") if self.c == "m n" else self.width)
        return max(1, (MATRIX_BYTES - 1) // (longest * self.element))

    @property
    def panels_are_batch(self) -> bool:
        """Panels of A are a batch of matrices: they lie less than 2 GiB apart."""
        return self.depth_of_panels > 0 and (
            self.m * self.depth_of_panels * self.element < MATRIX_BYTES
        )

    @property
    def depth(self) -> int:
        """Steps of the reduction in a call, at the most: what it sees of A and of B spans less than
        2 GiB. Of row panels one, or all that are whole; what is left is a call of its own."""
        if width := self.depth_of_panels:
            most = self.k if self.panels_are_batch else width
            return min(self.k, most) // width * width or self.k
        of_a = 1 if self.a == "m k" else self.row("a") if self.a == "k m" else self.rows_of_panels
        longest = max(of_a, self.row("b") if self.in_place else self.width)
        return min(self.k, (MATRIX_BYTES - 1) // (longest * self.element))

    @property
    def most_columns(self) -> int:
        """Columns of a block, at the most: its panels of B are one matrix, with the whole sum."""
        if self.in_place:
            return self.n
        panels = (MATRIX_BYTES - 1) // (self.width * self.k * self.element)
        return self.width * (max(1, panels) if self.depth == self.k else 1)

    @property
    def dot(self) -> bool:
        """Few rows: B is read where it is, by columns, with vectors along the reduction."""
        plain = (self.a, self.b, self.c) == ("m k", "n k", "m n")
        few = self.m <= DOT_ROWS and within_reach(self.n, self.k, self.dtype)
        return plain and few and possible(self.dtype, self.target)

    @property
    def fused(self) -> bool:
        """A plain B is packed piece by piece, each just before it is read: if it is too large to
        be still in a cache otherwise, and the threads can share the panels evenly or its panels
        would take 2 GiB."""
        panels = -(-self.n // self.width)
        even = -(-panels // self.threads) * self.threads <= 1.2 * panels
        even = even or self.packed_elements * self.element >= MATRIX_BYTES
        plain = self.to_pack and self.a in PLAIN and self.c == "m n"
        return plain and even and not self.fits

    @property
    def to_pack(self) -> bool:
        """B is plain, and packed first."""
        return self.b in PLAIN and not self.in_place

    @lazy
    def depth_of_panels(self) -> int:
        """Steps of the reduction in a panel of A, 0 if it has none."""
        return self.tensor("a").blocks("k")

    @lazy
    def rows_of_panels(self) -> int:
        """Rows in a panel of A, 0 if it has none."""
        return self.tensor("a").blocks("m")

    def row(self, operand: str) -> int:
        """Elements from a row of a plain operand ("a", "b" or "c") to the next."""
        outer, _ = getattr(self, operand).split()
        return self.tensor(operand).strides[outer]

    def tensor(self, operand: str, name: str = "") -> Tensor:
        """An operand, "a", "b" or "c", as a tensor."""
        layout = getattr(self, operand)
        axes = layout.split()
        (rows,) = dict(self.gaps).get(name if name == "residual" else operand, (0,))
        strides = {axes[0]: rows} if rows else None
        sizes: dict[str, Any] = {axis: getattr(self, axis) for axis in axes if len(axis) == 1}
        return Tensor(name or operand, layout, self.dtype, strides=strides, **sizes)

    def panels(self, name: str) -> Tensor:
        """B, packed."""
        return Tensor(name, f"n/{self.width} k n", self.dtype, n=self.n, k=self.k)

    def nest(self, order: str, sums: str = "", **loops: tuple[int, int]) -> Nest:
        """Loops: extents and blocks."""
        made = {name: Loop(extent, (block,)) for name, (extent, block) in loops.items()}
        return Nest(order, made, self.dtype, self.target, sums)


def pack_part(product: Product, source: str, to: str) -> Part:
    """Pack a plain B (tensor `source`) into panels (tensor `to`), a call for each panel or, if they
    are many, for several."""
    nest = product.nest("N", n=(product.n, product.least_columns))
    return nest.relayout(
        product.tensor("b", source).at(n="n"), product.panels(to).at(n="n"),
        title="pack B in panels",
    )  # fmt: skip


def fused_part(p: Product, a: str, b: str, to: str, c: str) -> Part:
    """The product of a plain B (tensor `b`): each thread packs a piece of a panel (or of several,
    if they are many) into its own part of tensor `to` and reads it from L2 at once."""
    columns, depth = p.least_columns, p.panel_depth
    most = min(max(MOST_ROWS, p.least_rows(columns)), p.most_rows)
    rows = p.blocks[0] if p.blocks else -(-p.m // -(-p.m // most))
    piece = Tensor(to, f"n/{p.width} k n", p.dtype, own=True, n=columns, k=depth).at()
    loops: dict[str, Any] = {"n": (p.n, columns), "k": (p.k, depth)}
    packing = p.nest("Nk", **loops).relayout(
        p.tensor("b", b).at(n="n", k="k"), piece, title="pack a piece of a panel"
    )
    return p.nest("Nkm", "k", **loops, m=(p.m, rows)).gemm(
        p.tensor("a", a).at(m="m", k="k"), piece, p.tensor("c", c).at(m="m", n="n"),
        epilogue=p.epilogue, plan=p.plan, words=_operands(p), before=(packing,),
    )  # fmt: skip


def _dot_part(p: Product, a: str, b: str, c: str) -> Part:
    """The product of a few rows with a B stored by columns, in place: a row at a time."""
    columns = p.blocks[1] if p.blocks else max(64, -(-p.n // (4 * p.threads)))

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_dot(size["n"], p.k, p.row("b"), p.dtype, p.target, p.epilogue), {}

    words = {
        "a": p.tensor("a", a).at(m="m"), "b": p.tensor("b", b).at(n="n"),
        "c": p.tensor("c", c).at(m="m", n="n"),
    }  # fmt: skip
    nest = p.nest(p.order or "Nm", n=(p.n, columns), m=(p.m, 1))
    return nest.call("multiply rows by rows", code, words | _operands(p))


def _operands(p: Product) -> dict[str, Access]:
    """Those of the epilogue, tensors "bias", and "residual", which lies as C does."""
    lie = {"bias": Tensor("bias", "n", p.dtype, n=p.n).at(n="n"),
           "residual": p.tensor("c", "residual").at(m="m", n="n")}  # fmt: skip
    return {name: lie[name] for name in operands(p.epilogue)}


def product_parts(
    product: Product, a: str, b: str, c: str, panels: str
) -> tuple[list[Part], int]:
    """The product with whatever packing of a plain B comes first, and how many elements of scratch
    (tensor `panels`) that takes."""
    p = product
    if p.dot:
        return [_dot_part(p, a, b, c)], 0
    if p.fused and not p.order:
        return [fused_part(p, a, b, panels, c)], p.threads * p.piece
    if not p.to_pack:
        return [product_part(p, a, b, c)], 0
    return [pack_part(p, b, panels), product_part(p, a, panels, c)], p.packed_elements


def product_part(product: Product, a: str, b: str, c: str, **beside: Any) -> Part:
    """The product: names of the tensors of A, of B (its panels, unless it is read in place) and
    of C. beside: arguments of `Nest.call`."""
    p = product
    rows, columns, order = choose_blocks(p)
    order = p.order or order
    if p.blocks:
        rows = p.blocks[0] if not p.rows_of_panels else rows
        columns = p.blocks[1]
    if p.c != "m n" or p.depth_of_panels:
        columns = p.width
    loops: dict[str, Any] = {"m": (p.m, rows), "n": (p.n, -(-columns // p.width) * p.width)}
    k: dict[str, Any] = {}
    if p.depth < p.k or p.depth_of_panels:
        loops["k"], k, order = (p.k, p.depth), {"k": "k"}, order + "k"
    of_b = p.tensor("b", b) if p.in_place else p.panels(b)
    return p.nest(order, "".join(k), **loops).gemm(
        p.tensor("a", a).at(m="m", **k), of_b.at(n="n", **k), p.tensor("c", c).at(m="m", n="n"),
        epilogue=p.epilogue, plan=p.plan, words=_operands(p), **beside,
    )  # fmt: skip


def choose_blocks(p: Product) -> tuple[int, int, str]:
    """Rows and columns of a kernel call, and the order of the loops over them.

    If all of B fits L2, whole rows of C are made one after the other ("MN"): B is read from L2, A
    and C pass once, C as one stream. Otherwise a panel of B stays in L2 for all rows ("NM"). Of the
    grids that remain, the one whose slowest thread has least to do: a row of a block costs as much
    as its panels are wide, whether they are full or not.
    """
    whole = p.fits and p.c == "m n" and p.a in PLAIN
    best = (float("inf"), 0, 0)
    for columns in (p.n,) if whole else _column_blocks(p):
        for rows in _row_blocks(p, FEW_ROWS if whole else MOST_ROWS, columns):
            grid = -(-p.m // rows), -(-p.n // columns)
            calls = -(-grid[0] * grid[1] // p.threads)
            # threads take consecutive blocks: the slowest has as many as any, all of them whole
            work = calls * (rows * -(-columns // p.width) * p.width + CALL_COST / p.k)
            # among equals the larger blocks
            best = min(best, (work, -rows, -columns))
    return -best[1], -best[2], "MN" if whole or p.m > p.n else "NM"


def _row_blocks(p: Product, most: int, columns: int) -> Iterator[int]:
    if high := p.rows_of_panels:
        # a block lies within a panel
        yield max(rows for rows in range(1, high + 1)
                  if high % rows == 0 and rows <= p.most_rows)  # fmt: skip
        return
    least = -(-p.m // min(max(most, p.least_rows(columns)), p.most_rows))
    for count in range(least, least + 4 * p.threads):
        yield -(-p.m // count)


def _column_blocks(p: Product) -> Iterator[int]:
    least = min(p.least_columns, p.most_columns)
    yield least
    # a panel of C is a matrix of its own, and so is one of B where a batch runs along it
    if p.c == "m n" and not p.depth_of_panels:
        for panels in (2, 4, 8):
            columns = panels * p.width
            if least < columns < 2 * p.n and columns <= p.most_columns:
                yield columns
