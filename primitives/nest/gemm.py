"""One matrix product as a stream: the blocks that threads share, and B packed first if it is plain.

C (m x n) = epilogue(A (m x k) B (k x n)). B is read in panels [n / width][k][width]; a plain B is
packed by a part of the stream of its own. All three passes of a fully connected layer are such
products. Not here: which (`jitgen.primitives.layers.fully_connected`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jitgen.emit.routine import Routine
from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.gemm.kernel import brgemm
from jitgen.gemm.spec import DTYPES, Step
from jitgen.kernels.dot import emit_dot, possible, within_reach
from jitgen.kernels.pack import emit_packer
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Made, MakeCode, Part, Ref
from jitgen.run.cache import CODE
from jitgen.target import Target

#: A plain B that is not packed
IN_PLACE = "rows in place"
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
#: Layouts of A that a call cannot take many rows or columns of
PANELS = ("row panels", "column panels")
#: Blocks of columns, and of rows by columns, at about the most: a stream of more calls would be no
#: faster, only larger
MOST_COLUMN_BLOCKS, MOST_BLOCKS = 1 << 16, 1 << 20
#: What a call costs beside its work, in units of a row's work on one column of B
CALL_COST = 2000


@dataclass(frozen=True)
class Product:
    """A product, and how its operands are stored.

    a: "rows" (m x k), "columns" (k x m), "row panels" [k / a_width][m][a_width] or "column
    panels" [m / a_width][k][a_width]; b: "panels" [n / width][k][width], "rows" (k x n) or
    "columns" (n x k), which are packed first, or "rows in place" (k x n); c: "rows" (m x n) or
    "panels" [n / width][m][width]. `blocks` are rows and columns of a kernel call, rounded to what
    the panels allow, `order` the order of the loops over them ("m", "n"), see
    jitgen.primitives.nest.loops.
    """

    m: int
    n: int
    k: int
    dtype: str
    target: Target
    threads: int
    width: int
    a: str = "rows"
    b: str = "panels"
    c: str = "rows"
    a_width: int = 0
    epilogue: tuple[Step, ...] = ()
    blocks: tuple[int, int] | None = None
    order: str | None = None

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].element

    @property
    def packed_elements(self) -> int:
        """Elements of the panels of B."""
        return -(-self.n // self.width) * self.width * self.k

    @property
    def plan(self) -> dict[str, int]:
        """Accumulator sets of every kernel: what hides the latency of the FMA. Fixed for the
        product, so that its sums, and every bit of them, do not depend on blocks and threads."""
        rates = self.target.rates
        vectors = -(-self.width // self.target.machine(self.dtype, self.n).lanes)
        split = 1
        while min(self.m, FEW_ROWS) * vectors * split < rates.latency * rates.fma and (
            split < 4 and 4 * split <= self.k
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
        longest = max(self.k if self.a == "rows" else 1, self.n if self.c == "rows" else self.width)
        return max(1, (MATRIX_BYTES - 1) // (longest * self.element))

    @property
    def panels_are_batch(self) -> bool:
        """Panels of A are a batch of matrices: they lie less than 2 GiB apart."""
        return self.a == "row panels" and self.m * self.a_width * self.element < MATRIX_BYTES

    @property
    def depth(self) -> int:
        """Steps of the reduction in a call, at the most: what it sees of A and of B spans less than
        2 GiB. Of row panels one, or all that are whole; what is left is a call of its own."""
        if self.a == "row panels":
            most = self.k if self.panels_are_batch else self.a_width
            return min(self.k, most) // self.a_width * self.a_width or self.k
        longest = max(
            {"rows": 1, "columns": self.m, "column panels": self.a_width}[self.a],
            self.n if self.b == IN_PLACE else self.width,
        )
        return min(self.k, (MATRIX_BYTES - 1) // (longest * self.element))

    @property
    def most_columns(self) -> int:
        """Columns of a block, at the most: its panels of B are one matrix, with the whole sum."""
        if self.b == IN_PLACE:
            return self.n
        panels = (MATRIX_BYTES - 1) // (self.width * self.k * self.element)
        return self.width * (max(1, panels) if self.depth == self.k else 1)

    @property
    def dot(self) -> bool:
        """Few rows: B is read where it is, by columns, with vectors along the reduction."""
        plain = self.b == "columns" and self.a == "rows" and self.c == "rows"
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
        plain = self.b in ("rows", "columns") and self.a not in PANELS and self.c == "rows"
        return plain and even and not self.fits


def pack_part(product: Product, source: str, to: str) -> Part:
    """Pack a plain B (tensor `source`) into panels (tensor `to`), a call for each panel or, if they
    are many, for several."""
    p, width = product, product.width
    trans = p.b == "columns"
    leading = p.k if trans else p.n

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        packer = _packer(p.k, size["n"], leading, width, p.dtype, trans, p.target)
        return packer, {"count": 1}

    words = {
        "a": Ref(source, {"n": p.k if trans else 1}, p.element),
        "c": Ref(to, {"n": p.k}, p.element),
    }
    return Part("pack B in panels", "N", {"n": Loop(p.n, (p.least_columns,))}, code, words)


@CODE.of
def _packer(
    k: int, n: int, leading: int, width: int, dtype: str, trans: bool, target: Target
) -> Routine:
    return emit_packer(k, n, leading, 0, width, dtype, trans, target)


def fused_part(product: Product, a: str, b: str, to: str, c: str, bias: str = "") -> Part:
    """The product of a plain B (tensor `b`): each thread packs a piece of a panel (or of several,
    if they are many) into its own part of tensor `to` (threads * piece elements) and reads it from
    L2 at once."""
    p, depth, plan = product, product.panel_depth, product.plan
    columns = p.least_columns
    most = min(max(MOST_ROWS, p.least_rows(columns)), p.most_rows)
    rows = p.blocks[0] if p.blocks else -(-p.m // -(-p.m // most))
    n, k = Loop(p.n, (columns,)), Loop(p.k, (depth,))
    trans = p.b == "columns"
    piece = Ref(to, {}, p.element, per_thread=p.piece)

    def pack(size: dict[str, int], first: bool, last: bool) -> Made:
        leading = p.k if trans else p.n
        code = _packer(size["k"], size["n"], leading, p.width, p.dtype, trans, p.target)
        return code, {"count": 1}

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size["m"], size["n"], size["k"], p.dtype, lda=p.k if p.a == "rows" else p.m, ldc=p.n,
            trans_a=p.a == "columns", packed_b=p.width, beta=0.0 if first else 1.0,
            epilogue=p.epilogue if last else (), target=p.target, plan=plan,
        )  # fmt: skip
        return kernel, {"count": 1}

    steps = {"n": p.k, "k": 1} if trans else {"n": 1, "k": p.n}
    packing = Part(
        "pack a piece of a panel", "Nk", {"n": n, "k": k}, pack,
        {"a": Ref(b, steps, p.element), "c": piece},
    )  # fmt: skip
    words = {
        "a": Ref(a, {"m": p.k, "k": 1} if p.a == "rows" else {"m": 1, "k": p.m}, p.element),
        "b": piece,
        "c": Ref(c, {"m": p.n, "n": 1}, p.element),
    }
    if bias:
        words["bias"] = Ref(bias, {"n": 1}, p.element)
    loops = {"n": n, "k": k, "m": Loop(p.m, (rows,))}
    return Part("multiply", "Nkm", loops, code, words, "k", (packing,))


def dot_part(product: Product, a: str, b: str, c: str, bias: str = "") -> Part:
    """The product of a few rows with a B stored by columns, in place: a row at a time."""
    p = product
    columns = p.blocks[1] if p.blocks else max(64, -(-p.n // (4 * p.threads)))

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_dot(size["n"], p.k, p.k, p.dtype, p.target, p.epilogue), {}

    words = {
        "a": Ref(a, {"m": p.k}, p.element),
        "b": Ref(b, {"n": p.k}, p.element),
        "c": Ref(c, {"m": p.n, "n": 1}, p.element),
    }
    if bias:
        words["bias"] = Ref(bias, {"n": 1}, p.element)
    loops = {"n": Loop(p.n, (columns,)), "m": Loop(p.m, (1,))}
    return Part("multiply rows by rows", p.order or "Nm", loops, code, words)


def product_parts(
    product: Product, a: str, b: str, c: str, panels: str, bias: str = ""
) -> tuple[list[Part], int]:
    """The product with whatever packing of a plain B comes first, and how many elements of scratch
    (tensor `panels`) that takes."""
    p = product
    if p.dot:
        return [dot_part(p, a, b, c, bias)], 0
    if p.fused and not p.order:
        return [fused_part(p, a, b, panels, c, bias)], p.threads * p.piece
    if p.b in ("panels", IN_PLACE):
        return [product_part(p, a, b, c, bias)], 0
    return [pack_part(p, b, panels), product_part(p, a, panels, c, bias)], p.packed_elements


def product_part(product: Product, a: str, panels: str, c: str, bias: str = "") -> Part:
    """The product: names of the tensors of A, of B's panels, of C and of the epilogue's bias."""
    p = product
    rows, columns, order = choose_blocks(p)
    order = p.order or order
    if p.blocks:
        rows = p.blocks[0] if p.a != "column panels" else rows
        columns = p.blocks[1]
    if p.c != "rows" or p.a == "row panels":
        columns = p.width
    columns = -(-columns // p.width) * p.width
    loops = {"m": Loop(p.m, (rows,)), "n": Loop(p.n, (columns,))}
    steps = {"rows": {"m": p.k}, "columns": {"m": 1}, "row panels": {"m": p.a_width},
             "column panels": {"m": p.k}}  # fmt: skip
    c_steps = {"m": p.n, "n": 1} if p.c == "rows" else {"m": p.width, "n": p.m}
    words = {
        "a": Ref(a, steps[p.a], p.element),
        "b": Ref(panels, {"n": 1 if p.b == IN_PLACE else p.k}, p.element),
        "c": Ref(c, c_steps, p.element),
    }
    if bias:
        words["bias"] = Ref(bias, {"n": 1}, p.element)
    if p.a == "column panels" and rows < p.a_width:
        at = np.arange(p.m)
        place = {"m": at // p.a_width * p.a_width * p.k + at % p.a_width}
        words["a"] = Ref(a, {}, p.element, table=place)
    reduction = ""
    if p.depth < p.k or p.a == "row panels":
        loops["k"] = Loop(p.k, (p.depth,))
        a_steps = {"rows": 1, "columns": p.m, "row panels": p.m, "column panels": p.a_width}
        words["a"] = replace(words["a"], steps={**words["a"].steps, "k": a_steps[p.a]})
        b_steps = {"n": 1, "k": p.n} if p.b == IN_PLACE else {"n": p.k, "k": p.width}
        words["b"] = Ref(panels, b_steps, p.element)
        order, reduction = order + "k", "k"
    return Part("multiply", order, loops, _kernels(p), words, reduction)


def _kernels(p: Product) -> MakeCode:
    ldc = p.n if p.c == "rows" else p.width
    lda = {"rows": p.k, "columns": p.m}.get(p.a, p.a_width)
    trans_a, plan = p.a in ("columns", "column panels"), p.plan
    b: dict[str, Any] = {"packed_b": p.width}
    if p.b == IN_PLACE:
        b = {"ldb": p.n}
    strides: dict[str, Any] = {}
    if p.panels_are_batch:
        strides["stride_a"] = p.m * p.a_width
        strides["stride_b"] = p.a_width * (p.n if p.b == IN_PLACE else p.width)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        k, count = size.get("k", p.k), 1
        if p.a == "row panels" and k >= p.a_width:
            k, count = p.a_width, k // p.a_width
        kernel = brgemm(
            size["m"], size["n"], k, p.dtype, lda=lda, ldc=ldc, trans_a=trans_a,
            beta=0.0 if first else 1.0, epilogue=p.epilogue if last else (), target=p.target,
            plan=plan, **b, **strides,
        )  # fmt: skip
        return kernel, {"count": count}

    return code


def choose_blocks(p: Product) -> tuple[int, int, str]:
    """Rows and columns of a kernel call, and the order of the loops over them.

    If all of B fits L2, whole rows of C are made one after the other ("MN"): B is read from L2, A
    and C pass once, C as one stream. Otherwise a panel of B stays in L2 for all rows ("NM"). Of the
    grids that remain, the one whose slowest thread has least to do: a row of a block costs as much
    as its panels are wide, whether they are full or not.
    """
    whole = p.fits and p.c == "rows" and p.a not in PANELS
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
    if p.a == "column panels":
        # a block lies within a panel
        yield max(rows for rows in range(1, p.a_width + 1)
                  if p.a_width % rows == 0 and rows <= p.most_rows)  # fmt: skip
        return
    least = -(-p.m // min(max(most, p.least_rows(columns)), p.most_rows))
    for count in range(least, least + 4 * p.threads):
        yield -(-p.m // count)


def _column_blocks(p: Product) -> Iterator[int]:
    least = min(p.least_columns, p.most_columns)
    yield least
    # a panel of C is a matrix of its own, and so is one of B where a batch runs along it
    if p.c == "rows" and p.a != "row panels":
        for panels in (2, 4, 8):
            columns = panels * p.width
            if least < columns < 2 * p.n and columns <= p.most_columns:
                yield columns
