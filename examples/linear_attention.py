"""Linear attention as a primitive of one's own: no scores, whose number grows with the square.

    python examples/linear_attention.py
    python examples/linear_attention.py --threads 1 --target avx2

    context = sum over steps s of phi(k_s)^T v_s           features x features, for each head
    o_t = rms_norm(phi(q_t) context / steps)               phi(x) = elu(x) + 1

after Katharopoulos et al., arXiv:2006.16236, with a norm for the normaliser (arXiv:2210.10340). q,
k and v are products of the input and the weights of each head. They are made a block of rows at a
time and used at once; they, and the context, stay in a thread's own caches.
docs/writing-a-primitive.md explains it.
"""

from __future__ import annotations

import numpy as np
from checked import check, options, show_times

from jitgen import Loop, Nest, Primitive, Tensor

NUMPY = {"f32": np.float32, "f64": np.float64}
#: Of the norm
EPS = 1e-5


def linear_attention(
    batch: int, steps: int, channels: int, heads: int, features: int, *, rows: int = 64,
    dtype: str = "f32", threads: int | None = None, target: str | None = None,
) -> Primitive:  # fmt: skip
    """Tensors x (batch x steps x channels), wq, wk, wv (heads x channels x features) and o (batch x
    steps x heads x features); `rows` of q, k and v are made at a time."""
    x = Tensor("x", "b s c", dtype, b=batch, s=steps, c=channels)
    wq, wk = (
        Tensor(name, "h c e", dtype, h=heads, c=channels, e=features) for name in ("wq", "wk")
    )
    wv = Tensor("wv", "h c d", dtype, h=heads, c=channels, d=features)
    o = Tensor("o", "b s h d", dtype, b=batch, s=steps, h=heads, d=features)
    # each thread has these for itself
    q = Tensor("q", "t e", dtype, own=True, t=rows, e=features)
    k = Tensor("k", "s e", dtype, own=True, s=rows, e=features)
    v = Tensor("v", "s d", dtype, own=True, s=rows, d=features)
    context = Tensor("context", "e d", dtype, own=True, e=features, d=features)
    ones = Tensor("ones", "e", dtype, e=features)

    pairs = {"b": Loop(batch, (1,)), "h": Loop(heads, (1,))}
    loops = {**pairs, "s": Loop(steps, (rows,))}
    block, add_up = (Nest("BHs", loops, dtype, target, sums=sums) for sums in ("", "s"))
    phi = {"epilogue": (("elu",), ("bias",)), "words": {"bias": ones.at()}}
    piece = x.at(b="b", s="s")
    make_k = block.gemm(piece, wk.at(h="h"), k.at(), m="s", n="e", k="c", title="phi(k)", **phi)
    make_v = block.gemm(piece, wv.at(h="h"), v.at(), m="s", n="d", k="c", title="v")
    # a loop of its own: it begins when that over s has ended
    again = Nest("BHt", {**pairs, "t": Loop(steps, (rows,))}, dtype, target)
    make_q = again.gemm(
        x.at(b="b", s="t"), wq.at(h="h"), q.at(), m="t", n="e", k="c", title="phi(q)", **phi
    )
    there = o.at(b="b", s="t", h="h")
    norm = again.rows("rms_norm", {"x": there, "y": there}, rows="t", over="d", eps=EPS)
    results = again.gemm(
        q.at(), context.at(), there, m="t", n="d", k="e", alpha=1 / steps, title="phi(q) context",
        before=(make_q,), after=(norm,),
    )  # fmt: skip
    total = add_up.gemm(
        k.at(), v.at(), context.at(), m="e", n="d", k="s", title="phi(k)^T v",
        before=(make_k, make_v), after=(results,),
    )  # fmt: skip
    return Primitive(
        [total], [x, wq, wk, wv, o], threads, constants={"ones": np.ones(features, NUMPY[dtype])},
        name="linear attention",
    )  # fmt: skip


def expected(
    x: np.ndarray, wq: np.ndarray, wk: np.ndarray, wv: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In float64, and by how much rounding may change it in the type of x."""
    (_, steps, channels), (_, _, features) = x.shape, wq.shape
    q, k, v = (np.einsum("bsc,hcd->bhsd", x, w, dtype=np.float64) for w in (wq, wk, wv))
    q, k = (np.where(z > 0, z + 1, np.exp(np.minimum(z, 0))) for z in (q, k))
    exact = q @ (k.swapaxes(2, 3) @ v) / steps
    # a sum of products is off by its length in units of the sum of their absolute values
    eps = np.finfo(x.dtype).eps
    dq, dk, dv = (
        (channels + 8) * eps * (np.einsum("bsc,hcd->bhsd", np.abs(x), np.abs(w)) + 1)
        for w in (wq, wk, wv)
    )
    k, v = k.swapaxes(2, 3), np.abs(v)
    bound = dq @ (k @ v) + q @ (dk.swapaxes(2, 3) @ v + k @ dv + (steps + features) * eps * (k @ v))
    bound /= steps
    # the norm scales an error, and the errors of the row change the scale
    scale = ((exact**2).mean(axis=-1, keepdims=True) + EPS) ** -0.5
    exact, bound = exact * scale, bound * scale
    row = (bound**2).mean(axis=-1, keepdims=True) ** 0.5
    bound = bound + np.abs(exact) * (row + (features + 8) * eps)
    return exact.swapaxes(1, 2), bound.swapaxes(1, 2)


def by_numpy(x: np.ndarray, wq: np.ndarray, wk: np.ndarray, wv: np.ndarray) -> np.ndarray:
    """As one would write it: all of q, k and v, then the products."""
    q, k, v = (x[:, np.newaxis] @ w for w in (wq, wk, wv))
    for z in (q, k):
        np.add(z, 1, out=z, where=z > 0)
        np.exp(z, out=z, where=z <= 0)
    o = q @ (k.swapaxes(2, 3) @ v) / x.shape[1]
    found: np.ndarray = o / np.sqrt((o * o).mean(axis=-1, keepdims=True) + EPS)
    return found


def main() -> None:
    given = options(__doc__ or "").parse_args()
    batch, steps, channels, heads, features = 4, 512, 512, 8, 64
    rng, kind = np.random.default_rng(), NUMPY[given.dtype]
    x = rng.standard_normal((batch, steps, channels)).astype(kind)
    weights = [
        (rng.standard_normal((heads, channels, features)) / channels**0.5).astype(kind)
        for _ in range(3)
    ]
    o = np.full((batch, steps, heads, features), np.nan, kind)
    attend = linear_attention(
        batch, steps, channels, heads, features, dtype=given.dtype, threads=given.threads,
        target=given.target,
    )  # fmt: skip
    arrays = {"x": x, **dict(zip(("wq", "wk", "wv"), weights, strict=True)), "o": o}
    attend(**arrays)
    check(o, *expected(x, *weights))
    show_times(
        {"jitgen": lambda: attend(**arrays), "NumPy": lambda: by_numpy(x, *weights)},
        given.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
