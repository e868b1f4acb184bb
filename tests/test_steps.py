"""The table of epilogue steps: export bits that never change, parameters, spellings, and that all
kernels with an epilogue know every step that makes sense in them.

Not here: what steps compute (test_kernels, test_dot, test_depthwise, test_winograd), their errors
(test_functions, test_rectifiers).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import FUNCTIONS

import jitgen
from jitgen import FullyConnected
from jitgen.analysis.measure import Problem
from jitgen.emit.steps import SPELLINGS, STEPS
from jitgen.gemm.spec import make_epilogue, make_step
from jitgen.kernels.depthwise import emit_depthwise
from jitgen.kernels.dot import emit_dot
from jitgen.kernels.elementwise import OPS
from jitgen.kernels.strips import Axis
from jitgen.kernels.winograd import Grid, Squares, emit_winograd
from jitgen.objects.table import FLAGS, flag_bits
from jitgen.primitives.layers.elementwise import ACTIVATIONS
from jitgen.target import TARGETS

#: What exported tables hold, and programs that were compiled against them
BITS = {
    "bias": 16, "bias_row": 17, "residual": 18, "relu": 19, "relu_mask": 20, "leaky_relu": 21,
    "sigmoid": 22, "tanh": 23, "gelu": 24, "gelu_tanh": 25, "silu": 26, "clip": 27, "scale": 28,
    "exp": 29, "hardsigmoid": 30, "hardswish": 15, "elu": 14, "mish": 13,
}  # fmt: skip
PARAMETERS = {"leaky_relu": (0.1,), "clip": (0.0, 6.0), "scale": (2.0,)}


def example(name: str) -> tuple[Any, ...]:
    """A step with its parameters."""
    return (name, *PARAMETERS.get(name, ()))


def test_bits_are_those_of_before_and_none_is_used_twice() -> None:
    assert {name: step.bit for name, step in STEPS.items()} == BITS
    bits = flag_bits()
    assert len(set(bits.values())) == len(bits) == len(STEPS) + len(FLAGS)
    assert max(bits.values()) < 31  # C wants enumerators that are ints
    assert all(name == step.name for name, step in STEPS.items())


def test_parameters_and_spellings() -> None:
    made = make_epilogue(["elu", ("elu", 2), "hardsigmoid", ("hardsigmoid", 0.2), "relu6"])
    assert made == (
        ("elu", 1.0), ("elu", 2.0), ("hardsigmoid", 1 / 6, 0.5), ("hardsigmoid", 0.2, 0.5),
        ("clip", 0.0, 6.0),
    )  # fmt: skip
    assert not SPELLINGS.keys() & STEPS.keys()
    for step, words in (
        ("clip", "clip' takes low, high; got []"), (("relu6", 6), "'relu6' is not one of"),
        (("elu", 1, 2), "'elu' takes alpha; got [1, 2]"), ("scale", "'scale' takes factor"),
        (("elu", float("inf")), "elu alpha=inf is not finite"),
        (("hardsigmoid", float("nan")), "hardsigmoid alpha=nan is not finite"),
        (("mish", 1), "'mish' takes no parameter"), (("clip", 1, 0), "low=1.0 is above 0.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r".") as error:
            make_epilogue((step,))
        assert words in str(error.value)
    with pytest.raises(ValueError, match=r"activation=elu alpha=1e\+300 is too large for f32"):
        make_step("activation=", ("elu", 1e300), "f32")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", STEPS)
def test_every_kernel_knows_the_step_or_says_why_not(name: str, target: str) -> None:
    at, steps = TARGETS[target], (("bias",), example(name))[name == "bias" :]
    assert jitgen.brgemm(5, 19, 6, epilogue=steps, target=at).code
    one = Axis(1, 1, (0,), 4)
    kernels = (
        lambda: emit_dot(19, 6, 6, "f32", at, steps),
        lambda: emit_depthwise(one, one, 19, "f32", at, lda=(76, 19), ldb=19, ldc=(19, 19),
                               epilogue=steps),
        lambda: emit_winograd("output", 19, (Squares(1, (0, 2), (0, 2)),), Grid(76, 19, 0),
                              Grid(38, 19, 0), "f32", at, epilogue=steps),
    )  # fmt: skip
    for emit in kernels:
        if name in ("relu_mask", "bias_row"):
            with pytest.raises(ValueError, match=f"epilogue step '{name}': its operand lies by"):
                emit()
        else:
            assert emit()


def test_what_else_reads_the_table() -> None:
    """Gradients, and the oracle's own meanings, which are not the table's."""
    for name in ACTIVATIONS:
        assert bool(STEPS[name].known) == (f"{name}_backward" in OPS), name
        if f"{name}_backward" in OPS and STEPS[name].parameters:
            assert OPS[f"{name}_backward"].scalars == tuple(STEPS[name].parameters)
    x = np.linspace(-9, 9, 1001)
    for name, (function, slope) in FUNCTIONS.items():
        step = STEPS[name]
        parameters = list(step.parameters.values())
        np.testing.assert_allclose(step.meaning(x, *parameters), function(x), atol=1e-14)
        steep = np.abs(np.gradient(function(x), x)).max()
        if callable(step.slope):
            assert steep * 0.999 <= np.max(step.slope(x, *parameters)), name
        else:
            assert steep * 0.999 <= min(step.slope, slope), name


@pytest.mark.parametrize("name", STEPS)
def test_the_command_s_check_knows_the_step(name: str) -> None:
    if jitgen.targets()["avx2"]:
        pytest.skip("this CPU has no AVX2")
    for dtype in ("f32", "f64"):
        kernel = jitgen.brgemm(7, 21, 5, dtype, epilogue=(example(name),), target="avx2")
        assert Problem(kernel, 2).check().passed, name


def test_layers_show_their_activations() -> None:
    layer = FullyConnected(2, 3, 4, activation=("clip", 0, 6), residual=True, target="avx2")
    assert "residual, clip 0.0 6.0, f32" in repr(layer)
