"""Small ONNX files for tests, made without torch: weights from a fixed seed, every option of interest by keyword."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilelab.spec import METADATA_KEY, ClassInfo, ModelSpec, Normalization

OPSET = 18
Extent = tuple[int | str, ...]


def make_spec(
    tile: tuple[int, ...] = (32, 32), *, classes: int = 2, channels: int = 1, stride: int = 1, **more: object
) -> ModelSpec:
    """A description that fits the models below."""
    options: dict[str, object] = {
        "name": "tiny",
        "axes": "zyx" if len(tile) == 3 else "yx",
        "classes": tuple(ClassInfo(f"class {k}", f"#{k:02x}8040") for k in range(classes)),
        "channels": channels,
        "normalization": Normalization(mean=(128.0,), std=(64.0,)),
        "tile": tile,
        "overlap": tuple(n // 4 for n in tile),
        "stride": stride,
    }
    return ModelSpec(**(options | more))  # type: ignore[arg-type]


class Graph:
    """Builds a graph of named tensors, one operator at a time; each method returns the name of what it makes."""

    def __init__(self, rank: int, seed: int = 0) -> None:
        self.rank = rank  # spatial axes
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(
        self,
        source: str,
        inputs: int,
        outputs: int,
        size: int = 3,
        *,
        stride: int = 1,
        pad: int | None = None,
        quantized: bool = False,
    ) -> str:
        weight = self._random.normal(size=(outputs, inputs) + (size,) * self.rank) / np.sqrt(inputs * size**self.rank)
        edge = size // 2 if pad is None else pad
        if quantized:
            step = np.float32(np.abs(weight).max() / 127)
            whole = self.constant(np.rint(weight / step).astype(np.int8))
            name = self.node("DequantizeLinear", whole, self.constant(step), self.constant(np.int8(0)))
        else:
            name = self.constant(weight.astype(np.float32))
        return self.node(
            "Conv",
            source,
            name,
            self.constant(self._random.normal(size=outputs).astype(np.float32)),
            kernel_shape=[size] * self.rank,
            strides=[stride] * self.rank,
            pads=[edge] * 2 * self.rank,
        )

    def upsample(self, source: str) -> str:
        scales = self.constant(np.array([1, 1] + [2] * self.rank, np.float32))
        return self.node("Resize", source, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric")

    def quantize(self, source: str, scale: float) -> str:
        step, zero = self.constant(np.float32(scale)), self.constant(np.int8(0))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", source, step, zero), step, zero)


def save(
    path: Path,
    graph: Graph,
    outputs: Sequence[tuple[str, int | str]],
    tile: Extent,
    *,
    channels: int | str = 1,
    batch: int | str = "batch",
    spec: ModelSpec | None = None,
    output_tile: Extent | None = None,
    dtype: int = TensorProto.FLOAT,
    external: bool = False,
) -> Path:
    """Write the graph from ``tiles`` to `outputs` (tensor name, channels)."""
    out = tile if output_tile is None else output_tile
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tiny",
            [helper.make_tensor_value_info("tiles", dtype, [batch, channels, *tile])],
            [helper.make_tensor_value_info(name, dtype, [batch, k, *out]) for name, k in outputs],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=9,
        producer_name="tiny_models",
    )
    if spec is not None:
        helper.set_model_props(model, {METADATA_KEY: spec.to_json(), "other": "kept"})
    if external:
        onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def save_pointwise(
    path: Path, tile: Extent = (32, 32), *, operator: str = "Neg", channels: int | str = 1, **more: object
) -> Path:
    """One operator on each value; as many outputs as channels."""
    graph = Graph(len(tile))
    return save(path, graph, [(graph.node(operator, "tiles"), channels)], tile, channels=channels, **more)  # type: ignore[arg-type]


def save_conv(
    path: Path,
    tile: Extent = (32, 32),
    *,
    channels: int = 1,
    classes: int = 2,
    pad: int = 1,
    end: str = "",
    names: int = 1,
    **more: object,
) -> Path:
    """One 3x3 convolution (receptive field 3), then operator `end` over the channels; `names` outputs of it."""
    graph = Graph(len(tile))
    made = graph.conv("tiles", channels, classes, pad=pad)
    if end == "Softmax":
        made = graph.node(end, made, axis=1)
    elif end:
        made = graph.node(end, made)
    outputs = [made] + [graph.node("Neg", made) for _ in range(names - 1)]
    if pad == 0:
        more["output_tile"] = tuple(n - 2 if isinstance(n, int) else f"{n}_out" for n in tile)
    return save(path, graph, [(name, classes) for name in outputs][:names], tile, channels=channels, **more)  # type: ignore[arg-type]


def save_unet(
    path: Path, tile: Extent = (32, 32), *, channels: int = 1, classes: int = 2, width: int = 8, **more: object
) -> Path:
    """Two halvings by strided convolutions, two doublings with skips: total stride 4, receptive field 25 at most."""
    graph = Graph(len(tile))
    top = graph.node("Relu", graph.conv("tiles", channels, width))
    half = graph.node("Relu", graph.conv(top, width, 2 * width, stride=2))
    low = graph.node("Relu", graph.conv(half, 2 * width, 2 * width, stride=2))
    up = graph.node("Concat", graph.upsample(low), half, axis=1)
    up = graph.node("Relu", graph.conv(up, 4 * width, width))
    up = graph.node("Concat", graph.upsample(up), top, axis=1)
    made = graph.conv(up, 2 * width, classes, size=1)
    return save(path, graph, [(made, classes)], tile, channels=channels, **more)  # type: ignore[arg-type]


def save_quantized(path: Path, tile: Extent = (32, 32), *, classes: int = 2, **more: object) -> Path:
    """A convolution whose activations pass through int8 (QDQ)."""
    graph = Graph(len(tile))
    hidden = graph.node("Relu", graph.conv(graph.quantize("tiles", 1 / 32), 1, 8, quantized=True))
    made = graph.conv(graph.quantize(hidden, 1 / 16), 8, classes, quantized=True)
    return save(path, graph, [(made, classes)], tile, **more)  # type: ignore[arg-type]


def save_half(path: Path, tile: Extent = (32, 32), *, classes: int = 2, **more: object) -> Path:
    """A convolution with fp16 weights, input and output."""
    graph = Graph(len(tile))
    made = graph.conv("tiles", 1, classes)
    for i, weight in enumerate(graph.weights):
        value = numpy_helper.to_array(weight).astype(np.float16)
        graph.weights[i] = numpy_helper.from_array(value, weight.name)
    return save(path, graph, [(made, classes)], tile, dtype=TensorProto.FLOAT16, **more)  # type: ignore[arg-type]


def save_nan(path: Path, tile: Extent = (32, 32), **more: object) -> Path:
    """The square root of the input: NaN wherever that is negative."""
    graph = Graph(len(tile))
    made = graph.node("Concat", *[graph.node("Sqrt", "tiles")] * 2, axis=1)
    return save(path, graph, [(made, 2)], tile, **more)  # type: ignore[arg-type]


def save_stateless(path: Path, tile: Extent = (32, 32)) -> Path:
    """A network without an output, which no exporter makes but a broken one may."""
    graph = Graph(len(tile))
    graph.conv("tiles", 1, 2)
    return save(path, graph, [], tile)


def negate(path: Path) -> None:
    """Put another network in the place of one: the same with the signs of its weights changed."""
    network = onnx.load(path)
    for weight in network.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32:
            weight.CopyFrom(numpy_helper.from_array(-values, weight.name))
    onnx.save(network, path)
