"""The drawn micrographs: the same whatever is asked for at once, without seams, and like the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tilelab.geometry import Box
from tilelab.sample import CLASSES, draw_superalloy, superalloy, write_superalloy, write_tiled

SHAPE = (700, 600)


@pytest.fixture(scope="module")
def whole():
    return draw_superalloy(SHAPE, seed=3)


@settings(max_examples=20)
@given(data=st.data())
def test_any_region_is_the_same_as_in_the_whole(whole, data):
    y0 = data.draw(st.integers(0, SHAPE[0]))
    y1 = data.draw(st.integers(y0, min(SHAPE[0], y0 + 300)))
    x0 = data.draw(st.integers(0, SHAPE[1]))
    x1 = data.draw(st.integers(x0, min(SHAPE[1], x0 + 300)))
    box = Box((y0, x0), (y1, x1))
    image, truth = draw_superalloy(SHAPE, seed=3, box=box)
    np.testing.assert_array_equal(image, whole[0][box.slices])
    np.testing.assert_array_equal(truth, whole[1][box.slices])


def test_a_larger_image_begins_with_the_same_pixels(whole):
    image, truth = draw_superalloy((900, 1000), seed=3, box=Box((500, 300), (700, 600)))
    np.testing.assert_array_equal(image, whole[0][500:700, 300:600])
    np.testing.assert_array_equal(truth, whole[1][500:700, 300:600])


def test_seeds_draw_different_micrographs():
    first, second = (draw_superalloy((256, 256), seed)[1] for seed in (0, 2))
    assert 0.3 < np.mean(first != second) < 0.7


@pytest.mark.parametrize("seed", range(4))
def test_neighbouring_blocks_see_the_same_outlines(seed):
    """What is drawn on a block's border does not depend on the block: else bodies would be cut off there."""
    border = 256 * (3 + seed)
    y = np.arange(512.0)[:, None]
    x = border + np.arange(-20.0, 20.0)[None]
    left, right = (
        superalloy._depth(superalloy._place_lobes(seed, Box((0, a), (512, a + 256))), y, x)
        for a in (border - 256, border)
    )
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-9)


def test_no_seams_at_the_borders_of_blocks():
    image, truth = draw_superalloy((1024, 1024), seed=1)
    step = np.abs(np.diff(image.astype(float), axis=1)).mean(0)
    change = (np.diff(truth.astype(int), axis=1) != 0).mean(0)
    borders = [255, 511, 767]
    inner = np.delete(np.arange(1023), borders)
    assert step[borders].mean() < step[inner].mean() + 4 * step[inner].std() / np.sqrt(len(borders))
    assert change[borders].mean() < change[inner].mean() + 4 * change[inner].std() / np.sqrt(len(borders))


def test_no_negative_or_huge_seeds_and_no_boxes_outside():
    with pytest.raises(ValueError, match="seed is -1"):
        draw_superalloy((8, 8), -1)
    with pytest.raises(ValueError, match=r"leaves the image of 8 x 8"):
        draw_superalloy((8, 8), 0, box=Box((0, 0), (9, 8)))


def test_it_looks_like_the_real_micrographs(real_data: Path):
    """Shares of the classes, contrast and spread within each class lie within the range of the real set."""

    def describe(image, truth):
        share = [np.mean(truth == k) for k in range(3)]
        grey = image.astype(float)
        contrast = [grey[truth == 0].mean() - grey[truth == k].mean() for k in (1, 2)]
        spread = [grey[truth == k].std() for k in range(3)]
        step = np.abs(np.diff(grey, axis=0)).mean()
        return np.array([*share, *contrast, *spread, step])

    pairs = sorted((real_data / "superalloy" / "train" / "images").glob("*.png"))
    assert pairs
    real = np.array(
        [describe(np.array(Image.open(p)), np.array(Image.open(str(p).replace("images", "masks")))) for p in pairs]
    )
    drawn = np.mean([describe(*draw_superalloy((768, 768), seed)) for seed in range(4)], axis=0)
    low, high = real.min(0), real.max(0)
    slack = 0.1 * real.mean(0)
    assert np.all(drawn > low - slack), (drawn, low)
    assert np.all(drawn < high + slack), (drawn, high)


def test_written_files_hold_what_is_drawn(tmp_path: Path):
    shape = (530, 601)
    write_superalloy(tmp_path / "image.tif", tmp_path / "truth.tif", shape, seed=5)
    image, truth = draw_superalloy(shape, seed=5)
    with tifffile.TiffFile(tmp_path / "image.tif") as file:
        assert file.pages[0].is_tiled
        np.testing.assert_array_equal(file.asarray(), image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "truth.tif"), truth)
    assert set(np.unique(truth)) == set(range(len(CLASSES)))


def test_tiled_writing_asks_for_one_row_of_tiles_at_a_time(tmp_path: Path):
    asked = []
    plane = np.arange(100 * 70, dtype=np.uint8).reshape(100, 70)

    def rows(start, stop):
        asked.append((start, stop))
        return plane[start:stop]

    write_tiled(tmp_path / "a.tif", plane.shape, rows, tile=32, compression=None)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), plane)
    assert asked == [(0, 32), (32, 64), (64, 96), (96, 100)]
