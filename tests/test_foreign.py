"""Networks as other tools export them, each against itself on the whole image: as one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_models import OPSET, Graph

import tilelab
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.run.infer import infer
from tilelab.run.options import Options

MEAN, STD = 128.0, 64.0
NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}
NUMPY |= {TensorProto.UINT16: np.uint16}


def draw(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    """Noise at two scales, so that neither edges nor the inside of tiles are alike."""
    random = np.random.default_rng(3)
    coarse = np.kron(random.integers(0, 160, [-(-n // 8) for n in shape]), np.ones([8] * len(shape), int))
    coarse = coarse[tuple(slice(0, n) for n in shape)]
    return (coarse + random.integers(0, 95, shape)).astype(dtype)


@dataclass
class Case:
    """A network: its graph, how its tensors lie, and what it is compared by.

    build: from the graph and the tensor ``(n, c, y, x)`` to the outputs' names.
    axes: of input and outputs; letters that are missing are no axes: ``nchw``, ``nhwc``, ``hw``.
    kind: of the first output.
    halo, scale: of all outputs.
    maps: names of the outputs that are kept as they are.
    """

    build: Callable[[Graph, str], list[str]]
    kind: str = "logits"
    axes: tuple[str, ...] = ("nchw", "nchw")
    channels: int = 1
    outputs: tuple[int, ...] = (2,)
    dtypes: tuple[int, ...] = (TensorProto.FLOAT,)
    source: int = TensorProto.FLOAT
    halo: int = 0
    scale: float = 1.0
    flags: dict[str, Any] = field(default_factory=dict)
    maps: tuple[str, ...] = ()
    batch: int | str = "n"
    fixed: bool = False
    unknown: bool = False
    activation: str = "softmax"
    classes: int | None = None
    neighbours: int = 0


def arrange(graph: Graph, tensor: str, axes: str, *, back: bool) -> str:
    """``(n, c, ...)`` from the axes of a case, or to them."""
    full = "nc" + axes.replace("n", "").replace("c", "")
    absent = [i for i, letter in enumerate("nc") if letter not in axes]
    if back:
        if absent:
            tensor = graph.node("Squeeze", tensor, graph.constant(np.array(absent, np.int64)))
        kept = [letter for letter in full if letter in axes]
        order = [kept.index(letter) for letter in axes]
        return tensor if order == sorted(order) else graph.node("Transpose", tensor, perm=order)
    kept = [letter for letter in full if letter in axes]
    order = [axes.index(letter) for letter in kept]
    if order != sorted(order):
        tensor = graph.node("Transpose", tensor, perm=order)
    return graph.node("Unsqueeze", tensor, graph.constant(np.array(absent, np.int64))) if absent else tensor


def save(path: Path, case: Case, tile: tuple[int, ...], names: list[str] | None = None) -> Path:
    """The network as a file, for one size of tile or (`case.fixed` aside) for any."""
    graph = Graph(len(tile))
    start = "tiles"
    if case.source in (TensorProto.UINT8, TensorProto.UINT16):
        start = graph.node("Cast", start, to=TensorProto.FLOAT)
        start = graph.node("Div", start, graph.constant(np.float32(100)))
    made = case.build(graph, arrange(graph, start, case.axes[0], back=False))
    made = [arrange(graph, name, case.axes[1], back=True) for name in made]
    if case.source == TensorProto.FLOAT16:
        for i, weight in enumerate(graph.weights):
            if weight.data_type == TensorProto.FLOAT:
                value = onnx.numpy_helper.to_array(weight).astype(np.float16)
                graph.weights[i] = onnx.numpy_helper.from_array(value, weight.name)
    wanted = list(names or case.maps or ["out"])
    for node in graph.nodes:
        for i, name in enumerate(node.output):
            if name in made:
                node.output[i] = wanted[made.index(name)]
        for i, name in enumerate(node.input):
            if name in made:
                node.input[i] = wanted[made.index(name)]

    def shape(axes: str, channels: int, prefix: str) -> list[Any]:
        letters = [letter for letter in "dhw" if letter in axes]
        sizes: dict[str, Any] = {letter: n if case.fixed and not prefix else prefix + letter
                                 for letter, n in zip(letters, tile, strict=True)}  # fmt: skip
        sizes |= {"n": case.batch, "c": f"{prefix}c" if case.unknown else channels}
        return [sizes[letter] for letter in axes]

    dtypes = case.dtypes * len(made) if len(case.dtypes) == 1 else case.dtypes
    prefix = "" if case.fixed and not case.halo and case.scale == 1 else "out_"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "case",
            [helper.make_tensor_value_info("tiles", case.source, shape(case.axes[0], case.channels, ""))],
            [helper.make_tensor_value_info(name, dtype, shape(case.axes[1], count, prefix))
             for name, dtype, count in zip(wanted, dtypes, case.outputs, strict=True)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=9,
    )  # fmt: skip
    onnx.save(model, path)
    return path


def conv(classes: int, *, pad: int | None = None, end: str = "", channels: int = 1, **attributes: Any) -> Any:
    """Two convolutions, and what is at the end."""

    def build(graph: Graph, x: str) -> list[str]:
        hidden = graph.node("Relu", graph.conv(x, channels, 4, pad=pad))
        made = graph.conv(hidden, 4, classes, pad=pad)
        return [graph.node(end, made, **attributes) if end else made]

    return build


def then(build: Any, *operators: Callable[[Graph, str], str]) -> Any:
    """Further operators after each output."""

    def longer(graph: Graph, x: str) -> list[str]:
        made = build(graph, x)
        for operator in operators:
            made = [operator(graph, name) for name in made]
        return made

    return longer


def node(operator: str, **attributes: Any) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.node(operator, x, **attributes)


def resize(factor: float, mode: str = "linear") -> Callable[[Graph, str], str]:
    def build(graph: Graph, x: str) -> str:
        scales = graph.constant(np.array([1, 1] + [factor] * graph.rank, np.float32))
        return graph.node("Resize", x, "", scales, mode=mode, coordinate_transformation_mode="half_pixel")

    return build


def is_over(limit: float) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.node("Greater", x, graph.constant(np.float32(limit)))


def unet(graph: Graph, x: str, classes: int = 2) -> list[str]:
    """One halving and back, with a skip: as segmentation_models_pytorch builds them."""
    top = graph.node("Relu", graph.conv(x, 1, 4))
    low = graph.node("Relu", graph.conv(top, 4, 8, stride=2))
    up = graph.node("Concat", graph.upsample(low), top, axis=1)
    return [graph.conv(up, 12, classes)]


def fpn(graph: Graph, x: str) -> list[str]:
    """Two scales, summed."""
    top = graph.conv(x, 1, 4)
    low = graph.conv(graph.node("Relu", top), 4, 4, stride=2)
    whole = graph.node("Add", resize(2)(graph, low), graph.conv(top, 4, 4, size=1))
    return [graph.conv(graph.node("Relu", whole), 4, 3, size=1)]


def valid_unet(graph: Graph, x: str) -> list[str]:
    """As of 2015: nothing is padded."""
    top = graph.node("Relu", graph.conv(x, 1, 4, pad=0))
    low = graph.node("MaxPool", top, kernel_shape=[2, 2], strides=[2, 2])
    low = graph.node("Relu", graph.conv(low, 4, 4, pad=0))
    return [graph.conv(graph.upsample(low), 4, 2, pad=0)]


def quarter(graph: Graph, x: str) -> list[str]:
    """Logits of a quarter of the size, as of SegFormer."""
    half = graph.node("Relu", graph.conv(x, 1, 4, stride=2))
    return [graph.conv(graph.node("Relu", graph.conv(half, 4, 4, stride=2)), 4, 3, size=1)]


def panoptic(graph: Graph, x: str) -> list[str]:
    """Semantic logits, a heat map of centres, offsets to them: as of MitoNet."""
    hidden = graph.node("Relu", graph.conv(x, 1, 4))
    return [graph.conv(hidden, 4, 1), graph.node("Sigmoid", graph.conv(hidden, 4, 1)), graph.conv(hidden, 4, 2)]


def twins(graph: Graph, x: str) -> list[str]:
    hidden = graph.node("Relu", graph.conv(x, 1, 4))
    return [graph.conv(hidden, 4, 2), graph.conv(hidden, 4, 2)]


ARGMAX = {"kind": "labels", "outputs": (1,), "dtypes": (TensorProto.INT64,), "classes": 3}
CASES: dict[str, Case] = {
    "two logits": Case(conv(2)),
    "three logits": Case(conv(3), outputs=(3,)),
    "softmax": Case(conv(3, end="Softmax", axis=1), "probabilities", outputs=(3,)),
    "one logit": Case(conv(1), outputs=(1,), activation="sigmoid"),
    "sigmoid": Case(conv(1, end="Sigmoid"), "probabilities", outputs=(1,), activation="sigmoid"),
    "three sigmoids": Case(conv(3, end="Sigmoid"), "probabilities", outputs=(3,), activation="sigmoid"),
    "smp's U-Net": Case(unet, flags={"stride": 2}),
    "smp's FPN": Case(fpn, outputs=(3,), flags={"stride": 2}),
    "torchvision's dictionary": Case(twins, outputs=(2, 2), maps=("out", "aux"), flags={"output": None}),
    "SegFormer's quarter": Case(quarter, outputs=(3,), scale=0.25, flags={"stride": 4}),
    "a quarter, enlarged inside": Case(then(quarter, resize(4)), outputs=(3,), flags={"stride": 4}),
    "Keras, fixed": Case(conv(3, end="Softmax", axis=1), "probabilities", ("nhwc", "nhwc"), outputs=(3,), fixed=True),
    "Keras, any size": Case(conv(2), axes=("nhwc", "nhwc")),
    "channels first in, last out": Case(conv(2), axes=("nchw", "nhwc")),
    "not padded": Case(conv(2, pad=0), halo=2),
    "not padded, softmax": Case(conv(2, pad=0, end="Softmax", axis=1), "probabilities", halo=2),
    "the U-Net of 2015": Case(valid_unet, halo=4, flags={"stride": 2}),
    "half": Case(lambda g, x: [g.conv(g.node("Relu", g.conv(x, 1, 4)), 4, 2, stride=2)], scale=0.5,
                 flags={"stride": 2}),
    "doubled": Case(then(conv(2), lambda g, x: g.upsample(x), lambda g, x: g.conv(x, 2, 2)), scale=2.0),
    "argmax": Case(conv(3, end="ArgMax", axis=1), **ARGMAX),
    "argmax, no axis of channels": Case(conv(3, end="ArgMax", axis=1), axes=("nchw", "nhw"), **ARGMAX),
    "argmax as float": Case(then(conv(3, end="ArgMax", axis=1), node("Cast", to=TensorProto.FLOAT)),
                            **ARGMAX | {"dtypes": (TensorProto.FLOAT,)}),
    "argmax of Keras": Case(conv(3, end="ArgMax", axis=1), axes=("nhwc", "nhw"), **ARGMAX),
    "argmax, not padded": Case(conv(3, pad=0, end="ArgMax", axis=1), halo=2, **ARGMAX),
    "argmax, halved": Case(then(conv(3), lambda g, x: g.conv(x, 3, 3, stride=2), node("ArgMax", axis=1)),
                           scale=0.5, flags={"stride": 2}, **ARGMAX),
    "mask of bytes": Case(then(conv(1), node("Sigmoid"), is_over(0.5), node("Cast", to=TensorProto.UINT8)),
                          **ARGMAX | {"dtypes": (TensorProto.UINT8,), "classes": 2}),
    "mask of truth": Case(then(conv(1), is_over(0)), **ARGMAX | {"dtypes": (TensorProto.BOOL,), "classes": 2}),
    "bytes in": Case(conv(2), source=TensorProto.UINT8),
    "16 bits in": Case(conv(2), source=TensorProto.UINT16),
    "fp16": Case(conv(2), source=TensorProto.FLOAT16, dtypes=(TensorProto.FLOAT16,)),
    "no axis of channels": Case(conv(1), axes=("nhw", "nhw"), outputs=(1,), activation="sigmoid"),
    "no batch": Case(conv(2, channels=3), axes=("chw", "chw"), channels=3),
    "neither": Case(conv(1), axes=("hw", "hw"), outputs=(1,), activation="sigmoid"),
    "a batch of 3": Case(conv(2), batch=3),
    "all unknown": Case(conv(2), unknown=True, flags={"classes": 2, "channels": 1}),
    "three channels": Case(conv(2, channels=3), channels=3),
    "MitoNet": Case(panoptic, outputs=(1, 1, 2), maps=("sem_logits", "ctr_hmp", "offsets"), activation="sigmoid"),
    "two maps": Case(panoptic, "map", outputs=(1, 1, 2), maps=("a", "b", "c"), flags={"output": "b,c", "output_is":
                     "map"}),
    "affinities": Case(conv(6, end="Sigmoid"), "map", outputs=(6,), flags={"output_is": "map"}),
    "distance": Case(conv(1, end="Relu"), "map", outputs=(1,), flags={"output_is": "map"}),
    "maps of half the size": Case(then(panoptic, node("AveragePool", kernel_shape=[2, 2], strides=[2, 2])),
                                  outputs=(1, 1, 2), maps=("sem", "ctr", "off"), scale=0.5, activation="sigmoid",
                                  flags={"stride": 2}),
    "3-D": Case(conv(2), axes=("ncdhw", "ncdhw")),
    "3-D, not padded": Case(conv(2, pad=0), axes=("ncdhw", "ncdhw"), halo=2),
    "3-D, argmax": Case(conv(3, end="ArgMax", axis=1), axes=("ncdhw", "ndhw"), **ARGMAX),
    "3-D, several": Case(panoptic, axes=("ncdhw", "ncdhw"), outputs=(1, 1, 2), activation="sigmoid",
                         maps=("sem", "ctr", "off")),
    "2.5-D": Case(conv(2, channels=3), channels=3, neighbours=1, flags={"neighbours": 1}),
    "2.5-D, argmax": Case(conv(3, end="ArgMax", axis=1, channels=3), channels=3, neighbours=1,
                          flags={"neighbours": 1}, **ARGMAX),
}  # fmt: skip


def enlarge(values: np.ndarray, scale: float, nearest: bool) -> np.ndarray:
    """``(k, ...)`` on the image's pixels, axis by axis."""
    for axis in range(1, values.ndim):
        have = values.shape[axis]
        size = round(have / scale)
        at = (np.arange(size) + 0.5) * scale - 0.5
        if scale > 1:
            values = values.reshape(*values.shape[:axis], size, -1, *values.shape[axis + 1 :]).mean(axis + 1)
        elif nearest:
            values = values.take(np.clip(np.floor(at + 0.5), 0, have - 1).astype(int), axis)
        elif scale < 1:
            values = np.apply_along_axis(lambda line, x=at: np.interp(x, np.arange(len(line)), line), axis, values)
    return values


