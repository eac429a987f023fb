"""Does an engine really compute what it should here?  One small convolution, whose result is exact in every precision.

Pixels and weights are small whole numbers (weights in quarters), so that products and sums fit bf16's 8 bits.  In int8
they are as large as it holds, or nothing: pairs of products exceed 16 bits, in which some kernels add them, and every
sum is a multiple of one product, so that the output is exact in 8 bits, too.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from tilelab.arrays import Float32, Int8
from tilelab.engines.files import onnx as onnx_file
from tilelab.engines.files.protobuf import number_field, payload_field
from tilelab.errors import TilelabError
from tilelab.spec import ClassInfo, ModelSpec, Normalization, Precision

_SIZE = 16
_OPSET = 13
_FLOAT, _INT8 = 1, 3
_WEIGHT = np.array([[[[1, -2, 1], [0, 3, 0], [-1, 2, -1]]], [[[2, 0, -2], [1, 1, -1], [0, -3, 0]]]], np.int8)
_SIGNS = np.array([[[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], [[[-1, -1, 1], [0, -1, -1], [1, -1, -1]]]], np.int8)
_QUARTER = np.float32(0.25)
_MOST = 127
_MOST_WEIGHT = {"openvino": 64}
"""Its kernels may add in 16 bits, which such weights do not exceed: files for it have them, others are warned of."""


def selftest(engine: str, device: str, precision: Precision) -> str:
    """Run the convolution on one engine; why it fails, or the empty string when its result is exact."""
    from tilelab.engines.registry import load_engine

    quantized = precision == "int8"
    pixels = np.random.default_rng(0).integers(-3, 4, (1, 1, _SIZE, _SIZE)).astype(np.float32)
    weight = _WEIGHT
    if quantized:
        pixels, weight = np.sign(pixels) * _MOST, _SIGNS * np.int8(_MOST_WEIGHT.get(engine, _MOST))
    out = np.zeros((1, 2, _SIZE, _SIZE), np.float32)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "selftest.onnx"
        path.write_bytes(_model(weight, quantized=quantized))
        spec = ModelSpec(
            classes=(ClassInfo("a", "#000000"), ClassInfo("b", "#ffffff")),
            normalization=Normalization(mean=(0.0,), std=(1.0,)),
            tile=(_SIZE, _SIZE),
            overlap=(0, 0),
            precisions=(precision,),
        )
        onnx_file.embed_spec(path, spec)
        try:
            loaded = load_engine(path, engine=engine, device=device, precision=precision)
            loaded.run(pixels, out)
            loaded.close()
        except TilelabError as error:
            return str(error)
    wrong = int((out != _expected(pixels, weight)).sum())
    return f"gives wrong numbers: {wrong} of {out.size} values of a test convolution" if wrong else ""


def _expected(pixels: Float32, weight: Int8) -> Float32:
    padded = np.pad(pixels[0, 0], 1)
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    result: Float32 = np.einsum("yxij,kij->kyx", views, weight[:, 0] * _QUARTER)[None]
    return result


def _model(weight: Int8, *, quantized: bool) -> bytes:
    """The convolution as an ONNX file; quantised with steps of 1, 1/4 and one product."""
    weights = [_tensor("step", np.float32(1)), _tensor("zero", np.int8(0)), _tensor("quarter", _QUARTER)]
    source, sums, nodes = "tiles", "logits", []
    if quantized:
        nodes += [
            _node("QuantizeLinear", ["tiles", "step", "zero"], "whole"),
            _node("DequantizeLinear", ["whole", "step", "zero"], "again"),
            _node("DequantizeLinear", ["weight8", "quarter", "zero"], "weight"),
        ]
        source, sums = "again", "sums"
        product = np.float32(_MOST * int(weight.max())) * _QUARTER
        weights += [_tensor("weight8", weight), _tensor("product", product)]
    else:
        weights.append(_tensor("weight", weight * _QUARTER))
    same = payload_field(1, b"auto_pad") + payload_field(4, b"SAME_UPPER") + number_field(20, 3)
    nodes.append(_node("Conv", [source, "weight"], sums) + payload_field(5, same))
    if quantized:
        nodes += [
            _node("QuantizeLinear", [sums, "product", "zero"], "whole_sums"),
            _node("DequantizeLinear", ["whole_sums", "product", "zero"], "logits"),
        ]
    graph = (
        b"".join(payload_field(1, node) for node in nodes)
        + payload_field(2, b"selftest")
        + b"".join(payload_field(5, weight) for weight in weights)
        + payload_field(11, _value("tiles", 1))
        + payload_field(12, _value("logits", 2))
    )
    return number_field(1, 8) + payload_field(7, graph) + payload_field(8, number_field(2, _OPSET))


def _node(operator: str, inputs: list[str], output: str) -> bytes:
    names = b"".join(payload_field(1, name.encode()) for name in inputs)
    return names + payload_field(2, output.encode()) + payload_field(4, operator.encode())


def _tensor(name: str, value: npt.NDArray[np.generic] | np.generic) -> bytes:
    array = np.asarray(value)
    kind = _INT8 if array.dtype == np.int8 else _FLOAT
    dims = b"".join(number_field(1, n) for n in array.shape)
    return dims + number_field(2, kind) + payload_field(8, name.encode()) + payload_field(9, array.tobytes())


def _value(name: str, channels: int) -> bytes:
    dims = b"".join(payload_field(1, number_field(1, n)) for n in (1, channels, _SIZE, _SIZE))
    tensor = number_field(1, _FLOAT) + payload_field(2, dims)
    return payload_field(1, name.encode()) + payload_field(2, payload_field(1, tensor))
