"""What a nest costs: cycles of the slowest thread, from its loops and what its calls touch.

    multiply     multiply-adds of whole blocks, full or not
    calls        a constant for each kernel call
    near         what each call reads of b from L2, in whole vectors
    far          bytes from beyond L2, by operand: what the inner loops touch stays in L2 while it
                 fits; each time that a result (c) waits for the next piece of its sum, it is
                 written and read once more

The threads take whole iterations of the parallel loops, consecutive ones. Not here: which orders
and blocks there are to choose from (`jitgen.primitives.conv.cost`), measured times
(`jitgen.primitives.nest.tuning`).

>>> from jitgen import Tensor
>>> from jitgen.target import parse_target
>>> x, w = Tensor("x", "m k", "f32", m=64, k=50), Tensor("w", "n/32 k n", "f32", k=50, n=96)
>>> y = Tensor("y", "m n", "f32", m=64, n=96)
>>> loops = {"m": Loop(64, (16,)), "n": Loop(96, (32,))}
>>> nest = Nest("MN", loops, "f32", parse_target("avx512"))
>>> places = {"a": x.at(m="m"), "b": w.at(n="n"), "c": y.at(m="m", n="n")}
>>> found = cost(nest, places, 1, columns="n")
>>> found.multiply, found.calls, found.far["a"]
(9600.0, 720.0, 800.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod

from jitgen import doors
from jitgen.primitives.nest.gemm import L2_BYTES
from jitgen.primitives.nest.loops import Loop, parse_order
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.tensor import Access
from jitgen.run.threads import check_threads
from jitgen.target import ANY_WIDTH, Target

#: Bytes of L2 that data may take and still be there when it is read again
KEPT = 3 * L2_BYTES // 4
#: Bytes a cycle from beyond L2, and cycles of a kernel call
FAR_BYTES, CALL_CYCLES = 16, 60


@dataclass(frozen=True)
class Cost:
    """Cycles of the slowest thread, in parts (see above)."""

    multiply: float
    calls: float
    near: float
    far: Mapping[str, float]

    @property
    def cycles(self) -> float:
        """All of them."""
        return self.multiply + self.calls + self.near + sum(self.far.values())


class Work:
    """What the calls of a nest touch, in whatever order they come. Made once for some loops;
    `cost` of each order takes microseconds.

    accesses: by word of the argument struct; an axis without an index is taken whole by a call.
    columns: the loop along which the vectors of b lie, for `near`. windows: loops over taps, whose
    steps along an axis stay among those of the other loops there: of the places they see, a call
    finds only those anew that the smallest of these steps goes on by. Loops that no order names are
    taken whole by a call.
    """

    def __init__(
        self, loops: Mapping[str, Loop], accesses: Mapping[str, Access], dtype: str, target: Target,
        *, columns: str = "", windows: str = "",
    ) -> None:  # fmt: skip
        self.loops, self._rates = loops, target.rates
        lanes = target.machine(dtype, ANY_WIDTH).lanes
        blocks = {name: loop.blocks[-1] for name, loop in loops.items()}
        whole: dict[str, int] = {}
        #: operand -> loops that move it, and bytes of it that a call does not share with its
        #: neighbours
        self._touched: dict[str, tuple[set[str], int]] = {}
        self._near = 0
        for word, access in accesses.items():
            moving: set[str] = set()
            read = anew = access.tensor.element
            for axis, extent in access.tensor.sizes.items():
                steps = access.steps(axis)
                if axis not in access.index:
                    whole[axis] = extent
                    read, anew = read * extent, anew * extent
                read *= prod(blocks[name] for name in steps)
                others = [step for name, step in steps.items() if name not in windows]
                if others:
                    taps = prod(loops[name].extent for name in steps if name in windows)
                    anew *= min(*others, taps) if taps > 1 else 1
                    steps = {name: step for name, step in steps.items() if name not in windows}
                anew *= prod(blocks[name] for name in steps)
                moving |= steps.keys()
            self._touched[word] = moving, anew
            if word == "b" and columns:
                vectors = -(-blocks[columns] // lanes) * lanes
                self._near = read // blocks[columns] * vectors
        products = prod(blocks.values()) * prod(whole.values())
        self._multiply = products / (lanes * self._rates.fma)

    def cost(self, order: str, threads: int) -> Cost:
        """In this order, on so many threads."""
        counts, depth, rest, tasks, calls = [], dict.fromkeys(self.loops, 0), threads, 1, 1
        for level in parse_order(order):
            for name in level.letters:
                loop, at = self.loops[name], depth[name]
                count = -(-(loop.blocks[at - 1] if at else loop.extent) // loop.blocks[at])
                depth[name] += 1
                calls *= count
                if level.parallel:
                    # the threads take consecutive pieces: those of the outermost loop first
                    tasks *= count
                    count, rest = -(-count // rest), -(-rest // count)
                counts.append((name, count))
        mine = calls * (ceil(tasks / threads) / tasks)
        loads = self._loads(counts)
        far = {word: loads[word] * size / FAR_BYTES for word, (_, size) in self._touched.items()}
        return Cost(
            mine * self._multiply, mine * CALL_CYCLES, mine * self._near / self._rates.l2_bytes, far
        )

    def count(self, loop: str) -> int:
        """Blocks of a loop."""
        return -(-self.loops[loop].extent // self.loops[loop].blocks[-1])

    def _loads(self, counts: list[tuple[str, int]]) -> dict[str, int]:
        """How many pieces of each operand come from beyond L2: what the inner loops touch stays
        while it fits, also over loops just outside on which the operand does not depend."""
        inside, touched = len(counts), {word: size for word, (_, size) in self._touched.items()}
        while inside:
            name, count = counts[inside - 1]
            for word, (moving, _) in self._touched.items():
                touched[word] *= count if name in moving else 1
            if sum(touched.values()) > KEPT:
                break
            inside -= 1
        loads = {}
        for word, (moving, _) in self._touched.items():
            first = inside
            while first and counts[first - 1][0] not in moving:
                first -= 1
            pieces = prod(n for i, (name, n) in enumerate(counts) if i < first or name in moving)
            if word == "c":
                pieces += 2 * (pieces - prod(n for name, n in counts if name in moving))
            loads[word] = pieces
        return loads


def cost(
    nest: Nest, accesses: Mapping[str, Access], threads: int, *, columns: str = "",
    windows: str = "",
) -> Cost:  # fmt: skip
    """What a nest of any kernel costs; arguments as in `Work`.

    Raises TypeError or ValueError that names argument, value and rule.
    """
    loops = doors.instance("nest", nest, Nest).loops
    for word, access in doors.mapping("accesses", accesses).items():
        doors.instance(f"accesses[{doors.shown(word)}]", access, Access).ref(loops)
    for argument, value in (("order", nest.order), ("columns", columns), ("windows", windows)):
        for name in doors.text(argument, value):
            if name not in "[]|" and name.lower() not in loops:
                raise ValueError(
                    f"{argument}={doors.shown(value)}: {name!r} is not in loops="
                    f"{doors.shown(dict(loops))}"
                )
    work = Work(loops, accesses, nest.dtype, nest.target, columns=columns, windows=windows)
    return work.cost(nest.order, check_threads(threads))
