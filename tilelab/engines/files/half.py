"""Networks in half precision, as ONNX: converted for GPUs, and simulated for machines that cannot compute so."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tilelab.errors import EngineError
from tilelab.text import explain


def convert_to_half(path: Path) -> bytes:
    """An fp32 ONNX model with its weights and arithmetic in fp16; inputs and outputs stay float32.

    Raises:
        EngineError: the package onnx or ONNX Runtime's converter is not installed.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise EngineError(f"fp16 needs the package onnx ({explain(error)}): pip install onnx") from error

    model = onnx.load(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of every weight that it rounds to zero
        half = convert_float_to_float16(model, keep_io_types=True)
    _sort(half.graph)  # the converter appends the casts of inputs at the end
    half.graph.ClearField("value_info")  # engines infer the shapes of intermediate tensors themselves
    data: bytes = half.SerializeToString(deterministic=True)
    return data


def _sort(graph: Any) -> None:
    """Put every node after those whose results it takes, as ONNX demands; otherwise in the order they are in."""
    known = {"", *(v.name for v in graph.input), *(w.name for w in graph.initializer)}
    # copied out before the field is cleared: nodes in it do not outlive it
    waiting = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    graph.ClearField("node")
    while waiting:
        later = []
        for node in waiting:
            if known.issuperset(node.input):
                graph.node.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise EngineError("the network's graph has a cycle: it cannot be converted to fp16")
        waiting = later


def simulate_half(half: bytes) -> bytes:
    """A model of `convert_to_half` in float32 that rounds every result to half precision, as a GPU would.

    CPUs without fp16 arithmetic run such a model in fp32 and never notice an overflow.  Products are summed in float32
    here, as tensor cores do.

    Args:
        half: an ONNX model with float32 inputs and outputs.

    Returns:
        An ONNX model; its weights are those of `half`.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    model = onnx.load_from_string(half)
    typed = shape_inference.infer_shapes(model).graph
    halves = {v.name for v in typed.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}

    def widen(tensor: Any) -> None:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))

    graph = model.graph
    for weight in graph.initializer:
        widen(weight)
    nodes = []
    for node in graph.node:
        made = [name for name in node.output if name in halves]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type == "Constant":
            continue
        for name in made:
            exact, rounded = f"{name}.exact", f"{name}.rounded"
            node.output[list(node.output).index(name)] = exact
            nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    # copied out before the field is cleared: nodes in it do not outlive it
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    graph.ClearField("value_info")
    data: bytes = model.SerializeToString(deterministic=True)
    return data
