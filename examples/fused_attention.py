"""Softmax attention as a primitive of one's own: no score leaves the cache of a core.

    python examples/fused_attention.py
    python examples/fused_attention.py --layout "b s p h d" --threads 1

    p = scale k q^T     for each image and head, and a block of queries: a call of the kernel
    p = softmax of p    each query is a column
    o = p^T v

The scores of a block of queries are one thread's own scratch, which is used up before the next
block. They are made transposed, so that queries are the lanes of vectors and the softmax
goes down columns, without a step across lanes. docs/writing-a-primitive.md explains it.
"""

from __future__ import annotations

import numpy as np
from checked import check, options, show_times

from jitgen import Loop, Nest, Primitive, Tensor

NUMPY = {"f32": np.float32, "f64": np.float64}
#: Queries of a block
QUERIES = 64
#: Elements between rows of scores: without them, a long column would lie in a quarter of the sets
#: of the first cache
GAP = 16
#: Elements from row to row from which on v is copied first: such rows share few sets of the cache
FAR = 512


def fused_attention(
    batch: int, heads: int, steps: int, features: int, *, layout: str = "b h s d",
    queries: int = QUERIES, dtype: str = "f32", threads: int | None = None,
    target: str | None = None,
) -> Primitive:  # fmt: skip
    """o = softmax(q k^T / sqrt(features)) v. `layout` is that of tensors q, k, v and o, by axes b
    (batch), h (heads), s (steps) and d (features); with an axis p, q, k and v are positions of it
    in one tensor, qkv."""
    sizes = {"b": batch, "h": heads, "s": steps, "d": features}
    together = "p" in layout.split()
    o = Tensor("o", " ".join(axis for axis in layout.split() if axis != "p"), dtype, **sizes)
    if together:
        qkv = Tensor("qkv", layout, dtype, **sizes, p=3)
        tensors = [qkv]
        q, k, v = (qkv.at(b="b", h="h", p=i) for i in range(3))
    else:
        tensors = [Tensor(name, layout, dtype, **sizes) for name in "qkv"]
        q, k, v = (tensor.at(b="b", h="h") for tensor in tensors)
    scores = Tensor(
        "scores", "s q", dtype, own=True, strides={"s": queries + GAP}, s=steps, q=queries
    )
    heads_of = {"b": Loop(batch, (1,)), "h": Loop(heads, (1,))}
    nest = Nest("BHQ", {**heads_of, "q": Loop(steps, (queries,))}, dtype, target)
    multiply = nest.gemm(
        k, q.also(s="q"), scores.at(), m="s", n="q", k="d", alpha=features**-0.5, title="k q^T"
    )
    softmax = nest.rows("softmax", {"x": scores.at(), "y": scores.at()}, rows="q", over="s",
                        before=(multiply,))  # fmt: skip
    first = (softmax,)
    if v.tensor.stride("s") >= FAR:
        near = Tensor("near", "s d", dtype, own=True, s=steps, d=features)
        copy = Nest("BH", heads_of, dtype, target).relayout(v, near.at(), title="copy v")
        v, first = near.at(), (copy, softmax)
    result = nest.gemm(
        scores.at(), v, o.at(b="b", h="h", s="q"), m="q", n="d", k="s", title="p^T v", before=first
    )
    return Primitive([result], [*tensors, o], threads, name="fused attention")


def expected(
    q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In float64, and by how much rounding may change it in the type of q; b h s d."""
    features, eps = q.shape[3], np.finfo(q.dtype).eps
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * features**-0.5
    p = np.exp(scores - scores.max(axis=3, keepdims=True))
    p /= p.sum(axis=3, keepdims=True)
    # what a score is off by is what p is off by, of itself; the sum over all p is off by the most
    off = (features + 4) * eps * (np.abs(q) @ np.abs(k).swapaxes(2, 3)) * features**-0.5
    off = off + off.max(axis=3, keepdims=True) + (2 * k.shape[2] + 16) * eps
    return p @ v, (p * off) @ np.abs(v)


def by_numpy(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """As one would write it: all scores, then their softmax, then the results."""
    scores = q @ k.swapaxes(2, 3)
    scores *= q.shape[3] ** -0.5
    scores -= scores.max(axis=3, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=3, keepdims=True)
    found: np.ndarray = scores @ v
    return found


def arrays(
    rng: np.random.Generator, batch: int, heads: int, steps: int, features: int, layout: str,
    dtype: str,
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:  # fmt: skip
    """Random arrays for the tensors, o of NaN; views b h s d of q, k, v and o in them."""
    sizes, axes = {"b": batch, "h": heads, "s": steps, "d": features, "p": 3}, layout.split()
    shape, kind = tuple(sizes[axis] for axis in axes), NUMPY[dtype]
    names = ("qkv",) if "p" in axes else tuple("qkv")
    given = {name: rng.standard_normal(shape).astype(kind) for name in names}
    rest = [axis for axis in axes if axis != "p"]
    given["o"] = np.full([sizes[axis] for axis in rest], np.nan, kind)
    inputs = [given[name] for name in names]
    if "p" in axes:
        inputs = list(np.moveaxis(given["qkv"], axes.index("p"), 0))
    order = [rest.index(axis) for axis in "bhsd"]
    return given, [x.transpose(order) for x in (*inputs, given["o"])]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--layout", default="b h s d", help='or "b s p h d"; default %(default)s')
    parser.add_argument("--sizes", default="8,8,128,64", help="batch, heads, steps, features")
    given = parser.parse_args()
    sizes = tuple(map(int, given.sizes.split(",")))
    attend = fused_attention(
        *sizes, layout=given.layout, dtype=given.dtype, threads=given.threads, target=given.target
    )
    named, (q, k, v, o) = arrays(np.random.default_rng(), *sizes, given.layout, given.dtype)
    attend(**named)
    check(o, *expected(q, k, v))
    calls = {"jitgen": lambda: attend(**named), "NumPy": lambda: by_numpy(q, k, v)}
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(attend.threads)
        theirs = [torch.from_numpy(x) for x in (q, k, v)]
        attention = torch.nn.functional.scaled_dot_product_attention
        calls["PyTorch"] = lambda: attention(*theirs)
    show_times(calls, given.seconds)


if __name__ == "__main__":
    main()
