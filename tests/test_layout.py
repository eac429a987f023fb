"""Levels, shards and chunks: whole numbers that must fit each other for any image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilelab.geometry import Box
from tilelab.io.layout import Kind, Layout

extents = st.integers(1, 3_000_000)
kinds: st.SearchStrategy[Kind] = st.sampled_from(["2d", "3d"])


@given(z=st.integers(1, 100_000), y=extents, x=extents, kind=kinds, z_nm=st.floats(1, 100))
def test_levels_fit_each_other(z: int, y: int, x: int, kind: Kind, z_nm: float) -> None:
    layout = Layout.fit((z, y, x), (z_nm, 10.0, 10.0), kind)
    assert layout.shape == (z, y, x)
    assert layout.level_shape(0) == layout.shape
    assert layout.level_shard(0) == layout.grain
    assert 1 <= layout.aligned <= layout.levels
    for level in range(layout.levels):
        assert all(s % c == 0 for s, c in zip(layout.level_shard(level), layout.chunk, strict=True))
    for level in range(1, layout.levels):
        before = layout.level_shape(level - 1)
        assert layout.level_shape(level) == tuple(-(-n // f) for n, f in zip(before, layout.factor, strict=True))
    for level in range(layout.aligned):  # one shard of every aligned level covers one grain
        covered = tuple(n * s for n, s in zip(layout.level_shard(level), layout.scale(level), strict=True))
        assert covered == layout.grain


@given(y=extents, x=extents)
def test_the_coarsest_level_fits_a_screen_and_no_level_is_superfluous(y: int, x: int) -> None:
    layout = Layout.fit((y, x))
    assert max(layout.level_shape(layout.levels - 1)) <= 512
    assert layout.levels == 1 or max(layout.level_shape(layout.levels - 2)) > 512


def test_a_plane_has_four_aligned_levels() -> None:
    layout = Layout.fit((9958, 9959), (2.18, 2.18))
    assert (layout.chunk, layout.shard, layout.aligned) == ((1, 256, 256), (1, 2048, 2048), 4)
    assert [layout.level_shape(i)[1:] for i in range(layout.levels)] == [
        (9958, 9959), (4979, 4980), (2490, 2490), (1245, 1245), (623, 623), (312, 312),
    ]  # fmt: skip
    assert [layout.level_shard(i)[1] for i in range(layout.levels)] == [2048, 1024, 512, 256, 2048, 2048]


@pytest.mark.parametrize(
    ("kind", "pixel_size_nm", "z_factor"),
    [
        ("2d", (8.0, 8.0, 8.0), 1),
        ("3d", (8.0, 8.0, 8.0), 2),
        ("3d", (12.0, 8.0, 8.0), 2),
        ("3d", (30.0, 8.0, 8.0), 1),
        ("3d", (4.0, 8.0, 8.0), 1),
        ("3d", None, 2),
    ],
)
def test_z_is_halved_for_isotropic_volumes_alone(
    kind: Kind, pixel_size_nm: tuple[float, ...] | None, z_factor: int
) -> None:
    assert Layout.fit((700, 1000, 1000), pixel_size_nm, kind).z_factor == z_factor


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (1, 1, 1), (3, 2, 600)])
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_tiny_images_have_a_layout(shape: tuple[int, ...], kind: Kind) -> None:
    layout = Layout.fit(shape, kind=kind)
    assert layout.levels == (2 if shape[-1] == 600 else 1)


def test_an_empty_image_has_none() -> None:
    with pytest.raises(ValueError, match="empty"):
        Layout.fit((0, 5))


def test_the_pixels_of_a_level_that_a_box_makes() -> None:
    layout = Layout.fit((1, 5000, 5001))
    box = Box((0, 4096, 2048), (1, 5000, 5001))
    assert layout.level_box(box, 0) == box
    assert layout.level_box(box, 3) == Box((0, 512, 256), (1, 625, 626))
