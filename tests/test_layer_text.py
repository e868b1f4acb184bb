"""Layers from text: literals only, and errors that name what is wrong.

Not here: what layers take (the tests of each).
"""

from __future__ import annotations

import random
import re

import pytest

from jitgen import Convolution, FullyConnected
from jitgen.primitives.layers.text import LAYERS, LONGEST, layer_of

TEXTS = (
    "FullyConnected(4, 8, 16, activation='relu', residual=True)",
    "FullyConnected(4, 8, 16, blocks=(4, 16), order='nm')",
    "FullyConnected(4, 8, 16, activation=('leaky_relu', -0.25), bias=False, dtype='f64')",
    "Convolution(4, 64, 56, 56, 64, 3, padding=1)",
    "Convolution(1, 4, 9, 9, 8, (3, 1), padding=((1, 1), (0, 0)), layout=\"nhwc\", groups=4)",
    "Convolution(1, 4, 9, 9, 8, 3, padding='same', blocks={'forward': (7, 4)})",
    "convolution_1d(2, 3, 8, 4, 3, padding=(1, 0))",
    "MaxPool(2, 3, 8, 8, 3, stride=2, padding=1, threads=None)",
    "AveragePool(2, 3, 8, 8, kernel=(8, 8))",
    "Lstm(2, 3, 4, 5, direction='bidirectional', peephole=True, forget_bias=-1)",
    "Gru(2, 3, 4, 5, reset='before')",
    "Rnn(2, 3, 4, 5, target='avx2')",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_gives_the_layer_that_python_gives(text: str) -> None:
    layer = layer_of(f"  {text}\n")
    assert repr(layer) == repr(eval(text, dict(LAYERS)))
    assert type(layer).__name__.lstrip("_") in (*LAYERS, "Signals")


def test_options_beside_the_text() -> None:
    layer = layer_of("Convolution(4, 64, 56, 56, 64, 3)", target="sve256", threads=3)
    assert isinstance(layer, Convolution)
    assert (layer.target.name, layer.threads) == ("sve256", 3)
    layer = layer_of("FullyConnected(4, 8, 16, threads=2)", target=None, threads=None)
    assert isinstance(layer, FullyConnected) and layer.threads == 2


@pytest.mark.parametrize(("text", "error", "message"), [
    ("Foo(3)", ValueError, "layer='Foo(3)': 'Foo' is not one of FullyConnected, Convolution, "
     "convolution_1d, MaxPool, AveragePool, Lstm, Gru, Rnn, Softmax, LogSoftmax, LogSumExp, "
     "RowSum, RowMean, LayerNorm, RmsNorm"),
    ("Lstm", ValueError, "layer='Lstm' must be a layer with its arguments, as in "
     "FullyConnected(64, 256, 128, activation='relu')"),
    ("Lstm(1, 2", ValueError, "layer='Lstm(1, 2' must be a layer with its arguments, as in "
     "FullyConnected(64, 256, 128, activation='relu'): '(' was never closed"),
    ("jitgen.Lstm(1)", ValueError, "layer='jitgen.Lstm(1)' must be a layer with its arguments, as "
     "in FullyConnected(64, 256, 128, activation='relu')"),
    ("Lstm(1, 2, 3, n)", ValueError, "layer='Lstm(1, 2, 3, n)': argument 4 is not a literal (a "
     "number, a string, None, True, False, or a tuple or dict of such)"),
    ("Lstm(1, 2, 3, 2 * 2)", ValueError, "layer='Lstm(1, 2, 3, 2 * 2)': argument 4 is not a "
     "literal (a number, a string, None, True, False, or a tuple or dict of such)"),
    ("Lstm(1, 2, 3, bias=f())", ValueError, "layer='Lstm(1, 2, 3, bias=f())': bias is not a "
     "literal (a number, a string, None, True, False, or a tuple or dict of such)"),
    ("Lstm(*(1, 2))", ValueError, "layer='Lstm(*(1, 2))': argument 1 is not a literal (a number, "
     "a string, None, True, False, or a tuple or dict of such)"),
    ("Lstm(**{})", ValueError, "layer='Lstm(**{})': ** is not taken"),
    ("Lstm(1, bias=1, bias=2)", ValueError, "layer='Lstm(1, bias=1, bias=2)': bias is given twice"),
    ("Lstm(1, 2)", TypeError, "layer='Lstm(1, 2)': missing a required argument: 'in_features'"),
    ("Lstm(1, 2, 3, 4, 5)", TypeError, "layer='Lstm(1, 2, 3, 4, 5)': too many positional "
     "arguments"),
    ("Rnn(1, 2, 3, 4, foo=5)", TypeError, "layer='Rnn(1, 2, 3, 4, foo=5)': got an unexpected "
     "keyword argument 'foo'"),
    ("Rnn(1, 2, 3, -4)", ValueError, "hidden=-4 is smaller than 1"),
    ("Rnn(1, 2, 3, 4, threads=1)", ValueError, "layer='Rnn(1, 2, 3, 4, threads=1)': threads is "
     "given twice, in the text and beside it"),
])  # fmt: skip
def test_what_is_wrong_is_named(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
        layer_of(text, threads=2 if "threads" in text else None)
    if "hidden" not in message:
        assert str(caught.value) == message


def test_texts_of_any_depth_and_length() -> None:
    for text in ("(" * 900, "Lstm(" + "-" * 900 + "1)", f"Lstm({'[' * 400}{']' * 400})",
                 f"Lstm({'9' * 900})", f"Lstm({'1, ' * 250})", "Lstm(\0)", ""):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            layer_of(text)
    with pytest.raises(ValueError, match=f"has 1021 characters; it has {LONGEST} at most"):
        layer_of("x" * 1021)
    with pytest.raises(TypeError, match="layer=3 "):
        layer_of(3)  # type: ignore[arg-type]


def test_mutated_texts_give_a_layer_or_an_error_that_says_why() -> None:
    rng, good = random.Random(11), 0
    signs = "()[]{},.=*'\"-+ 019e_lLNT\\\n\0:#;%é"
    for i in range(600):
        text = list(TEXTS[i % len(TEXTS)])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 2)] = rng.choice(["", rng.choice(signs)])
        try:
            layer_of("".join(text))
            good += 1
        except (TypeError, ValueError) as error:
            assert str(error)
    assert 5 < good < 400
