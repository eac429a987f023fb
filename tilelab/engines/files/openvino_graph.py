"""The graph of an OpenVINO model in ONNX's words, from the objects of the library that read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.engines.files.graph import MOST_NUMBERS, Attribute, Graph, Operation

# OpenVINO's name of an operator, where ONNX has another.
_NAMES = {
    "Convert": "Cast",
    "ConvertLike": "CastLike",
    "SoftMax": "Softmax",
    "SoftPlus": "Softplus",
    "Multiply": "Mul",
    "Divide": "Div",
    "Subtract": "Sub",
    "Negative": "Neg",
    "Power": "Pow",
    "Clamp": "Clip",
    "Interpolate": "Resize",
    "StridedSlice": "Slice",
    "VariadicSplit": "Split",
    "Broadcast": "Expand",
    "Select": "Where",
    "Maximum": "Max",
    "Minimum": "Min",
    "Ceiling": "Ceil",
    "Floor": "Floor",
    "AvgPool": "AveragePool",
    "Convolution": "Conv",
    "GreaterEqual": "GreaterOrEqual",
    "LessEqual": "LessOrEqual",
    "LogicalNot": "Not",
    "LogicalAnd": "And",
    "LogicalOr": "Or",
    "LogicalXor": "Xor",
    "ReLU": "Relu",
    "HSigmoid": "HardSigmoid",
}
_AXIS_INPUT = {"Gather": 2, "Split": 1, "VariadicSplit": 1}
_ORDER = {"Pad": (0, 1, 3), "Slice": (0, 1, 2, 4, 3)}  # of inputs, as ONNX has them
_INTEGER = 2  # any of TensorProto.DataType that is whole


def read_graph(model: Any, ports: list[str]) -> Graph:
    """The operators and small constants of an ``openvino.Model``; `ports` are the names of its outputs."""
    graph = Graph()
    for node in model.get_ordered_ops():
        kind, outputs = node.get_type_name(), tuple(_tensor(out) for out in node.outputs())
        if kind == "Constant":
            graph.shapes[outputs[0]] = tuple(node.get_output_shape(0))
            if np.prod(node.get_output_shape(0)) <= MOST_NUMBERS:
                graph.constants[outputs[0]] = np.asarray(node.data).astype(np.float64)
            continue
        name = _NAMES.get(kind, kind)
        inputs = [_tensor(value) for value in node.input_values()]
        attributes = _attributes(node, name)
        if kind in _AXIS_INPUT and (axis := graph.constants.get(inputs[_AXIS_INPUT[kind]])) is not None:
            attributes["axis"] = float(axis.reshape(-1)[0])
        order = _ORDER.get(kind, range(len(inputs)))
        graph.add(Operation(name, tuple(inputs[i] for i in order if i < len(inputs)), outputs, attributes))
    for port, result in zip(ports, model.outputs, strict=True):
        graph.add(Operation("Identity", (_tensor(result.node.input_value(0)),), (port,)))
    return graph


def _tensor(output: Any) -> str:
    return f"{output.get_node().get_name()}/{output.get_index()}"


def _attributes(node: Any, name: str) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for key, value in node.get_attributes().items():
        if isinstance(value, bool | int | float):
            found[key] = float(value)
        elif isinstance(value, str):
            found[key] = value
        elif isinstance(value, list | tuple) and all(isinstance(n, int | float) for n in value):
            found[key] = tuple(float(n) for n in value)
    if name == "Cast":
        found["to"] = 1.0 if node.get_output_element_type(0).is_real() else float(_INTEGER)
    if node.get_type_name() == "StridedSlice":  # its axes are those that are left whole by no mask and no extent
        masks = zip(*(node.get_attributes()[key] for key in ("begin_mask", "end_mask")), strict=False)
        extents = zip(node.input_value(0).get_partial_shape(), node.get_output_partial_shape(0), strict=False)
        found["axes"] = tuple(
            float(axis)
            for axis, (mask, (before, after)) in enumerate(zip(masks, extents, strict=False))
            if not all(mask) and not (before.is_static and before == after)
        )
    if name == "Pad":
        found["mode"] = found.get("pad_mode", "constant")
    if name == "Resize":
        found.setdefault("mode", "nearest")
    return found
