"""Tiles cover every pixel, shares add up to one exactly, and closed forms agree with counting."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelab.errors import PlanError
from tilelab.geometry import WINDOWS, AxisTiling, Box, Cuts, Lattice, Units, boxes, reflect, window_profile


@st.composite
def tilings(draw, max_size=300):
    stride = draw(st.sampled_from([1, 2, 3, 8]))
    tile = stride * draw(st.integers(1, 12))
    overlap = draw(st.integers(0, tile - stride))
    bits = draw(st.sampled_from([8, 12, 16]))
    return AxisTiling(draw(st.integers(1, max_size)), tile, overlap, stride, draw(st.sampled_from(WINDOWS)), bits)


@settings(max_examples=300)
@given(tilings())
def test_shares_sum_to_exactly_one_in_float32(axis):
    total = np.zeros(axis.padded, np.float32)
    for j in range(len(axis)):
        share = axis.shares(j)
        assert share.dtype == np.float32
        assert (share >= 0).all()
        total[axis.position(j) : axis.position(j) + axis.tile] += share
    np.testing.assert_array_equal(total, 1)


@settings(max_examples=200)
@given(tilings(), st.data())
def test_covering_is_what_counting_says(axis, data):
    start = data.draw(st.integers(0, axis.padded - 1))
    stop = data.draw(st.integers(start + 1, axis.padded))
    counted = [j for j in range(len(axis)) if axis.position(j) < stop and axis.position(j) + axis.tile > start]
    assert list(axis.covering(start, stop)) == counted


@settings(max_examples=200)
@given(tilings())
def test_positions_keep_stride_and_overlap(axis):
    positions = [axis.position(j) for j in range(len(axis))]
    assert positions[0] == 0
    assert positions[-1] + axis.tile == axis.padded >= axis.size
    assert all(p % axis.stride == 0 for p in positions)
    assert all(a < b for a, b in pairwise(positions))
    assert all(a + axis.tile - b >= axis.overlap for a, b in pairwise(positions))
    assert axis.padded - axis.size < max(axis.stride, axis.tile)


@settings(max_examples=100)
@given(tilings())
def test_crop_gives_each_pixel_to_one_tile_with_half_the_overlap_as_margin(axis):
    axis = AxisTiling(axis.size, axis.tile, axis.overlap, axis.stride, "crop", axis.bits)
    for j in range(len(axis)):
        share = axis.shares(j)
        assert set(np.unique(share)) <= {0.0, 1.0}
        used = np.flatnonzero(share)
        if j > 0:
            assert used[0] >= axis.overlap // 2
        if j < len(axis) - 1:
            assert axis.tile - 1 - used[-1] >= (axis.overlap - 1) // 2


def test_the_share_of_two_axes_sums_to_one_exactly_too():
    lattice = Lattice.fit((70, 83), (24, 24), (7, 9), stride=4, window="gaussian")
    total = np.zeros(tuple(a.padded for a in lattice.axes), np.float32)
    for i in range(lattice.shape[0]):
        for j in range(lattice.shape[1]):
            box = lattice[i, j]
            total[box.slices] += lattice.axes[0].shares(i)[:, None] * lattice.axes[1].shares(j)
    np.testing.assert_array_equal(total, 1)


@settings(max_examples=100)
@given(st.integers(1, 30), st.integers(0, 90))
def test_reflection_is_numpys(size, pad):
    expected = np.pad(np.arange(size), (0, pad), mode="reflect") if size > 1 else np.zeros(1 + pad, int)
    np.testing.assert_array_equal(reflect(np.arange(size + pad), size), expected)


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_are_positive_and_symmetric(window):
    for tile in (1, 2, 7, 512):
        profile = window_profile(window, tile)
        assert (profile > 0).all()
        np.testing.assert_allclose(profile, profile[::-1], rtol=1e-12)


@settings(max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 3000), st.integers(1, 600))
def test_cuts_cover_at_multiples_of_the_grain(size, extent, grain):
    cuts = Cuts.at_most(size, extent, grain)
    ranges = [cuts[i] for i in range(len(cuts))]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert all(a % grain == 0 for a, _ in ranges)
    assert all(b - a <= max(extent, grain) for a, b in ranges)
    assert len({b - a for a, b in ranges[:-1]}) <= 1


def test_units_are_counted_not_listed():
    units = Units((Cuts.at_most(10**6, 1, 1), Cuts.at_most(10**6, 4096, 2048), Cuts.at_most(10**6, 8192, 2048)))
    assert len(units) == 10**6 * 245 * 123
    assert units[0].box == Box((0, 0, 0), (1, 4096, 8192))
    last = units[len(units) - 1].box
    assert last.stop == (10**6,) * 3
    with pytest.raises(IndexError):
        units[len(units)]


def test_units_cover_an_image_once():
    shape = (3, 50, 70)
    units = Units(tuple(Cuts.at_most(n, e, g) for n, e, g in zip(shape, (1, 30, 25), (1, 10, 8), strict=True)))
    seen = np.zeros(shape, int)
    for unit in units:
        seen[unit.box.slices] += 1
    assert (seen == 1).all()


def test_boxes_cover_an_array_once():
    seen = np.zeros((7, 11), int)
    for box in boxes((7, 11), (3, 4)):
        seen[box.slices] += 1
    assert (seen == 1).all()


ranges = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)


@settings(max_examples=100)
@given(ranges, ranges, ranges, ranges)
def test_intersection(ay, ax, by, bx):
    one, two = Box((ay[0], ax[0]), (ay[1], ax[1])), Box((by[0], bx[0]), (by[1], bx[1]))
    image = np.zeros((2, 10, 10), bool)
    image[(0, *one.slices)] = True
    image[(1, *two.slices)] = True
    assert one.intersect(two).size == image.all(axis=0).sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 0), "empty"),
        ((10, 9, 0, 4), "not a multiple of the model's stride 4: use 8"),
        ((10, 8, 8), "less than the tile"),
        ((10, 8, -1), "at least 0"),
        ((10, 8, 5, 4), "leaves no step"),
    ],
)
def test_impossible_tilings_are_refused_with_words(arguments, message):
    with pytest.raises(PlanError, match=message):
        AxisTiling(*arguments)


def test_unknown_window_lists_the_known_ones():
    with pytest.raises(PlanError, match="hann, gaussian, linear, constant, crop"):
        window_profile("hanning", 8)
