"""Which loop order and which blocks a convolution's passes take: candidates, and what each costs.

The cost is cycles of the slowest thread, the sum of

    multiply     products, panels full or not; the threads' shares are whole iterations
    far, near    bytes from beyond L2, and from L2, by what of each operand stays there
    results      each time that a result waits in memory for the next piece of its sum
    copies       sums in copies of their own, which are added at the end
    calls        a constant for each kernel call

Not here: the loops themselves (`jitgen.primitives.conv.streams`, `jitgen.primitives.conv.weights`),
measuring (`jitgen.primitives.nest.tuning`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, prod

from jitgen.primitives.conv.layouts import Choice, Conv, Taps, even, most_pixels, most_summed
from jitgen.primitives.nest.gemm import L2_BYTES
from jitgen.run.cache import PLANS
from jitgen.target import ANY_WIDTH

#: Bytes of L2 that data may take and still be there when it is read again
KEPT = 3 * L2_BYTES // 4
#: Bytes a cycle from beyond L2, and cycles of a kernel call
FAR_BYTES, CALL_CYCLES = 16, 60
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


@dataclass(frozen=True)
class Work:
    """What cost is about: iterations by loop, multiply-adds of a call, and the operands: the loops
    on which each depends and the bytes of it that a call reads; `again`: bytes that a call reads
    from L2 beside them; `more`: cycles outside the loops, shared by all threads."""

    counts: Mapping[str, int]
    products: float
    operands: Mapping[str, tuple[str, float]]
    again: float
    more: float = 0.0


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

    def over_teams(same: list[Choice]) -> float:
        return sum(t * min(cost(conv, product, at, t) for at in same) for t in TEAMS)

    best = min(orders.values(), key=over_teams)
    return min(best, key=lambda at: cost(conv, product, at, conv.threads))


def cost(conv: Conv, product: Taps | None, choice: Choice, threads: int) -> float:
    """Cycles of the slowest thread, see above; without a product, of the weight update."""
    if product is not None:
        work = _product_work(conv, product, choice)
    elif conv.one_sum:
        work = _flat_work(conv, choice)
    else:
        work = _tap_work(conv, choice)
    return _cycles(conv, work, choice.order, threads)


def _cycles(conv: Conv, work: Work, order: str, threads: int) -> float:
    rates = conv.target.rates
    lanes = conv.target.machine(conv.dtype, ANY_WIDTH).lanes
    names = re.sub(r"[\[\]|]", "", order)
    counts, rest = [], threads
    for name in names:
        count = work.counts[name.lower()]
        if name.isupper():
            # the threads take consecutive pieces: those of the outermost loop first
            mine = ceil(count / rest)
            rest = ceil(rest / count)
            count = mine
        counts.append((name.lower(), count))
    tasks = prod(work.counts[name.lower()] for name in names if name.isupper())
    share = ceil(tasks / threads) / tasks
    calls = prod(work.counts.values()) * share
    cycles = calls * (work.products / (lanes * rates.fma) + CALL_CYCLES)
    cycles += calls * work.again / rates.l2_bytes + work.more / threads
    for operand, (depends, size) in work.operands.items():
        loads = _loads(counts, work, operand)
        unique = prod(n for name, n in counts if name in depends)
        if operand == "result":
            loads += 2 * (loads - unique)
        cycles += loads * size / FAR_BYTES
    return cycles


def _loads(counts: list[tuple[str, int]], work: Work, operand: str) -> int:
    """How many pieces of an operand come from beyond L2: what the inner loops touch stays while it
    fits, also over loops just outside on which the operand does not depend."""
    inside = len(counts)
    while inside:
        touched = sum(
            size * prod(n for name, n in counts[inside - 1 :] if name in depends)
            for depends, size in work.operands.values()
        )
        if touched > KEPT:
            break
        inside -= 1
    depends = work.operands[operand][0]
    while inside and counts[inside - 1][0] not in depends:
        inside -= 1
    return prod(
        n for i, (name, n) in enumerate(counts) if i < inside or name in depends
    )


def _product_work(conv: Conv, p: Taps, choice: Choice) -> Work:
    c, k = p.channels // conv.groups, p.features // conv.groups
    width, e, taps = conv.width(p.backward), conv.element, max(1, len(p.offsets))
    pixels, depth = even(p.pixels[1], choice.pixels), min(c, choice.channels)
    seen = prod(min(s, r) for s, r in zip(p.stride, conv.kernel, strict=True))
    counts = {
        "n": conv.batch, "g": conv.groups, "k": ceil(k / width), "c": ceil(c / depth),
        "h": p.pixels[0], "w": ceil(p.pixels[1] / pixels),
    }  # fmt: skip
    weights = taps * depth * width * e
    operands = {
        "image": ("ngchw", pixels * seen * depth * e), "weights": ("gkc", weights),
        "result": ("ngkhw", pixels * width * e),
    }  # fmt: skip
    return Work(counts, taps * pixels * depth * width, operands, weights)


def _tap_work(conv: Conv, choice: Choice) -> Work:
    (c, k), e = conv.group, conv.element
    width = conv.sum_width
    share = conv.batch * conv.out[0] // choice.copies
    rows = even(share, max(1, choice.pixels // conv.out[1]))
    blocks = (c, width) if conv.few else (min(c, width), even(k, choice.channels))
    seen = prod(min(s, r) for s, r in zip(conv.stride, conv.kernel, strict=True))
    counts = {
        "x": choice.copies, "g": conv.groups, "k": ceil(k / blocks[1]), "c": ceil(c / blocks[0]),
        "r": conv.kernel[0], "s": conv.kernel[1], "p": ceil(share / rows),
    }  # fmt: skip
    pixels = rows * conv.out[1]
    operands = {
        "image": ("xgcp", pixels * seen * blocks[0] * e), "dy": ("xgkp", pixels * blocks[1] * e),
        "result": ("xgkcrs", blocks[0] * blocks[1] * e),
    }  # fmt: skip
    products = pixels * prod(blocks if not conv.few else (c, width))
    return Work(counts, products, operands, pixels * width * e, _copying(conv, choice))


def _flat_work(conv: Conv, choice: Choice) -> Work:
    e, width = conv.element, conv.sum_width
    m, n = "ck" if conv.few else "kc"  # n is packed
    sides = {"c": conv.channels, "k": conv.features}
    total = conv.batch * conv.out[0] * conv.out[1]
    images = 1 if conv.nhwc else conv.batch
    share = max(1, images // choice.copies), total // images
    if images < choice.copies:
        share = 1, total // choice.copies
    depth, rows = even(share[1], choice.pixels), even(sides[m], choice.channels)
    counts = {
        "x": choice.copies, n: ceil(sides[n] / width), "n": share[0],
        "p": ceil(share[1] / depth), m: ceil(sides[m] / rows),
    }  # fmt: skip
    operands = {
        "packed": (f"x{n}np", depth * width * e), "other": (f"x{m}np", depth * rows * e),
        "result": ("xck", rows * width * e),
    }  # fmt: skip
    # packing reads and writes L2, again for each block of the other side outside
    names = re.sub(r"[\[\]|]", "", choice.order).lower()
    often = 1 if names.endswith(m) else counts[m]
    more = _copying(conv, choice)
    more += often * 2 * total * sides[n] * e / conv.target.rates.l2_bytes
    return Work(counts, depth * rows * width, operands, depth * width * e, more)


def _copying(conv: Conv, choice: Choice) -> float:
    """Cycles that it takes to add copies."""
    if choice.copies == 1:
        return 0.0
    size = conv.features * conv.group[0] * len(conv.taps) * conv.element
    return (choice.copies + 1) * size / FAR_BYTES
