"""Layers over rows: softmax, log-softmax, log-sum-exp, layer norm, RMS norm, sums, means.

Arrays are rows x columns; of an array with more axes, `x.reshape(-1, columns)` are the rows. What
infinities and NaN become is what PyTorch makes of them. Not here: the streams
(`jitgen.primitives.rows.streams`), error bounds (docs/primitives.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.layers.base import Key, Layer, Operand, Shape, Sized
from jitgen.primitives.nest.limits import check_elements, check_reach
from jitgen.primitives.rows.streams import Rows, row_stream
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.target import Target
from jitgen.types import DTypeLike

#: Name of an argument, and its value
Argument = tuple[str, Any]
_SOFTMAX: Key = (row_stream, "softmax", ())
_SOFTMAX_BACKWARD: Key = (row_stream, "softmax_backward", ())
_LOG_SOFTMAX: Key = (row_stream, "log_softmax", ())
_LOG_SOFTMAX_BACKWARD: Key = (row_stream, "log_softmax_backward", ())
_LOG_SUM_EXP: Key = (row_stream, "log_sum_exp", ())
_LOG_SUM_EXP_BACKWARD: Key = (row_stream, "log_sum_exp_backward", ())


class _OfRows(Layer):
    """A layer over rows, for any number of them; `_function` is that of `ROW_FUNCTIONS`, where
    several layers share what calls it."""

    _function = ""
    _strided = {row_stream: ("x", "y", "dy", "dx")}

    def __init__(
        self, rows: int, columns: int, *, dtype: DTypeLike = "f32", threads: int | None = None,
        target: str | Target | None = None,
    ) -> None:  # fmt: skip
        self._open(rows, columns, dtype, threads, target, 0.0)

    def _open(
        self, rows: int, columns: int, dtype: DTypeLike, threads: int | None,
        target: str | Target | None, eps: float,
    ) -> None:  # fmt: skip
        rows, columns = doors.sizes(rows=rows, columns=columns)
        dtype = doors.dtype("dtype", dtype)
        eps = doors.number("eps", eps, low=0.0, dtype=dtype)
        at = Rows(rows, columns, dtype, check_threads(threads), cpu.choose(target), eps)
        super().__init__(at, (rows, columns))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._at.batch, self._at.columns

    def _arguments(self, at: Rows) -> dict[str, object]:
        return {"rows": at.batch, "columns": at.columns}

    def _check_sizes(self, at: Rows) -> None:
        sizes = self._arguments(at)
        check_elements(sizes, x=(at.batch, at.columns))
        check_reach(sizes, at.dtype, a_row_of_x=at.columns)

    def _words(self) -> list[str]:
        return ["x".join(map(str, self.shape))]

    def _wide(self, name: str, value: Any) -> tuple[Sized, Shape]:
        """The layer for the rows of an array, and the array's shape."""
        sized = self._sized(name, value, self._shape)
        return sized, (sized.at.batch, sized.at.columns)

    def _both(self, key: Key, dy: Any, y: Any, out: Any) -> np.ndarray:
        """dx of dy and y."""
        sized, shape = self._wide("dy", dy)
        inputs = (("dy", "dy", dy, shape), ("y", "y", y, shape))
        return self._result(sized, key, inputs, (("dx", "out", out, shape),), "dy")


