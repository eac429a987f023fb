"""Training data from every kind of file: stacks, planes too large to load, HDF5 and MRC; masks of every coding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from tilelab.errors import InputError  # noqa: E402
from tilelab.evaluation.pairs import list_files  # noqa: E402
from tilelab.geometry import Box  # noqa: E402
from tilelab.io.convert import convert_image  # noqa: E402
from tilelab.io.images.open import open_image  # noqa: E402
from tilelab.spec import Normalization  # noqa: E402
from tilelab.training.data import CropSampler  # noqa: E402
from tilelab.training.pairs import (  # noqa: E402
    ArrayMask,
    MaskedPlane,
    Plane,
    StoredMask,
    measure_normalization,
    open_pairs,
)
from tilelab.training.recipe import load_recipe  # noqa: E402
from tilelab.training.sections import IGNORE, Augmentation, Data, Sampling  # noqa: E402


def draw(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and a mask of 1 where it is bright in blocks of 4 px."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (*shape[:-2], -(-shape[-2] // 4), -(-shape[-1] // 4)), dtype=np.uint8)
    image = coarse.repeat(4, axis=-2).repeat(4, axis=-1)[..., : shape[-2], : shape[-1]].copy()
    return image, (image > 180).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    """An array in the format of the file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zarr":
        zarr.save_array(str(path), array)
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".mrc":
        mrcfile = pytest.importorskip("mrcfile")
        with mrcfile.new(path) as file:
            file.set_data(array.astype(np.int8) if array.max() < 128 else array.astype(np.uint16))
    elif path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.create_dataset("a/volume", data=array, chunks=(1, 16, 16), compression="gzip")
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, **options)
    else:
        Image.fromarray(array).save(path)


def assert_pairs(pairs: list[MaskedPlane], images: np.ndarray, masks: np.ndarray) -> None:
    """Planes one after the other."""
    assert len(pairs) == len(images)
    for pair, image, mask in zip(pairs, images, masks, strict=True):
        np.testing.assert_array_equal(pair.image[...], image)
        np.testing.assert_array_equal(pair.mask.read(Box.whole(pair.shape)), mask)


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr", ".mrc", ".h5"])
def test_stacks_of_every_format(tmp_path: Path, suffix: str) -> None:
    image, mask = draw(5, 24, 40)
    save(tmp_path / f"image{suffix}", image)
    save(tmp_path / f"mask{suffix}", mask)
    member = "::/a/volume" if suffix == ".h5" else ""
    data = Data(f"image{suffix}{member}", f"mask{suffix}{member}", planes=(1, 4))
    assert_pairs(open_pairs(data, tmp_path, 2), image[1:4], mask[1:4])
    with pytest.raises(InputError, match="planes 1 to 6 were asked for"):
        open_pairs(Data(data.images, data.masks, planes=(1, 6)), tmp_path, 2)


def test_folders_of_mixed_formats_pair_by_name(tmp_path: Path) -> None:
    planes = [draw(20, 30, seed=k) for k in range(4)]
    names = ("a.png", "b.tif", "c.npy", "d.zarr")
    for name, other, (image, mask) in zip(names, reversed(names), planes, strict=True):
        save(tmp_path / "images" / name, image)
        save(tmp_path / "masks" / f"{Path(name).stem}_mask{Path(other).suffix}", mask)
    pairs = open_pairs(Data("images", "masks"), tmp_path, 2)
    assert [pair.name for pair in pairs] == ["a", "b", "c", "d"]
    assert_pairs(pairs, np.stack([image for image, _ in planes]), np.stack([mask for _, mask in planes]))


