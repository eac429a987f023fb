"""Blocks of pixels as channels: the same logits of quantised networks of one channel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ov = pytest.importorskip("openvino")
from openvino import opset13 as ops  # noqa: E402

from tilelab.engines.cpu.openvino_downsampling import blocked_weights, fold_downsampling  # noqa: E402
from tilelab.exporting.quantize import fold_normalization  # noqa: E402

RANDOM = np.random.default_rng(0)


def quantised(source, limits=(-2.5, 3.0), levels=256):
    return ops.fake_quantize(source, *(ops.constant(np.float32(limit)) for limit in limits * 2), levels)


def weights(shape):
    """Bytes times scales, small enough that no CPU's sums of two products overflow their 16 bits."""
    whole = ops.constant(RANDOM.integers(-60, 61, shape).astype(np.int8))
    scales = RANDOM.uniform(0.01, 0.02, (shape[0], *[1] * (len(shape) - 1))).astype(np.float32)
    return ops.multiply(ops.convert(whole, "f32"), ops.constant(scales))


def run(model, array):
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([array])[0].copy()


def strides(model):
    return [n.get_attributes()["strides"] for n in model.get_ordered_ops() if n.get_type_name() == "Convolution"]


@settings(max_examples=40)
@given(st.data())
def test_folded_graphs_give_the_same_numbers(data):
    channels, stride = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 3))
    kernel = data.draw(st.tuples(st.integers(2, 7), st.integers(2, 7)), "kernel")
    pads = [data.draw(st.tuples(*[st.integers(0, k - 1) for k in kernel]), name) for name in ("begin", "end")]
    side = [stride * data.draw(st.integers(3, 8)) for _ in kernel]
    source = ops.parameter([1, channels, *side], np.float32)
    made = ops.convolution(quantised(source), weights((5, channels, *kernel)), [stride] * 2, *pads, [1, 1])
    model = ov.Model([ops.relu(made)], [source])
    array = RANDOM.normal(size=(1, channels, *side)).astype(np.float32)
    before = run(model, array)
    if fold_downsampling(model):
        assert strides(model) == [[1, 1]]
        assert fold_downsampling(model) == 0
    np.testing.assert_allclose(run(model, array), before, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 7), st.integers(2, 4), st.integers(0, 6), st.integers(1, 9))
def test_weights_of_blocks(k, stride, pad, blocks):
    """On a line, against the sum over pixels."""
    line, given_weights = RANDOM.normal(size=blocks * stride), RANDOM.normal(size=(1, 1, k))
    made, before = blocked_weights(given_weights, stride, [pad % k])
    padded = np.concatenate([np.zeros(pad % k), line, np.zeros(k + stride)])
    want = [padded[n * stride :][:k] @ given_weights[0, 0] for n in range(blocks)]
    joined = np.pad(line.reshape(blocks, stride).T, ((0, 0), (before[0], made.shape[2])))
    np.testing.assert_allclose([(joined[:, n:][:, : made.shape[2]] * made[0]).sum() for n in range(blocks)], want)


@pytest.mark.parametrize(("channels", "size", "folded"), [(1, 7, 1), (1, 3, 1), (2, 7, 1), (3, 7, 0), (64, 3, 0)])
def test_only_channels_that_are_nearly_empty(channels, size, folded):
    source = ops.parameter([1, channels, 16, 16], np.float32)
    pads = [size // 2] * 2
    made = ops.convolution(quantised(source), weights((4, channels, size, size)), [2, 2], pads, pads, [1, 1])
    model = ov.Model([ops.relu(made)], [source])
    assert fold_downsampling(model) == folded
    assert strides(model) == [[1, 1] if folded else [2, 2]]


@pytest.mark.parametrize("kind", ["not quantised", "no stride", "dilated", "odd size", "ranges per channel"])
def test_other_convolutions_stay(kind):
    source = ops.parameter([1, 2, 15 if kind == "odd size" else 16, 16], np.float32)
    read = source
    if kind == "ranges per channel":
        ends = [ops.constant(np.float32(end).reshape(1, 2, 1, 1)) for end in ([-1, -2], [1, 2])]
        read = ops.fake_quantize(source, *ends, *ends, 256)
    elif kind != "not quantised":
        read = quantised(source)
    stride, dilation = (1 if kind == "no stride" else 2), (2 if kind == "dilated" else 1)
    made = ops.convolution(read, weights((4, 2, 7, 7)), [stride] * 2, [6, 6], [6, 6], [dilation] * 2)
    assert fold_downsampling(ov.Model([ops.relu(made)], [source])) == 0


@pytest.mark.parametrize("kind", ["Convolution", "GroupConvolution", "ConvolutionBackpropData"])
def test_normalisation_goes_into_the_weights(kind):
    source = ops.parameter([1, 4, 8, 8], np.float32)
    shape = {"Convolution": (6, 4, 3, 3), "GroupConvolution": (2, 3, 2, 3, 3), "ConvolutionBackpropData": (4, 6, 3, 3)}
    known = ops.constant(RANDOM.normal(size=shape[kind]).astype(np.float32))
    make = {
        "Convolution": ops.convolution,
        "GroupConvolution": ops.group_convolution,
        "ConvolutionBackpropData": lambda *a: ops.convolution_backprop_data(a[0], a[1], a[2], None, *a[3:]),
    }
    made = make[kind](source, known, [1, 1], [1, 1], [1, 1], [1, 1])
    numbers = [ops.constant(RANDOM.uniform(0.5, 2, 6).astype(np.float32)) for _ in range(4)]
    normal = ops.relu(ops.batch_norm_inference(made, *numbers, 1e-3))
    asked = ops.interpolate(  # something asks for the size of what the convolution made
        normal, ops.gather(ops.shape_of(made), ops.constant([2, 3]), ops.constant(0)), "nearest", "sizes",
        axes=ops.constant([2, 3]),
    )  # fmt: skip
    model = ov.Model([asked], [source])
    array = RANDOM.normal(size=(1, 4, 8, 8)).astype(np.float32)
    before = run(model, array)
    assert fold_normalization(model) == 1
    assert "BatchNormInference" not in [n.get_type_name() for n in model.get_ops()]
    np.testing.assert_allclose(run(model, array), before, rtol=1e-4, atol=1e-4)


def test_normalisation_stays_where_another_reads_before_it():
    source = ops.parameter([1, 4, 8, 8], np.float32)
    known = ops.constant(RANDOM.normal(size=(4, 4, 1, 1)).astype(np.float32))
    made = ops.convolution(source, known, [1, 1], [0, 0], [0, 0], [1, 1])
    numbers = [ops.constant(RANDOM.uniform(0.5, 2, 4).astype(np.float32)) for _ in range(4)]
    model = ov.Model([ops.add(made, ops.batch_norm_inference(made, *numbers, 1e-3))], [source])
    assert fold_normalization(model) == 0
