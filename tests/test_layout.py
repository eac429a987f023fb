"""Levels, shards and chunks: whole numbers that must fit each other for any image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilelab.geometry import Box
from tilelab.io.zarr import layout as layouts
from tilelab.io.zarr.layout import Kind, Layout

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


@given(z=st.integers(1, 200_000), y=extents, x=extents, count=st.integers(1, 64))
def test_shards_of_a_stack_are_deep_where_they_would_be_many(z: int, y: int, x: int, count: int) -> None:
    layout = Layout.fit((z, y, x), bytes_per_pixel=count)
    deep, *flat = layout.shard
    assert (layout.chunk, tuple(flat)) == ((1, 256, 256), (2048, 2048))
    assert deep & (deep - 1) == 0
    assert deep <= z
    per_slice = -(-y // 2048) * -(-x // 2048)
    assert deep == 1 or deep * 2048 * 2048 * count <= 32 * 2**20  # a unit has to hold one
    assert deep == 1 or -(-z // (deep // 2)) * per_slice > layouts._MOST_FILES  # and no deeper than it need be
    if 2 * deep <= z and 2 * deep * 2048 * 2048 * count <= 32 * 2**20:
        assert -(-z // deep) * per_slice <= layouts._MOST_FILES


@pytest.mark.parametrize(
    ("shape", "shard"),
    [
        ((64, 4096, 4096), (1, 2048, 2048)),  # 1 GB: 256 files
        ((600_000, 512, 512), (4, 2048, 2048)),  # small slices, many of them
        ((10_000, 10_000, 10_000), (1, 2048, 2048)),  # 1 TB: 250,000 files
        ((100_000, 100_000, 100_000), (4, 2048, 2048)),
        ((1, 3_000_000, 3_000_000), (1, 2048, 2048)),
    ],
)
def test_shards_of_stacks(shape: tuple[int, int, int], shard: tuple[int, int, int]) -> None:
    assert Layout.fit(shape).shard == shard
    assert Layout.fit(shape).row_shard == (shard[0], 256, 2048)


@pytest.mark.parametrize(
    ("depth", "chunk", "shard"),
    [
        (2, (8, 128, 128), (32, 512, 512)),
        (8, (8, 128, 128), (32, 512, 512)),
        (9, (16, 128, 128), (64, 512, 512)),
        (17, (32, 64, 64), (128, 512, 512)),
        (3000, (32, 64, 64), (128, 512, 512)),
    ],
)
def test_thin_volumes_have_flat_chunks(depth: int, chunk: tuple[int, ...], shard: tuple[int, ...]) -> None:
    layout = Layout.fit((depth, 1000, 1000), kind="3d")
    assert (layout.chunk, layout.shard) == (chunk, shard)
    assert layout.row_shard == (chunk[0], 512, 512)
    assert layout.aligned >= 2


def test_deep_shards_hold_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    from tilelab.engines.overrides import SpecOverrides
    from tilelab.io.convert import convert_image
    from tilelab.io.results.result import read_result
    from tilelab.run.infer import infer
    from tilelab.run.options import Options

    array = np.random.default_rng(0).integers(0, 256, (10, 600, 130), np.uint8)
    options = Options(model=SpecOverrides(tile=(64, 64), overlap=(16, 16)), logits=True)
    flat = read_result(infer(array, "identity:2", tmp_path / "flat.ome.zarr", options=options).path)
    monkeypatch.setattr(layouts, "_MOST_FILES", 2)
    with monkeypatch.context() as more:
        more.setattr(layouts, "_MOST_BYTES", 2**30)
        deep = read_result(infer(array, "identity:2", tmp_path / "deep.ome.zarr", options=options).path)
    assert flat.info.layout.shard[0] == 1
    assert deep.info.layout.shard[0] == 8
    assert flat.logits is not None
    assert deep.logits is not None
    np.testing.assert_array_equal(flat.logits[...], deep.logits[...])
    np.testing.assert_array_equal(zarr.open_array(deep.logits.uri, mode="r")[:], deep.logits[...])
    options = Options(model=SpecOverrides(tile=(64, 64), overlap=(16, 16)))
    deep = read_result(infer(array, "identity:2", tmp_path / "deeper.ome.zarr", options=options).path)
    assert deep.info.layout.shard[0] == 4
    for what in ("labels", "probabilities"):
        for a, b in zip(getattr(flat, what), getattr(deep, what), strict=True):
            np.testing.assert_array_equal(a[...], b[...])
            np.testing.assert_array_equal(zarr.open_array(b.uri, mode="r")[:], b[...])
    assert sum(file.is_file() for file in (deep.path / "labels/classes/0/c").rglob("*")) == 3
    for dtype, shard in ((np.uint8, 8), (np.uint16, 4)):
        convert_image(array.astype(dtype), tmp_path / f"{shard}.ome.zarr")
        stored = zarr.open_array(tmp_path / f"{shard}.ome.zarr" / "0", mode="r")
        assert stored.shards == (shard, 2048, 2048)
        np.testing.assert_array_equal(stored[:], array)
