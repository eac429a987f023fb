"""Constants that every stream of OpenVINO would compute: stored before, or computed by each alone."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ov = pytest.importorskip("openvino")
from openvino import opset13 as ops  # noqa: E402

import tilelab  # noqa: E402
from tilelab.engines.cpu.openvino_constants import computed_constants, fold_constants  # noqa: E402
from tilelab.engines.overrides import SpecOverrides  # noqa: E402


def compiled(model, streams=2):
    options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams}
    return ov.Core().compile_model(model, "CPU", options)


def stored(numbers, way, seed=0):
    """A constant of the numbers' shape: as floats, halves, whole numbers that are scaled, or such with a zero."""
    rng = np.random.default_rng(seed)
    if way == "floats":
        return ops.constant(numbers.astype(np.float32))
    if way == "halves":
        return ops.convert(ops.constant(numbers.astype(np.float16)), "f32")
    whole = ops.convert(ops.constant(rng.integers(-127, 128, numbers.shape).astype(np.int8)), "f32")
    if way == "zero":
        whole = ops.subtract(whole, ops.constant(np.float32(3)))
    columns = (1,) * (numbers.ndim - 1) + numbers.shape[-1:]
    return ops.multiply(whole, ops.constant(rng.uniform(0.01, 0.02, columns).astype(np.float32)))


WAYS = ["floats", "halves", "scaled", "zero"]


@settings(max_examples=25)
@given(st.data())
def test_folded_products_give_the_same_numbers_and_leave_nothing_to_compute(data):
    way, left, transposed, turned = (
        data.draw(choice, name)
        for choice, name in (
            (st.sampled_from(WAYS), "way"), (st.booleans(), "left"), (st.booleans(), "transposed"),
            (st.booleans(), "turned"),
        )
    )  # fmt: skip
    rank = data.draw(st.integers(2, 4), "rank")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    n, k, m = map(int, rng.integers(1, 9, 3))
    side = (n, k) if left else (k, m)
    constant = stored(rng.standard_normal((1, 3)[4 - rank :] + side[:: -1 if transposed else 1]), way)
    other = (1, 3, *((k, m) if left else (n, k))[:: -1 if turned else 1])
    source = ops.parameter(other, np.float32)
    product = (
        ops.matmul(constant, source, transposed, turned) if left else ops.matmul(source, constant, turned, transposed)
    )
    model = ov.Model([ops.relu(product)], [source])
    x = rng.standard_normal(other).astype(np.float32)
    before = compiled(model, 1)(x)[0].copy()
    fold_constants(model)
    after = compiled(model)
    np.testing.assert_allclose(after(x)[0], before, rtol=1e-5, atol=1e-5)
    assert computed_constants(after) == []


@pytest.mark.parametrize("transposed", [False, True])
def test_quantised_weights_of_quantised_layers_stay_so(transposed):
    source = ops.parameter((1, 1, 8, 16), np.float32)
    low, high = (ops.constant(np.float32(bound)) for bound in (0, 2.55))
    quantised = ops.fake_quantize(source, low, high, low, high, 256)
    weights = stored(np.zeros((4, 16) if transposed else (16, 4)), "scaled")
    model = ov.Model([ops.matmul(quantised, weights, False, transposed)], [source])
    x = np.random.default_rng(0).random((1, 1, 8, 16), np.float32)
    before = compiled(model, 1)(x)[0].copy()
    assert fold_constants(model) == (0 if transposed else 1)
    kept = [node for node in model.get_ops() if node.get_element_type() == ov.Type.i8 and not node.inputs()]
    assert [tuple(node.get_output_shape(0)) for node in kept] == [(4, 16)]
    after = compiled(model)
    np.testing.assert_allclose(after(x)[0], before, rtol=1e-5, atol=1e-5)
    assert computed_constants(after) == []


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_bundled_network_gives_the_same_logits_however_often_it_is_loaded(precision):
    x = np.random.default_rng(0).standard_normal((1, 1, 256, 256)).astype(np.float32)
    found = set()
    for _ in range(8):  # one in three was another
        engine = tilelab.load_engine(
            "superalloy-pmcanet", engine="openvino", precision=precision, tile=(256, 256), threads=2, trial=False
        )
        logits = np.empty((1, 3, 256, 256), np.float32)
        engine.run(x, logits)
        engine.close()
        found.add(hashlib.sha256(logits.tobytes()).hexdigest())
    assert len(found) == 1


def test_streams_that_compute_constants_are_compiled_each_alone(tmp_path):
    source = ops.parameter((1, 1, 32, 32), np.float32, name="input")
    factor = ops.transpose(stored(np.zeros((1, 3, 32, 32)), "scaled"), ops.constant(np.array([0, 1, 3, 2])))
    model = ov.Model([ops.matmul(factor, source, False, False)], [source])
    assert computed_constants(compiled(model))
    ov.save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    told = SpecOverrides(normalization="mean-std")
    engine = tilelab.load_engine(tmp_path / "net.xml", precision="fp32", threads=2, spec_overrides=told)
    streams = [infer.get_compiled_model() for infer in engine._infers]
    assert [int(stream.get_property("NUM_STREAMS")) for stream in streams] == [1, 1]
    engine.close()
