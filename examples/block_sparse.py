"""A block-sparse matrix times a dense one, as a primitive of one's own.

    python examples/block_sparse.py
    python examples/block_sparse.py --threads 1 --dtype f64

The matrix is stored as SciPy's `bsr_matrix` is: blocks `data` (count x rows x columns), and for
each row of blocks, r, the blocks indptr[r] .. indptr[r + 1] - 1, which stand in the columns of
blocks that `indices` has. A call of the kernel makes the results of one row of blocks and some
columns: it sums over the blocks of that row, which are its batch. docs/writing-a-primitive.md
explains it.
"""

from __future__ import annotations

import numpy as np
from checked import check, options, show_times

from jitgen import Loop, Nest, Primitive, Tensor

#: Columns of a call: what it reads of the dense matrix stays in L2
COLUMNS = 256


def block_sparse(
    indptr: np.ndarray, indices: np.ndarray, block: tuple[int, int], across: int, columns: int,
    *, dtype: str = "f32", threads: int | None = None, target: str | None = None,
) -> Primitive:  # fmt: skip
    """y = s x: tensors s ("t m k": its blocks), x ("q k n", `across` blocks high, `columns` wide)
    and y ("r m n")."""
    rows, depth = block
    s = Tensor("s", "t m k", dtype, t=len(indices), m=rows, k=depth)
    x = Tensor("x", "q k n", dtype, q=across, k=depth, n=columns)
    y = Tensor("y", "r m n", dtype, r=len(indptr) - 1, m=rows, n=columns)
    loops = {"r": Loop(len(indptr) - 1, (1,)), "n": Loop(columns, (min(columns, COLUMNS),))}
    product = Nest("RN", loops, dtype, target).gemm(
        s.at(t="t"), x.at(q=("t", indices), n="n"), y.at(r="r", n="n"),
        batch={"t": ("r", indptr)},
    )  # fmt: skip
    return Primitive([product], [s, x, y], threads, name="block-sparse product")


def random_blocks(
    rng: np.random.Generator, shape: tuple[int, int], share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pointers and indices of a matrix of so many blocks, a share of which are there."""
    present = rng.random(shape) < share
    indptr = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
    return indptr, np.nonzero(present)[1]


def dense(
    data: np.ndarray, indptr: np.ndarray, indices: np.ndarray, across: int
) -> np.ndarray:
    """The matrix with its zeros."""
    rows, (_, high, wide) = len(indptr) - 1, data.shape
    blocks = np.zeros((rows, across, high, wide), data.dtype)
    blocks[np.repeat(np.arange(rows), np.diff(indptr)), indices] = data
    return blocks.swapaxes(1, 2).reshape(rows * high, across * wide)


def expected(matrix: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In float64, and by how much rounding may change it in the type of x."""
    wide = x.reshape(matrix.shape[1], -1)
    terms = (matrix != 0).sum(axis=1).max() + 4
    bound = terms * np.finfo(x.dtype).eps * (np.abs(matrix) @ np.abs(wide))
    exact = matrix.astype(np.float64) @ wide.astype(np.float64)
    return exact, bound.astype(np.float64) + np.finfo(x.dtype).tiny


def main() -> None:
    given = options(__doc__ or "").parse_args()
    rng, block, across, columns = np.random.default_rng(), (32, 32), 32, 1024
    indptr, indices = random_blocks(rng, (32, across), 0.2)
    kind = np.float32 if given.dtype == "f32" else np.float64
    data = rng.standard_normal((len(indices), *block)).astype(kind)
    x = rng.standard_normal((across, block[1], columns)).astype(kind)
    y = np.full((len(indptr) - 1, block[0], columns), np.nan, kind)
    multiply = block_sparse(
        indptr, indices, block, across, columns, dtype=given.dtype, threads=given.threads,
        target=given.target,
    )  # fmt: skip
    multiply(s=data, x=x, y=y)
    matrix, wide = dense(data, indptr, indices, across), x.reshape(-1, columns)
    check(y.reshape(-1, columns), *expected(matrix, x))
    calls = {"jitgen": lambda: multiply(s=data, x=x, y=y), "NumPy, dense": lambda: matrix @ wide}
    try:
        from scipy.sparse import bsr_matrix
    except ImportError:
        pass
    else:
        sparse = bsr_matrix((data, indices, indptr), shape=matrix.shape)
        calls["SciPy"] = lambda: sparse @ wide
    show_times(calls, given.seconds)


if __name__ == "__main__":
    main()
