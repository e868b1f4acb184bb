"""The code of a kernel: what a spec and a target gave, and all that a reader may ask of it.

    KernelSpec --plan--> Plan --emit--> Program --encode--> bytes

Not here: caches, loading and calls (`jitgen.gemm.kernel`).
"""

from __future__ import annotations

from typing import Any

from jitgen.emit.routine import Operand, Routine
from jitgen.gemm import generator
from jitgen.gemm.plan import Plan, make_plan
from jitgen.gemm.spec import KernelSpec
from jitgen.isa import Program
from jitgen.target import Target

#: Largest machine code of one kernel in bytes
CODE_BYTES = 256 * 1024
_EPILOGUE_WORDS = {"bias": "row vector", "bias_row": "column vector", "residual": "residual"}


class EmittedKernel(Routine):
    """Machine code for one `KernelSpec` on one target. What tells of code takes this: a `Kernel` is
    one that can be called."""

    def __init__(
        self, spec: KernelSpec, target: Target, plan: Plan | None, code: bytes,
        roles: dict[str, int] | None, overrides: tuple[tuple[str, Any], ...] = (),
    ) -> None:  # fmt: skip
        name = f"brgemm {spec.dtype} {spec.m}x{spec.n}x{spec.k}"
        super().__init__(name, (), target, code)
        self.spec = spec
        # a kernel from disk has neither plan nor roles: few ask for them
        self._plan = plan
        self._roles = roles
        self._overrides = overrides

    @property
    def signature(self) -> tuple[Operand, ...]:
        """The words it reads."""
        spec = self.spec
        elements = "addresses" if spec.batch == "address" else spec.dtype
        words = [("a", "A", elements), ("b", "B", elements), ("c", "C", spec.dtype),
                 ("count", "batch elements", "number")]  # fmt: skip
        if spec.batch == "offset":
            words += [(f"{x}_offsets", f"offsets of {x.upper()}", "offsets") for x in "ab"]
        words += [
            (word, meaning, spec.dtype) for word, meaning in _EPILOGUE_WORDS.items()
            if spec.has(word)
        ]  # fmt: skip
        if spec.has("relu_mask"):
            words.append(("mask", "where C is positive", "bits"))
        return tuple(Operand(*each) for each in words)

    def flops(self, count: int = 1) -> int:
        """Floating-point operations of a call with a batch of `count`: 2 m n k count."""
        return self.spec.flops(count)

    @property
    def plan(self) -> Plan:
        """Tiles and loops."""
        if self._plan is None:
            self._plan = emit(self.spec, self.target, self._overrides).plan
        return self._plan

    @property
    def roles(self) -> dict[str, int]:
        """Role -> general-purpose register."""
        if self._roles is None:
            self._roles = emit(self.spec, self.target, self._overrides).roles
        return self._roles

    @property
    def program(self) -> Program:
        """The instructions, emitted anew: some 100 KB that a cached kernel need not keep."""
        machine = self.target.machine(self.spec.dtype, self.spec.n)
        generator.emit(self.spec, self.plan, self.target.facts(machine), machine)
        return machine.program


def emit(
    spec: KernelSpec, target: Target, overrides: tuple[tuple[str, Any], ...] = ()
) -> EmittedKernel:
    """Plan, emit and encode.

    Raises ValueError if the plan's overrides do not fit, or the code is larger than CODE_BYTES.
    """
    machine = target.machine(spec.dtype, spec.n)
    facts = target.facts(machine)
    plan = make_plan(spec, facts, overrides)
    roles = generator.emit(spec, plan, facts, machine)
    code = machine.program.encode()
    if len(code) > CODE_BYTES:
        raise ValueError(
            f"the plan gives {len(code)} bytes of code; a kernel may have {CODE_BYTES}: "
            "choose a smaller k_unroll, or apply fewer functions to C"
        )
    return EmittedKernel(spec, target, plan, code, roles, overrides)
