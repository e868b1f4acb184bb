"""The streams of a fully connected layer's passes: a product each, and the packing before it.

Cached by layer and layout. Not here: arrays and their checks
(`jitgen.primitives.layers.fully_connected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.emit.steps import Step, operands
from jitgen.gemm.kernel import panel_width
from jitgen.kernels.elementwise import emit_column_sums
from jitgen.primitives.nest.gemm import Product, Strides, pack_part, product_parts
from jitgen.primitives.nest.limits import threads_that_pay
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run.cache import STREAMS
from jitgen.target import Target
from jitgen.types import DTYPES

#: From so many rows on, packing w for backward by data costs less than it gains
ROWS_WORTH_PACKING = 24


@dataclass(frozen=True)
class Layer:
    """What a layer's streams depend on."""

    batch: int
    in_features: int
    out_features: int
    bias: bool
    residual: bool
    activation: Step | None
    dtype: str
    threads: int
    target: Target
    blocks: tuple[int, int] | None
    order: str | None


def _threads(layer: Layer) -> int:
    work = 2 * layer.batch * layer.in_features * layer.out_features
    return threads_that_pay("fully connected", layer.threads, work)


def _product(
    layer: Layer, m: int, n: int, k: int, width: int = 0, strides: Strides = (), **how: Any
) -> Product:
    return Product(
        m, n, k, layer.dtype, layer.target, _threads(layer), width or panels_for(layer, m, n, k),
        blocks=layer.blocks, order=layer.order, gaps=strides, **how,
    )  # fmt: skip


def _run(
    layer: Layer, product: Product, more: Sequence[Part] = (), tensors: Sequence[str] = ()
) -> Run:
    """The stream of a product of tensors "a" and "b" into "c", and of more parts; `tensors` are
    theirs and the operands of the epilogue. A plain B is packed into scratch on the way."""
    parts, panels = product_parts(product, "a", "b", "c", "panels")
    scratch = {"panels": panels} if panels else {}
    names = ["a", "b", "c", *tensors]
    return Run([*parts, *more], names, product.threads, layer.target, layer.dtype, scratch)


@STREAMS.of
def forward(
    layer: Layer, a_width: int, b_width: int, blocked: bool, strides: Strides = ()
) -> Run:
    """x in rows or panels of a_width; w packed in panels of b_width or plain (0); y in rows or
    blocked."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    epilogue: tuple[Step, ...] = (("bias",),) if layer.bias else ()
    if layer.residual:
        epilogue += (("residual",),)
    if layer.activation:
        epilogue += (layer.activation,)
    product = _product(
        layer, n, k, c, b_width, strides, a=f"k/{a_width} m k" if a_width else "m k",
        b="" if b_width else "n k", epilogue=epilogue,
    )  # fmt: skip
    return _run(layer, _blocked(product, blocked), tensors=operands(epilogue))


@STREAMS.of
def backward_data(
    layer: Layer, a_width: int, b_width: int, blocked: bool, strides: Strides = ()
) -> Run:
    """dz in rows or panels of a_width; w packed or plain (0); dx in rows or blocked."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    # a panel of dz is a call's depth: in place, so many rows of w would be one matrix
    far = a_width * c * DTYPES[layer.dtype].size >= MATRIX_BYTES
    product = _product(
        layer, n, c, k, b_width, strides, a=f"k/{a_width} m k" if a_width else "m k",
        b="" if b_width else "k n", in_place=not (b_width or n >= ROWS_WORTH_PACKING or far),
    )  # fmt: skip
    return _run(layer, _blocked(product, blocked))


def _blocked(product: Product, blocked: bool) -> Product:
    return replace(product, c=f"n/{product.width} m n") if blocked else product


@STREAMS.of
def backward_weights(layer: Layer, a_width: int, b_width: int, strides: Strides = ()) -> Run:
    """dz in rows or panels of a_width, x in panels of b_width or in rows (0)."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    product = _product(
        layer, k, c, n, b_width, strides, a=f"m/{a_width} k m" if a_width else "k m",
        b="" if b_width else "k n",
    )  # fmt: skip
    if not layer.bias:
        return _run(layer, product)
    return _run(layer, product, more=[_bias_part(layer, product, a_width)], tensors=["db"])


def _bias_part(layer: Layer, product: Product, a_width: int) -> Part:
    """Sums of the columns of dz, the product's A."""
    n, k, dz = layer.batch, layer.out_features, product.tensor("a")
    columns = a_width or -(-k // product.threads // 64) * 64

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_column_sums(n, size["m"], layer.dtype, layer.target, lda=dz.stride("k")), {}

    words = {"a": dz.at(m="m"), "c": Tensor("db", "m", layer.dtype, m=k).at(m="m")}
    return product.nest("M", m=(k, columns)).call("bias gradient", code, words)


@STREAMS.of
def pack_weights(layer: Layer, backward: bool, width: int) -> Run:
    """Pack w for the forward pass, or for backward by data."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    if backward:
        return _packing(_product(layer, n, c, k, width, b="k n"))
    return _packing(_product(layer, n, k, c, width, b="n k"))


@STREAMS.of
def pack_input(layer: Layer, width: int) -> Run:
    """Pack x for the weight update."""
    sizes = layer.out_features, layer.in_features, layer.batch
    return _packing(_product(layer, *sizes, width, b="k n"))


def _packing(p: Product) -> Run:
    return Run([pack_part(p, "b", "c")], ["b", "c"], p.threads, p.target, p.dtype)


def check_blocks(layer: Layer) -> None:
    """Raise ValueError if a call of the caller's blocks would span 2 GiB in some pass."""
    n, c, k = layer.batch, layer.in_features, layer.out_features
    if layer.blocks is None:
        return
    passes = {
        "forward": _product(layer, n, k, c), "backward_data": _product(layer, n, c, k),
        "backward_weights": _product(layer, k, c, n, a="k m"),
    }  # fmt: skip
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
