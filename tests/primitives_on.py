"""A primitive of one's own on any tier: its stream replayed between guard pages.

Not here: what the primitives are (`test_primitive`, `test_own_primitives`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rig.job import Buffer, Job, Pointers
from tiers import Tier

from jitgen import Primitive
from jitgen.run.replay import emit_replay


def replay(
    tier: Tier, cases: list[tuple[Primitive, Mapping[str, np.ndarray]]]
) -> list[dict[str, np.ndarray]]:
    """The results of each primitive, of one thread, on its arrays by name; scratch is NaN at
    first. AssertionError where a call reads or writes beyond an array."""
    jobs, names = [], []
    for primitive, arrays in cases:
        assert primitive.threads == 1
        run, numpy = primitive._run, {4: np.float32, 8: np.float64}
        element = next(t.element for t in primitive.tensors.values())
        buffers = {name: Buffer(array, write=name in primitive.results)
                   for name, array in arrays.items()}  # fmt: skip
        for name, elements in run.scratch.items():
            poison = np.full(elements, np.nan, numpy[element])
            buffers[name] = Buffer(poison, write=True)
        buffers |= {name: Buffer(array) for name, array in run.constants.items()}
        stream = primitive.stream
        ordered = [buffers[name] for name in stream.tensors]
        code = emit_replay(stream.calls, primitive.target).code
        words = [Buffer(stream.slices[0]), Pointers(ordered), 0, 0]
        jobs.append(Job(code, words, label=str(list(primitive.tensors))))
        names.append([name for name in stream.tensors if buffers[name].write])
    found = []
    for (primitive, arrays), written, outcome in zip(
        cases, names, tier.run(jobs, isa=tier.target), strict=True
    ):
        assert outcome.ok, outcome.error
        outputs = dict(zip(written, outcome.outputs, strict=True))
        found.append({name: outputs[name].reshape(arrays[name].shape)
                      for name in primitive.results})  # fmt: skip
    return found
