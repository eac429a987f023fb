"""Objects cut by affinities: the kernel against the plainest mutex watershed, blocks against the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.result_files import CLASSES
from tilelab.cli import main
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io import open_image
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.kernels.objects.mutex import cut_by_mutexes
from tilelab.measure.affinities import Cut
from tilelab.measure.components import ArrayPlanes, find_objects

OFFSETS = ((0, 1), (1, 0), (0, 5), (5, 0), (3, -3))


def plain_cut(affinities: Any, mask: Any) -> Any:
    """Sets of pixels and sets of forbidden pairs, as the paper writes it down."""
    pairs = []
    for k, (dy, dx) in enumerate(OFFSETS):
        near = abs(dy) + abs(dx) == 1
        for y, x in np.argwhere(mask):
            v, u = y + dy, x + dx
            if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1] and mask[v, u]:
                a = float(affinities[k, y, x])
                weight = a if near else 1 - a
                if weight > 0:
                    pairs.append((-weight, len(pairs), near, (y, x), (v, u)))
    part = {tuple(at): i for i, at in enumerate(np.argwhere(mask).tolist())}
    foes: set[tuple[int, int]] = set()
    for _, _, near, one, two in sorted(pairs):
        a, b = part[one], part[two]
        if a == b or (min(a, b), max(a, b)) in foes:
            continue
        if near:
            part = {at: a if p == b else p for at, p in part.items()}
            foes = {tuple(sorted(a if p == b else p for p in pair)) for pair in foes}  # type: ignore[misc]
        else:
            foes.add((min(a, b), max(a, b)))
    numbers, known = np.zeros(mask.shape, np.int64), {}
    for at in np.argwhere(mask).tolist():
        numbers[tuple(at)] = known.setdefault(part[tuple(at)], len(known) + 1)
    return numbers


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 16]))
def test_the_kernel_is_the_mutex_watershed(seed: int, height: int, width: int, levels: int) -> None:
    """With few levels many pairs are equally sure."""
    rng = np.random.default_rng(seed)
    affinities = rng.integers(0, levels + 1, (len(OFFSETS), height, width)) / levels
    mask = rng.random((height, width)) < 0.9
    found = cut_by_mutexes(affinities, np.array(OFFSETS), mask)
    np.testing.assert_array_equal(found, plain_cut(affinities, mask))


def affinities_of(cells: Any, seed: int = 0, noise: float = 0.0) -> Any:
    """What a network would say that knows the cells, with noise; ``(pairs, y, x)``."""
    rng = np.random.default_rng(seed)
    found = np.zeros((len(OFFSETS), *cells.shape), np.float32)
    for k, (dy, dx) in enumerate(OFFSETS):
        moved = np.roll(cells, (-dy, -dx), (0, 1))
        found[k] = np.where(cells == moved, 1.0, 0.0)
    return np.clip(found + rng.normal(0, noise, found.shape), 0, 1).astype(np.float32)


def voronoi(shape: tuple[int, int], count: int, seed: int) -> Any:
    """Cells that touch."""
    points = np.random.default_rng(seed).random((count, 2)) * shape
    at = np.stack(np.mgrid[: shape[0], : shape[1]], -1)
    return ((at[:, :, None] - points) ** 2).sum(-1).argmin(-1) + 1


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(24, 40))
def test_blocks_agree_whatever_the_way_of_reading(seed: int, rows: int, tile: int) -> None:
    cells = voronoi((70, 90), 12, seed)
    planes = ArrayPlanes(np.ones(cells.shape, np.uint8))
    image = open_image(affinities_of(cells, seed, 0.2), axes="cyx")
    cut = Cut(planes, image, OFFSETS, tile=tile, halo=20)
    whole = cut.read(Box.whole(planes.shape))
    parts = [cut.read(Box((0, y, 0), (1, min(70, y + rows), 90))) for y in range(0, 70, rows)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    numbers = [find_objects(cut, grid=(1, n)).read(Box.whole(planes.shape)) for n in (70, rows)]
    np.testing.assert_array_equal(*numbers)


def test_cells_across_blocks_have_one_number() -> None:
    cells = voronoi((120, 130), 14, 3)
    planes = ArrayPlanes(np.ones(cells.shape, np.uint8))
    cut = Cut(planes, open_image(affinities_of(cells), axes="cyx"), OFFSETS, tile=48, halo=16)
    values = cut.read(Box.whole(planes.shape))[0]
    pairs = np.unique(np.column_stack([values.ravel(), cells.ravel()]), axis=0)
    assert len(pairs) == len(np.unique(cells)) == len(np.unique(values))


def test_the_command_measures_cells_that_touch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = voronoi((100, 140), 9, 5)
    layout = Layout.fit((100, 140), (4.0, 4.0), "2d")
    sink = OmeZarrSink.create(
        tmp_path / "r.ome.zarr", layout, classes=CLASSES[:2], probabilities=(), axes="yx", pixel_size_nm=(4.0, 4.0),
        metadata={}, maps=(("aff", len(OFFSETS)),),
    )  # fmt: skip
    ones = np.ones((1, 100, 140), np.uint8)
    sink.writer(Box.whole(layout.shape), 0, 1).write(Finished(ones, None, None, {"aff": affinities_of(cells)[:, None]}))
    sink.finalize()
    pairs = "aff=" + ";".join(f"{y},{x}" for y, x in OFFSETS)
    out = tmp_path / "o.ome.tif"
    assert main(["measure", str(tmp_path / "r.ome.zarr"), "--affinities", pairs, "--objects", str(out)]) == 0
    numbers = tifffile.imread(out)
    assert len(np.unique(np.column_stack([numbers.ravel(), cells.ravel()]), axis=0)) == numbers.max() == 9
    with pytest.raises(SystemExit):
        main(["measure", str(tmp_path / "r.ome.zarr"), "--affinities", "aff=1"])
    assert "MAP=Y,X" in capsys.readouterr().err
    for wrong, told in (("aff=0,1;1,0", "2 offsets"), ("gold=0,1", "no map")):
        assert main(["measure", str(tmp_path / "r.ome.zarr"), "--affinities", wrong]) == 2
        assert told in capsys.readouterr().err


def test_nothing_is_cut_where_nothing_is() -> None:
    image = open_image(np.ones((len(OFFSETS), 20, 20), np.float32), axes="cyx")
    cut = Cut(ArrayPlanes(np.zeros((20, 20), np.uint8)), image, OFFSETS, tile=16, halo=4)
    assert not cut.read(Box((0, 0, 0), (1, 20, 20))).any()


def test_what_cannot_be_cut_is_said() -> None:
    image = open_image(np.zeros((1, 20, 20), np.float32), axes="cyx")
    with pytest.raises(InputError, match="one step"):
        Cut(ArrayPlanes(np.ones((20, 20), np.uint8)), image, ((0, 4),))
    with pytest.raises(InputError, match="planes alone"):
        Cut(ArrayPlanes(np.ones((2, 20, 20), np.uint8)), image, ((0, 1),))


def test_strips_are_kept_of_a_row_of_tiles_not_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = voronoi((150, 900), 60, 7)
    planes, image = ArrayPlanes(np.ones(cells.shape, np.uint8)), open_image(affinities_of(cells), axes="cyx")
    whole = Cut(planes, image, OFFSETS, tile=50, halo=10).read(Box.whole(planes.shape))
    monkeypatch.setattr("tilelab.measure.affinities._KEPT_BYTES", 1)
    cut = Cut(planes, image, OFFSETS, tile=50, halo=10)
    assert len(cut._tiles) == 1
    np.testing.assert_array_equal(cut.read(Box((0, 40, 0), (1, 110, 900))), whole[:, 40:110])
