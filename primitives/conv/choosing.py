"""How a pass of a convolution is cut: by the cost function, or by measuring the candidates.

Not here: what candidates there are and what they should cost (`jitgen.primitives.conv.cost`,
`jitgen.primitives.conv.tiles`), what is kept of measurements (`jitgen.primitives.nest.tuning`).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from jitgen.primitives.conv import streams, winograd
from jitgen.primitives.conv.cost import candidates, choose
from jitgen.primitives.conv.layouts import WINOGRAD, Choice, Conv, packed_elements
from jitgen.primitives.conv.tiles import choose_algorithm, possible
from jitgen.primitives.nest.tuning import tuned


def maker_of(which: str, choice: Choice | None) -> tuple[Any, tuple[Any, ...]]:
    """What makes a pass's streams, and its choice if that takes one."""
    if choice == WINOGRAD:
        return getattr(winograd, which), ()
    return getattr(streams, which), (choice,)


def chosen(
    conv: Conv, which: str, algorithm: str | None, blocks: Any, order: str | None, tune: bool
) -> Choice:
    """How a pass is cut. algorithm, blocks, order: what the caller fixes (None: nothing); tune:
    measure what is left."""
    subject, product = streams.subject(conv, which)
    how = (subject, which, product, blocks, order)
    fixed = "direct" if blocks or order else algorithm
    if not tune or fixed == "winograd":
        winner = choose_algorithm(conv, which, fixed)
        return WINOGRAD if winner == "winograd" else choose(*how)
    found = {str(at): at for at in candidates(*how)}
    if fixed is None and possible(conv):
        found[WINOGRAD.order] = WINOGRAD
    at = {f.name: getattr(conv, f.name) for f in fields(conv)}
    at |= {"algorithm": fixed, "blocks": blocks, "order": order}
    sizes = ", ".join(f"{n} {v}" for n, v in at.items() if n not in ("target", "widths"))
    key = f"{conv.target.name}, convolution {which}, {sizes}"
    return tuned(key, found, lambda choice: seconds(conv, which, choice))


def seconds(conv: Conv, which: str, choice: Choice) -> float:
    """Time of a pass with a choice."""
    make, more = maker_of(which, choice)
    packed = () if which == "backward_weights" else (True,)
    backward = which == "backward_data"
    if choice == WINOGRAD:
        size = winograd.packed_layout(conv, backward)[1][0]
    else:
        size = packed_elements(conv, backward)
    # not kept: so many candidates' scratch would be much memory
    run = make.__wrapped__(conv, *more, *packed)
    return streams.seconds(conv, which, run, size)
