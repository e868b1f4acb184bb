"""Which loop order and which blocks a convolution's passes take: candidates, and what each costs.

The cost is that of the nest (`jitgen.primitives.nest.cost`), of packing where it is done more than
once, and of sums in copies of their own, which are added at the end.

Not here: the loops themselves (`jitgen.primitives.conv.streams`, `jitgen.primitives.conv.weights`),
measuring (`jitgen.primitives.nest.tuning`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod

from jitgen.primitives.conv.layouts import (
    Choice,
    Conv,
    Taps,
    even,
    images,
    most_pixels,
    most_summed,
    panels,
)
from jitgen.primitives.conv.streams import product_operands
from jitgen.primitives.conv.weights import flat_operands, tap_operands
from jitgen.primitives.nest.cost import FAR_BYTES, Work
from jitgen.primitives.nest.gemm import L2_BYTES
from jitgen.primitives.nest.loops import Loop
from jitgen.run.cache import PLANS

#: Numbers of threads for which blocks are chosen: they must not depend on the real one, as sums,
#: to the last bit, depend on blocks
TEAMS = (1, 4)
#: The loops of each pass, and orders worth a look
LETTERS = {"forward": "ngkchw", "backward_data": "ngkchw", "backward_weights": "xgkcrsp",
           "flat weights": "xcnpk"}  # fmt: skip
SUMS = {"ngkchw": "c", "xgkcrsp": "p", "xcnpk": "np"}
ORDERS = {
    "ngkchw": ("NGKchw", "NGKHcw", "GKcnhw", "GKNchw", "NHGKcw", "NHWGkc", "NHWGKc"),
    "xgkcrsp": ("XGKCRSp", "XGKCprs", "xpGKCRS", "Xpgkcrs"),
    "xcnpk": ("XCnpk", "xnpCk", "Xnpck", "XCKnp"),
}


def letters(conv: Conv, which: str) -> str:
    """The loops of a pass."""
    return LETTERS["flat weights" if which == "backward_weights" and conv.one_sum else which]


def candidates(
    conv: Conv, which: str, product: Taps | None, blocks: tuple[int, int] | None = None,
    order: str | None = None,
) -> list[Choice]:  # fmt: skip
    """Ways to cut a pass that may be the best, with the caller's blocks and order if these are
    given; `product` is that of forward or backward, the largest if there are several."""
    names = letters(conv, which)
    (c, k), e = conv.group, conv.element
    if product is None:
        rows = conv.batch * conv.out[0]
        total = rows * conv.out[1]
        images = (total if conv.nhwc else conv.batch) if conv.one_sum else rows
        size = conv.features * c * len(conv.taps) * e
        most = most_summed(conv)
        pixels = {min(total, n, most[0]) for n in (256, 512)}
        if not conv.one_sum:
            pixels = {min(total, n) for n in (512, 1024)}
        left = c if conv.few and conv.one_sum else k
        channels = {even(left, min(n, most[1])) for n in (64, 128, 256)}
        copies = [n for n in (1, 2, 4)
                  if images % n == 0 and (n == 1 or n * size <= L2_BYTES // 2)]  # fmt: skip
    else:
        sums = k if which == "backward_data" else c
        most_of = most_pixels(conv, product)
        pixels = {even(product.pixels[1], min(n, most_of)) for n in (48, 128)}
        piece = max(1, len(product.offsets)) * conv.width(product.backward) * e
        channels = {even(sums, max(16, n // piece), 16) for n in (1 << 17, 5 << 17)}
        channels = {min(sums, n) for n in channels}
        copies = [1]
    orders = ORDERS[names]
    if names == "xcnpk" and conv.few:
        orders = tuple(each.translate(str.maketrans("cCkK", "kKcC")) for each in orders)
    if blocks:
        pixels, channels = {blocks[0]}, {blocks[1]}
    return [
        Choice(each, p, n, copy)
        for copy in copies for p in sorted(pixels) for n in sorted(channels)
        for each in ([order] if order else orders)
    ]  # fmt: skip


@PLANS.of
def choose(
    conv: Conv, which: str, product: Taps | None, blocks: tuple[int, int] | None = None,
    order: str | None = None,
) -> Choice:  # fmt: skip
    """The cheapest candidate.

    Blocks are those that suit several numbers of threads, so that results are the same bits for
    every number; the order then suits the real one.
    """
    orders: dict[Choice, list[Choice]] = {}
    for choice in candidates(conv, which, product, blocks, order):
        orders.setdefault(replace(choice, order=""), []).append(choice)
    works = {cut: _work(conv, product, cut) for cut in orders}

    def over_teams(cut: Choice) -> float:
        same = orders[cut]
        return sum(t * min(_cost(conv, works[cut], at, t) for at in same) for t in TEAMS)

    cut = min(orders, key=over_teams)
    return min(orders[cut], key=lambda at: _cost(conv, works[cut], at, conv.threads))


def cost(conv: Conv, product: Taps | None, choice: Choice, threads: int) -> float:
    """Cycles of the slowest thread, see above; without a product, of the weight update."""
    return _cost(conv, _work(conv, product, choice), choice, threads)


def _work(conv: Conv, p: Taps | None, choice: Choice) -> Work:
    """What the calls of a pass touch, in any order."""
    of = conv.dtype, conv.target
    if p is not None:
        x = images(conv, "x", p.channels, p.inside, nhwc=True)
        y = images(conv, "y", p.features, p.image, nhwc=True)
        loops, a, b, c = product_operands(conv, p, x, panels(conv, p.backward), y, choice)
        for name, at in zip("rs", zip(*(p.offsets or ((0, 0),)), strict=True), strict=True):
            taps = len(set(at))
            loops[name] = Loop(taps, (taps,))
        places = {"a": a.also(h="r", w="s"), "b": b.also(t=["r", "s"]), "c": c}
        return Work(loops, places, *of, columns="k", windows="rs")
    columns = "k" if conv.few else "c"
    dy = images(conv, "dy", conv.features, conv.out, axis="k")
    if conv.one_sum:
        x = images(conv, "x", conv.channels, conv.size)
        loops, a, b, c = flat_operands(conv, x, dy, "dw", choice)
        return Work(loops, {"b": b, "a": a, "c": c}, *of, columns=columns)
    x = images(conv, "x", conv.channels, conv.padded, nhwc=True)
    loops, a, b, c = tap_operands(conv, x, dy, "dw", choice)
    # rows of all images, as if they were one image
    a, b = a.also(n="x", h=("p", conv.stride[0])), b.also(n="x", h="p")
    places = {"a": a, "b": b, "c": c} if conv.few else {"b": a, "a": b, "c": c}
    return Work(loops, places, *of, columns=columns, windows="rs")


def _cost(conv: Conv, work: Work, choice: Choice, threads: int) -> float:
    cycles, e = work.cost(choice.order, threads).cycles, conv.element
    if choice.copies > 1:
        size = conv.features * conv.group[0] * len(conv.taps) * e
        cycles += (choice.copies + 1) * size / FAR_BYTES / threads
    if "r" not in work.loops:
        # packing reads and writes L2, again for each block of the other side outside
        m, packed = ("c", conv.features) if conv.few else ("k", conv.channels)
        often = 1 if re.sub(r"\W", "", choice.order).lower().endswith(m) else work.count(m)
        size = often * 2 * conv.batch * prod(conv.out) * packed * e
        cycles += size / conv.target.rates.l2_bytes / threads
    return cycles
