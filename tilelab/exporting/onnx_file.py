"""Trace a network to ONNX: one file, fixed names, normalisation folded, no trace of the machine it was made on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.spec import METADATA_KEY, ModelSpec

OPSET = 18
INPUT, OUTPUT = "input", "logits"
_LARGEST_FILE = 2**31  # protobuf's limit; beyond it weights must lie in a second file


def write_onnx(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write `network` as an ONNX file that carries `spec`.

    The batch is free; height and width are free where ``spec.tile_fixed`` is false, and then multiples of the stride.

    Args:
        network: in evaluation mode, on the CPU.
        spec: its description.
        path: written directly; give a temporary name and rename when the file has been checked.

    Raises:
        ModelError: the network cannot be traced, or is larger than 2 GB.
    """
    import onnx

    tile = spec.tile
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if not spec.tile_fixed:
        least = -(-(spec.tile_min or (spec.stride,))[0] // spec.stride)
        for axis, name in enumerate("hw", start=2):
            # sizes are a multiple of the stride by construction, which spares the graph every check of it
            count = torch.export.Dim(name, min=least, max=2**16)
            shapes[axis] = spec.stride * count if spec.stride > 1 else count
        tile = tuple(spec.stride * max(4, 128 // spec.stride) for _ in tile)
    # torch.export takes a dimension of 1 for a constant
    example = torch.zeros(2, spec.channels, *tile)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(shapes,),
                opset_version=OPSET,
                verbose=False,
                custom_translation_table={torch.ops.aten._is_all_true.default: _all_true},
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(f"{spec.architecture} cannot be exported: {_first_line(error)}") from error
    if program is None:
        raise ModelError(f"{spec.architecture} cannot be exported: the exporter returned nothing")
    model = program.model_proto
    if model.ByteSize() >= _LARGEST_FILE:
        raise ModelError(f"{spec.architecture} is larger than 2 GB: it does not fit one ONNX file")
    strip_traces(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, spec.to_json()
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _all_true(values: Any) -> Any:
    """Whether all of a boolean tensor is true, which torch's exporter has no words for (OneFormer asks it)."""
    from onnxscript import opset18

    return opset18.Cast(opset18.ReduceMin(opset18.Cast(values, to=6), keepdims=0), to=9)


def strip_traces(model: Any) -> None:
    """Remove what the exporter noted about sources and names: local paths among it, and half the bytes."""
    graph = model.graph
    model.ClearField("metadata_props")
    for thing in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        thing.ClearField("doc_string")
        if thing is not model:
            thing.ClearField("metadata_props")
    graph.ClearField("value_info")  # engines infer the shapes of intermediate tensors themselves
    if len(model.functions):
        raise ModelError("the exported graph holds functions of its own: engines do not agree on them")


def round_weights(path: Path) -> None:
    """Round the weights of an ONNX file to 11 significant bits, half precision's, in place; they stay float32.

    What is left of each is 13 zeros, which any archive packs: a file takes about half as much in a wheel.

    Raises:
        ModelError: a weight is not finite.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(path.read_bytes())
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue  # a bias is small, and has nothing to average its error over
        weights = numpy_helper.to_array(tensor)
        if not np.isfinite(weights).all():
            raise ModelError(f"{path}: weights of {tensor.name} are not finite")
        bits = np.ascontiguousarray(weights).view(np.uint32)
        bits = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
        tensor.CopyFrom(numpy_helper.from_array(bits.view(np.float32), tensor.name))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _first_line(error: BaseException) -> str:
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    return next((line.strip() for line in str(deepest).splitlines() if line.strip()), type(deepest).__name__)
