"""Overviews: the right colours in the right places, a scale bar that is true, memory that depends on the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as Picture

from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.results.drawing import format_length
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.overview import write_overview
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.spec import ClassInfo

CLASSES = (ClassInfo("background", "#000000"), ClassInfo("myelin", "#e69f00"), ClassInfo("axon", "#56b4e9"))
MARGIN = 20


class Held(Image):
    """An array as an image; remembers the largest region that was read."""

    def __init__(self, pixels: npt.NDArray[Any], axes: str = "yx", chunk: int = 64) -> None:
        self.uri, self.axes, self.shape, self.dtype = "held", axes, pixels.shape, pixels.dtype
        self.chunks = (*(1 for _ in axes[:-2]), chunk, pixels.shape[-1])
        self.pixels = pixels
        self.largest = 0

    def read(self, box: Box) -> npt.NDArray[Any]:
        self.largest = max(self.largest, box.size * self.dtype.itemsize)
        return self.pixels[box.slices]

    def fingerprint(self) -> dict[str, str]:
        return {}


def make(
    path: Path, truth: npt.NDArray[np.uint8], pixel_size_nm: tuple[float, ...] | None = None, **options: Any
) -> Path:
    layout = Layout.fit(truth.shape, pixel_size_nm)
    known = {"classes": CLASSES, "axes": "zyx"[3 - truth.ndim :], "pixel_size_nm": pixel_size_nm, "name": "sample"}
    sink = OmeZarrSink.create(path, layout, **(known | options))
    stack = truth.reshape(layout.shape)
    probabilities = np.stack([np.where(stack == i, np.uint8(250), np.uint8(3)) for i in sink.info.probabilities or [0]])
    rows = Finished(stack if sink.info.labels else None, probabilities if sink.info.probabilities else None, None)
    sink.writer(Box.whole(layout.shape), 0, 1).write(rows)
    sink.finalize()
    return path


def quarters(size: int) -> npt.NDArray[np.uint8]:
    """Background, myelin, axon, background, a quarter each."""
    half = size // 2
    labels = np.zeros((size, size), np.uint8)
    labels[:half, half:] = 1
    labels[half:, :half] = 2
    return labels


def draw(image: Image, result: Path, **options: Any) -> npt.NDArray[np.uint8]:
    out = write_overview(image, result, result.with_suffix(".png"), **options)
    with Picture.open(out) as picture:
        return np.asarray(picture.convert("RGB"))


def panel(picture: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.int64]:
    return picture[MARGIN : MARGIN + height, MARGIN : MARGIN + width].astype(np.int64)


def gradient(height: int, width: int) -> npt.NDArray[np.uint16]:
    return np.linspace(1000, 9000, width).astype(np.uint16)[np.newaxis].repeat(height, 0)


@pytest.mark.parametrize("size", [64, 700, 3000])
def test_classes_tint_the_grey_image_and_the_background_stays_bare(tmp_path: Path, size: int) -> None:
    shown = {64: 1024, 700: 1024, 3000: 1600}[size]
    seen = panel(draw(Held(gradient(size, size)), make(tmp_path / "r.ome.zarr", quarters(size))), shown, shown)
    at, half = shown // 8, shown // 2
    for top, left in ((0, 0), (half, half)):  # the background is grey, and keeps its gradient
        part = seen[top + at : top + half - at, left + at : left + half - at]
        assert np.ptp(part, axis=2).max() == 0
        assert (np.diff(part.mean(axis=(0, 2))) > -1).all()
        assert part[..., 0].max() - part[..., 0].min() > 40
    myelin = seen[at : half - at, half + at : shown - at].mean(axis=(0, 1))
    axon = seen[half + at : shown - at, at : half - at].mean(axis=(0, 1))
    assert myelin[0] > myelin[1] > myelin[2]  # orange
    assert axon[2] > axon[1] > axon[0]  # light blue
    contour = np.abs(seen[half // 2] - [0xE6, 0x9F, 0x00]).max(axis=1)
    assert contour[half : half + 3].min() < 30
    assert contour[half + 8 :].min() > 30


def test_the_image_is_stretched_from_black_to_white(tmp_path: Path) -> None:
    seen = panel(
        draw(Held(gradient(300, 300)), make(tmp_path / "r.ome.zarr", np.zeros((300, 300), np.uint8))), 1024, 1024
    )
    assert seen[:, :3].max() < 5
    assert seen[:, -3:].min() > 250


@pytest.mark.parametrize(("size", "nm", "length_nm"), [(1000, 4.0, 500), (3000, 2.18, 1000), (1000, 50.0, 10_000)])
def test_the_scale_bar_is_true(tmp_path: Path, size: int, nm: float, length_nm: float) -> None:
    labels = np.zeros((size, size), np.uint8)
    image = Held(np.full((size, size), 7, np.uint8))
    shown = 1024 if size <= 1024 else 1600
    seen = panel(draw(image, make(tmp_path / "r.ome.zarr", labels, (nm, nm))), shown, shown)
    white = (seen == 255).all(axis=2)
    longest = int(white.sum(axis=1).max())
    assert longest == pytest.approx(length_nm / (nm * size / shown), abs=1)
    assert not white[: shown // 2].any()
    plain = panel(draw(image, make(tmp_path / "p.ome.zarr", labels)), shown, shown)
    assert not (plain == 255).all(axis=2).any()


def test_lengths_have_the_unit_that_makes_them_short() -> None:
    lengths = [format_length(nm) for nm in (0.5, 20, 500, 1000, 50_000, 2e6)]
    assert lengths == ["0.5 nm", "20 nm", "500 nm", "1 µm", "50 µm", "2 mm"]


def test_the_legend_names_the_classes_that_are_there(tmp_path: Path) -> None:
    def swatches(labels: npt.NDArray[np.uint8], name: str) -> list[bool]:
        foot = draw(Held(gradient(200, 200)), make(tmp_path / name, labels))[MARGIN + 1024 :].reshape(-1, 3)
        return [bool((foot == list(bytes.fromhex(c.color[1:]))).all(axis=1).sum() > 100) for c in CLASSES[1:]]

    labels = quarters(200)
    assert swatches(labels, "a.ome.zarr") == [True, True]
    assert swatches(np.where(labels == 1, np.uint8(0), labels), "b.ome.zarr") == [False, True]


def test_a_class_too_dark_to_see_gets_another_colour(tmp_path: Path) -> None:
    classes = (CLASSES[0], ClassInfo("pores", "#000000"), CLASSES[2])
    labels = np.ones((100, 100), np.uint8)
    image = Held(np.full((100, 100), 50, np.uint8))
    seen = panel(draw(image, make(tmp_path / "r.ome.zarr", labels, classes=classes)), 1024, 1024)
    assert np.ptp(seen[500, 500]) > 30


def test_many_class_names_take_several_lines(tmp_path: Path) -> None:
    names = [ClassInfo(f"a class with a long name {i}", f"#{i * 2 + 60:02x}80ff") for i in range(15)]
    labels = (np.arange(300, dtype=np.int64)[np.newaxis].repeat(300, 0) // 20).astype(np.uint8)
    picture = draw(Held(gradient(300, 300)), make(tmp_path / "r.ome.zarr", labels, (4.0, 4.0), classes=names))
    assert picture.shape[1] == 1024 + 2 * MARGIN
    assert picture.shape[0] > 1024 + 5 * 19
    assert (picture[-5:] == 255).all()
    assert (picture[:, -MARGIN:] == 255).all()


def test_without_labels_the_likeliest_class_is_drawn(tmp_path: Path) -> None:
    labels = quarters(300)
    image = Held(gradient(300, 300))
    by_label = draw(image, make(tmp_path / "a.ome.zarr", labels))
    by_chance = draw(image, make(tmp_path / "b.ome.zarr", labels, labels=False, probabilities=(1, 2)))
    np.testing.assert_array_equal(by_chance, by_label)


def test_the_middle_slice_of_a_stack_is_drawn(tmp_path: Path) -> None:
    labels = np.zeros((5, 80, 90), np.uint8)
    labels[2] = 1
    image = np.random.default_rng(0).integers(0, 255, (2, 5, 80, 90)).astype(np.uint8)
    stack = draw(Held(image, "czyx"), make(tmp_path / "s.ome.zarr", labels))
    plane = draw(Held(image[0, 2]), make(tmp_path / "p.ome.zarr", labels[2]))
    height = round(80 * 1024 / 90)
    np.testing.assert_array_equal(panel(stack, 1024, height), panel(plane, 1024, height))


@pytest.mark.parametrize("value", [7, np.nan])
def test_an_image_without_contrast_is_drawn(tmp_path: Path, value: float) -> None:
    pixels = np.full((40, 30), value, np.float32)
    seen = panel(draw(Held(pixels), make(tmp_path / "r.ome.zarr", np.zeros((40, 30), np.uint8))), 768, 1024)
    assert (seen == 128).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (4000, 3)])
def test_slivers_are_drawn(tmp_path: Path, shape: tuple[int, int]) -> None:
    picture = draw(Held(np.zeros(shape, np.uint8)), make(tmp_path / "r.ome.zarr", np.ones(shape, np.uint8), (4.0, 4.0)))
    assert max(picture.shape) <= 1600 + 200


def test_a_huge_image_is_read_in_strips(tmp_path: Path) -> None:
    shape = (60_000, 3001)
    pixels = np.broadcast_to(np.arange(shape[0], dtype=np.uint16)[:, np.newaxis], shape)
    labels = np.broadcast_to(np.uint8(0), shape)
    layout = Layout.fit(shape)
    sink = OmeZarrSink.create(tmp_path / "r.ome.zarr", layout, classes=CLASSES)
    writer = sink.writer(Box.whole(layout.shape), 0, 1)
    for y in range(0, shape[0], 4000):
        writer.write(Finished(labels[np.newaxis, y : y + 4000], None, None))
    sink.finalize()
    image = Held(pixels, chunk=256)
    seen = panel(draw(image, sink.path), 80, 1600)
    assert image.largest < 2**24
    assert (np.diff(seen[:, 40, 0]) >= 0).all()
    assert seen[0, 0, 0] < 5 < 250 < seen[-1, 0, 0]


def test_a_coarser_level_of_the_image_does_as_well(tmp_path: Path) -> None:
    labels = quarters(3200)
    fine = gradient(3200, 3200)
    result = make(tmp_path / "r.ome.zarr", labels)
    a = draw(Held(fine), result).astype(int)
    b = draw(Held(np.ascontiguousarray(fine[::2, ::2])), result).astype(int)
    assert np.abs(a - b).max() <= 3


def test_what_has_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    layout = Layout.fit((9, 9))
    sink = OmeZarrSink.create(tmp_path / "r.ome.zarr", layout, classes=CLASSES, labels=False, logits=2)
    sink.finalize()
    image = Held(np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match="neither labels nor probabilities"):
        write_overview(image, sink.path, tmp_path / "o.png")
    result = make(tmp_path / "s.ome.zarr", np.zeros((9, 9), np.uint8))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        write_overview(image, result, tmp_path / "file" / "o.png")


def test_real_micrographs(tmp_path: Path, real_data: Path) -> None:
    """The tint lies where the truth says, on a micrograph of myelinated axons."""
    for path in sorted((real_data / "axon" / "val" / "images").glob("*.png"))[:1]:
        image = np.asarray(Picture.open(path))
        truth = np.asarray(Picture.open(real_data / "axon" / "val" / "masks" / path.name))
        height, width = truth.shape
        scale = max(1024, width, height) / max(width, height)
        size = (round(width * scale), round(height * scale))
        seen = panel(draw(Held(image), make(tmp_path / f"{path.stem}.ome.zarr", truth)), *size)
        tint = seen[..., 0] - seen[..., 2]  # orange is red, light blue is not
        expected = np.asarray(Picture.fromarray(truth).resize(size, Picture.Resampling.NEAREST))
        assert np.median(tint[expected == 1]) > 20
        assert np.median(tint[expected == 2]) < -20
        assert np.median(np.abs(tint[expected == 0])) == 0
