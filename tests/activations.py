"""What layers take as `activation`: examples, and what they compute in float64.

Written from the documentation, without the product's table. Not here: errors of the functions
(test_functions, test_rectifiers).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from oracle import FUNCTIONS

#: (argument, what the gradient is made from: the output "y", the input "z"; "" if there is none)
EXAMPLES: tuple[tuple[Any, str], ...] = (
    ("relu", "y"), ("sigmoid", "y"), ("tanh", "y"), ("gelu", "z"), ("silu", "z"),
    (("clip", -0.5, 1), "y"), ("relu6", "y"), (("leaky_relu", 0.1), "y"), ("exp", "y"),
    ("hardsigmoid", "y"), (("hardsigmoid", 0.2, 0.4), "y"), ("hardswish", "z"), ("elu", "y"),
    (("elu", 0.4), "y"), ("mish", ""), ("gelu_tanh", ""),
)  # fmt: skip
#: Those with a gradient
DIFFERENTIABLE = tuple((activation, known) for activation, known in EXAMPLES if known)


def name_of(activation: Any) -> str:
    """The name of a step that an argument says."""
    name = activation if isinstance(activation, str) else activation[0]
    return "clip" if name == "relu6" else name


def activated(activation: Any, x: np.ndarray) -> np.ndarray:
    """The activation of x in float64."""
    if activation is None:
        return x
    name, *parameters = (activation,) if isinstance(activation, str) else activation
    match name:
        case "relu":
            return np.maximum(x, 0)
        case "relu6":
            return np.clip(x, 0, 6)
        case "clip":
            return np.clip(x, *parameters)
        case "leaky_relu":
            return np.where(x < 0, parameters[0] * x, x)
        case _:
            return FUNCTIONS[name][0](x, *parameters)
