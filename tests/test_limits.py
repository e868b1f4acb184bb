"""Absurd sizes, and orders that race: refused at once, in words of the caller's arguments.

Layers are made in child processes that may take neither gigabytes nor minutes. Not here: what works
(test_large), other bad arguments (the tests of each layer).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from child import run_child

from jitgen import Convolution, FullyConnected, brgemm
from jitgen.emit.routine import Routine
from jitgen.primitives.nest.loops import Loop, check_order, iterate
from jitgen.primitives.nest.stream import Part, Ref, Stream
from jitgen.primitives.nest.tables import MOST_CALLS, TooLarge
from jitgen.target import AVX2

#: Runs each case: a constructor's call, and the passes of the layer; prints what became of it. A
#: case that is refused must say so in words of the arguments named
CHILD = """
import gc, resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
import numpy as np
from jitgen import brgemm
from jitgen import Convolution
from jitgen import convolution_1d
from jitgen import FullyConnected
from jitgen import Mlp
from jitgen import AveragePool, MaxPool
from jitgen import LayerNorm, Softmax
from jitgen import Gru, Lstm, Rnn

for text, words in {cases!r}:
    try:
        made = eval(text)
    except ValueError as error:
        message = str(error)
    else:
        raise SystemExit(f"{{text}} is accepted")
    for word in (*words, "="):
        if word not in message:
            raise SystemExit(f"{{text}}: {{message!r}} does not have {{word!r}}")
    print(text, "->", message)
