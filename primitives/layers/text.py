"""A layer from its text, as a command line takes it: "Convolution(4, 64, 56, 56, 64, 3)".

The text is a call of a known layer with literals as arguments; it is parsed, never evaluated. Not
here: what arguments may be (the layers).
"""

from __future__ import annotations

import ast
import inspect
import warnings
from typing import Any

from jitgen import doors
from jitgen.primitives.layers.base import Layer
from jitgen.primitives.layers.convolution import Convolution
from jitgen.primitives.layers.convolution_1d import convolution_1d
from jitgen.primitives.layers.fully_connected import FullyConnected
from jitgen.primitives.layers.normalisation import (
    LayerNorm,
    LogSoftmax,
    LogSumExp,
    RmsNorm,
    RowMean,
    RowSum,
    Softmax,
)
from jitgen.primitives.layers.pooling import AveragePool, MaxPool
from jitgen.primitives.layers.recurrent import Gru, Lstm, Rnn

#: What makes a layer, by the name that texts call it by
LAYERS: dict[str, Any] = {
    make.__name__: make
    for make in (
        FullyConnected, Convolution, convolution_1d, MaxPool, AveragePool, Lstm, Gru, Rnn,
        Softmax, LogSoftmax, LogSumExp, RowSum, RowMean, LayerNorm, RmsNorm,
    )
}  # fmt: skip
#: Characters of a text, at most
LONGEST = 1000
FORM = "must be a layer with its arguments, as in FullyConnected(64, 256, 128, activation='relu')"


def layer_of(text: str, **options: Any) -> Layer:
    """The layer that `text` says, a call of one of `LAYERS` with literals; `options` are more of
    its arguments (None: not given), which the text must not have. TypeError or ValueError that
    says what is wrong, with the text or as the layer itself does.

    >>> layer_of("FullyConnected(4, 8, 16, activation='relu')", threads=2).threads
    2
    """
    text = doors.text("layer", text).strip()
    where = f"layer={doors.shown(text)}"
    call = _parsed(where, text)
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise ValueError(f"{where} {FORM}")
    name = call.func.id
    if name not in LAYERS:
        raise ValueError(f"{where}: {doors.shown(name)} is not one of {', '.join(LAYERS)}")
    given = [_literal(where, f"argument {i}", node) for i, node in enumerate(call.args, 1)]
    named: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in named:
            what = "** is not taken" if keyword.arg is None else f"{keyword.arg} is given twice"
            raise ValueError(f"{where}: {what}")
        named[keyword.arg] = _literal(where, keyword.arg, keyword.value)
    for option, value in options.items():
        if value is not None:
            if option in named:
                raise ValueError(f"{where}: {option} is given twice, in the text and beside it")
            named[option] = value
    try:
        inspect.signature(LAYERS[name]).bind(*given, **named)
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None
    layer: Layer = LAYERS[name](*given, **named)
    return layer


def _parsed(where: str, text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ValueError(f"{where} has {len(text)} characters; it has {LONGEST} at most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error) or "too deep"
        raise ValueError(f"{where} {FORM}: {message}") from None


def _literal(where: str, what: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(
            f"{where}: {what} is not a literal (a number, a string, None, True, False, or a tuple "
            "or dict of such)"
        ) from None
