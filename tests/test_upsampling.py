"""Enlarging and convolving in one step: the same logits, fewer multiplications."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ov = pytest.importorskip("openvino")
from openvino import opset13 as ops  # noqa: E402

from tilelab.engines.cpu.openvino_upsampling import fold_upsampling, transposed_weights  # noqa: E402

REPEATS = [
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
]
OTHERS = [
    ("asymmetric", "ceil"),
    ("align_corners", "floor"),
    ("half_pixel", "floor"),
    ("asymmetric", "round_prefer_ceil"),
]


def enlarge(value, sizes, way=REPEATS[0], mode="nearest"):
    spatial = list(range(2, 2 + len(sizes)))
    return ops.interpolate(
        value,
        ops.constant(np.array(sizes, np.int64)),
        mode=mode,
        shape_calculation_mode="sizes",
        coordinate_transformation_mode=way[0],
        nearest_mode=way[1],
        axes=ops.constant(np.array(spatial, np.int64)),
    )


def run(model, arrays, **options):
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **options})
    return compiled(arrays)[0].copy()


def kinds(model):
    return [node.get_type_name() for node in model.get_ops()]


@settings(max_examples=60)
@given(st.data())
def test_folded_graphs_give_the_same_numbers(data):
    rank = data.draw(st.sampled_from([2, 2, 3]), "axes")
    sides = st.integers(1, 6 if rank == 2 else 3)
    factors = st.tuples(*[st.integers(1, 3)] * rank).filter(lambda f: set(f) != {1})
    kernel = data.draw(st.tuples(*[st.integers(1, 4)] * rank).filter(lambda k: set(k) != {1}), "kernel")
    pads = [data.draw(st.tuples(*[st.integers(0, k - 1) for k in kernel]), name) for name in ("begin", "end")]
    small = data.draw(st.tuples(*[sides] * rank), "small")
    factor = data.draw(factors, "factor")
    large = tuple(n * s for n, s in zip(small, factor, strict=True))
    if any(n + a + b < k for n, a, b, k in zip(large, *pads, kernel, strict=True)):
        return
    joined = data.draw(st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=1, max_size=4), "joined")
    joined[data.draw(st.integers(0, len(joined) - 1))] = (True, 2)
    way = data.draw(st.sampled_from(REPEATS))

    random = np.random.default_rng(0)
    inputs = [ops.parameter([2, c, *(small if repeated else large)], np.float32) for repeated, c in joined]
    values = [enlarge(i, large, way) if repeated else i for i, (repeated, _) in zip(inputs, joined, strict=True)]
    weights = random.normal(size=(3, sum(c for _, c in joined), *kernel)).astype(np.float32)
    ones = [1] * rank
    whole = ops.concat(values, 1) if len(values) > 1 else values[0]
    out = ops.relu(ops.convolution(whole, ops.constant(weights), ones, *pads, ones))
    arrays = [random.normal(size=tuple(i.shape)).astype(np.float32) for i in inputs]
    model = ov.Model([out], inputs)
    before = run(model, arrays)
    assert fold_upsampling(model) == 1
    assert "Interpolate" not in kinds(model)
    assert fold_upsampling(model) == 0
    np.testing.assert_allclose(run(model, arrays), before, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_summed_weights(k, s, n):
    """On a line, against repetition and correlation as NumPy has them."""
    random = np.random.default_rng(k * 100 + s * 10 + n)
    line, weights = random.normal(size=n), random.normal(size=k).astype(np.float32)
    summed = transposed_weights(weights[None, None], (s,))[0, 0]
    spread = np.zeros((n - 1) * s + 1)
    spread[::s] = line
    want = np.convolve(np.repeat(line, s), weights[::-1])
    np.testing.assert_allclose(np.convolve(spread, summed), want, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "mode", "sizes"),
    [(way, "nearest", (16, 16)) for way in OTHERS]
    + [(REPEATS[0], "linear", (16, 16)), (REPEATS[0], "nearest", (12, 16))],
)
def test_other_ways_to_enlarge_stay(way, mode, sizes):
    source = ops.parameter([1, 2, 8, 8], np.float32)
    weights = ops.constant(np.ones((2, 2, 3, 3), np.float32))
    bigger = enlarge(source, sizes, way, mode)
    model = ov.Model([ops.relu(ops.convolution(bigger, weights, [1, 1], [1, 1], [1, 1], [1, 1]))], [source])
    assert fold_upsampling(model) == 0
    assert "Interpolate" in kinds(model)


@pytest.mark.parametrize(("stride", "dilation", "size"), [(2, 1, 3), (1, 2, 3), (1, 1, 1)])
def test_other_convolutions_stay(stride, dilation, size):
    source = ops.parameter([1, 2, 8, 8], np.float32)
    weights = ops.constant(np.ones((2, 2, size, size), np.float32))
    bigger = enlarge(source, (16, 16))
    made = ops.convolution(bigger, weights, [stride] * 2, [0, 0], [0, 0], [dilation] * 2)
    model = ov.Model([ops.relu(made)], [source])
    assert fold_upsampling(model) == 0


def test_scales_that_are_not_whole_stay():
    """2.03 makes the same sizes of 8 pixels as 2, and takes other pixels."""
    for scale, folded in ((2.03, 0), (2.0, 1)):
        source = ops.parameter([1, 2, 8, 8], np.float32)
        bigger = ops.interpolate(
            source,
            ops.constant(np.array([scale, scale], np.float32)),
            mode="nearest",
            shape_calculation_mode="scales",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=ops.constant(np.array([2, 3])),
        )
        weights = ops.constant(np.ones((2, 2, 3, 3), np.float32))
        model = ov.Model([ops.relu(ops.convolution(bigger, weights, [1, 1], [1, 1], [1, 1], [1, 1]))], [source])
        assert fold_upsampling(model) == folded


def test_what_else_reads_the_enlarged_map_still_does():
    source = ops.parameter([1, 2, 8, 8], np.float32)
    bigger = enlarge(source, (16, 16))
    weights = ops.constant(np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32))
    made = ops.convolution(bigger, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    model = ov.Model([ops.add(bigger, made)], [source])
    array = np.random.default_rng(1).normal(size=(1, 2, 8, 8)).astype(np.float32)
    before = run(model, [array])
    assert fold_upsampling(model) == 1
    np.testing.assert_allclose(run(model, [array]), before, atol=1e-4)