"""

FC, CONV, CONV1, POOL, RECURRENT, KERNEL = (
    "FullyConnected({}, threads=2)", "Convolution({}, threads=2)", "convolution_1d({}, threads=2)",
    "MaxPool({}, threads=2)", "Lstm({}, threads=2)", "brgemm({})",
)  # fmt: skip
FORWARD, DATA, UPDATE = (
    f".stream({name!r}, packed=False)" for name in ("forward", "backward_data", "backward_weights")
)
#: The largest size that a door lets through, and others
HUGE = ((1 << 31) - 1, 1 << 40, 10**30)


def absurd(call: str, sizes: str, *words: str) -> list[tuple[str, tuple[str, ...]]]:
    """A call with each huge number n in its sizes, and words of its error."""
    cases = []
    for n in HUGE:
        here = (word.replace("{n}", str(n)) for word in words)
        cases.append((call.format(sizes.replace("{n}", str(n))), tuple(here)))
    return [cases[0], *((text, ("larger than 2147483647",)) for text, _ in cases[1:])]



#: text of a call -> words of its error
CASES: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "fully connected": [
        *absurd(FC, "{n}, 64, 64", "batch={n}", "x has"),
        *absurd(FC, "64, {n}, 64", "in_features={n}", "x has"),
        *absurd(FC, "64, 64, {n}", "out_features={n}", "w has"),
        (FC.format("1 << 17, 1, 1 << 17"), ("batch=131072", "out_features=131072", "y has")),
        (FC.format("1, 1 << 29, 1"), ("in_features=536870912", "a row of x", "2 GiB")),
        (FC.format("1, 1, 1 << 29"), ("out_features=536870912", "a row of y", "2 GiB")),
        (FC.format("1 << 20, 1 << 12, 8, blocks=(1 << 20, 8)"), ("blocks=(1048576, 8)", "rows")),
        (FC.format("8, 1 << 12, 1 << 20, blocks=(8, 1 << 20)"), ("blocks=(8, 1048576)", "columns")),
        (FC.format("1 << 24, 2, 2, blocks=(1, 1)") + FORWARD, ("blocks=(1, 1)", "forward has")),
        ("Mlp(1 << 20, [1 << 20, 1 << 20])", ("batch=1048576", "x has")),
        ("Mlp(64, [64, 1 << 40])", ("sizes[1]=1099511627776",)),
    ],
    "convolution": [
        (CONV.format("1, 1, 1 << 17, 1 << 17, 1, 3"), ("height=131072", "width=131072", "x has")),
        *absurd(CONV, "{n}, 4, 8, 8, 4, 3", "batch={n}"),
        *absurd(CONV, "2, {n}, 8, 8, 4, 3", "in_channels={n}"),
        *absurd(CONV, "2, 4, {n}, 8, 4, 3", "height={n}"),
        *absurd(CONV, "2, 4, 8, {n}, 4, 3", "width={n}"),
        *absurd(CONV, "2, 4, 8, 8, {n}, 3", "out_channels={n}"),
        *absurd(CONV, "2, 4, 8, 8, 4, 3, padding={n}", "padding=({n}, {n})", "y has"),
        *absurd(CONV, "2, 4, 8, 8, 4, {n}, padding={n}", "kernel=", "taps"),
        *absurd(CONV, "2, 4, 8, 8, 4, 3, dilation={n}", "height=8", "reach"),
        (CONV.format("1, 1, 1 << 16, 1 << 16, 1 << 16, 1, groups=1"), ("y has",)),
        (CONV.format("2, 4, 64, 64, 4, 3, stride=1 << 20, padding=1 << 20"),
         ("padding=(1048576, 1048576)", "x with its border")),
        (CONV.format("1, 1, 1 << 25, 8, 1, 3, layout='nhwc'"), ("height=33554432", "rows")),
        (CONV.format("1, 1, 1 << 15, 1 << 15, 1, 3, stride=(1, 1 << 29)"),
         ("stride=(1, 536870912)", "a step of the stride")),
        (CONV.format("1, 1 << 14, 4, 4, 1 << 15, (1, 3)"), ("the weights of a tap", "2 GiB")),
        (CONV.format("1, 1, 1 << 15, 1 << 14, 1, 3"), ("a channel of an image", "2 GiB")),
        (CONV.format("1, 1, 1 << 14, 1 << 14, 1, 1, stride=100, layout='nhwc'") + DATA,
         ("stride=(100, 100)", "products")),
        (CONV.format("1, 1, 1 << 22, 4, 512, 3, layout='nhwc'") + FORWARD,
         ("forward has", "calls")),
        (CONV.format("1, 64, 3, 1 << 24, 1, 3, layout='nhwc'") + UPDATE, ("a row of x", "2 GiB")),
        (CONV.format("1, 8, 1 << 22, 2, 8, 3, padding=1, algorithm='winograd'"),
         ("algorithm='winograd'", "rows of tiles")),
        *absurd(CONV1, "2, 4, {n}, 4, 3", "length={n}"),
        *absurd(CONV1, "2, 4, 8, 4, {n}, padding={n}", "kernel=", "taps"),
        (CONV1.format("64, 64, 1 << 26, 64, 3"), ("length=67108864", "x has")),
        (CONV1.format("1, 40, 1 << 26, 40, 3, groups=40, layout='nhwc'") + FORWARD,
         ("length=67108864", "forward has")),
    ],
    "pooling": [
        *absurd(POOL, "{n}, 4, 8, 8, 2", "batch={n}"),
        *absurd(POOL, "2, {n}, 8, 8, 2", "channels={n}"),
        *absurd(POOL, "2, 4, {n}, 8, 2", "height={n}"),
        *absurd(POOL, "2, 4, 8, {n}, 2", "width={n}"),
        *absurd(POOL, "2, 4, 8, 8, {n}", "kernel={n}"),
        (POOL.format("1, 1, (1 << 31) - 1, 1, 1, layout='nhwc'"), ("height=2147483647", "rows")),
        (POOL.format("1, 64, 4, 1 << 24, 3, layout='nhwc'"),
         ("width=16777216", "the rows of x", "2 GiB")),
        (POOL.format("1, 1, 1 << 15, 1 << 15, 3, layout='nchw'"), ("a channel of an image",)),
        (POOL.format("1, 1, 1, (1 << 31) - 1, 1, layout='nhwc'").replace("Max", "Average"),
         ("the rows of x",)),
    ],
    "rows": [
        *absurd("Softmax({}, threads=2)", "{n}, 64", "rows={n}", "x has"),
        *absurd("LayerNorm({})", "64, {n}", "columns={n}", "x has"),
        ("Softmax(1, 1 << 29)", ("columns=536870912", "a row of x", "2 GiB")),
    ],
    "recurrent": [
        *absurd(RECURRENT, "{n}, 4, 8, 8", "batch={n}"),
        *absurd(RECURRENT, "2, {n}, 8, 8", "steps={n}"),
        *absurd(RECURRENT, "2, 4, {n}, 8", "in_features={n}"),
        *absurd(RECURRENT.replace("Lstm", "Gru"), "2, 4, 8, {n}", "hidden={n}"),
        (RECURRENT.format("1, 2, 1 << 24, 4").replace("Lstm", "Rnn"), ("a block of rows of x",)),
        (RECURRENT.format("1, 2, 4, 1 << 16"), ("hidden=65536", "r has")),
        (RECURRENT.format("1, 1 << 20, 1, 1, reset='before'").replace("Lstm", "Gru"),
         ("steps=1048576", "reset='before'")),
        # nothing is read before the stream is made
        (RECURRENT.format("1, 1 << 23, 1, 1") + ".forward(*[np.zeros(s, 'f4') for s in "
         "((1 << 23, 1, 1), (4, 1), (4, 1), (2, 4))])", ("steps=8388608", "forward has", "calls")),
    ],
    "kernels": [
        *((KERNEL.format(f"{n}, {n}, {n}"), ("m=" if n > 1 << 30 else "spans",))
          for n in (1 << 31, 10**30)),
        (KERNEL.format("m=4, n=4, k=4, lda=1 << 31"), ("lda=2147483648",)),
        (KERNEL.format("1 << 20, 16, 16, plan={'rows': 1 << 20}"), ("rows=1048576",)),
        (KERNEL.format("16, 16, 1 << 20, plan={'k_unroll': 1 << 20}"), ("k_unroll=1048576",)),
        (KERNEL.format("16, 16, 16, plan={'k_split': 10**30}"), ("k_split=",)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_absurd_sizes_are_refused_at_once(kind: str) -> None:
    """In 3 GiB of address space, all of a kind in a minute, on a busy machine."""
    print(run_child(CHILD.format(cases=CASES[kind]), 60))


@pytest.mark.parametrize("size", [1 << 20, 1 << 28, 1 << 30, (1 << 31) - 1])
def test_large_kernels_are_made_or_refused(size: int) -> None:
    for sizes in [(size, 16, 16), (16, size, 16), (16, 16, size), (size, 1, 1), (1, 1, size)]:
        for how in ({}, {"trans_a": True}, {"trans_b": True}, {"packed_b": True}):
            try:
                kernel = brgemm(*sizes, target="avx512", **how)  # type: ignore[arg-type]
            except ValueError as error:
                assert "spans" in str(error) and "split m, n or k" in str(error)
            else:
                assert len(kernel.code) < 1 << 16


def code(size: dict[str, int], first: bool, last: bool) -> Any:
    return Routine("nothing", (), AVX2, b"\xc3"), {}


def part(order: str, reduction: str = "k", **steps: int) -> Part:
    loops = {name: Loop(4, (2,)) for name in "mnk"}
    steps = steps or {"m": 4, "n": 1}
    words = {"a": Ref("a", {"m": 4, "k": 1}, 4, 0, 0, {}), "c": Ref("c", steps, 4, 0, 0, {})}
    return Part("product", order, loops, code, words, reduction)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("order", "words"),
    [("mnK", "threads cannot share a sum (K); write it 'k'"), ("KMN", "(K)"), ("m[NK]", "(K)"),
     ("m[nk]", "a curve cannot order a sum (k)"), ("M[kn]", "take it out of [kn]")],
)  # fmt: skip
def test_a_sum_belongs_to_one_thread_in_its_order(order: str, words: str, threads: int) -> None:
    """Shared, threads would add to the same results; along a curve, a result's first block would
    come after others, and overwrite them."""
    with pytest.raises(ValueError, match="order=") as error:
        Stream([part(order)], ["a", "c"], threads)
    assert repr(order) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("order", ["mnk", "MNk", "kMN", "[MN]k", "Mnk", "M[kn]"])
def test_other_orders_are_taken(order: str) -> None:
    Stream([part(order, "" if "[k" in order else "k")], ["a", "c"], 2)


def test_results_that_two_threads_store_are_refused() -> None:
    """Whatever the part says of its sums: the offsets tell."""
    with pytest.raises(ValueError, match=r"order='MNk'.*both write c\[0\].*barrier"):
        Stream([part("MNk", "k", n=1)], ["a", "c"], 2)
    Stream([part("MNk", "k", n=1)], ["a", "c"], 1)
    Stream([part("mNk", "k", n=1)], ["a", "c"], 2)  # one thread has a result for all m
    # a barrier parts them
    loops = {"m": Loop(2, (1,)), "n": Loop(2, (1,))}
    place = np.array([0, 1]), np.array([0, 1])
    words = {"c": Ref("c", {}, 4, 0, 0, {"m": place[0], "n": -place[1] + 1})}
    for order in ("m|N", "mN"):
        made = Part("crossed", order, loops, code, words)
        if "|" in order:
            Stream([made], ["c"], 2)
        else:
            with pytest.raises(ValueError, match=r"threads \d and \d both write"):
                Stream([made], ["c"], 2)


@pytest.mark.parametrize(
    ("order", "error", "words"),
    [("mnK", ValueError, "does not name each of m n once"), ("m", ValueError, "once"),
     ("mmn", ValueError, "once"), ("[MM]", ValueError, "[MM] is one loop"),
     (3, TypeError, "no str"), ("MnN", ValueError, "stand together"), ("", ValueError, "once"),
     ("M|N", ValueError, "barrier"),
     ("[mN]", ValueError, "half parallel")],
)  # fmt: skip
def test_orders_of_a_fully_connected_layer(order: Any, error: type[Exception], words: str) -> None:
    """At the constructor, not at the first call."""
    with pytest.raises(error, match=r"order=") as raised:
        FullyConnected(64, 64, 64, order=order, threads=2)
    assert words in str(raised.value)


@pytest.mark.parametrize("order", ["NGK[ch]w", "NGK[cw]h", "[NG]K[hc]w"])
def test_curves_over_channels_are_refused(order: str) -> None:
    with pytest.raises(ValueError, match=r"a curve cannot order a sum \(c\)"):
        Convolution(2, 40, 8, 8, 30, 3, order=order)


def test_a_curve_is_over_two_loops() -> None:
    with pytest.raises(ValueError, match="one loop"):
        iterate("[nn]", {"n": Loop(16, (4, 2))})
    check_order("[nk]c", "nkc", "c")


def test_the_number_of_calls_is_known_before_the_stream_is_made() -> None:
    loops = {"n": Loop(MOST_CALLS + 1, (1,)), "k": Loop(1 << 30, (1,))}
    with pytest.raises(TooLarge, match=f"{(MOST_CALLS + 1) << 30} kernel calls"):
        Stream([Part("many", "nk", loops, code, {"c": Ref("c", {}, 4, 0, 0, {})})], ["c"])
