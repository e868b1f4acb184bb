"""Copying a matrix in emitted code, transposed or not: B to the stack, or into panels.

Transposed squares go through vector registers where the machine has a verb for them; what is
smaller than any of them, element by element. Not here: why it is done (`jitgen.gemm.plan`,
`jitgen.kernels.pack`), and matrices of any size (`jitgen.kernels.layout`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jitgen.isa.machine import Machine


def copy_rows(
    machine: Machine, parts: list[tuple[int, int]], depth: int, source: int, to: int, down: int,
    row: int, step: int,
) -> None:  # fmt: skip
    """Copy `depth` rows, each as vectors: `parts` holds (displacement in bytes, lanes).

    `source` and `to` are registers that move by `down` and `row` bytes a row; `step` is clobbered,
    and the first vector registers are too.
    """
    with repeated(machine, step, depth):
        for i, (at, lanes) in enumerate(parts):
            machine.load(i % 8, (source, at), lanes)
            machine.store(i % 8, (to, at), lanes)
        machine.advance(source, down)
        machine.advance(to, row)


def copy_transposed(
    machine: Machine, columns: int, depth: int, source: int, to: int, leading: int, row: int,
    step: int, temp: int,
) -> None:  # fmt: skip
    """Copy `depth` rows of `columns` elements to `to`, from where they are columns.

    `source` and `to` are registers, moved behind what was read and written; `leading` is the
    distance of two source columns, `row` of two target rows, in bytes. `step` and `temp` are
    registers that may be clobbered, and all vector registers are too.
    """
    element = machine.element
    side = square_side(machine, columns, depth)
    if not side:
        with repeated(machine, step, depth):
            for j in range(columns):
                machine.copy_element((to, j * element), (source, j * leading), temp)
            machine.advance(source, element)
            machine.advance(to, row)
        return

    passes, rest = -(-depth // side), depth % side
    with repeated(machine, step, passes):
        # the last square of a row may lie over the one before it
        for j in (*range(0, columns - side, side), columns - side):
            machine.transpose(side, (to, j * element), row, (source, j * leading), leading)
        machine.advance(source, side * element)
        machine.advance(to, side * row)
        if rest:  # the second pass lies over the first one
            later = machine.program.new_label()
            machine.jump_if_less(step, passes, later)
            machine.advance(source, (rest - side) * element)
            machine.advance(to, (rest - side) * row)
            machine.place(later)


def square_side(machine: Machine, rows: int, columns: int) -> int:
    """Side of the largest square that can be transposed within rows x columns; 0: there is none."""
    return next((s for s in machine.transpose_squares if s <= min(rows, columns)), 0)


@contextmanager
def repeated(machine: Machine, counter: int, count: int) -> Iterator[None]:
    """Repeat what is emitted inside `count` times."""
    label = machine.program.new_label()
    machine.set(counter, count)
    machine.place(label)
    yield
    machine.count_down(counter, label)
