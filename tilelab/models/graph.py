"""An ONNX graph as a torch module: what it computes, with weights that can be trained and put back into the file.

So every file that runs can learn on, whoever made it: no architecture has to be known, none rebuilt.  Batch
normalisation was folded away at export, which suits few images: their statistics would tell little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.operators import OPERATORS

_LEAST = 1e-6  # of a probability
_TRAINED = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "PRelu": (1,)}
"""Which inputs of an operator are weights; and of the others `_SCALES`, where they are per channel."""
_FEATURES = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}
"""The axis of an operator's weights along which its results' features lie; `Gemm` says it itself."""
_SCALES = {"BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2)}


class GraphNetwork(nn.Module):
    """A network in an ONNX file.

    Args:
        path: of the file; its weights may lie beside it.
        ending: the function that it ends with, which is taken back: what it gives are logits all the same.

    Attributes:
        feature_axes: of each of its `weights`, the axis along which the features lie that it makes; None of biases and
            of scales, of which each feature has its own.

    Raises:
        ModelError: it has operators that are not known here (they are named), holds no fp32 weights, or has several
            inputs or outputs.
    """

    def __init__(self, path: Path, ending: Literal["", "softmax", "sigmoid"] = "") -> None:
        super().__init__()
        import onnx
        from onnx import numpy_helper

        self.model = onnx.load(str(path))
        graph = self.model.graph
        unknown = sorted({node.op_type for node in graph.node if node.op_type not in OPERATORS or node.domain})
        if unknown:
            raise ModelError(f"{path} cannot be trained on: its operators {', '.join(unknown)} are not known here")
        held = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
        inputs = [port.name for port in graph.input if port.name not in held]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ModelError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs: one of each is trained")
        self._ending = ending
        self._input, self._output = inputs[0], graph.output[0].name
        table = _TRAINED | _SCALES
        trained = {node.input[i] for node in graph.node for i in table.get(node.op_type, ()) if i < len(node.input)}
        trained = {name for name in trained if name in held and held[name].dtype == torch.float32}
        if not trained:
            raise ModelError(f"{path} holds no fp32 weights to train: give the fp32 file that it was made from")
        self._names = sorted(trained)
        axes = {node.input[1]: _feature_axis(node) for node in graph.node if len(node.input) > 1}
        self.feature_axes = tuple(axes.get(name) if held[name].ndim > 1 else None for name in self._names)
        self.weights = nn.ParameterList([nn.Parameter(held[name]) for name in self._names])
        self._held = {name: tensor for name, tensor in held.items() if name not in trained}
        self._nodes = [
            (OPERATORS[node.op_type], list(node.input), list(node.output), _attributes(node)) for node in graph.node
        ]
        self._last_use = {name: i for i, (_, names, _, _) in enumerate(self._nodes) for name in names}
        self._last_use[self._output] = len(self._nodes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the file says, in logits."""
        values: dict[str, Any] = {"": None, self._input: x, **self._held}
        values |= zip(self._names, self.weights, strict=True)
        for i, (operator, inputs, outputs, attributes) in enumerate(self._nodes):
            given = [values[name] for name in inputs]
            found = operator(given, attributes)
            values |= zip(outputs, found if isinstance(found, tuple) else (found,), strict=False)
            for name in inputs:
                if name and self._last_use[name] == i:  # what nobody needs any more is not kept
                    values.pop(name, None)
        result: torch.Tensor = values[self._output]
        if self._ending == "softmax":
            return result.float().clamp_min(_LEAST).log()
        return torch.logit(result.float(), _LEAST) if self._ending == "sigmoid" else result

    def save(self, path: Path) -> None:
        """Write the file with the weights as they are now.

        Raises:
            ModelError: they do not fit into one file.
        """
        from onnx import numpy_helper

        now = dict(zip(self._names, self.weights, strict=True))
        for tensor in self.model.graph.initializer:
            if tensor.name in now:
                tensor.CopyFrom(numpy_helper.from_array(now[tensor.name].detach().cpu().numpy(), tensor.name))
        try:
            path.write_bytes(self.model.SerializeToString(deterministic=True))
        except ValueError as error:
            raise ModelError(f"{path} would be larger than 2 GB: {error}") from error


def _feature_axis(node: Any) -> int | None:
    if node.op_type == "Gemm":
        return 0 if _attributes(node).get("transB") else 1
    return _FEATURES.get(node.op_type)


def _attributes(node: Any) -> dict[str, Any]:
    """By name; tensors as torch's, texts as str."""
    from onnx import helper, numpy_helper

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value" and hasattr(value, "dims"):
            value = torch.from_numpy(numpy_helper.to_array(value).copy())
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found