def whole(path: Path, case: Case, image: np.ndarray) -> list[np.ndarray]:
    """What the network says of the whole image: of each output ``(k, [z,] y, x)``."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    raw = case.source in (TensorProto.UINT8, TensorProto.UINT16)
    x = image if raw else (image.astype(np.float32) - MEAN) / STD
    spatial = case.axes[0].replace("n", "").replace("c", "")
    stack = [x]
    if case.neighbours or (len(spatial) == 2 and x.ndim == 3 and case.channels == 1):
        reach = case.neighbours
        padded = np.pad(x, ((reach, reach), (0, 0), (0, 0)), "reflect") if reach else x
        stack = [padded[z : z + 2 * reach + 1] for z in range(len(x))]
    found: list[list[np.ndarray]] = []
    for part in stack:
        pixels = part if part.ndim > len(spatial) else np.broadcast_to(part, (case.channels, *part.shape))
        pixels = np.pad(pixels, [(0, 0)] + [(case.halo, case.halo)] * len(spatial), "reflect")
        full = pixels[np.newaxis]
        axes = "nc" + spatial
        count = case.batch if isinstance(case.batch, int) else 1
        full = np.repeat(full, count, axis=0)
        keep = [axes.index(letter) for letter in case.axes[0]]
        gone = tuple(i for i in range(len(axes)) if i not in keep)
        feed = full.transpose(*keep, *gone).reshape([full.shape[i] for i in keep])
        outs = session.run(None, {"tiles": np.ascontiguousarray(feed.astype(NUMPY[case.source]))})
        arranged = []
        for out in outs:
            letters = case.axes[1]
            array = out[0] if "n" in letters else out
            letters = letters.replace("n", "")
            array = np.moveaxis(array, letters.index("c"), 0) if "c" in letters else array[np.newaxis]
            arranged.append(enlarge(array.astype(np.float64), case.scale, case.kind == "labels"))
        found.append(arranged)
    if len(stack) == 1:
        return found[0]
    return [np.stack([part[i] for part in found], axis=1) for i in range(len(found[0]))]


def setup(tmp_path: Path, case: Case) -> tuple[Path, np.ndarray, SpecOverrides, Path]:
    """The file, the image, what is said of the model, and the file for the whole image."""
    volume = "d" in case.axes[0]
    tile = (16, 32, 32) if volume else (64, 64)
    shape = (24, 40, 48) if volume else (3, 96, 128) if case.neighbours else (128, 160)
    image = draw(shape, np.uint16 if case.source == TensorProto.UINT16 else np.uint8)
    path = save(tmp_path / "n.onnx", case, tile)
    free = Case(**{**vars(case), "fixed": False})
    given: dict[str, Any] = {"tile": None if case.fixed else tile, "overlap": tuple(n // 2 for n in tile)}
    given |= {"window": "crop", "stride": 1}
    if case.source not in (TensorProto.UINT8, TensorProto.UINT16):
        given |= {"mean": (MEAN,), "std": (STD,)}
    if volume:
        given["axes"] = "zyx"
    return path, image, SpecOverrides(**(given | case.flags)), save(tmp_path / "whole.onnx", free, tile)


@pytest.mark.parametrize("name", CASES)
def test_a_network_says_by_tiles_what_it_says_of_the_whole_image(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path, image, given, free = setup(tmp_path, case)
    if case.channels > 1 and not case.neighbours and "c" in case.axes[0]:
        image = np.stack([image, image[::-1], image[:, ::-1]])
    truth = whole(free, case, image)
    engine = load_engine(path, engine="onnxruntime", spec_overrides=given, batch=None)
    assert engine.output_is == case.kind
    assert case.classes is None or len(engine.spec.classes) == case.classes
    plain = case.kind in ("logits", "probabilities")
    chances = ("all",) if plain else None
    options = Options(logits=plain, probabilities=chances, threads=1, axes="cyx" if image.shape[0] == 3 and
                      not case.neighbours and "d" not in case.axes[0] else None)  # fmt: skip
    result = tilelab.read_result(infer(image, engine, tmp_path / "r.ome.zarr", options=options).path)
    engine.close()
    known = dict(zip(case.maps or ("out",), truth, strict=True))
    if case.kind == "labels":
        found = result.labels[0][...]
        assert (found == truth[0][0]).mean() > 0.9999
    elif plain:
        assert result.logits is not None
        compare(result.logits[...].astype(np.float64), truth[0], case)
    for output in engine.spec.maps:
        np.testing.assert_allclose(result.maps[output.name][...], known[output.name], atol=1e-3)
    asked = case.flags.get("output")
    if name != "torchvision's dictionary":
        assert len(engine.spec.outputs) == (len(truth) if asked is None else len(asked.split(",")))


def compare(logits: np.ndarray, truth: np.ndarray, case: Case) -> None:
    """Logits with what the network gives: logits, or probabilities."""
    if case.kind == "logits":
        np.testing.assert_allclose(logits, truth, atol=3e-3 if case.source == TensorProto.FLOAT16 else 1e-3)
        return
    if case.activation == "sigmoid":
        found = 1 / (1 + np.exp(-logits))
    else:
        found = np.exp(logits - logits.max(axis=0))
        found /= found.sum(axis=0)
    np.testing.assert_allclose(found, truth, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_both_engines_give_the_same(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path, _, given, _ = setup(tmp_path, case)
    found = []
    for engine in ("onnxruntime", "openvino"):
        loaded = load_engine(path, engine=engine, precision="fp32", spec_overrides=given, threads=1)
        spec = loaded.spec
        tiles = 100 + 50 * np.random.default_rng(1).standard_normal((loaded.batch, spec.channels, *spec.tile))
        tiles = tiles if case.source in (TensorProto.UINT8, TensorProto.UINT16) else (tiles - 100) / 50
        out = np.empty((loaded.batch, spec.values, *spec.core), np.float32)
        loaded.run(tiles.astype(np.float32), out)
        found.append(out)
        loaded.close()
    if case.kind == "labels":
        assert (found[0] == found[1]).mean() > 0.999
    else:
        np.testing.assert_allclose(found[0], found[1], atol=2e-2 if case.source == TensorProto.FLOAT16 else 2e-3)