@pytest.fixture(params=["tiled TIFF", "OME-Zarr", "memory-mapped TIFF"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Data, Path, np.ndarray, np.ndarray]:
    """A plane much larger than a crop, in place; what is in it."""
    image, mask = draw(1200, 1500)
    if request.param == "OME-Zarr":
        save(tmp_path / "image.tif", image)
        convert_image(tmp_path / "image.tif", tmp_path / "image.ome.zarr")
        save(tmp_path / "mask.zarr", mask)
        return Data("image.ome.zarr", "mask.zarr"), tmp_path, image, mask
    options: dict[str, Any] = {"tile": (128, 128), "compression": "zlib"} if "tiled" in request.param else {}
    save(tmp_path / "image.tif", image, **options)
    save(tmp_path / "mask.tif", mask, **options)
    return Data("image.tif", "mask.tif"), tmp_path, image, mask


def test_large_planes_are_sampled_in_place(
    large: tuple[Data, Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No read is larger than the crop, and crops are what is in the file."""
    data, root, image, mask = large
    monkeypatch.setattr("tilelab.training.pairs._KEPT_PIXELS", 1000)
    (pair,) = open_pairs(data, root, 2)
    assert isinstance(pair.mask, StoredMask)
    plain = Normalization(mean=(0.0,), std=(1.0,))
    sampling = Sampling(crop=64, batch=2, balance=0.5)
    crops = CropSampler([pair], 1, 2, sampling, Augmentation(flips=False), plain, 3)
    areas: list[int] = []
    for kind in (Plane, StoredMask):

        def spy(self: Any, box: Box, read: Any = kind.read) -> Any:
            areas.append(box.shape[-1] * box.shape[-2])
            return read(self, box)

        monkeypatch.setattr(kind, "read", spy)
    for step in range(6):
        crop, labels = crops.crop(step, 0)
        found = crop[0].round().numpy().astype(np.uint8)
        at = [
            (y, x)
            for y, x in np.argwhere(image[:-63, :-63] == found[0, 0])
            if image[y, x + 63] == found[0, 63] and np.array_equal(image[y : y + 64, x : x + 64], found)
        ]
        assert at
        y, x = at[0]
        np.testing.assert_array_equal(labels, mask[y : y + 64, x : x + 64])
    assert max(areas) <= 64 * 64


def test_small_planes_are_kept_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = draw(3, 20, 20)
    save(tmp_path / "image.npy", image)
    save(tmp_path / "mask.npy", mask)
    monkeypatch.setattr("tilelab.training.pairs._KEPT_PIXELS", 2 * 400)
    pairs = open_pairs(Data("image.npy", "mask.npy"), tmp_path, 2)
    assert [isinstance(pair.mask, ArrayMask) for pair in pairs] == [True, True, False]
    assert_pairs(pairs, image, mask)


def color(mask: np.ndarray, palette: list[tuple[int, ...]], kind: Any) -> np.ndarray:
    return np.array(palette, kind)[mask]


RGB = [(90, 90, 90), (0, 0, 255), (255, 0, 0)]
MASKS: dict[str, tuple[str, str, Any]] = {
    "values": ("m.png", "", lambda m: m),
    "values to be mapped": ("m.png", "100:1,200:2", lambda m: m * np.uint8(100)),
    "16 bits": ("m.tif", "1000:1,65535:2", lambda m: np.array([7, 1000, 65535], np.uint16)[m]),
    "32 bits": ("m.tif", "", lambda m: m.astype(np.int32)),
    "RGB": ("m.png", "#0000ff:1,#ff0000:2", lambda m: color(m, RGB, np.uint8)),
    "RGBA": ("m.png", "#0000ff:1,#ff0000:2", lambda m: color(m, [(*c, 255) for c in RGB], np.uint8)),
    "RGBA of 16 bits": (
        "m.tif",
        "#0000ff:1,#ff0000:2",
        lambda m: color(m, [(*(257 * v for v in c), 65535) for c in RGB], np.uint16),
    ),
}


@pytest.mark.parametrize("coding", MASKS)
def test_masks_of_every_coding(tmp_path: Path, coding: str) -> None:
    name, labels, encode = MASKS[coding]
    image, _ = draw(24, 28)
    mask = np.random.default_rng(1).integers(0, 3, image.shape, dtype=np.uint8)
    save(tmp_path / "image.png", image)
    stored = encode(mask)
    options = {"photometric": "rgb"} if stored.ndim == 3 else {}
    save(tmp_path / name, stored, **options)
    (pair,) = open_pairs(Data("image.png", name, labels), tmp_path, 3)
    np.testing.assert_array_equal(pair.mask.read(Box.whole(pair.shape)), mask)


def test_palettes_mean_their_indices(tmp_path: Path) -> None:
    image, mask = draw(20, 20)
    save(tmp_path / "image.png", image)
    drawn = Image.fromarray(mask).convert("P")
    drawn.putpalette([255, 255, 255, 10, 20, 30])
    drawn.putdata(mask.ravel().tolist())
    drawn.save(tmp_path / "mask.png")
    (pair,) = open_pairs(Data("image.png", "mask.png"), tmp_path, 2)
    np.testing.assert_array_equal(pair.mask.read(Box.whole(pair.shape)), mask)


def test_inverted_masks_and_ignored_pixels(tmp_path: Path) -> None:
    image, mask = draw(20, 20)
    save(tmp_path / "image.png", image)
    inverted = np.where(mask == 1, 0, 255).astype(np.uint8)
    inverted[:5] = 128
    save(tmp_path / "mask.png", inverted)
    (pair,) = open_pairs(Data("image.png", "mask.png", f"0:1,128:{IGNORE}"), tmp_path, 2)
    expected = mask.copy()
    expected[:5] = IGNORE
    np.testing.assert_array_equal(pair.mask.read(Box.whole(pair.shape)), expected)


def test_colours_without_a_map_are_refused_with_the_way_out(tmp_path: Path) -> None:
    image, mask = draw(20, 20)
    save(tmp_path / "image.png", image)
    save(tmp_path / "mask.png", color(mask, RGB, np.uint8))
    with pytest.raises(InputError, match=r"mask\.png is in colours.*#0000ff:1"):
        open_pairs(Data("image.png", "mask.png"), tmp_path, 2)


def test_stacks_that_do_not_fit_are_named_with_both_sizes(tmp_path: Path) -> None:
    image, mask = draw(3, 20, 20)
    save(tmp_path / "image.tif", image, photometric="minisblack")
    save(tmp_path / "mask.tif", mask[:2], photometric="minisblack")
    with pytest.raises(InputError, match=r"image\.tif has 3 x 20 x 20 .*mask\.tif 2 x 20 x 20"):
        open_pairs(Data("image.tif", "mask.tif"), tmp_path, 2)
    with pytest.raises(InputError, match="must both be folders"):
        open_pairs(Data("image.tif", "."), tmp_path, 2)
    with pytest.raises(InputError, match=r"no such folder or file: .*none\.h5"):
        open_pairs(Data("none.h5::/a", "mask.tif"), tmp_path, 2)


@pytest.mark.parametrize(
    ("recipe", "suffix", "coding"),
    [
        ("pmcanet-kasthuri", ".png", lambda m: m * np.uint8(255)),
        ("pmcanet-sem", ".png", lambda m: m),
        ("urisc-unet", ".tiff", lambda m: (1 - m) * np.uint8(255)),
        ("urisc-linknet", ".tiff", lambda m: (1 - m) * np.uint8(255)),
        ("urisc-casenet", ".png", lambda m: (1 - m) * np.uint8(255)),
    ],
)
def test_layouts_of_the_papers_sets(tmp_path: Path, recipe: str, suffix: str, coding: Any) -> None:
    """What the shipped recipes say of their masks, on folders laid out so."""
    loaded = load_recipe(recipe)
    for data, seed in ((loaded.train, 0), (loaded.validation, 1)):
        image, mask = draw(1, 32, 32, seed=seed)
        for folder, plane in ((data.images, image[0]), (data.masks, coding(mask[0]))):
            place = tmp_path / folder
            place.mkdir(parents=True)
            Image.fromarray(plane).save(place / f"0001{suffix}")
        assert_pairs(open_pairs(data, tmp_path, len(loaded.classes)), image, mask)


def test_one_folder_of_images_and_masks_with_any_names(tmp_path: Path) -> None:
    names = ("1", "10", "cell", "cell_2", "cell_2b")
    for number, name in enumerate(names):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full((20, 30), number, np.uint8))
        tifffile.imwrite(tmp_path / f"{name}_mask.tif", np.full((20, 30), number % 2, np.uint8))
    pairs = open_pairs(Data(str(tmp_path), str(tmp_path)), Path(), 2)
    assert [pair.name for pair in pairs] == sorted(names)
    for pair in pairs:
        assert pair.image[...].max() % 2 == pair.mask.read(Box.whole(pair.shape)).max()


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6])
def test_normalisation_knows_any_unit(scale: float) -> None:
    values = np.random.default_rng(0).normal(5, 2, (60, 70)).astype(np.float32) * np.float32(scale)
    found = measure_normalization([open_image(values)])
    assert found.mean == pytest.approx((values.mean(),), rel=0.01)
    assert found.std == pytest.approx((values.std(),), rel=0.01)


def test_normalisation_of_one_grey_divides_by_something() -> None:
    for value in (0, 255):
        assert measure_normalization([open_image(np.full((9, 9), value, np.uint8))]).std == (1e-6,)


def test_a_folder_of_what_a_microscope_wrote_is_one_of_images(tmp_path: Path) -> None:
    for name in ("a.dm4", "b.DM4"):
        (tmp_path / name).touch()
    assert {name: path.name for name, path in list_files(tmp_path).items()} == {"a": "a.dm4", "b": "b.DM4"}
    (tmp_path / "a.dm3").touch()
    with pytest.raises(InputError, match="have the same name"):
        list_files(tmp_path)
    (tmp_path / "c.tif").touch()  # made of one of them, say
    assert list(list_files(tmp_path)) == ["c"]
