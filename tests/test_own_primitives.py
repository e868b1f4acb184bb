"""The worked examples of primitives of one's own: right on every instruction set, any threads.

Not here: what a primitive is made of (test_primitive), the page that explains them (test_docs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from primitives_on import replay
from random_cases import SEED
from tiers import TIERS, need
from worked import block_sparse, checked, fused_attention, linear_attention

from jitgen import Primitive
from jitgen.run import cpu

NUMPY = {"f32": np.float32, "f64": np.float64}
HERE = [name for name, why in cpu.targets().items() if not why]
SEEN = ("avx2 native", "avx512 native", "avx512 bochs", "sve128 qemu", "sve256 qemu", "sve512 qemu")
#: A primitive, its arrays, the result's name, what it must be, and by how much it may be off
Made = tuple[Primitive, dict[str, np.ndarray], str, np.ndarray, np.ndarray]


def product(target: str, dtype: str, rng: np.random.Generator, threads: int) -> Made:
    indptr, indices = block_sparse.random_blocks(rng, (4, 5), 0.4)
    kind = NUMPY[dtype]
    data = rng.standard_normal((len(indices), 6, 7)).astype(kind)
    x = rng.standard_normal((5, 7, 37)).astype(kind)
    y = np.full((4, 6, 37), np.nan, kind)
    primitive = block_sparse.block_sparse(
        indptr, indices, (6, 7), 5, 37, dtype=dtype, threads=threads, target=target
    )
    exact, bound = block_sparse.expected(block_sparse.dense(data, indptr, indices, 5), x)
    arrays = {"s": data, "x": x, "y": y}
    return primitive, arrays, "y", exact.reshape(y.shape), bound.reshape(y.shape)


def linear(target: str, dtype: str, rng: np.random.Generator, threads: int) -> Made:
    batch, steps, channels, heads, features = 2, 13, 9, 2, 5
    kind = NUMPY[dtype]
    arrays = {"x": rng.standard_normal((batch, steps, channels)).astype(kind)}
    for name in ("wq", "wk", "wv"):
        arrays[name] = rng.standard_normal((heads, channels, features)).astype(kind)
    exact, bound = linear_attention.expected(**arrays)
    arrays["o"] = np.full((batch, steps, heads, features), np.nan, kind)
    primitive = linear_attention.linear_attention(
        batch, steps, channels, heads, features, rows=4, dtype=dtype, threads=threads,
        target=target,
    )  # fmt: skip
    return primitive, arrays, "o", exact, bound


def attention(
    target: str, dtype: str, rng: np.random.Generator, threads: int, layout: str = "b h s d",
    steps: int = 21, queries: int = 8,
) -> Made:  # fmt: skip
    """Blocks of queries, the last of which is shorter."""
    sizes = 2, 3, steps, 5
    arrays, (q, k, v, o) = fused_attention.arrays(rng, *sizes, layout, dtype)
    exact, bound = fused_attention.expected(q, k, v)
    primitive = fused_attention.fused_attention(
        *sizes, layout=layout, queries=queries, dtype=dtype, threads=threads, target=target
    )
    back = [" ".join("bhsd").split().index(axis) for axis in layout.split() if axis != "p"]
    assert o.base is arrays["o"] or o is arrays["o"]
    return primitive, arrays, "o", exact.transpose(back), bound.transpose(back)


def together(target: str, dtype: str, rng: np.random.Generator, threads: int) -> Made:
    """q, k and v in one array; v is copied first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_attention, "FAR", 45)
        made = attention(target, dtype, rng, threads, "b s p h d", 16, 16)
    assert "copy v" in made[0].stream.parts[0].part.before[0].title
    return made


def apart(target: str, dtype: str, rng: np.random.Generator, threads: int) -> Made:
    return attention(target, dtype, rng, threads, "h b s d", 3, 8)


MAKERS = [product, linear, attention, together, apart]


@pytest.mark.parametrize("tier", SEEN)
@pytest.mark.parametrize("make", MAKERS)
def test_on_every_tier(make: Any, tier: str) -> None:
    need(TIERS[tier])
    rng = np.random.default_rng(SEED)
    made = [make(TIERS[tier].target, dtype, rng, 1) for dtype in ("f32", "f64")]
    found = replay(TIERS[tier], [(primitive, arrays) for primitive, arrays, *_ in made])
    for (_, _, name, exact, bound), results in zip(made, found, strict=True):
        checked.check(results[name], exact, bound)


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("make", MAKERS)
def test_any_threads_give_the_same_bits(make: Any, target: str) -> None:
    """Called as a user does, for every target that runs here."""
    seen = []
    for threads in (1, 2, 3):
        primitive, arrays, name, exact, bound = make(
            target, "f32", np.random.default_rng(SEED), threads
        )
        primitive(**arrays)
        checked.check(arrays[name], exact, bound)
        seen.append(arrays[name])
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
@pytest.mark.parametrize("make", MAKERS)
def test_the_checks_of_the_examples_can_fail(make: Any) -> None:
    """One element of one input off by a hundredth, one result that is no number."""
    primitive, arrays, name, exact, bound = make(HERE[-1], "f32", np.random.default_rng(SEED), 1)
    first = next(iter(arrays))
    arrays[first].flat[0] += 0.01
    primitive(**arrays)
    with pytest.raises(ValueError, match="times the error that rounding explains"):
        checked.check(arrays[name], exact, bound)
    arrays[first].flat[0] -= 0.01
    primitive(**arrays)
    arrays[name].flat[-1] = np.nan
    with pytest.raises(ValueError, match="wrong"):
        checked.check(arrays[name], exact, bound)
