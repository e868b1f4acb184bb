"""A model of an out-of-order core: instructions in the order of the program -> cycles.

Instructions are dispatched in order, wait for their operands, start in the first free slot of
their unit and leave in order; the reorder buffer, the schedulers and the renamed registers are
finite, and an access that crosses a cache line takes two. Branches are predicted, the first-level
cache holds everything and every front end delivers its full width: bounds that these leave out are
in `jitgen.analysis.loops`. Not here: which instructions run (`jitgen.analysis.execution`).
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from jitgen.analysis.cpus import Cpu, load_rate, rate
from jitgen.analysis.execution import PHASES
from jitgen.inspect.instructions import KINDS, VECTOR, Instruction, Memory

LINE = 64
#: Where the totals are: cycles by phase, then instructions by kind, then the rest
COUNTS = len(PHASES)
LOADED, STORED, CROSSED = range(COUNTS + len(KINDS), COUNTS + len(KINDS) + 3)
#: Room in a unit below which a slot is full
_EPS = 1e-6


class _Unit:
    """Identical execution pipes: in each cycle there is room for 1, and an operation takes 1 / its
    rate."""

    def __init__(self) -> None:
        self._used: dict[int, float] = {}
        self._next: dict[int, int] = {}

    def start(self, ready: int, part: float) -> int:
        """The first cycle from `ready` on with room for `part`; takes it. More than 1 takes that
        many cycles."""
        t = ready
        jump = self._next
        path = []
        while t in jump:
            path.append(t)
            t = jump[t]
        for p in path:
            jump[p] = t
        used = self._used
        room = min(part, 1.0)
        while used.get(t, 0.0) + room > 1 + _EPS:
            t += 1
        begin = t
        left = part
        while left > _EPS:
            free = 1 - used.get(t, 0.0)
            taken = min(left, free)
            left -= taken
            used[t] = 1 - free + taken
            if free - taken < _EPS:
                jump[t] = t + 1
                t += 1
        return begin


class _Ports:
    """Load or store ports, which take accesses in order: where one does not fit into what is left
    of a cycle, that stays empty."""

    def __init__(self) -> None:
        self._cycle = 0
        self._free = 1.0

    def start(self, ready: int, part: float) -> int:
        """The first cycle from `ready` on with room for `part`, behind all earlier accesses."""
        if ready > self._cycle:
            self._cycle, self._free = ready, 1.0
        if part > self._free + _EPS and self._free < 1:
            self._cycle, self._free = self._cycle + 1, 1.0
        begin = self._cycle
        whole = max(0, math.ceil(part - self._free - _EPS))
        self._cycle += whole
        self._free += whole - part
        return begin


class _Costs:
    """What an instruction costs on a CPU, looked up once."""

    __slots__ = ("count", "latency", "load", "part", "renames", "store", "unit", "waits")

    def __init__(self, cpu: Cpu, i: Instruction, dtype: str) -> None:
        bits = i.bits or 64
        self.count = COUNTS + KINDS.index(i.kind)
        self.unit = ""
        self.part = 0.0
        self.latency = {"mul": cpu.mul_latency, "add": cpu.add_latency, "div": 0}.get(
            i.operation, cpu.logic_latency
        )
        self.waits = bool(i.bits) and i.operation in ("fma", "mul", "add", "div", "logic")
        if i.operation in ("fma", "mul"):
            self.unit, self.part = "fma", 1 / rate(cpu.fma, bits)
            self.latency = cpu.fma_latency if i.operation == "fma" else cpu.mul_latency
        elif i.operation in ("add", "logic"):
            own = cpu.add if i.operation == "add" else cpu.logic
            self.unit, self.part = ("add" if own else "fma"), 1 / rate(own or cpu.fma, bits)
        elif i.operation == "div":
            self.unit = "fma" if cpu.add is None else "divide"
            self.part, self.latency = cpu.divide[dtype], cpu.divide_latency[dtype]
            self.part *= bits / cpu.vector_bits if self.unit == "divide" else 0.5
        elif i.operation in ("integer", "branch"):
            self.unit, self.part, self.latency = "integer", 1 / cpu.integer, 1
        elif i.operation in ("move", "nop"):
            self.latency = 0
        self.load = self.store = 0.0
        if i.load is not None:
            self.load = 1 / load_rate(cpu, i)
        if i.store is not None:
            self.store = 1 / rate(cpu.stores, 8 * i.store.bytes)
        self.renames = any(r >= VECTOR for r in i.writes)


def _crosses(memory: Memory, registers: dict[int, int]) -> bool:
    """Whether an access lies in two cache lines."""
    return (registers.get(memory.base, 0) + memory.displacement) % LINE > LINE - memory.bytes


class Core:
    """One core that runs what it is given; see `jitgen.analysis.execution.Consumer`."""

    def __init__(self, cpu: Cpu, dtype: str) -> None:
        self.cpu = cpu
        self.dtype = dtype
        self.totals = [0.0] * (CROSSED + 1)
        self.executed = 0
        self.enough = 2 * cpu.window
        self._costs: dict[int, tuple[Instruction, _Costs]] = {}
        self._units = {n: _Unit() for n in ("fma", "add", "divide", "integer")}
        self._loads, self._stores = _Ports(), _Ports()
        self._cycle = 0
        self._slots = cpu.dispatch
        self._window: deque[int] = deque([0] * cpu.window)
        self._renamed: deque[int] = deque([0] * cpu.renamed)
        self._waiting: list[int] = [0] * cpu.waiting
        self._ready: dict[int, int] = {}
        self._retired = 0
        self._counted = 0
        self._phase = 0

    def settle(self) -> None:
        """Count the cycles since the last time to the present phase."""
        self.totals[self._phase] += self._retired - self._counted
        self._counted = self._retired

    def mispredict(self, phase: int) -> None:
        """Dispatch resumes only when the last branch is done, and a new path is fetched."""
        self._cycle = max(self._cycle, self._retired) + self.cpu.mispredict
        self._slots = self.cpu.dispatch

    def run(self, instructions: list[Instruction], registers: dict[int, int], phase: int) -> None:
        """Run instructions; `registers` are the general-purpose ones they begin with."""
        if phase != self._phase:
            self.settle()
            self._phase = phase
        cpu, totals, ready, units = self.cpu, self.totals, self._ready, self._units
        window, renamed, waiting = self._window, self._renamed, self._waiting
        cycle, slots, retired = self._cycle, self._slots, self._retired
        loads, stores, load_latency = self._loads, self._stores, cpu.load_latency
        # an access that crosses a line: one more load; at least two stores, which combine
        more_load, more_store = 1 / max(cpu.loads.values()), 2 / max(cpu.stores.values())
        self.executed += len(instructions)
        for i in instructions:
            found = self._costs.get(id(i))
            if found is None:
                found = self._costs[id(i)] = (i, _Costs(cpu, i, self.dtype))
            cost = found[1]
            # dispatch, in order
            if not slots:
                cycle += 1
                slots = cpu.dispatch
            earliest = window.popleft()
            if cost.renames and renamed[0] > earliest:
                earliest = renamed[0]
            if cost.waits and waiting[0] > earliest:
                earliest = waiting[0]
            if earliest > cycle:
                cycle, slots = earliest, cpu.dispatch
            slots -= 1
            totals[cost.count] += 1
            # operands
            start = cycle + 1
            chained = -1
            for r in i.reads:
                if r == i.accumulator:
                    chained = ready.get(r, 0)
                elif ready.get(r, 0) > start:
                    start = ready[r]
            memory = i.load
            if memory is not None:
                part = cost.load
                if _crosses(memory, registers):
                    part += more_load
                    totals[CROSSED] += 1
                totals[LOADED] += memory.bytes
                # other operands may come later than the address
                address = max(cycle + 1, ready.get(memory.base, 0))
                start = max(start, loads.start(address, part) + load_latency)
            if chained >= 0:
                # a chain of multiply-accumulates passes its sum on early
                start = max(start, chained)
            if cost.unit:
                start = units[cost.unit].start(start, cost.part)
            done = start + cost.latency
            memory = i.store
            if memory is not None:
                part = cost.store
                if _crosses(memory, registers):
                    part = max(part, more_store)
                    totals[CROSSED] += 1
                totals[STORED] += memory.bytes
                done = stores.start(done, part) + 1
            for r in i.writes:
                ready[r] = done if r != i.accumulator else start + cpu.accumulate
            if cost.waits:
                heapq.heapreplace(waiting, start)
            # retirement, in order
            if done > retired:
                retired = done
            window.append(retired)
            if cost.renames:
                renamed.popleft()
                renamed.append(retired)
        self._cycle, self._slots, self._retired = cycle, slots, retired
