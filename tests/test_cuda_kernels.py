"""The CUDA kernels do what the NumPy ones do.

Without a GPU they run in Numba's simulator, which must be chosen before Numba is imported: `test_simulator` runs this
file again in a process of its own.  What the simulator cannot tell (types, registers, spilling) `test_gpu_driver` sees.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import run_in_simulator
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tilelab.geometry import AxisTiling
from tilelab.kernels import reference
from tilelab.kernels.reference import SIGMOID, SOFTMAX

pytest.importorskip("numba_cuda")
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
EXAMPLES = 40 if SIMULATED else 60
seeds = st.integers(0, 2**32 - 1)


def test_simulator():
    run_in_simulator(__file__, "equal or order")


@pytest.fixture(scope="module")
def gpu(device):
    """`tilelab.kernels.cuda` and `device` on a real GPU or in the simulator."""
    from tilelab.kernels import cuda, cuda_elementwise

    return SimpleNamespace(cuda=cuda, elementwise=cuda_elementwise, put=device.cuda.to_device, device=device)


def small(draw_block):
    """Blocks so small that small data crosses their edges."""
    return draw_block if SIMULATED else (32, 4)


blocks = st.sampled_from([(4, 2), (2, 1), (8, 3)])


@settings(max_examples=EXAMPLES)
@given(
    seed=seeds,
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    out=st.sampled_from([np.float32, np.float16]),
    channels=st.integers(1, 3),
    repeat=st.booleans(),
    block=blocks,
)
def test_cut_is_equal_to_the_reference(gpu, seed, dtype, out, channels, repeat, block):
    rng = np.random.default_rng(seed)
    tile = tuple(int(rng.integers(1, n)) for n in (12, 4, 40))
    size = tuple(int(rng.integers(1, n)) for n in (20, 6, 60))
    image = (rng.random((1 if repeat else channels, *size)) * 200).astype(dtype)
    axes = [AxisTiling(n, t, 0) for n, t in zip(size, tile, strict=True)]
    count = 3
    j = int(rng.integers(len(axes[0])))
    tiles = [[j] + [int(rng.integers(len(axis))) for axis in axes[1:]] for _ in range(count)]
    placement = np.zeros((count + 1, 4), np.int32)
    placement[1:, :2] = [[axis.position(j) for axis, j in zip(axes[1:], at[1:], strict=True)] for at in tiles]
    # a window on the cross axes, and a ring just large enough for the rows that are looked at
    index = [[axis.indices(j) for axis, j in zip(axes, at, strict=True)] for at in tiles]
    low = [min(int(i[a].min()) for i in index) for a in range(3)]
    high = [max(int(i[a].max()) for i in index) + 1 for a in range(3)]
    rows = np.arange(low[0], high[0])
    band = np.zeros((image.shape[0], len(rows), high[1] - low[1], high[2] - low[2]), dtype)
    band[:, rows % len(rows)] = image[:, rows, low[1] : high[1], low[2] : high[2]]
    mean, gain = rng.random((2, channels)).astype(np.float32)
    got = gpu.put(np.full((count, channels, *tile), np.nan, out))
    gpu.cuda.cut(
        gpu.put(band),
        (low[1], low[2]),
        size,
        gpu.put(placement),
        1,
        count,
        axes[0].position(j),
        gpu.put(mean),
        gpu.put(gain),
        got,
        block=small(block),
    )
    for t in range(count):
        expected = np.empty((channels, *tile), np.float32)
        reference.cut(image, *index[t], mean, gain, expected)
        np.testing.assert_array_equal(got.copy_to_host()[t], expected.astype(out))


@settings(max_examples=EXAMPLES)
@given(
    seed=seeds,
    classes=st.sampled_from([1, 2, 3, 19]),
    dtype=st.sampled_from([np.float32, np.float16]),
    block=blocks,
)
@example(seed=1, classes=2, dtype=np.float32, block=(4, 2))
@example(seed=2, classes=19, dtype=np.float16, block=(2, 1))
def test_blend_is_equal_to_the_reference(gpu, seed, classes, dtype, block):
    # sizes come from the seed: hypothesis would mostly draw the least, and blend nothing
    rng = np.random.default_rng(seed)
    tile = (int(rng.integers(1, 12)), int(rng.integers(1, 4)), int(rng.integers(1, 10)))
    canvas = (tile[0] + int(rng.integers(0, 3)), int(rng.integers(1, 4)), int(rng.integers(1, 14)))
    start, count = int(rng.integers(0, 40)), int(rng.integers(1, 6))
    origin = (100, 200)
    begin = start + int(rng.integers(0, tile[0] // 2 + 1))
    end = begin + int(rng.integers((start + tile[0] - begin) // 2, start + tile[0] - begin + 1))
    placement = np.zeros((count + 2, 4), np.int32)
    placement[:, 0] = origin[0] + rng.integers(1 - tile[1], canvas[1], count + 2)
    placement[:, 1] = origin[1] + rng.integers(-tile[2], canvas[2] + 1, count + 2)
    placement[:, 2:] = rng.integers(0, 2, (count + 2, 2))
    shares = [rng.random((2, t)).astype(np.float32) for t in tile]
    logits = rng.normal(size=(count + 1, classes, *tile)).astype(dtype)
    logits[count:] = np.nan  # a padded tile of the batch, never looked at
    before = rng.normal(size=(classes, *canvas)).astype(np.float32)
    expected = before.copy()
    for (a, x, i, j), values in zip(placement[2:].tolist(), logits, strict=False):
        place = (start, begin - start, end - start, a - origin[0], x - origin[1])
        reference.blend(expected, values.astype(np.float32), shares[0][1], shares[1][i], shares[2][j], *place)
    got = gpu.put(before)
    tables = gpu.put(shares[0][1]), gpu.put(shares[1]), gpu.put(shares[2])
    arguments = (gpu.put(logits), gpu.put(placement), 2, count, start, tables, origin, begin, end)
    gpu.cuda.blend(got, *arguments, block=small(block))
    np.testing.assert_array_equal(got.copy_to_host(), expected)


@settings(max_examples=EXAMPLES)
@given(
    seed=seeds,
    classes=st.sampled_from([1, 2, 3, 19]),
    activation=st.sampled_from([SOFTMAX, SIGMOID]),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
    want_logits=st.booleans(),
    want_probabilities=st.booleans(),
    sharpness=st.sampled_from([1.0, 0.61, 1.7]),
    block=blocks,
)
def test_finish_is_equal_to_the_reference(
    gpu, seed, classes, activation, scale, want_logits, want_probabilities, sharpness, block
):
    rng = np.random.default_rng(seed)
    size = n, height, width = tuple(int(rng.integers(1, k)) for k in (5, 4, 40))
    row = int(rng.integers(0, 20))
    canvas = (rng.normal(size=(classes, n + 2, height, width)) * scale).astype(np.float32)
    canvas[:, :, :, ::5] = 0  # ties
    channels = np.arange(classes + activation)[::-1].copy() if want_probabilities else np.empty(0, np.int64)
    labels = np.full(size, 77, np.uint8)
    probabilities = np.full((len(channels), *size), 77, np.uint8)
    logits = np.full((classes if want_logits else 0, *size), 77, np.float32)
    work, labels_got, flag = gpu.put(canvas), gpu.put(labels), gpu.put(np.zeros(1, np.int32))
    probabilities_got = gpu.put(probabilities) if want_probabilities else None
    logits_got = gpu.put(logits) if want_logits else None
    classes_got = gpu.put(channels.astype(np.int32)) if want_probabilities else None
    asked = probabilities_got, classes_got, logits_got
    gpu.cuda.finish(work, row, activation, labels_got, flag, *asked, sharpness=sharpness, block=small(block))
    reference.finish(canvas, row, activation, labels, probabilities, channels, logits, sharpness)
    np.testing.assert_array_equal(labels_got.copy_to_host(), labels)
    np.testing.assert_array_equal(work.copy_to_host(), canvas)
    assert flag.copy_to_host()[0] == 0
    if want_logits:
        np.testing.assert_array_equal(logits_got.copy_to_host(), logits)
    if want_probabilities:
        difference = np.abs(probabilities_got.copy_to_host().astype(int) - probabilities)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.02 or difference.size < 100


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # inf - inf in the simulator
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_raise_the_flag_equal_in_any_class(gpu, bad):
    for k in range(2):
        canvas = np.zeros((2, 3, 1, 7), np.float32)
        canvas[k, 1, 0, 6] = bad
        flag, work = gpu.put(np.zeros(1, np.int32)), gpu.put(canvas)
        gpu.cuda.finish(work, 1, SOFTMAX, gpu.put(np.zeros((2, 1, 7), np.uint8)), flag, block=small((4, 1)))
        assert flag.copy_to_host()[0] == 1
        assert not work.copy_to_host().any()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_turn_is_equal_to_numpy_and_back_undoes_it(gpu, turns, mirror):
    rng = np.random.default_rng(turns)
    planes = rng.normal(size=(3, 5, 5)).astype(np.float32)
    expected = np.rot90(planes[..., ::-1] if mirror else planes, turns, axes=(-2, -1))
    target = gpu.put(np.zeros_like(planes))
    gpu.elementwise.turn(gpu.put(planes), target, turns, mirror, block=small((2, 2)))
    np.testing.assert_array_equal(target.copy_to_host(), expected)
    back = gpu.put(np.ones_like(planes))
    gpu.elementwise.turn(target, back, turns, mirror, back=True, add=True, block=small((2, 2)))
    np.testing.assert_array_equal(back.copy_to_host(), planes + 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("activation", [SOFTMAX, SIGMOID])
def test_undoing_an_activation_gives_logits_equal_up_to_rounding(gpu, activation, dtype):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 3, 5)) * 3
    e = np.exp(logits)
    p = e / e.sum(axis=1, keepdims=True) if activation == SOFTMAX else e / (1 + e)
    p[0, :, 0] = 0
    got = gpu.put(p.astype(dtype))
    gpu.elementwise.undo_activation(got, activation, block=8)
    values = got.copy_to_host().astype(float)
    expected = np.log(np.maximum(p, 1e-30)) if activation == SOFTMAX else logits
    np.testing.assert_allclose(values[1], expected[1], atol=1e-5 if dtype == np.float32 else 0.05)
    assert np.isfinite(values).all()
    assert (values[0, :, 0] < -9).all()


def test_clear_leaves_every_element_equal_to_zero(gpu):
    array = gpu.put(np.ones((3, 5, 7), np.float32))
    gpu.elementwise.clear(array, gpu.device.stream())
    assert not array.copy_to_host().any()


def test_sums_keep_the_order_of_the_tiles(gpu):
    """Three tiles over one pixel whose float32 sum depends on the order."""
    logits = np.array([1e8, 1, -1e8], np.float32).reshape(3, 1, 1, 1, 1)
    results = set()
    for order in ([0, 1, 2], [0, 2, 1]):
        canvas = gpu.put(np.zeros((1, 1, 1, 1), np.float32))
        one = gpu.put(np.ones((1, 1), np.float32))
        placement = gpu.put(np.zeros((3, 4), np.int32))
        tables = (one, one, one)
        gpu.cuda.blend(canvas, gpu.put(logits[order]), placement, 0, 3, 0, tables, (0, 0), 0, 1, block=(2, 1))
        results.add(float(canvas.copy_to_host().item()))
    assert results == {0.0, 1.0}
