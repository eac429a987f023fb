"""Images for the tests of reading: pixels to store, and the check that they come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilelab.geometry import Box
from tilelab.io.images.image import Image

Array = npt.NDArray[Any]


def pixels(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> Array:
    """Smooth structure with noise, using the whole range of an integer dtype; float32 with negative values."""
    rng = np.random.default_rng(seed)
    phase = sum(np.indices(shape)[axis] / (7.0 + 3 * axis) for axis in range(len(shape)))
    values = np.sin(phase) + rng.normal(0, 0.1, shape)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return values > 0
    if dtype.kind == "f":
        return (values * 100).astype(dtype)
    info = np.iinfo(dtype)
    scaled = (values - values.min()) / np.ptp(values)
    return (scaled * (float(info.max) - info.min) * 0.999 + info.min).astype(dtype)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    """Regions inside an array of `shape`, at least one pixel each."""
    start = [draw(st.integers(0, n - 1)) for n in shape]
    return Box(tuple(start), tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))


def check_reads(image: Image, expected: Array, examples: int = 12) -> None:
    """`image` is `expected` in shape and dtype, as a whole and in any region."""
    assert image.shape == expected.shape
    assert image.dtype == expected.dtype
    assert image.dtype.isnative
    assert len(image.axes) == len(image.chunks) == len(image.shape)
    assert all(1 <= chunk <= size for chunk, size in zip(image.chunks, image.shape, strict=True))
    np.testing.assert_array_equal(image.read(Box.whole(image.shape)), expected)

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @given(boxes(expected.shape))
    def read_any(box: Box) -> None:
        region = image.read(box)
        assert region.dtype == expected.dtype
        assert region.flags.c_contiguous
        np.testing.assert_array_equal(region, expected[box.slices])

    read_any()
