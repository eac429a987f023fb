"""Resampling is what the plain formula says, and does not depend on the region that is read."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.images.resample import ResampledImage


def resampled(array, source_nm, target_nm, axes="yx"):
    image = open_image(array, axes=axes, pixel_size_nm=source_nm)
    steps = {a: new / old for a, new, old in zip(axes.replace("c", ""), target_nm, image.pixel_size_nm, strict=True)}
    return ResampledImage(image, steps)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    nm=st.sampled_from([1.0, 1.7, 2.0, 3.3, 7.0]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    data=st.data(),
)
def test_a_region_is_the_same_as_cut_from_the_whole(seed, shape, nm, dtype, data):
    array = (np.random.default_rng(seed).random(shape) * 250).astype(dtype)
    image = resampled(array, 2.0, (nm, nm))
    whole = image[:]
    assert whole.dtype == dtype
    assert whole.shape == image.shape == tuple(max(1, round(n * 2 / nm)) for n in shape)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in image.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, image.shape, strict=True))
    box = Box(start, stop)
    np.testing.assert_array_equal(image.read(box), whole[box.slices])
    assert whole.min() >= array.min() - 1e-3
    assert whole.max() <= array.max() + 1e-3


def test_it_is_pillows_bilinear():
    array = np.random.default_rng(0).random((60, 90)).astype(np.float32)
    for shape in ((30, 45), (20, 30), (120, 180)):
        image = resampled(array, 6.0, tuple(6.0 * n / m for n, m in zip(array.shape, shape, strict=True)))
        expected = np.asarray(Pillow.fromarray(array).resize(shape[::-1], Pillow.Resampling.BILINEAR))
        np.testing.assert_allclose(image[:], expected, atol=2e-6)


def test_slices_and_channels_stay_apart():
    array = np.random.default_rng(0).integers(0, 255, (2, 3, 20, 20), np.uint8)
    image = resampled(array, (30.0, 4.0, 4.0), (30.0, 8.0, 8.0), axes="czyx")
    assert image.shape == (2, 3, 10, 10)
    for c in range(2):
        for z in range(3):
            np.testing.assert_array_equal(image[c, z], resampled(array[c, z], 4.0, (8.0, 8.0))[:])
    assert image.pixel_size_nm == (30.0, 8.0, 8.0)
    assert "resampled_by" in image.fingerprint()
