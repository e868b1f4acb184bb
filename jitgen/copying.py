"""Copying a matrix in emitted code, transposed or not: B to the stack, or into panels.

Transposed squares go through vector registers where the machine has a verb for it; the edges, and
machines without it, element by element. Not here: why it is done (`jitgen.plan`, `jitgen.pack`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from isa.machine import Machine


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
    registers that may be clobbered, and the first vector registers are too.
    """
    element = machine.element
    square = machine.transpose_square
    wide = columns // square * square if square else 0
    passes = depth // square if wide else 0
    if passes:
        with repeated(machine, step, passes):
            for j in range(0, wide, square):
                machine.transpose((to, j * element), row, (source, j * leading), leading)
            _edge(machine, range(wide, columns), square, source, to, leading, row, temp)
            machine.advance(source, square * element)
            machine.advance(to, square * row)
    rest = depth - passes * square
    if rest:
        with repeated(machine, step, rest):
            _edge(machine, range(columns), 1, source, to, leading, row, temp)
            machine.advance(source, element)
            machine.advance(to, row)


def _edge(
    machine: Machine, columns: range, rows: int, source: int, to: int, leading: int, row: int,
    temp: int,
) -> None:  # fmt: skip
    for j in columns:
        for i in range(rows):
            at = (source, j * leading + i * machine.element)
            machine.copy_element((to, i * row + j * machine.element), at, temp)


@contextmanager
def repeated(machine: Machine, counter: int, count: int) -> Iterator[None]:
    """Repeat what is emitted inside `count` times."""
    label = machine.program.new_label()
    machine.set(counter, count)
    machine.place(label)
    yield
    machine.count_down(counter, label)
