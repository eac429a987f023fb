"""Large planes: of their files few are open, and what they keep decoded has one bound."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

torch = pytest.importorskip("torch", reason="training extra not installed")

from tilelab.errors import InputError  # noqa: E402
from tilelab.exporting.samples import planes_of  # noqa: E402
from tilelab.spec import Normalization  # noqa: E402
from tilelab.training import shelf  # noqa: E402
from tilelab.training.data import CropSampler  # noqa: E402
from tilelab.training.pairs import open_pairs  # noqa: E402
from tilelab.training.recipe import Augmentation, Data, Sampling  # noqa: E402
from tilelab.training.shelf import Lasting, Shelf  # noqa: E402

_FILES, _SIDE = 12, 96


@pytest.fixture
def planes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images in one compressed strip each, all of them too large to be kept."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(_FILES):
        pixels = rng.integers(0, 256, (_SIDE, _SIDE)).astype(np.uint8)
        said: dict[str, Any] = {"compression": "zlib", "rowsperstrip": _SIDE}
        tifffile.imwrite(tmp_path / "images" / f"{i:02}.tif", pixels, **said)
        tifffile.imwrite(tmp_path / "masks" / f"{i:02}.tif", (pixels > 128).astype(np.uint8), **said)
    monkeypatch.setattr("tilelab.training.pairs._KEPT_PIXELS", 1000)
    return tmp_path


def batches(root: Path, count: int = 5) -> list[Any]:
    pairs = open_pairs(Data("images", "masks"), root, 2)
    plain = Normalization(mean=(0.0,), std=(1.0,))
    sampler = CropSampler(pairs, 1, 2, Sampling(crop=32, batch=6), Augmentation(), plain, 3)
    return [sampler.batch(step) for step in range(count)]


def open_files(root: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(link).startswith(str(root / "images")) for link in links)


@pytest.mark.parametrize(("most", "room"), [(3, None), (1000, 4 * _SIDE**2), (1, 0)])
def test_few_are_open_and_crops_are_the_same(
    planes: Path, most: int, room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "SHELF", Shelf())
    whole = batches(planes)
    small = Shelf(most, room)
    monkeypatch.setattr(shelf, "SHELF", small)
    pairs = open_pairs(Data("images", "masks"), planes, 2)
    least = min(most, 4 if room is None else max(1, room // _SIDE**2))
    assert small.opened <= least
    assert open_files(planes) <= least
    sampler = CropSampler(
        pairs, 1, 2, Sampling(crop=32, batch=6), Augmentation(), Normalization(mean=(0.0,), std=(1.0,)), 3
    )
    for step, (images, masks) in enumerate(whole):
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(partial(sampler.crop, step), range(6)))
        for i, (image, mask) in enumerate(found):
            assert torch.equal(image, images[i])
            assert torch.equal(mask.long(), masks[i])
    assert small.opened <= max(least, 6)
    sampler.crop(99, 0)
    assert small.opened <= least
    del pairs, sampler, found
    assert small.opened == 0


def test_a_plane_that_is_another_by_now_is_refused(planes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "SHELF", Shelf(1))
    first, *_ = open_pairs(Data("images", "masks"), planes, 2)
    tifffile.imwrite(planes / "images" / "00.tif", np.zeros((50, 50), np.uint8))
    with pytest.raises(InputError, match="was changed while it was read"):
        first.image[...]


def test_what_is_in_use_stays_open() -> None:
    class Thing:
        closed = False

        def close(self) -> None:
            self.closed = True

    made: list[Thing] = []

    def again() -> Thing:
        made.append(Thing())
        return made[-1]

    small = Shelf(1, 10**9)
    one, other = Lasting(again(), again, 1, small), Lasting(again(), again, 1, small)
    assert made[0].closed
    with one.use() as a, other.use() as b:
        assert not a.closed
        assert not b.closed
        assert small.opened == 2
    with one.use() as a:
        assert not a.closed
    assert small.opened == 1
    assert [thing.closed for thing in made].count(False) == 1


def test_images_to_calibrate_on_are_not_all_open(planes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Shelf(3)
    monkeypatch.setattr(shelf, "SHELF", small)
    found = planes_of(planes / "images")
    assert len(found) == _FILES
    for image, path in zip(found, sorted((planes / "images").iterdir()), strict=True):
        assert np.array_equal(image[3:9, 5:], tifffile.imread(path)[3:9, 5:])
        assert open_files(planes) <= small.opened <= 3
