"""A model in ONNX Runtime, as the benchmarks call it: all graph optimisations, bound arrays.

What it is: nodes and arrays made into a session. What it is not: it knows no layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Model:
    """Nodes (of onnx.helper.make_node) with constants, from input to output arrays by name, all
    f32. Raises ImportError without onnx and onnxruntime.

    `run` reads the inputs and writes the outputs in place. profile: the time of nodes goes to a
    file of that prefix.
    """

    def __init__(
        self, nodes: Sequence[Any], constants: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], threads: int,
        profile: str | None = None,
    ) -> None:  # fmt: skip
        import onnx
        import onnxruntime

        helper = onnx.helper
        ends = [
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
                for name, array in arrays.items()
            ]
            for arrays in (inputs, outputs)
        ]
        initial = [
            onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in constants.items()
        ]
        graph = helper.make_graph(list(nodes), "model", ends[0], ends[1], initial)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        # the binding knows addresses only: the arrays live as long as the model
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._binding = self.session.io_binding()
        for arrays, bind in (
            (inputs, self._binding.bind_input), (outputs, self._binding.bind_output)
        ):  # fmt: skip
            for name, array in arrays.items():
                bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self) -> tuple[np.ndarray, ...]:
        """The outputs; the arrays are those of every call."""
        self.session.run_with_iobinding(self._binding)
        return tuple(self.outputs.values())