class Softmax(_OfRows):
    """Softmax along each row: y = e^(x - max x) / sum e^(x - max x).

    Made for a number of rows; a call may have another one. threads: None for OMP_NUM_THREADS or all
    CPUs. Arrays are of `dtype` ("f32", "f64"), with any distance between their rows. Methods may be
    called from several Python threads at once. Raises TypeError or ValueError that names argument,
    value and rule.

    >>> Softmax(1, 2).forward(np.zeros((1, 2), np.float32)).tolist()
    [[0.5, 0.5]]
    """

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """y, in `out` if that is given; it may be x itself."""
        sized, shape = self._wide("x", x)
        results = (("y", "out", out, shape),)
        return self._result(sized, _SOFTMAX, (("x", "x", x, shape),), results, "x")

    def backward(
        self, dy: np.ndarray, y: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """dx = y (dy - sum dy y), in `out` if that is given; it may be dy itself. y is what
        `forward` returned."""
        return self._both(_SOFTMAX_BACKWARD, dy, y, out)


class LogSoftmax(_OfRows):
    """The logarithm of softmax along each row: y = x - max x - ln sum e^(x - max x).
    Arguments as for `Softmax`.

    >>> LogSoftmax(1, 1).forward(np.ones((1, 1), np.float32)).tolist()
    [[0.0]]
    """

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """y, in `out` if that is given; it may be x itself."""
        sized, shape = self._wide("x", x)
        results = (("y", "out", out, shape),)
        return self._result(sized, _LOG_SOFTMAX, (("x", "x", x, shape),), results, "x")

    def backward(
        self, dy: np.ndarray, y: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """dx = dy - e^y sum dy, in `out` if that is given; it may be dy itself. y is what `forward`
        returned."""
        return self._both(_LOG_SOFTMAX_BACKWARD, dy, y, out)


class LogSumExp(_OfRows):
    """The logarithm of the sum of exponentials of each row: y = max x + ln sum e^(x - max x), one
    number for each row. Arguments as for `Softmax`.

    >>> LogSumExp(1, 1).forward(np.ones((1, 1), np.float32)).tolist()
    [1.0]
    """

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """y, of shape (rows,), in `out` if that is given."""
        sized, shape = self._wide("x", x)
        results = (("value", "out", out, shape[:1]),)
        return self._result(sized, _LOG_SUM_EXP, (("x", "x", x, shape),), results)

    def backward(
        self, dy: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """dx = dy e^(x - y), in `out` if that is given; it may be x itself. dy and y have shape
        (rows,); y is what `forward` returned."""
        sized, shape = self._wide("x", x)
        one = shape[:1]
        inputs = (("gradient", "dy", dy, one), ("x", "x", x, shape), ("value", "y", y, one))
        results = (("dx", "out", out, shape),)
        return self._result(sized, _LOG_SUM_EXP_BACKWARD, inputs, results, "x")


class RowSum(_OfRows):
    """The sum of each row. Arguments as for `Softmax`.

    >>> RowSum(1, 3).forward(np.ones((1, 3), np.float32)).tolist()
    [3.0]
    """

    _function = "sum"

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """One number for each row, in `out` if that is given."""
        sized, shape = self._wide("x", x)
        key = (row_stream, self._function, ())
        results = (("value", "out", out, shape[:1]),)
        return self._result(sized, key, (("x", "x", x, shape),), results)

    def backward(self, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """dx, in `out` if that is given: dy, of shape (rows,), in all elements of its row (of a
        mean: divided by the columns)."""
        value = dy if type(dy) is np.ndarray else doors.view("dy", dy)
        rows = (value.shape[0] if value.ndim else 0, self._at.columns)
        sized = self._another(rows, self._shape)
        shape = (sized.at.batch, self._at.columns)
        key = (row_stream, f"{self._function}_backward", ())
        inputs = (("gradient", "dy", dy, shape[:1]),)
        return self._result(sized, key, inputs, (("dx", "out", out, shape),))


class RowMean(RowSum):
    """The mean of each row. Arguments as for `Softmax`.

    >>> RowMean(1, 3).forward(np.ones((1, 3), np.float32)).tolist()
    [1.0]
    """

    _function = "mean"


class _Norm(_OfRows):
    """What norms share: eps, a scale, what backward needs of each row."""

    def __init__(
        self, rows: int, columns: int, *, eps: float = 1e-5, affine: bool = True,
        dtype: DTypeLike = "f32", threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        #: whether there is a scale (and a shift)
        self.affine = doors.flag("affine", affine)
        self._open(rows, columns, dtype, threads, target, eps)

    @property
    def eps(self) -> float:
        """What is added to the mean square."""
        return float(self._at.eps)

    def _words(self) -> list[str]:
        plain = [] if self.affine else ["no scale"]
        return [*super()._words(), f"eps={self.eps:g}", *plain]

    def _forward(
        self, x: Any, columns: Sequence[Argument], out: Any, numbers: Sequence[Argument]
    ) -> np.ndarray:
        sized, shape = self._wide("x", x)
        inputs, results = [("x", "x", x, shape)], [("y", "out", out, shape)]
        given = self._scales(columns, inputs, shape[1:])
        for name, value in numbers:
            if value is not None:
                results.append((name, name, value, shape[:1]))
                given += (name,)
        return self._result(sized, (row_stream, self._function, given), inputs, results, "x")

    def _backward(
        self, dy: Any, x: Any, numbers: Sequence[Argument], scale: Any, out: Any,
        gradients: Sequence[Argument],
    ) -> Any:  # fmt: skip
        sized, shape = self._wide("dy", dy)
        inputs = [("dy", "dy", dy, shape), ("x", "x", x, shape)]
        results = [("dx", "out", out, shape)]
        for name, value in numbers:
            inputs.append((name, name, value, shape[:1]))
        given = self._scales((("scale", scale),), inputs, shape[1:])
        for name, value in gradients:
            if self._wanted(name, value, self.affine, "affine=False"):
                results.append((name, name, value, shape[1:]))
                given += (name,)
        key = (row_stream, f"{self._function}_backward", given)
        found = self._call(sized, key, inputs, results, "dy")
        return tuple(found) if self.affine else found[0]

    def _scales(
        self, columns: Sequence[Argument], inputs: list[Operand], shape: Shape
    ) -> tuple[str, ...]:
        """Add the arrays that there must be with an element for each column; their names."""
        names: tuple[str, ...] = ()
        for name, value in columns:
            if self._wanted(name, value, self.affine, "affine=False"):
                if value is None:
                    raise ValueError(f"{name} is missing; the layer was made with affine=True")
                inputs.append((name, name, value, shape))
                names += (name,)
        return names


class LayerNorm(_Norm):
    """Each row less its mean, divided by its standard deviation:

        y = (x - mean) rstd scale + shift,   rstd = 1 / sqrt(mean of (x - mean)^2 + eps)

    affine: whether there are scale and shift, of shape (columns,). Others as for `Softmax`.

    >>> LayerNorm(1, 2, affine=False).forward(np.array([[1, 3]], np.float32)).round(3).tolist()
    [[-1.0, 1.0]]
    """

    _function = "layer_norm"

    def forward(
        self, x: np.ndarray, scale: np.ndarray | None = None, shift: np.ndarray | None = None,
        out: np.ndarray | None = None, *, mean: np.ndarray | None = None,
        rstd: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """y, in `out` if that is given; it may be x itself. mean, rstd: arrays of shape (rows,)
        that receive the numbers of each row, for `backward`."""
        columns = (("scale", scale), ("shift", shift))
        return self._forward(x, columns, out, (("mean", mean), ("rstd", rstd)))

    def backward(
        self, dy: np.ndarray, x: np.ndarray, mean: np.ndarray, rstd: np.ndarray,
        scale: np.ndarray | None = None, out: np.ndarray | None = None, *,
        dscale: np.ndarray | None = None, dshift: np.ndarray | None = None,
    ) -> Any:  # fmt: skip
        """(dx, dscale, dshift), or dx without scale and shift; in `out`, dscale and dshift if these
        are given. out may be dy itself. mean and rstd are what `forward` left there."""
        gradients = (("dscale", dscale), ("dshift", dshift))
        return self._backward(dy, x, (("mean", mean), ("rstd", rstd)), scale, out, gradients)


class RmsNorm(_Norm):
    """Each row divided by its root mean square:

        y = x rstd scale,   rstd = 1 / sqrt(mean of x^2 + eps)

    affine: whether there is a scale, of shape (columns,). Others as for `Softmax`.

    >>> RmsNorm(1, 2, affine=False).forward(np.array([[3, 3]], np.float32)).round(3).tolist()
    [[1.0, 1.0]]
    """

    _function = "rms_norm"

    def forward(
        self, x: np.ndarray, scale: np.ndarray | None = None, out: np.ndarray | None = None, *,
        rstd: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """y, in `out` if that is given; it may be x itself. rstd: an array of shape (rows,) that
        receives the number of each row, for `backward`."""
        return self._forward(x, (("scale", scale),), out, (("rstd", rstd),))

    def backward(
        self, dy: np.ndarray, x: np.ndarray, rstd: np.ndarray, scale: np.ndarray | None = None,
        out: np.ndarray | None = None, *, dscale: np.ndarray | None = None,
    ) -> Any:  # fmt: skip
        """(dx, dscale), or dx without a scale; in `out` and dscale if these are given. out may be
        dy itself. rstd is what `forward` left there."""
        return self._backward(dy, x, (("rstd", rstd),), scale, out, (("dscale", dscale),))
