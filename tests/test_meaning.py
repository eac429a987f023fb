"""What a network's output is: found in the graph however it is written, confirmed by values, refused where in doubt.

Each network is one convolution and an ending; what it gives must blend to the same result as its logits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from tiny_models import Graph, save

from tilelab.engines.cpu import onnxruntime as ort
from tilelab.engines.cpu import openvino as ov
from tilelab.engines.files.ending import Ending
from tilelab.engines.files.onnx import read_onnx
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine, read_spec
from tilelab.errors import ModelError

TILE = (32, 32)
GIVEN = {"mean": (128.0,), "std": (64.0,)}
End = Callable[[Graph, str], str]


def number(graph: Graph, value: float) -> str:
    return graph.constant(np.array(value, np.float32))


def node(operator: str, **attributes: Any) -> End:
    return lambda g, x: g.node(operator, x, **attributes)


def sigmoid(g: Graph, x: str) -> str:
    return g.node("Sigmoid", x)


def softmax(g: Graph, x: str) -> str:
    return g.node("Softmax", x, axis=1)


def after(*ends: End) -> End:
    def end(g: Graph, x: str) -> str:
        for one in ends:
            x = one(g, x)
        return x

    return end


def written_out(g: Graph, x: str) -> str:
    return g.node("Div", number(g, 1), g.node("Add", number(g, 1), g.node("Exp", g.node("Neg", x))))


def reciprocal(g: Graph, x: str) -> str:
    return g.node("Reciprocal", g.node("Add", g.node("Exp", g.node("Neg", x)), number(g, 1)))


def share(g: Graph, x: str) -> str:
    e = g.node("Exp", x)
    return g.node("Div", e, g.node("Add", e, number(g, 1)))


def share_times_reciprocal(g: Graph, x: str) -> str:
    e = g.node("Exp", x)
    return g.node("Mul", g.node("Reciprocal", g.node("Add", number(g, 1), e)), e)


def by_tanh(g: Graph, x: str) -> str:
    t = g.node("Tanh", g.node("Mul", x, number(g, 0.5)))
    return g.node("Mul", g.node("Add", t, number(g, 1)), number(g, 0.5))


def by_softplus(g: Graph, x: str) -> str:
    return g.node("Exp", g.node("Neg", g.node("Softplus", g.node("Neg", x))))


def stable(g: Graph, x: str) -> str:
    positive = g.node("GreaterOrEqual", x, number(g, 0))
    return g.node("Where", positive, written_out(g, x), share(g, x))


def inverted_twice(g: Graph, x: str) -> str:
    return g.node("Sub", number(g, 1), sigmoid(g, g.node("Neg", x)))


def mean_of_two(g: Graph, x: str) -> str:
    return g.node("Mean", sigmoid(g, x), sigmoid(g, x))


def resized(mode: str) -> End:
    def end(g: Graph, x: str) -> str:
        half = g.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        scales = g.constant(np.array([1, 1, 2, 2], np.float32))
        return g.node("Resize", half, "", scales, mode=mode, coordinate_transformation_mode="asymmetric")

    return end


def quantized(g: Graph, x: str) -> str:
    step, zero = number(g, 1 / 255), g.constant(np.uint8(0))
    return g.node("DequantizeLinear", g.node("QuantizeLinear", x, step, zero), step, zero)


def cropped(g: Graph, x: str) -> str:
    padded = g.node("Pad", x, g.constant(np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64)), mode="reflect")
    ends = [g.constant(np.array(v, np.int64)) for v in ([2, 2], [34, 34], [2, 3])]
    return g.node("Slice", padded, *ends)


def there_and_back(g: Graph, x: str) -> str:
    return g.node("Transpose", g.node("Identity", g.node("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])


def halves(g: Graph, x: str) -> str:
    return g.node("Cast", g.node("Cast", x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)


def clipped(g: Graph, x: str) -> str:
    return g.node("Clip", x, number(g, 0), number(g, 1))


def smoothed(g: Graph, x: str) -> str:
    return g.node("Conv", x, g.constant(np.full((1, 1, 3, 3), 1 / 9, np.float32)), pads=[1, 1, 1, 1])


def thin(g: Graph, x: str) -> str:
    axis = g.constant(np.array([1], np.int64))
    return g.node("Unsqueeze", g.node("Squeeze", x, axis), axis)


SIGMOIDS: dict[str, End] = {
    "plain": sigmoid,
    "identity": after(sigmoid, node("Identity")),
    "dropout": after(sigmoid, node("Dropout")),
    "transposed": after(sigmoid, there_and_back),
    "between transposes": after(lambda g, x: g.node("Transpose", x, perm=[0, 2, 3, 1]), sigmoid,
                                lambda g, x: g.node("Transpose", x, perm=[0, 3, 1, 2])),
    "half": after(sigmoid, halves),
    "clipped": after(sigmoid, clipped),
    "quantised": after(sigmoid, quantized),
    "squeezed": after(sigmoid, thin),
    "cropped": after(sigmoid, cropped),
    "all of it": after(sigmoid, halves, there_and_back, clipped, quantized, node("Identity")),
    "1 / (1 + exp(-x))": written_out,
    "reciprocal": reciprocal,
    "exp / (1 + exp)": share,
    "exp * 1 / (1 + exp)": share_times_reciprocal,
    "tanh": by_tanh,
    "softplus": by_softplus,
    "where": stable,
    "1 - sigmoid(-x)": inverted_twice,
    "mean of two": mean_of_two,
    "log and exp": after(sigmoid, node("Log"), node("Exp")),
}  # fmt: skip


def exp_share(*, least: bool, small: bool = False) -> End:
    def end(g: Graph, x: str) -> str:
        axis = g.constant(np.array([1], np.int64))
        if least:
            x = g.node("Sub", x, g.node("ReduceMax", x, axis, keepdims=1))
        e = g.node("Exp", x)
        total = g.node("ReduceSum", e, axis, keepdims=1)
        return g.node("Div", e, g.node("Add", total, number(g, 1e-7)) if small else total)

    return end


def two_of_one(g: Graph, x: str) -> str:
    first = g.node("Slice", x, *[g.constant(np.array([n], np.int64)) for n in (1, 2, 1)])
    zeroth = g.node("Slice", x, *[g.constant(np.array([n], np.int64)) for n in (0, 1, 1)])
    p = sigmoid(g, g.node("Sub", first, zeroth))
    return g.node("Concat", g.node("Sub", number(g, 1), p), p, axis=1)


def exp_of_log(g: Graph, x: str) -> str:
    return g.node("Exp", g.node("LogSoftmax", x, axis=1))


SOFTMAXES: dict[str, End] = {
    "plain": softmax,
    "negative axis": node("Softmax", axis=-3),
    "half": after(softmax, halves),
    "identity, transposed": after(softmax, node("Identity"), there_and_back),
    "between transposes": after(lambda g, x: g.node("Transpose", x, perm=[0, 2, 3, 1]), node("Softmax", axis=-1),
                                lambda g, x: g.node("Transpose", x, perm=[0, 3, 1, 2])),
    "quantised": after(softmax, quantized),
    "clipped": after(softmax, clipped),
    "cropped": after(softmax, cropped),
    "written out": exp_share(least=False),
    "written out, stable": exp_share(least=True),
    "written out, with epsilon": exp_share(least=True, small=True),
    "exp of logsoftmax": exp_of_log,
}  # fmt: skip


def make(path: Path, end: End, outputs: int, *, gives: int | None = None, seed: int = 0) -> Path:
    graph = Graph(2, seed)
    return save(path, graph, [(end(graph, graph.conv("tiles", 1, outputs)), gives or outputs)], TILE)


def as_ir(path: Path, *, names: bool = True) -> Path:
    """The same network as an OpenVINO IR, on request with an output that has no name."""
    openvino = pytest.importorskip("openvino")
    with ov.without_telemetry():
        model = openvino.convert_model(str(path))
    if not names:
        for port in (*model.inputs, *model.outputs):
            port.get_tensor().set_names(set())
    openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)
    return path.with_suffix(".xml")


def compute(path: Path, seed: int = 1, **more: Any) -> tuple[Any, np.ndarray]:
    more = {"device": "cpu", "precision": "auto"} | more
    engine = load_engine(path, spec_overrides=SpecOverrides(**GIVEN, **more.pop("flags", {})), **more)
    tiles = np.random.default_rng(seed).normal(size=(1, 1, *TILE)).astype(np.float32)
    out = np.empty((engine.batch, engine.spec.values, *TILE), np.float32)
    engine.run(np.repeat(tiles, engine.batch, 0), out)
    return engine, out[0]


@pytest.mark.parametrize("name", SIGMOIDS)
@pytest.mark.parametrize("form", ["onnx", "ir"])
def test_a_sigmoid_is_found_whatever_follows_and_however_written(tmp_path: Path, name: str, form: str) -> None:
    _, truth = compute(make(tmp_path / "logits.onnx", node("Identity"), 1), engine="onnxruntime")
    path = make(tmp_path / "p.onnx", SIGMOIDS[name], 1)
    engine, found = compute(as_ir(path) if form == "ir" else path)
    assert engine.output_is == "probabilities"
    assert engine.spec.activation == "sigmoid"
    assert not engine.assumptions
    coarse = "quantised" in name or name in ("all of it", "half")
    clear = np.abs(truth) < 3  # beyond, halves and steps of 1 / 255 leave little of a logit
    np.testing.assert_allclose(found[clear], truth[clear], atol=0.1 if coarse else 0.01)


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("form", ["onnx", "ir"])
def test_a_softmax_is_found_likewise(tmp_path: Path, name: str, form: str) -> None:
    _, truth = compute(make(tmp_path / "logits.onnx", node("Identity"), 3), engine="onnxruntime")
    path = make(tmp_path / "p.onnx", SOFTMAXES[name], 3)
    engine, found = compute(as_ir(path) if form == "ir" else path)
    assert (engine.output_is, engine.spec.activation, engine.spec.values) == ("probabilities", "softmax", 3)
    assert not engine.assumptions
    share_of = [np.exp(v - v.max(0)) / np.exp(v - v.max(0)).sum(0) for v in (truth, found)]
    np.testing.assert_allclose(*share_of, atol=0.01)


def test_two_channels_made_of_one_sigmoid_are_a_softmax(tmp_path: Path) -> None:
    engine, _ = compute(make(tmp_path / "p.onnx", two_of_one, 2))
    assert (engine.output_is, engine.spec.activation, len(engine.spec.classes)) == ("probabilities", "softmax", 2)


def test_resized_and_smoothed_probabilities_stay_probabilities(tmp_path: Path) -> None:
    for mode in ("nearest", "linear", "cubic"):
        engine, _ = compute(make(tmp_path / f"{mode}.onnx", after(sigmoid, resized(mode)), 1))
        assert engine.output_is == "probabilities"
        engine, _ = compute(make(tmp_path / f"{mode}3.onnx", after(softmax, resized(mode)), 3))
        assert (engine.output_is, engine.spec.activation) == ("probabilities", "softmax")
    engine, _ = compute(make(tmp_path / "smooth.onnx", after(sigmoid, smoothed), 1))
    assert engine.output_is == "probabilities"


LOGITS: dict[str, End] = {
    "plain": node("Identity"),
    "logsoftmax": node("LogSoftmax", axis=1),
    "log of softmax": after(softmax, node("Log")),
    "clipped": lambda g, x: g.node("Clip", x, number(g, -20), number(g, 20)),
    "times": lambda g, x: g.node("Mul", x, number(g, 3)),
    "softcap": lambda g, x: g.node("Mul", g.node("Tanh", x), number(g, 30)),
    "gated": lambda g, x: g.node("Mul", x, sigmoid(g, x)),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_left_alone(tmp_path: Path, name: str) -> None:
    engine, found = compute(make(tmp_path / "n.onnx", LOGITS[name], 3), engine="onnxruntime")
    assert (engine.output_is, engine.assumptions) == ("logits", ())
    _, truth = compute(make(tmp_path / "again.onnx", LOGITS[name], 3), engine="openvino", precision="fp32")
    np.testing.assert_allclose(found, truth, atol=1e-3)


def to_mask(g: Graph, x: str) -> str:
    return g.node("Cast", g.node("Greater", sigmoid(g, x), number(g, 0.5)), to=TensorProto.FLOAT)


LABELS: dict[str, tuple[End, int, int, int]] = {  # of each: what it ends in, channels before and after, classes
    "argmax": (after(node("ArgMax", axis=1, keepdims=1), node("Cast", to=TensorProto.FLOAT)), 3, 1, 3),
    "argmax, clipped": (after(node("ArgMax", axis=1, keepdims=1), node("Cast", to=TensorProto.FLOAT),
                              lambda g, x: g.node("Clip", x, number(g, 0), number(g, 1))), 3, 1, 2),
    "mask": (to_mask, 1, 1, 2),
    "mask times 255": (lambda g, x: g.node("Mul", to_mask(g, x), number(g, 255)), 1, 1, 2),
    "where": (lambda g, x: g.node("Where", g.node("Less", x, number(g, 0)), number(g, 0), number(g, 1)), 1, 1, 2),
    "rounded": (after(sigmoid, node("Round")), 1, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("form", ["onnx", "ir"])
def test_labels_are_found_and_kept(tmp_path: Path, name: str, form: str) -> None:
    end, outputs, gives, classes = LABELS[name]
    path = make(tmp_path / "n.onnx", end, outputs, gives=gives)
    engine, found = compute(as_ir(path) if form == "ir" else path)
    assert (engine.output_is, len(engine.spec.classes)) == ("labels", classes)
    assert set(np.unique(found)) <= set(range(classes))
    assert any("not blended" in line for line in engine.warnings)


def test_labels_of_several_channels_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gives 3 channels of whole numbers, .*without its last operators"):
        compute(make(tmp_path / "n.onnx", node("Hardmax", axis=1), 3))


DOUBTS: dict[str, tuple[End, int, str]] = {
    "bytes": (lambda g, x: g.node("Mul", sigmoid(g, x), number(g, 255)), 1, "between 0 and 255 .*rescaled"),
    "exp": (node("Exp"), 1, "all pixels would be of one class"),
    "softplus": (node("Softplus"), 1, "all pixels would be of one class"),
    "log of sigmoid": (after(sigmoid, node("Log")), 1, "all pixels would be of one class"),
    "softmax over x": (node("Softmax", axis=3), 3, "over another axis than the channels"),
    "softmax over y, written out": (lambda g, x: g.node("Div", g.node("Exp", x), g.node(
        "ReduceSum", g.node("Exp", x), g.constant(np.array([2], np.int64)), keepdims=1)), 3, "over another axis"),
    "softmax of one": (softmax, 1, "it is 1 everywhere"),
    "unbounded in 0..1": (lambda g, x: g.node("BatchNormalization", sigmoid(g, x), *[
        g.constant(np.array([v], np.float32)) for v in (0.5, 0.25, 0, 1)]), 1, "lies in 0..1"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTS)
def test_what_could_ruin_a_result_is_refused_until_it_is_said(tmp_path: Path, name: str) -> None:
    end, outputs, words = DOUBTS[name]
    path = make(tmp_path / "n.onnx", end, outputs)
    with pytest.raises(ModelError, match=words) as caught:
        compute(path, engine="onnxruntime")
    assert "\n" not in str(caught.value)
    if name != "softmax of one":
        compute(path, engine="onnxruntime", flags={"output_is": "map"})


def test_a_guess_is_in_the_ledger(tmp_path: Path) -> None:
    for end, outputs in ((node("Relu"), 1), (node("Relu"), 3), (node("Tanh"), 3)):
        engine, _ = compute(make(tmp_path / "n.onnx", end, outputs), engine="onnxruntime")
        (assumption,) = engine.assumptions
        assert (assumption.taken, assumption.flag) == ("logits", "--output-is")
        said, _ = compute(tmp_path / "n.onnx", engine="onnxruntime", flags={"output_is": "logits"})
        assert said.assumptions == ()
        assert said.model_digest != engine.model_digest


def test_an_activation_that_contradicts_is_refused(tmp_path: Path) -> None:
    each, exclusive = make(tmp_path / "s.onnx", sigmoid, 3), make(tmp_path / "e.onnx", softmax, 3)
    assert read_spec(each, SpecOverrides(**GIVEN)).activation == "sigmoid"
    with pytest.raises(ModelError, match=r"a probability of its own .*softmax contradicts"):
        compute(each, flags={"activation": "softmax"})
    with pytest.raises(ModelError, match=r"ends in a softmax .*sigmoid contradicts"):
        compute(exclusive, flags={"activation": "sigmoid"})
    with pytest.raises(ModelError, match="those are no probabilities"):
        compute(make(tmp_path / "l.onnx", node("Identity"), 1), flags={"output_is": "probabilities"})
    with pytest.raises(ModelError, match="labels have one"):
        read_spec(exclusive, SpecOverrides(**GIVEN, output_is="labels"))


def test_what_is_said_of_an_unknown_ending_is_taken(tmp_path: Path) -> None:
    path = make(tmp_path / "n.onnx", DOUBTS["unbounded in 0..1"][0], 1)
    engine, found = compute(path, engine="onnxruntime", flags={"output_is": "probabilities"})
    assert engine.output_is == "probabilities"
    assert found.min() < 0 < found.max() + 2
    engine, _ = compute(path, engine="onnxruntime", flags={"output_is": "logits"})
    assert any("yet every value" in line for line in engine.warnings)


def test_an_ir_without_names_works_as_one_with(tmp_path: Path) -> None:
    path = make(tmp_path / "p.onnx", sigmoid, 1)
    truth = compute(path, engine="openvino", precision="fp32")[1]
    engine, found = compute(as_ir(path, names=False), precision="fp32")
    assert engine.output_is == "probabilities"
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("width", [np.float32, np.float16, np.float64])
def test_constants_are_read_in_every_way_of_storing_them(tmp_path: Path, width: type) -> None:
    kinds = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}
    for raw in (True, False):
        graph = Graph(2)
        made = graph.node("Mul", graph.node("Sigmoid", "tiles"), "c")
        path = save(tmp_path / "c.onnx", graph, [(made, 1)], TILE)
        model = onnx.load(path)
        value = np.array([0.5], width)
        tensor = onnx.helper.make_tensor("c", kinds[width], [1], value.tobytes() if raw else value, raw=raw)
        assert numpy_helper.to_array(tensor) == value
        model.graph.initializer.append(tensor)
        path.write_bytes(model.SerializeToString())
        assert read_onnx(path).endings[made] == Ending(0, 0.5, operator="Sigmoid")


def channels_last(path: Path, end: End, outputs: int, *, fixed: bool) -> Path:
    """A network as TensorFlow makes them: channels last, in and out."""
    graph = Graph(2)
    first = graph.node("Transpose", "tiles", perm=[0, 3, 1, 2])
    made = graph.node("Transpose", end(graph, graph.conv(first, 3, outputs)), perm=[0, 2, 3, 1])
    save(path, graph, [(made, outputs)], TILE, channels=3)
    model = onnx.load(path)
    extent: list[Any] = [1, *TILE] if fixed else ["n", "h", "w"]
    for value, count in ((model.graph.input[0], 3), (model.graph.output[0], outputs)):
        turned = onnx.helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [*extent, count])
        value.CopyFrom(turned)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_channels_may_come_last(tmp_path: Path, fixed: bool, engine: str) -> None:
    graph = Graph(2)
    second = save(tmp_path / "a.onnx", graph, [(softmax(graph, graph.conv("tiles", 3, 4)), 4)], TILE, channels=3)
    last = channels_last(tmp_path / "b.onnx", softmax, 4, fixed=fixed)
    flags = SpecOverrides(**GIVEN, tile=None if fixed else TILE)
    tiles = np.random.default_rng(0).normal(size=(1, 3, *TILE)).astype(np.float32)
    outs = []
    for path, spec in ((second, SpecOverrides(**GIVEN)), (last, flags)):
        loaded = load_engine(path, engine=engine, precision="fp32", spec_overrides=spec)
        assert (loaded.spec.channels, loaded.spec.values, loaded.tile) == (3, 4, TILE)
        assert loaded.output_is == "probabilities"
        outs.append(np.empty((1, 4, *TILE), np.float32))
        loaded.run(tiles, outs[-1])
    np.testing.assert_allclose(*outs, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("kind", "white"), [(TensorProto.UINT8, 255), (TensorProto.UINT16, 65535)])
def test_a_network_may_take_intensities_as_they_are(tmp_path: Path, engine: str, kind: int, white: int) -> None:
    if (engine, white) == ("openvino", 65535):
        pytest.skip("its CPU plug-in takes no uint16")
    graph = Graph(2)
    scaled = graph.node("Mul", graph.node("Cast", "tiles", to=TensorProto.FLOAT), number(graph, 1 / white))
    path = save(tmp_path / "n.onnx", graph, [(graph.conv(scaled, 1, 2), 2)], TILE)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = kind
    path.write_bytes(model.SerializeToString())
    loaded = load_engine(path, engine=engine, precision="fp32", spec_overrides=SpecOverrides())
    assert loaded.spec.normalization.dtype == f"uint{8 if white == 255 else 16}"
    assert loaded.warnings == ()
    said = load_engine(path, engine=engine, precision="fp32", spec_overrides=SpecOverrides(**GIVEN))
    assert "take" in said.warnings[0]
    tiles = np.random.default_rng(0).integers(0, white, (1, 1, *TILE)).astype(np.float32)
    outs = [np.empty((1, 2, *TILE), np.float32) for _ in range(2)]
    loaded.run(tiles, outs[0])
    said.run(tiles + np.float32(0.25), outs[1])  # rounded
    np.testing.assert_array_equal(*outs)


UNARY = "Sigmoid Tanh Exp Neg Abs Relu Softplus Round Sign Identity Softsign Reciprocal Sqrt Log Erf Sin Elu"
BINARY = "Add Sub Mul Div Max Min Mean"
STEPS = st.one_of(
    st.tuples(st.sampled_from(UNARY.split()), st.just(0.0)),
    st.tuples(st.sampled_from(BINARY.split()), st.sampled_from([-2.0, -1.0, 0.25, 0.5, 1.0, 2.0, 255.0])),
    st.tuples(st.sampled_from([f"{name} again" for name in BINARY.split()]), st.just(0.0)),
    st.tuples(st.sampled_from(["Softmax", "ArgMax", "Greater", "Clip", "Pow", "ReduceSum", "Concat", "MaxPool", "Pad"]),
              st.sampled_from([-1.0, 0.5, 1.0, 2.0])),
)  # fmt: skip


def take_step(graph: Graph, step: tuple[str, float], made: list[str]) -> str:
    """One more operator on the last tensor, or on two of them."""
    (name, value), x = step, made[-1]
    if name.endswith(" again"):
        return graph.node(name.removesuffix(" again"), x, made[len(made) // 2])
    if name in BINARY.split():
        return graph.node(name, *([x, number(graph, value)] if value > 0.6 else [number(graph, value), x]))
    if name == "Softmax":
        return softmax(graph, x)
    if name == "ArgMax":
        return graph.node("Cast", graph.node("ArgMax", x, axis=1, keepdims=1), to=TensorProto.FLOAT)
    if name == "Greater":
        return graph.node("Cast", graph.node("Greater", x, number(graph, value)), to=TensorProto.FLOAT)
    if name == "Clip":
        return graph.node("Clip", x, number(graph, min(value, 0)), number(graph, abs(value)))
    if name == "Pow":
        return graph.node("Pow", x, number(graph, value))
    if name == "ReduceSum":
        return graph.node("ReduceSum", x, graph.constant(np.array([1], np.int64)), keepdims=1)
    if name == "Concat":
        return graph.node("Concat", x, x, axis=1)
    if name == "MaxPool":
        return graph.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    if name == "Pad":
        return graph.node("Pad", x, graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), number(graph, value))
    return graph.node(name, x)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(steps=[("Exp", 0.0), ("Add", 1.0), ("Div again", 0.0)])
@given(steps=st.lists(STEPS, min_size=1, max_size=7))
def test_what_the_graph_promises_is_kept(tmp_path: Path, steps: list[tuple[str, float]]) -> None:
    onnxruntime = ort.import_onnxruntime()
    graph = Graph(2)
    made = [graph.conv("tiles", 1, 2)]
    for step in steps:
        made.append(take_step(graph, step, made))
    path = save(tmp_path / "n.onnx", graph, [(made[-1], "k")], TILE, output_tile=("y", "x"))
    ending = read_onnx(path).endings[made[-1]]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    tiles = np.random.default_rng(0).normal(size=(1, 1, *TILE)).astype(np.float32) * 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        values = session.run(None, {"tiles": tiles})[0]
    except Exception:  # noqa: BLE001 - shapes that do not fit each other
        assume(False)
    values = values[np.abs(values) < 1e30].astype(np.float64)  # the greatest of NaN is the least float
    if values.size == 0:
        return
    slack = 1e-3 + 1e-5 * max(abs(values.min()), abs(values.max()))
    assert ending.low - slack <= values.min()
    assert values.max() <= ending.high + slack
    if ending.whole:
        np.testing.assert_array_equal(values, np.rint(values))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(sorted(SIGMOIDS)),
    chain=st.lists(st.sampled_from([node("Identity"), node("Dropout"), halves, there_and_back, clipped, thin, cropped,
                                    quantized, resized("linear"), resized("cubic")]), max_size=5),
)  # fmt: skip
def test_whatever_follows_a_sigmoid_it_stays_one(tmp_path: Path, base: str, chain: list[End]) -> None:
    for end, outputs, unit in ((SIGMOIDS[base], 1, False), (softmax, 3, True)):
        path = make(tmp_path / "n.onnx", after(end, *chain), outputs)
        file = read_onnx(path)
        ending = file.endings[file.outputs[0].name]
        assert ending.kind == "probabilities"
        assert ending.unit in ((unit, None) if clipped in chain else (unit,))


@pytest.mark.parametrize(
    ("begin", "end", "mask", "unit"),
    [
        ((0, 0, 2, 2), (0, 0, -2, -2), (1, 1, 0, 0), True),
        ((0, 0, 2, 2), (1, 3, 62, 62), (0, 0, 0, 0), True),
        ((0, 1, 2, 2), (1, 3, 62, 62), (0, 0, 0, 0), False),
    ],
)
def test_a_crop_of_a_softmax_is_one_in_openvinos_older_operator(
    tmp_path: Path, begin: tuple[int, ...], end: tuple[int, ...], mask: tuple[int, ...], unit: bool
) -> None:
    openvino = pytest.importorskip("openvino")
    ops = openvino.opset13
    source = ops.parameter([1, 3, 64, 64], np.float32, name="source")
    made = ops.strided_slice(ops.softmax(source, 1), list(begin), list(end), [1] * 4, list(mask), list(mask))
    openvino.save_model(openvino.Model([made], [source]), tmp_path / "net.xml", compress_to_fp16=False)
    (ending,) = ov.read_ir(tmp_path / "net.xml").endings.values()
    assert (ending.kind, ending.unit) == ("probabilities", unit)
