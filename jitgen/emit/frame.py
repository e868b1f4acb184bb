"""The frame of a kernel while it is emitted: argument struct, registers by role.

Not here: register tiles (`jitgen.gemm.tile`) and what is done with either.
"""

from __future__ import annotations

from dataclasses import dataclass

from jitgen.isa.machine import Machine

#: The argument struct (docs/abi.md): name -> byte offset. Every word has 8 bytes.
ARGUMENTS = {
    name: 8 * i
    for i, name in enumerate(
        ("a", "b", "c", "count", "a_offsets", "b_offsets", "bias", "bias_row", "residual", "mask")
    )
}


@dataclass(frozen=True)
class Register:
    """A general-purpose register that holds a position."""

    number: int


#: A row, column or reduction step: known now, or in a register.
Position = Register | int


class Frame:
    """General-purpose registers by role, and address arithmetic on them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.roles: dict[str, int] = {}

    def take(self, role: str) -> int:
        """Give `role` the next free register."""
        self.roles[role] = self.machine.gprs[len(self.roles)]
        return self.roles[role]

    def free(self) -> int:
        """How many registers have no role yet."""
        return len(self.machine.gprs) - len(self.roles)

    def used(self) -> tuple[int, ...]:
        """All registers with a role."""
        return tuple(self.roles.values())

    def __getitem__(self, role: str) -> int:
        return self.roles[role]

    def load_argument(self, role: str, name: str) -> None:
        """Load a word of the argument struct into the register of `role`."""
        self.machine.load_word(self.roles[role], (self.machine.argument, ARGUMENTS[name]))

    def shift(self, d: int, position: Position, scale: int, temp: str) -> None:
        """d += position * scale; `temp` is a role whose register may be clobbered."""
        if isinstance(position, int):
            self.machine.advance(d, position * scale)
        elif scale in (1, 2, 4, 8):
            self.machine.sum(d, d, position.number, scale.bit_length() - 1)
        else:
            t = self.roles[temp]
            self.machine.multiply(t, position.number, scale)
            self.machine.sum(d, d, t)
