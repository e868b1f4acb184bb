"""The streams of a fully connected layer's passes: a product each, and the packing before it.

Cached by layer and layout. Not here: arrays and their checks
(`jitgen.primitives.layers.fully_connected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.gemm.kernel import panel_width
from jitgen.gemm.spec import DTYPES, Step
from jitgen.kernels.elementwise import emit_column_sums
from jitgen.primitives.nest.gemm import IN_PLACE, Product, pack_part, product_parts
from jitgen.primitives.nest.limits import threads_that_pay
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part, Ref
from jitgen.run.cache import STREAMS
from jitgen.target import Target

#: From so many rows on, packing w for backward by data costs less than it gains
ROWS_WORTH_PACKING = 24


@dataclass(frozen=True)
class Layer:
    """What a layer's streams depend on."""

    batch: int
    in_features: int
    out_features: int
    bias: bool
    activation: str | None
    dtype: str
    threads: int
    target: Target
    blocks: tuple[int, int] | None
    order: str | None


def _threads(layer: Layer) -> int:
    work = 2 * layer.batch * layer.in_features * layer.out_features
    return threads_that_pay("fully connected", layer.threads, work)


def _product(layer: Layer, m: int, n: int, k: int, **how: Any) -> Product:
    return Product(
        m, n, k, layer.dtype, layer.target, _threads(layer), blocks=layer.blocks,
        order=layer.order, **how,
    )  # fmt: skip


def _run(
    layer: Layer, product: Product, bias: str = "", more: Sequence[Part] = (),
    tensors: Sequence[str] = (),
) -> Run:  # fmt: skip
    """The stream of a product of tensors "a" and "b" into "c", and of more parts; `tensors` are
    theirs and the bias. A plain B is packed into scratch on the way."""
    parts, panels = product_parts(product, "a", "b", "c", "panels", bias)
    scratch = {"panels": panels} if panels else {}
    names = ["a", "b", "c", *tensors]
    return Run([*parts, *more], names, product.threads, layer.target, layer.dtype, scratch)


@STREAMS.of
def forward(layer: Layer, a_width: int, b_width: int, blocked: bool) -> Run:
    """x in rows or panels of a_width; w packed in panels of b_width or plain (0); y in rows or
    blocked."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    epilogue: tuple[Step, ...] = (("bias",),) if layer.bias else ()
    if layer.activation:
        epilogue += ((layer.activation,),)
    product = _product(
        layer, n, k, c, width=b_width or panels_for(layer, n, k, c),
        a="row panels" if a_width else "rows", a_width=a_width,
        b="panels" if b_width else "columns", c="panels" if blocked else "rows",
        epilogue=epilogue,
    )  # fmt: skip
    bias = ["bias"] if layer.bias else []
    return _run(layer, product, "".join(bias), tensors=bias)


@STREAMS.of
def backward_data(layer: Layer, a_width: int, b_width: int, blocked: bool) -> Run:
    """dz in rows or panels of a_width; w packed or plain (0); dx in rows or blocked."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    # a panel of dz is a call's depth: in place, so many rows of w would be one matrix
    far = a_width * c * DTYPES[layer.dtype].element >= MATRIX_BYTES
    b = "panels" if b_width else "rows" if n >= ROWS_WORTH_PACKING or far else IN_PLACE
    product = _product(
        layer, n, c, k, width=b_width or panels_for(layer, n, c, k),
        a="row panels" if a_width else "rows", a_width=a_width, b=b,
        c="panels" if blocked else "rows",
    )  # fmt: skip
    return _run(layer, product)


@STREAMS.of
def backward_weights(layer: Layer, a_width: int, b_width: int) -> Run:
    """dz in rows or panels of a_width, x in panels of b_width or in rows (0)."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    product = _product(
        layer, k, c, n, width=b_width or panels_for(layer, k, c, n),
        a="column panels" if a_width else "columns", a_width=a_width,
        b="panels" if b_width else "rows",
    )  # fmt: skip
    if not layer.bias:
        return _run(layer, product)
    return _run(layer, product, more=[_bias_part(layer, a_width)], tensors=["db"])


def _bias_part(layer: Layer, a_width: int) -> Part:
    n, k, element = layer.batch, layer.out_features, DTYPES[layer.dtype].element
    columns = a_width or -(-k // _threads(layer) // 64) * 64

    def code(size: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
        lda = a_width or k
        return emit_column_sums(n, size["k"], layer.dtype, layer.target, lda=lda), {}

    words = {"a": Ref("a", {"k": n if a_width else 1}, element), "c": Ref("db", {"k": 1}, element)}
    return Part("bias gradient", "K", {"k": Loop(k, (columns,))}, code, words)


@STREAMS.of
def pack_weights(layer: Layer, backward: bool, width: int) -> Run:
    """Pack w for the forward pass, or for backward by data."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    if backward:
        product = _product(layer, n, c, k, width=width, b="rows")
    else:
        product = _product(layer, n, k, c, width=width, b="columns")
    parts = [pack_part(product, "b", "c")]
    return Run(parts, ["b", "c"], product.threads, layer.target, layer.dtype)


@STREAMS.of
def pack_input(layer: Layer, width: int) -> Run:
    product = _product(
        layer, layer.out_features, layer.in_features, layer.batch, width=width, b="rows"
    )
    parts = [pack_part(product, "b", "c")]
    return Run(parts, ["b", "c"], product.threads, layer.target, layer.dtype)


def check_blocks(layer: Layer) -> None:
    """Raise ValueError if a call of the caller's blocks would span 2 GiB in some pass."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    if layer.blocks is None:
        return
    passes = {
        "forward": _product(layer, n, k, c, width=panels_for(layer, n, k, c)),
        "backward_data": _product(layer, n, c, k, width=panels_for(layer, n, c, k)),
        "backward_weights": _product(
            layer, k, c, n, width=panels_for(layer, k, c, n), a="columns"
        ),
    }
    for name, p in passes.items():
        for what, block, size, most in (
            ("rows", layer.blocks[0], p.m, p.most_rows),
            ("columns", layer.blocks[1], p.n, p.most_columns),
        ):
            if min(block, size) > most:
                raise ValueError(
                    f"blocks={layer.blocks}: {block} {what} of a call of {name} span 2 GiB or "
                    f"more; it takes {most} at most"
                )


def panels_for(layer: Layer, m: int, n: int, k: int) -> int:
    """Panel width of B for a product of these sizes."""
    return panel_width(m, n, k, layer.dtype, layer.target)
