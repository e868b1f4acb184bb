"""A stream for the eye and for programs: its kernels by name and shape, its parts, who calls what.

`jitgen.primitives.nest.stream.Stream.text` prints it. Not here: listings of kernels
(`jitgen.inspect`), predicted times (`jitgen.primitives.nest.bounds`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jitgen.gemm.emitted import EmittedKernel
from jitgen.inspect.listing import describe
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Calls, Part, Stream
from jitgen.run.replay import FIRST_KIND, Call


class KernelUse(NamedTuple):
    """A kernel of a stream: the kind of call that it is, and how often a run makes it, on all
    threads together."""

    number: int
    call: Call
    calls: int

    @property
    def name(self) -> str:
        """Of the kernel, by its shape; with the matrices of a batch."""
        return self.call.routine.name + (f" times {self.batch}" if self.batch > 1 else "")

    @property
    def batch(self) -> int:
        """Matrices of a batch that a call is about."""
        return dict(self.call.fixed).get("count", 1)

    @property
    def flops(self) -> int:
        """Floating-point operations of a call, 0 if it does not multiply."""
        return self.call.routine.flops(self.batch)

    @property
    def computes(self) -> str:
        """What a BRGEMM computes, "" of other kernels."""
        routine = self.call.routine
        return describe(routine.spec) if isinstance(routine, EmittedKernel) else ""


def every(calls: Calls) -> Iterator[Calls]:
    """The calls of a part, and of those before and after it."""
    yield calls
    for other, _ in (*calls.before, *calls.after):
        yield from every(other)


def kernels(stream: Stream) -> list[KernelUse]:
    """The kernels by number: as `stream.calls` has them."""
    counts = np.zeros(FIRST_KIND + len(stream.calls), np.int64)
    for part in stream.parts:
        for calls in every(part):
            counts += np.bincount(calls.kind, minlength=len(counts))
    made = zip(stream.calls, counts[FIRST_KIND:].tolist(), strict=True)
    return [KernelUse(i, call, count) for i, (call, count) in enumerate(made)]


def barriers(stream: Stream) -> int:
    """Barriers that each thread waits at in a run."""
    if stream.threads == 1:
        return 0
    return len(stream.parts) - 1 + sum(int(calls.nest.phase[-1]) for calls in stream.parts)


# ---- text ---------------------------------------------------------------------------------------


def text(stream: Stream, most: int) -> str:
    """Kernels, then parts, with at most `most` calls of each thread and part."""
    return "\n".join(_lines(stream, most)) + "\n"


def _lines(stream: Stream, most: int) -> Iterator[str]:
    uses = kernels(stream)
    size = sum(len(call.code) for call in stream.calls)
    waits = barriers(stream)
    threads = "1 thread" if stream.threads == 1 else f"{stream.threads} threads"
    yield (
        f"{sum(use.calls for use in uses)} calls of {len(uses)} kernels ({size} bytes of code) on "
        f"{threads}, {waits} barrier{'s' * (waits != 1)}; {_stream_bytes(stream)} bytes of stream"
    )
    yield ""
    yield from table([["", "kernel", "calls", "flops", "bytes", ""], *map(_row, _shares(uses))])
    for number, calls in enumerate(stream.parts):
        yield ""
        yield f"part {number}: {_head(calls.part)}"
        yield from _beside_heads(calls.part, "  ")
        for thread in range(stream.threads):
            chosen = np.flatnonzero(calls.nest.thread == thread)
            yield f"  thread {thread}: {len(chosen)} call{'s' * (len(chosen) != 1)}"
            for i in chosen[:most].tolist():
                yield from (f"    {_line(stream, c, j)}" for c, j in in_order(calls, i))
            if len(chosen) > most:
                yield f"    ... and {len(chosen) - most} more"


def table(rows: list[list[str]]) -> list[str]:
    """Rows of cells, aligned: the second column and the last to the left, others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (1, len(widths) - 1)
    return [
        "  ".join(
            f"{cell:{'<' if i in left else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _shares(uses: list[KernelUse]) -> list[tuple[KernelUse, float]]:
    """Each with its part of all flops."""
    total = max(1, sum(use.calls * use.flops for use in uses))
    return [(use, use.calls * use.flops / total) for use in uses]


def _row(shared: tuple[KernelUse, float]) -> list[str]:
    use, share = shared
    part = f"{100 * share:.1f} %" if use.flops else ""
    size = len(use.call.code)
    return [str(use.number), use.name, str(use.calls), part, str(size), use.computes]


def _head(part: Part) -> str:
    return f"{part.title}; order {part.order!r}, loops {_loops(part)}"


def _loops(part: Part) -> str:
    return ", ".join(f"{n} 0..{x.extent} by {x.blocks}" for n, x in part.loops.items())


def _beside_heads(part: Part, indent: str) -> Iterator[str]:
    for where, others in (("before", part.before), ("after", part.after)):
        for other in others:
            yield f"{indent}{where} its calls: {_head(other)}"
            yield from _beside_heads(other, indent + "  ")


def in_order(calls: Calls, i: int) -> Iterator[tuple[Calls, int]]:
    """The calls that stand by iteration i of a part, itself among them, as a thread makes them."""
    for others in (calls.before, None, calls.after):
        if others is None:
            yield calls, i
            continue
        for other, at in others:
            for j in range(*np.searchsorted(at, [i, i + 1]).tolist()):
                yield from in_order(other, j)


def _line(stream: Stream, calls: Calls, i: int) -> str:
    """One call for the eye."""
    nest, part = calls.nest, calls.part
    number = int(calls.kind[i]) - FIRST_KIND
    place = ", ".join(f"{n} {nest.start[n][i]}+{nest.size[n][i]}" for n in part.loops)
    offsets = ", ".join(
        f"{name} {ref.tensor}[{calls.offsets[i, w]}]"
        for w, (name, ref) in enumerate(part.words.items())
    )
    return f"{number} {stream.calls[number].routine.name}: {place}; {offsets}"


# ---- values -------------------------------------------------------------------------------------


def as_values(stream: Stream, most: int) -> dict[str, Any]:
    """The same as JSON has it."""
    uses = kernels(stream)
    return {
        "threads": stream.threads, "calls": sum(use.calls for use in uses),
        "barriers": barriers(stream), "code_bytes": sum(len(call.code) for call in stream.calls),
        "stream_bytes": _stream_bytes(stream), "tensors": list(stream.tensors),
        "kernels": [
            {
                "number": use.number, "name": use.call.routine.name, "calls": use.calls,
                "batch": use.batch, "bytes": len(use.call.code),
                "flops_a_call": use.flops or None, "share_of_flops": share if use.flops else None,
                "computes": use.computes or None,
            }
            for use, share in _shares(uses)
        ],
        "parts": [_part_values(stream, calls, most) for calls in stream.parts],
    }  # fmt: skip


def _stream_bytes(stream: Stream) -> int:
    return sum(words.nbytes for words in stream.slices)


def _part_values(stream: Stream, calls: Calls, most: int) -> dict[str, Any]:
    threads = []
    for thread in range(stream.threads):
        chosen = np.flatnonzero(calls.nest.thread == thread)
        first = [_call_values(c, j) for i in chosen[:most].tolist() for c, j in in_order(calls, i)]
        threads.append({"calls": len(chosen), "first": first})
    return {**_nest_values(calls.part), "threads": threads}


def _nest_values(part: Part) -> dict[str, Any]:
    def loop(each: Loop) -> dict[str, Any]:
        return {"extent": each.extent, "blocks": list(each.blocks)}

    return {
        "title": part.title, "order": part.order,
        "loops": {name: loop(each) for name, each in part.loops.items()},
        "before": [_nest_values(other) for other in part.before],
        "after": [_nest_values(other) for other in part.after],
    }  # fmt: skip


def _call_values(calls: Calls, i: int) -> dict[str, Any]:
    nest, part = calls.nest, calls.part
    return {
        "kernel": int(calls.kind[i]) - FIRST_KIND,
        "place": {n: [int(nest.start[n][i]), int(nest.size[n][i])] for n in part.loops},
        "words": {
            name: {"tensor": ref.tensor, "offset": int(calls.offsets[i, w])}
            for w, (name, ref) in enumerate(part.words.items())
        },
    }  # fmt: skip
