"""Zarr and OME-Zarr, against the arrays that were stored and against zarr-python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zstandard
from image_files import Array, check_reads, pixels
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io import describe, open_image
from tilelab.io.zarr.chunks import ChunkReader, decode_zstd

SHAPE, CHUNK, SHARD = (130, 170), (16, 24), (64, 48)

V3_CODECS: dict[str, Any] = {
    "none": None,
    "zstd": ZstdCodec(level=3),
    "gzip": GzipCodec(level=2),
    "blosc": BloscCodec(cname="lz4", shuffle="bitshuffle"),
}
V2_CODECS: dict[str, Any] = {
    "none": None,
    "zstd": numcodecs.Zstd(level=1),
    "zlib": numcodecs.Zlib(),
    "gzip": numcodecs.GZip(),
    "blosc": numcodecs.Blosc(cname="zstd", shuffle=numcodecs.Blosc.BITSHUFFLE),
}


def create(path: Path, stored: Array, **options: Any) -> Any:
    array = zarr.create_array(path, shape=stored.shape, dtype=stored.dtype, **{"chunks": CHUNK, **options})
    array[...] = stored
    return array


@pytest.mark.parametrize("codec", V3_CODECS)
@pytest.mark.parametrize("shards", [None, SHARD], ids=["chunks", "shards"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_version_3(tmp_path: Path, dtype: str, shards: tuple[int, int] | None, codec: str) -> None:
    stored = pixels(SHAPE, dtype)
    create(tmp_path / "a", stored, shards=shards, compressors=V3_CODECS[codec])
    with open_image(tmp_path / "a") as image:
        assert isinstance(image.source._reader, ChunkReader)
        assert image.chunks == CHUNK
        assert image.warnings == ()
        check_reads(image, stored)


@pytest.mark.parametrize("codec", V2_CODECS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", ">f4"])
def test_version_2(tmp_path: Path, dtype: str, order: str, codec: str) -> None:
    stored = pixels(SHAPE, np.dtype(dtype).newbyteorder("=")).astype(dtype)
    create(tmp_path / "a", stored, zarr_format=2, order=order, compressors=V2_CODECS[codec])
    with open_image(tmp_path / "a") as image:
        assert isinstance(image.source._reader, ChunkReader)
        check_reads(image, stored.astype(stored.dtype.newbyteorder("=")))


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2, "compressors": numcodecs.LZ4()},
        {"zarr_format": 2, "filters": [numcodecs.Delta(dtype="<u2")], "compressors": numcodecs.Zlib()},
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"compressors": [GzipCodec(level=1), ZstdCodec()], "shards": SHARD},
    ],
    ids=["lz4", "delta", "crc32c", "two"],
)
def test_codecs_left_to_zarr_python(tmp_path: Path, options: dict[str, Any]) -> None:
    stored = pixels(SHAPE, "uint16")
    create(tmp_path / "a", stored, **options)
    with open_image(tmp_path / "a") as image:
        assert not isinstance(image.source._reader, ChunkReader)
        check_reads(image, stored)


def test_variants_of_version_3(tmp_path: Path) -> None:
    stored = pixels((20, 40, 50), "uint16")
    big_endian = BytesCodec(endian="big")
    variants: dict[str, dict[str, Any]] = {
        "transposed": {"filters": [TransposeCodec(order=(2, 0, 1))]},
        "transposed shards": {"filters": [TransposeCodec(order=(1, 2, 0))], "shards": (20, 32, 32)},
        "big endian": {"serializer": big_endian},
        "dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        "flat": {"chunk_key_encoding": {"name": "default", "separator": "."}},
        "index first": {
            "chunks": (20, 32, 32),
            "serializer": ShardingCodec(
                chunk_shape=(10, 16, 16), codecs=[big_endian, ZstdCodec()], index_location="start"
            ),
            "compressors": None,
        },
    }
    for name, options in variants.items():
        create(tmp_path / name, stored, **{"chunks": (10, 16, 16), **options})
        with open_image(tmp_path / name) as image:
            assert isinstance(image.source._reader, ChunkReader), name
            check_reads(image, stored, examples=6)


@pytest.mark.parametrize("version", [2, 3])
def test_absent_chunks_have_the_fill_value(tmp_path: Path, version: int) -> None:
    for dtype, fill in (("uint8", 7), ("float32", np.nan), ("float32", -np.inf), ("uint16", 65535)):
        shards = SHARD if version == 3 else None
        path = tmp_path / f"{dtype}{fill}"
        array = zarr.create_array(
            path, shape=SHAPE, dtype=dtype, chunks=CHUNK, shards=shards, fill_value=fill, zarr_format=version
        )
        array[20:30, 50:60] = 3
        check_reads(open_image(path), array[...], examples=5)


@pytest.mark.parametrize("version", [2, 3])
def test_cannot_be_confused_about_dtypes(tmp_path: Path, version: int) -> None:
    for dtype in ("bool", "int16", "int64", "float64", "float16"):
        stored = pixels(SHAPE, bool) if dtype == "bool" else (pixels(SHAPE, "float32") * 10).astype(dtype)
        create(tmp_path / dtype, stored, zarr_format=version)
        expected = stored * np.uint8(255) if dtype == "bool" else stored.astype(np.float32)
        check_reads(open_image(tmp_path / dtype), expected, examples=3)
    create(tmp_path / "c", np.zeros(SHAPE, np.complex64), zarr_format=version)
    with pytest.raises(InputError, match="pixels of type"):
        open_image(tmp_path / "c")


def write_ome(root: Path, stored: Array, axes: str, version: str, unit: str | None = "nanometer") -> list[Array]:
    """A multiscale image of three levels, its scales 4 (y, x), 30 (z)."""
    fine = zarr.create_group(root, zarr_format=2 if version == "0.4" else 3)
    size = {"z": 30.0, "y": 4.0, "x": 4.0}
    levels, datasets = [], []
    for i in range(3):
        step = tuple(slice(None, None, 2**i if a in "yx" else 1) for a in axes)
        level = stored[step]
        array = fine.create_array(
            f"s{i}", shape=level.shape, dtype=level.dtype, chunks=(1,) * (level.ndim - 2) + (32, 32)
        )
        array[...] = level
        scale = [size.get(a, 1.0) * (2**i if a in "yx" else 1) for a in axes]
        datasets.append({"path": f"s{i}", "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        levels.append(level)
    kinds = {"t": "time", "c": "channel"}
    named = [
        {"name": a, "type": kinds.get(a, "space"), **({"unit": unit} if unit and a in "zyx" else {})} for a in axes
    ]
    multiscales = [{"axes": named, "datasets": datasets, "name": "sample"}]
    if version == "0.4":
        fine.attrs["multiscales"] = [{**multiscales[0], "version": "0.4"}]
    else:
        fine.attrs["ome"] = {"version": version, "multiscales": multiscales}
    return levels


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "zyx", "tczyx"])
def test_ome_zarr(tmp_path: Path, version: str, axes: str) -> None:
    root = tmp_path / "image.ome.zarr"
    stored = pixels((1, 2, 3, 96, 120)[5 - len(axes) :], "uint16")
    levels = write_ome(root, stored, axes, version)
    for i, expected in enumerate(levels):
        with open_image(root, level=i) as image:
            assert image.axes == axes.removeprefix("t")
            spatial = (30.0, 4.0 * 2**i, 4.0 * 2**i)[-2 if axes == "yx" else 0 :]
            assert image.pixel_size_nm == spatial
            check_reads(image, expected[0] if axes[0] == "t" else expected, examples=5)
        with open_image(root / f"s{i}") as image:  # a level by its path
            assert image.pixel_size_nm == spatial
            assert image.axes == axes.removeprefix("t")
    with pytest.raises(InputError, match=r"level 3 was asked for.*levels 0 to 2"):
        open_image(root, level=3)
    facts = describe(root)
    assert facts["format"] == f"OME-Zarr {version}"
    assert len(facts["levels"]) == 3
    assert facts["name"] == "sample"
    json.dumps(facts)


@pytest.mark.parametrize(
    ("steps", "size", "origin"),
    [
        ([{"type": "scale", "scale": [4, 5]}, {"type": "translation", "translation": [8, 0]}], (4, 5), (2, 0)),
        ([{"type": "translation", "translation": [2, 0]}, {"type": "scale", "scale": [4, 5]}], (4, 5), (2, 0)),
        ([{"type": "scale", "scale": [2, 5]}, {"type": "scale", "scale": [2, 1]}], (4, 5), ()),
        ([{"type": "scale", "scale": [4, 5]}, {"type": "mapAxis", "mapAxis": [1, 0]}], None, ()),
        ([{"type": "affine", "affine": [[4, 0, 0], [0, 5, 0]]}], None, ()),
        ([{"type": "identity"}, {"type": "scale", "scale": [4, 5]}], (4, 5), ()),
    ],
)
def test_transformations_one_after_the_other(tmp_path: Path, steps: Any, size: Any, origin: Any) -> None:
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "yx"]
    for told in (steps, [{"type": "sequence", "transformations": [{"type": "sequence", "transformations": steps}]}]):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w")
        group.create_array("0", data=pixels((30, 40)))
        image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": told}]}
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
        with open_image(tmp_path / "a.zarr") as opened:
            assert (opened.pixel_size_nm, opened.origin_px) == (size, origin)


def test_axes_that_an_old_version_does_not_name(tmp_path: Path) -> None:
    for stored, seen in ((pixels((1, 1, 3, 30, 40)), (3, 30, 40)), (pixels((3, 30, 40)), (3, 30, 40))):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        group.create_array("0", data=stored)
        group.attrs["multiscales"] = [{"version": "0.1", "datasets": [{"path": "0"}]}]
        with open_image(tmp_path / "a.zarr") as opened:
            assert (opened.axes, opened.shape) == ("zyx", seen)
            assert [a.flag for a in opened.assumptions] == ["--axes"] * (stored.ndim == 3)
    with open_image(tmp_path / "a.zarr", axes="cyx") as opened:
        assert (opened.axes, opened.assumptions) == ("cyx", ())


def test_axes_with_long_names_and_sizes_that_are_none(tmp_path: Path) -> None:
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in ("depth", "height", "width")]
    for scale, size, said in (([30, 4, 5], (30, 4, 5), "not square"), ([30, -4, 0], None, "of -4 along y, 0 along x")):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w")
        group.create_array("0", data=pixels((3, 30, 40)))
        told = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": told}]}
        with open_image(tmp_path / "a.zarr") as opened:
            assert (opened.axes, opened.pixel_size_nm, opened.assumptions) == ("zyx", size, ())
            assert [said in warning for warning in opened.warnings] == [True]


def test_units(tmp_path: Path) -> None:
    for unit, factor in (("micrometer", 1e3), ("angstrom", 0.1), (None, None)):
        root = tmp_path / str(unit)
        write_ome(root, pixels((64, 64)), "yx", "0.5", unit)
        with open_image(root) as image:
            assert image.pixel_size_nm == (None if factor is None else pytest.approx((4 * factor, 4 * factor)))
            assert any("without a unit" in line for line in image.warnings) == (factor is None)


def test_labels_and_groups(tmp_path: Path) -> None:
    root = tmp_path / "image.ome.zarr"
    write_ome(root, pixels((64, 80)), "yx", "0.5")
    labels = zarr.open_group(root, mode="a").create_group("labels")
    stored = pixels((64, 80)) // 100
    write_ome(root / "labels" / "cells", stored, "yx", "0.5")
    write_ome(root / "labels" / "nuclei", stored, "yx", "0.5")
    labels.attrs["ome"] = {"version": "0.5", "labels": ["cells", "nuclei"]}
    with open_image(root / "labels" / "cells") as image:
        assert image.pixel_size_nm == (4.0, 4.0)
        check_reads(image, stored, examples=3)
    assert describe(root)["labels"] == ["cells", "nuclei"]
    with pytest.raises(InputError, match=r"several images, 0: cells .*: name one, e.g. .*labels/cells"):
        open_image(root / "labels")

    both = zarr.create_group(tmp_path / "both.zarr")
    for name in ("one", "two"):
        both.create_array(name, data=stored)
    with pytest.raises(InputError, match=r"name one, e.g. .*both.zarr/one"):
        open_image(tmp_path / "both.zarr")
    alone = zarr.create_group(tmp_path / "alone.zarr")
    alone.create_array("only", data=stored)
    check_reads(open_image(tmp_path / "alone.zarr"), stored, examples=2)
    zarr.create_group(tmp_path / "none.zarr")
    with pytest.raises(InputError, match="group without an image"):
        open_image(tmp_path / "none.zarr")

    plate = zarr.create_group(tmp_path / "series.zarr", attributes={"bioformats2raw.layout": 3}, zarr_format=2)
    plate.create_group("OME")
    write_ome(tmp_path / "series.zarr" / "0", stored, "yx", "0.4")
    check_reads(open_image(tmp_path / "series.zarr"), stored, examples=2)


def test_axes_by_name(tmp_path: Path) -> None:
    stored = pixels((40, 50, 3))
    zarr.create_array(tmp_path / "a", data=stored, dimension_names=["y", "x", "z"])
    with open_image(tmp_path / "a") as image:
        assert image.axes == "zyx"
        check_reads(image, stored.transpose(2, 0, 1), examples=3)
    zarr.create_array(tmp_path / "b", data=stored)
    assert open_image(tmp_path / "b").axes == "yx"  # colours
    assert open_image(tmp_path / "b", axes="yxz").axes == "zyx"


HARMS = [
    (codec, harm, shards)
    for codec, harm, shards in product(
        ("none", "zstd", "gzip", "blosc"), ("emptied", "cut", "overwritten"), (None, SHARD)
    )
    if (codec, harm, shards) != ("none", "overwritten", None)  # bare pixels carry no checksum
]


@pytest.mark.parametrize(("codec", "harm", "shards"), HARMS)
def test_corrupt_chunk_is_named_and_the_others_are_read(
    tmp_path: Path, codec: str, harm: str, shards: tuple[int, int] | None
) -> None:
    stored = pixels(SHAPE, "uint16")
    create(tmp_path / "a", stored, shards=shards, compressors=V3_CODECS[codec])
    victim = tmp_path / "a" / "c" / "1" / "1"
    data = victim.read_bytes()
    changed = {"emptied": b"", "cut": data[: len(data) // 2], "overwritten": b"\x55" * len(data)}[harm]
    victim.write_bytes(changed)
    rows, columns = SHARD if shards else CHUNK
    with open_image(tmp_path / "a") as image:
        np.testing.assert_array_equal(image[:rows], stored[:rows])
        with pytest.raises(InputError, match=r"a/c/1/1 is (truncated|corrupt)") as caught:
            image.read(Box((rows, 0), (2 * rows, 2 * columns)))
        assert "\n" not in str(caught.value)


def test_truncated_chunk_inside_a_good_index(tmp_path: Path) -> None:
    stored = pixels((64, 64), "uint16")
    create(tmp_path / "a", stored, chunks=(32, 32), shards=(64, 64))
    path = tmp_path / "a" / "c" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[:60] = bytes(60)
    path.write_bytes(data)
    with open_image(tmp_path / "a") as image:
        with pytest.raises(InputError, match="region 0:32,0:32 cannot be decoded"):
            image.read(Box((0, 0), (4, 4)))
        np.testing.assert_array_equal(image[32:], stored[32:])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("zarr.json", "", "damaged or not understood"),
        ("zarr.json", "{}", "'node_type' is missing"),
        ("zarr.json", '{"node_type": "array", "codecs": []}', "damaged or not understood"),
        (".zarray", '{"shape": [3, 4]}', "missing required field"),
        (".zarray", '{"zarr_format": 2, "shape": [3, 4], "chunks": [0, 1], "dtype": "|u1"}', r">= 1 - at `\$.chunks"),
        (".zgroup", "{", "damaged or not understood"),
        ("zarr.json", '{"node_type": "group", "attributes": {"ome": {"multiscales": [{}]}}}', "not understood"),
        ("readme", "x", "no zarr.json, .zarray or .zgroup"),
    ],
)
def test_damaged_metadata(tmp_path: Path, name: str, text: str, message: str) -> None:
    root = tmp_path / "broken.zarr"
    root.mkdir()
    (root / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        open_image(root)
    assert "\n" not in str(caught.value)


def test_missing_level_and_wrong_number_of_axes(tmp_path: Path) -> None:
    root = tmp_path / "image.ome.zarr"
    write_ome(root, pixels((64, 64)), "yx", "0.5")
    shutil.rmtree(root / "s1")
    with pytest.raises(InputError, match="incomplete: the array of its level 1"):
        open_image(root)
    zarr.create_array(root / "s1", data=pixels((2, 32, 32)))
    with pytest.raises(InputError, match="has 3 axes"):
        open_image(root)


def test_pickles_are_refused(tmp_path: Path) -> None:
    stored = np.zeros((8, 8), np.uint8)
    create(tmp_path / "a", stored, zarr_format=2, chunks=(8, 8), compressors=None)
    meta = json.loads((tmp_path / "a" / ".zarray").read_text())
    for place in ("filters", "compressor"):
        codec: Any = {"id": "pickle", "protocol": 4}
        (tmp_path / "a" / ".zarray").write_text(json.dumps({**meta, place: [codec] if place == "filters" else codec}))
        with pytest.raises(InputError, match="pickled Python objects"):
            open_image(tmp_path / "a")


def test_fingerprint_follows_chunks_and_metadata(tmp_path: Path) -> None:
    root = tmp_path / "image.ome.zarr"
    stored = pixels((64, 64))
    write_ome(root, stored, "yx", "0.5")
    first = open_image(root).fingerprint()
    assert first == open_image(root).fingerprint()
    assert first != open_image(root, level=1).fingerprint()
    array: Any = zarr.open_array(root / "s0", mode="a")
    array[0, 0] = 255 - stored[0, 0]
    assert first["chunks_sha256"] != open_image(root).fingerprint()["chunks_sha256"]


def test_zarr_python_stays_out_of_the_way(tmp_path: Path) -> None:
    create(tmp_path / "a", pixels(SHAPE))
    code = (
        f"import sys, tilelab.io as io; io.open_image({str(tmp_path / 'a')!r})[...]; assert 'zarr' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frames_of_other_writers_are_decoded() -> None:
    """Without their size, in two parts, with something behind: as libzstd does, and never more than is expected."""
    pixels = np.arange(4096, dtype=np.uint8).tobytes()
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(pixels)
    halves = b"".join(zstandard.ZstdCompressor().compress(part) for part in (pixels[:1000], pixels[1000:]))
    for data in (zstandard.ZstdCompressor().compress(pixels), unsized, halves):
        assert bytes(decode_zstd(data, len(pixels))) == pixels
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    for data in (pixels, bomb, halves[:-5]):
        with pytest.raises(RuntimeError):
            decode_zstd(data, len(pixels))
