"""HDF5, MRC, N5 and neuroglancer precomputed: real files of every kind, whole, in parts, damaged."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import mrcfile
import numpy as np
import pytest
import tensorstore
from image_files import check_reads, pixels

from tilelab.errors import InputError
from tilelab.io.images.open import describe, open_image

SHAPE = (9, 41, 53)
CHUNK = (4, 16, 20)


def only_line(caught: Any) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


# HDF5


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float32", "float64", "int16", "bool", "float16"])
@pytest.mark.parametrize("stored", ["contiguous", "chunked", "gzip", "shuffled"])
def test_hdf5(tmp_path: Path, dtype: str, stored: str) -> None:
    array = pixels(SHAPE, dtype)
    path = tmp_path / "volume.h5"
    kinds: dict[str, dict[str, Any]] = {
        "contiguous": {},
        "chunked": {"chunks": CHUNK},
        "gzip": {"chunks": CHUNK, "compression": "gzip"},
        "shuffled": {"chunks": CHUNK, "compression": "lzf", "shuffle": True, "fletcher32": True},
    }
    with h5py.File(path, "w") as file:
        file.create_dataset("a/raw", data=array, **kinds[stored])
    expected = array.astype(np.uint8) * 255 if dtype == "bool" else array.astype("=" + np.dtype(dtype).str[1:])
    if expected.dtype.name not in ("uint8", "uint16", "float32"):
        expected = expected.astype(np.float32)
    for uri in (path, f"{path}::/a/raw", f"{path}::a"):
        with open_image(uri) as image:
            assert image.axes == "zyx"
            assert image.uri == f"{path}::/a/raw"
            assert image.chunks == ((1, 1, 1) if stored == "contiguous" else CHUNK)
            check_reads(image, expected, examples=4)


@pytest.mark.parametrize(
    "compression", [hdf5plugin.Blosc(), hdf5plugin.Zstd(), hdf5plugin.LZ4()], ids=["blosc", "zstd", "lz4"]
)
def test_hdf5_filters_that_hdf5_lacks(tmp_path: Path, compression: Any) -> None:
    array = pixels(SHAPE)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=array, chunks=CHUNK, compression=compression)
    check_reads(open_image(tmp_path / "a.h5"), array, examples=3)
    assert describe(tmp_path / "a.h5")["compression"]


def test_hdf5_axes_and_pixel_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    array = pixels((2, *SHAPE))
    with h5py.File(path, "w") as file:
        for name in ("ilastik", "fiji", "cremi", "labelled", "funlib", "bad"):
            file[name] = array[0]
        file["fiji"].attrs["element_size_um"] = [0.03, 0.004, 0.005]
        file["cremi"].attrs["resolution"] = [40.0, 4.0, 4.0]
        file["cremi"].attrs["offset"] = [400.0, 0.0, 12.0]
        file["cremi"].attrs["unit"] = "nm"
        file["funlib"].attrs.update({"voxel_size": [30, 4, 4], "units": ["nm", "nm", "nm"]})
        file["bad"].attrs.update({"resolution": "high", "element_size_um": [0.0, -1.0, np.nan]})
        file["ilastik"].attrs["axistags"] = json.dumps({"axes": [{"key": "x"}, {"key": "y"}, {"key": "z"}]})
        for dimension, label in zip(file["labelled"].dims, "zxy", strict=True):
            dimension.label = label
        file["czyx"] = array
        file["rgb"] = np.moveaxis(pixels((3, 20, 30)), 0, -1)
    check_reads(open_image(f"{path}::ilastik"), array[0].transpose(2, 1, 0), examples=3)
    check_reads(open_image(f"{path}::labelled"), array[0].transpose(0, 2, 1), examples=3)
    assert open_image(f"{path}::fiji").pixel_size_nm == pytest.approx((30, 4, 5))
    cremi = open_image(f"{path}::cremi")
    assert (cremi.pixel_size_nm, cremi.origin_px) == ((40, 4, 4), (10, 0, 3))
    assert open_image(f"{path}::/funlib").pixel_size_nm == (30, 4, 4)
    assert open_image(f"{path}::/bad").pixel_size_nm is None
    check_reads(open_image(f"{path}::czyx", channel=1), array[1], examples=3)
    assert open_image(f"{path}::rgb").axes == "yx"


def test_hdf5_behind_a_user_block_and_virtual(tmp_path: Path) -> None:
    array = pixels(SHAPE, np.uint16)
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["raw"] = array
    check_reads(open_image(tmp_path / "a.mat"), array, examples=3)
    check_reads(open_image(f"{tmp_path / 'a.mat'}::raw"), array, examples=3)
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    layout[...] = h5py.VirtualSource(tmp_path / "a.mat", "raw", SHAPE)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    check_reads(open_image(tmp_path / "v.h5"), array, examples=3)
    with h5py.File(tmp_path / "late.h5", "w") as file:
        file.create_dataset("raw", SHAPE, np.uint8)  # never written
    with pytest.raises(InputError, match="nothing was ever written"):
        open_image(tmp_path / "late.h5")


def test_hdf5_of_fewer_bits_than_bytes(tmp_path: Path) -> None:
    array = pixels(SHAPE, np.uint16) >> 4
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = h5py.h5t.STD_U16LE.copy()
        stored.set_precision(12)
        stored.set_offset(4)
        dataset = h5py.h5d.create(file.id, b"raw", stored, h5py.h5s.create_simple(SHAPE))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    check_reads(open_image(tmp_path / "a.h5"), array, examples=3)


def test_hdf5_choices_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["volumes/raw"] = pixels(SHAPE)
        file["volumes/labels"] = pixels(SHAPE, np.uint16)
        file["table"] = np.zeros(5)
        file["one"] = pixels((20, 30))
        file["names"] = np.array([[b"a", b"b"], [b"c", b"d"]])
    with pytest.raises(InputError, match="several datasets") as caught:
        open_image(path)
    message = only_line(caught)
    assert "/volumes/raw (9 x 41 x 53 uint8)" in message
    assert "/one" in message
    assert "table" not in message
    with pytest.raises(InputError, match=r"has no '/nope': it has .*/volumes/raw"):
        open_image(f"{path}::/nope")
    with pytest.raises(InputError, match=r"several datasets.*choose one as .*::/volumes/labels"):
        open_image(f"{path}::/volumes")
    with pytest.raises(InputError, match="no image: its shape"):
        open_image(f"{path}::/table")
    with pytest.raises(InputError, match="not numbers"):
        open_image(f"{path}::/names")
    with pytest.raises(InputError, match="level 1"):
        open_image(f"{path}::/one", level=1)
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["table"] = np.zeros(5)
    with pytest.raises(InputError, match="no dataset that could be an image"):
        open_image(tmp_path / "none.h5")
    np.save(tmp_path / "a.npy", pixels((20, 30)))
    with pytest.raises(InputError, match="only HDF5 files hold datasets"):
        open_image(f"{tmp_path / 'a.npy'}::/raw")
    with pytest.raises(InputError, match="does not exist"):
        open_image(f"{tmp_path / 'absent.h5'}::/raw")


def test_hdf5_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=pixels((9, 100, 100)), chunks=(3, 50, 50), compression="gzip")
        chunk = file["raw"].id.get_chunk_info(2)
    whole = path.read_bytes()
    for kept in (8, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"no readable HDF5|damaged") as caught:
            open_image(path)[...]
        only_line(caught)
    at = chunk.byte_offset + chunk.size // 2
    path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    with open_image(path) as image:
        assert image[:3, :50, :50].shape == (3, 50, 50)
        with pytest.raises(InputError, match="cannot be read in region") as caught:
            image[...]
        only_line(caught)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        open_image(path)


# MRC


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_mrc(tmp_path: Path, dtype: str, order: str) -> None:
    array = pixels(SHAPE, dtype)
    if dtype == "int8":
        array //= 2  # below 64: surely signed
    path = tmp_path / "a.mrc"
    with mrcfile.new(path, array.astype(np.dtype(dtype).newbyteorder(order))) as file:
        file.voxel_size = (40, 50, 300)
    expected = array if dtype in ("uint16", "float32") else array.astype(np.float32)
    with open_image(path) as image:
        assert (image.axes, image.pixel_size_nm) == ("zyx", pytest.approx((30, 5, 4)))
        check_reads(image, expected, examples=4)
    assert describe(path)["format"] == "MRC"


def test_mrc_planes_bytes_and_extended_headers(tmp_path: Path) -> None:
    array = pixels((1, *SHAPE[1:]))
    with mrcfile.new(tmp_path / "plane.mrc", array[0].astype(np.uint16)) as file:
        file.set_extended_header(np.zeros(77, "V1"))
    image = open_image(tmp_path / "plane.mrc")
    assert (image.axes, image.pixel_size_nm) == ("yx", None)
    check_reads(image, array[0].astype(np.uint16), examples=3)
    # unsigned bytes by IMOD's word, and by the header's maximum
    for name, stamp, high in (("imod.st", 1146047817, 0.0), ("high.rec", 0, 255.0)):
        with mrcfile.new(tmp_path / name, array.view(np.int8)) as file:
            file.header["extra2"] = np.void(bytes(40) + np.array([stamp, 0], "<i4").tobytes() + bytes(36))
            file.header["dmax"] = high
        check_reads(open_image(tmp_path / name), array[0], examples=3)
    with mrcfile.new(tmp_path / "signed.st", array.view(np.int8)) as file:
        file.header["extra2"] = np.void(bytes(40) + np.array([1146047817, 1], "<i4").tobytes() + bytes(36))
        file.header["dmax"] = 255.0
    check_reads(open_image(tmp_path / "signed.st"), array[0].view(np.int8).astype(np.float32), examples=3)


def test_axes_of_netcdf_are_its_dimensions(tmp_path: Path) -> None:
    array = pixels((40, 50))
    with h5py.File(tmp_path / "a.nc", "w") as file:
        raw = file.create_dataset("raw", data=array)
        for i, name in enumerate("xy"):
            file.create_dataset(name, data=np.arange(array.shape[i], dtype=np.float64)).make_scale(name)
            raw.dims[i].attach_scale(file[name])
    with open_image(f"{tmp_path / 'a.nc'}::raw") as image:
        assert image.assumptions == ()
        check_reads(image, array.T, examples=3)


def test_mrc_axes_and_stacks_of_volumes(tmp_path: Path) -> None:
    array = pixels(SHAPE, np.uint16)
    with mrcfile.new(tmp_path / "a.mrc", array) as file:
        file.header["mapc"], file.header["mapr"], file.header["maps"] = 3, 2, 1
        file.voxel_size = (40, 50, 300)
    check_reads(open_image(tmp_path / "a.mrc"), array.transpose(2, 1, 0), examples=3)
    stack = pixels((2, 5, 20, 30), np.float32)
    with mrcfile.new(tmp_path / "b.mrc", stack) as file:
        assert file.is_volume_stack()
    with pytest.raises(InputError, match="2 time points"):
        open_image(tmp_path / "b.mrc")
    check_reads(open_image(tmp_path / "b.mrc", timepoint=1), stack[1], examples=3)


def test_mrc_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    mrcfile.new(path, pixels(SHAPE, np.uint16)).close()
    whole = path.read_bytes()
    for kept, message in ((100, "truncated"), (1023, "truncated"), (1024, "truncated"), (len(whole) - 1, "truncated")):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=message) as caught:
            open_image(path)
        only_line(caught)
    for mode in (3, 4, 101, 77):
        path.write_bytes(whole[:12] + np.int32(mode).tobytes() + whole[16:])
        with pytest.raises(InputError, match=r"has mode|no readable MRC") as caught:
            open_image(path)
        only_line(caught)
    path.write_bytes(bytes(2000))
    with pytest.raises(InputError, match="empty or no MRC"):
        open_image(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        open_image(path)
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(InputError, match="unpack it first"):
        open_image(tmp_path / "a.mrc.gz")


# N5


def write_n5(path: Path, array: np.ndarray, compression: str = "gzip", **attributes: Any) -> np.ndarray:
    """`array` (z, y, x) as N5, which counts from x."""
    store = tensorstore.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": {
                "dimensions": array.shape[::-1],
                "blockSize": CHUNK[::-1] if array.ndim == 3 else [8] * array.ndim,
                "dataType": array.dtype.name,
                "compression": {"type": compression}
                if compression != "blosc"
                else {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
                **attributes,
            },
            "create": True,
        }
    ).result()
    store[...] = array.T
    return array


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16", "uint32"])
@pytest.mark.parametrize("compression", ["raw", "gzip", "zstd", "blosc", "bzip2", "xz"])
def test_n5(tmp_path: Path, dtype: str, compression: str) -> None:
    array = pixels(SHAPE, "uint16" if dtype == "uint32" else dtype).astype(dtype)
    write_n5(tmp_path / "a.n5" / "volumes" / "raw", array, compression)
    for path in (tmp_path / "a.n5", tmp_path / "a.n5" / "volumes" / "raw"):
        with open_image(path) as image:
            assert (image.axes, image.chunks, image.pixel_size_nm) == ("zyx", CHUNK, None)
            check_reads(
                image, array if dtype in ("uint8", "uint16", "float32") else array.astype(np.float32), examples=3
            )


def test_n5_levels_and_pixel_sizes(tmp_path: Path) -> None:
    group = tmp_path / "a.n5" / "em"
    fine, coarse = pixels(SHAPE), pixels((5, 21, 27), seed=1)
    write_n5(group / "s0", fine)
    write_n5(group / "s1", coarse, downsamplingFactors=[2, 2, 2])
    assert open_image(group).pixel_size_nm is None
    (group / "attributes.json").write_text(json.dumps({"pixelResolution": {"dimensions": [4, 5, 30], "unit": "nm"}}))
    for path in (group, tmp_path / "a.n5"):
        with open_image(path) as image, open_image(path, level=1) as second:
            check_reads(image, fine, examples=2)
            check_reads(second, coarse, examples=2)
            assert image.pixel_size_nm == (30, 5, 4)
            assert second.pixel_size_nm == (60, 10, 8)
    assert open_image(group / "s1", level=0).pixel_size_nm is not None
    with pytest.raises(InputError, match="levels 0 to 1"):
        open_image(group, level=2)
    own = {"axes": ["z", "y", "x"], "scale": [0.04, 0.008, 0.008], "translate": [0.4, 0, 0.016], "units": ["um"] * 3}
    write_n5(tmp_path / "b.n5" / "raw", fine, transform=own)
    image = open_image(tmp_path / "b.n5")
    assert image.pixel_size_nm == pytest.approx((40, 8, 8))
    assert image.origin_px == pytest.approx((10, 0, 2))
    write_n5(tmp_path / "c.n5" / "raw", fine, resolution=[4, 4, 40], axes=["x", "y", "z"], units=["nm"] * 3)
    assert open_image(tmp_path / "c.n5").pixel_size_nm == (40, 4, 4)
    write_n5(tmp_path / "d.n5", pixels((2, 9, 20, 30)))
    assert open_image(tmp_path / "d.n5", channel=1).shape == (9, 20, 30)


def test_n5_choices_and_damage(tmp_path: Path) -> None:
    root = tmp_path / "a.n5"
    for name in ("one", "two"):
        write_n5(root / name, pixels(SHAPE))
    with pytest.raises(InputError, match=r"several images: give one, .*one, or name it with --series; it has one, two"):
        open_image(root)
    block = root / "one" / "1" / "1" / "1"
    block.write_bytes(block.read_bytes()[:30])
    with pytest.raises(InputError, match="cannot be read in region") as caught:
        open_image(root / "one")[...]
    only_line(caught)
    shutil.rmtree(root / "one" / "0")  # blocks that are absent are 0
    assert not open_image(root / "one")[:, :, :20].any()
    attributes = root / "two" / "attributes.json"
    text = attributes.read_text()
    for broken in (
        "{",
        "[]",
        text.replace("gzip", "lz77"),
        text.replace("[53,41,9]", '"many"'),
        text.replace("53", "-5"),
    ):
        attributes.write_text(broken)
        with pytest.raises(InputError) as caught:
            open_image(root / "two")
        only_line(caught)
    (tmp_path / "empty.n5").mkdir()
    with pytest.raises(InputError, match="no dataset"):
        open_image(tmp_path / "empty.n5")


# neuroglancer precomputed


def write_precomputed(path: Path, array: np.ndarray, encoding: str = "raw", **more: Any) -> Any:
    """`array` (z, y, x) as one scale of a precomputed volume."""
    scale = {
        "size": array.shape[::-1],
        "encoding": encoding,
        "chunk_size": CHUNK[::-1],
        "resolution": [4, 5, 30],
    } | more
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    if encoding == "png":
        scale["png_level"] = 6  # older versions write a default that they cannot read
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"data_type": array.dtype.name, "num_channels": 1, "type": "image"},
            "scale_metadata": scale,
            "create": True,
        }
    ).result()
    store[...] = array.T[..., None]
    return store


@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [("raw", "uint8"), ("raw", "uint16"), ("raw", "float32"), ("compressed_segmentation", "uint32"), ("png", "uint8")],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_precomputed(tmp_path: Path, encoding: str, dtype: str, sharded: bool) -> None:
    array = pixels(SHAPE, "uint16" if dtype == "uint32" else dtype).astype(dtype)
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 2, "hash": "identity", "minishard_bits": 1,
        "shard_bits": 1, "data_encoding": "gzip", "minishard_index_encoding": "gzip",
    }  # fmt: skip
    path = tmp_path / "volume"
    write_precomputed(path, array, encoding, voxel_offset=[100, 0, 7], **({"sharding": sharding} if sharded else {}))
    with open_image(path) as image:
        assert (image.axes, image.chunks, image.pixel_size_nm) == ("zyx", CHUNK, (30, 5, 4))
        assert image.origin_px == (7, 0, 100)
        check_reads(image, array if dtype != "uint32" else array.astype(np.float32), examples=3)
        assert len(set(image.fingerprint().values())) > 2
    assert describe(path)["offset"] == {"x": 100, "y": 0, "z": 7}


@pytest.mark.parametrize("bits", [(0, 0, 3), (1, 0, 2), (1, 2, 9), (3, 3, 0), (0, 1, 1)])
def test_precomputed_counts_its_shards(tmp_path: Path, bits: tuple[int, int, int]) -> None:
    """TensorStore reads zeros where a shard is missing."""
    preshift, minishard, shard = bits
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": preshift, "hash": "identity",
        "minishard_bits": minishard, "shard_bits": shard,
    }  # fmt: skip
    write_precomputed(tmp_path / "a", pixels(SHAPE) | 1, "raw", sharding=sharding)
    shards = sorted((tmp_path / "a").rglob("*.shard"))
    assert describe(tmp_path / "a")["stored"] == f"{len(shards)} of {len(shards)}"
    with open_image(tmp_path / "a") as image:
        assert not any("stored" in said for said in image.warnings)
    shards[-1].unlink()
    if len(shards) == 1:
        with pytest.raises(InputError, match="none of its 1 shards is stored"):
            open_image(tmp_path / "a")
        return
    with open_image(tmp_path / "a") as image:
        told = f"{len(shards) - 1} of {len(shards)} shards are stored, the others read as"
        assert any(told in said for said in image.warnings)


def test_of_more_pieces_than_are_listed_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilelab.io.zarr.presence.MOST_LISTED", 8)
    array = pixels(SHAPE) | 1
    write_precomputed(tmp_path / "a", array)
    write_n5(tmp_path / "b.n5", array)
    for name, piece in (("a", r"-\d+"), ("b.n5", r"\d+")):
        with open_image(tmp_path / name) as image:
            assert not any("looked at" in said for said in image.warnings)
        files = [p for p in sorted((tmp_path / name).rglob("*")) if p.is_file() and re.search(rf"{piece}$", p.name)]
        assert len(files) == 27
        for path in files[::3]:
            path.unlink()
        with open_image(tmp_path / name) as image:
            assert any(re.search(r"of 2\d (chunks|blocks) looked at 1\d are stored", said) for said in image.warnings)


def test_precomputed_jpeg_and_levels(tmp_path: Path) -> None:
    smooth = np.add.outer(np.add.outer(np.arange(9), np.arange(40)), np.arange(50)).astype(np.uint8)
    store = write_precomputed(tmp_path / "a", smooth, "jpeg")
    with open_image(tmp_path / "a") as image:
        check_reads(image, store.read().result()[..., 0].T, examples=3)
        assert np.abs(image[...].astype(int) - smooth).max() < 20
    write_precomputed(tmp_path / "a", smooth[:, ::2, ::2], "raw", resolution=[8, 10, 30])
    with open_image(tmp_path / "a", level=1) as image:
        assert image.pixel_size_nm == (30, 10, 8)
        check_reads(image, smooth[:, ::2, ::2], examples=3)
    with pytest.raises(InputError, match="levels 0 to 1"):
        open_image(tmp_path / "a", level=2)


def test_precomputed_that_cloud_volume_packed(tmp_path: Path) -> None:
    """Nobody but cloud-volume finds such files: TensorStore reads zeros instead."""
    array = pixels(SHAPE)
    write_precomputed(tmp_path / "a", array)
    chunks = sorted((tmp_path / "a").glob("*/*-*_*-*_*-*"))
    for packed, end in ((chunks, "gz"), (chunks[:1], "br")):
        for chunk in packed:
            chunk.rename(f"{chunk}.{end}")
        with pytest.raises(
            InputError, match=rf"has {len(packed)} of {len(chunks)} chunks as packed files .*gunzip"
        ) as caught:
            open_image(tmp_path / "a")
        only_line(caught)
        for chunk in packed:
            Path(f"{chunk}.{end}").rename(chunk)
    check_reads(open_image(tmp_path / "a"), array, examples=3)


def test_precomputed_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.precomputed"
    write_precomputed(path, pixels(SHAPE))
    info = (path / "info").read_text()
    chunk = next(path.glob("*/0-20_0-16_0-4"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read in region") as caught:
        open_image(path)[...]
    only_line(caught)
    for broken in ("", "{}", "[]", info[:50], info.replace('"raw"', '"zip"'), info.replace("uint8", "int128")):
        (path / "info").write_text(broken)
        with pytest.raises(InputError) as caught:
            open_image(path)
        only_line(caught)
    (path / "info").unlink()
    with pytest.raises(InputError, match="has no info"):
        open_image(path)
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    (mesh / "info").write_text(json.dumps({"@type": "neuroglancer_legacy_mesh"}))
    with pytest.raises(InputError, match="no volume but neuroglancer_legacy_mesh"):
        open_image(mesh)


# all of them


@pytest.fixture(params=["hdf5", "mrc", "n5", "precomputed"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same pixels in every format."""
    array = pixels(SHAPE, np.uint16)
    path: Path = tmp_path / f"volume.{request.param}"
    if request.param == "hdf5":
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=array, chunks=CHUNK, compression="gzip")
    elif request.param == "mrc":
        mrcfile.new(path, array).close()
    elif request.param == "n5":
        write_n5(path, array)
    else:
        write_precomputed(path, array)
    return path


def test_a_package_that_is_missing_is_named(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("h5py", "mrcfile", "tensorstore"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"needs (h5py|mrcfile|tensorstore).*pip install .*\[formats\]") as caught:
        open_image(volume)
    only_line(caught)


def test_segmenting_a_volume(volume: Path, tmp_path: Path) -> None:
    from tilelab.engines.overrides import SpecOverrides
    from tilelab.io.results.result import read_result
    from tilelab.run.infer import infer
    from tilelab.run.options import Options

    options = Options(model=SpecOverrides(tile=(32, 32), overlap=(8, 8)), intensity_range=(0, 65535))
    made = infer(volume, "identity:2", tmp_path / "made.ome.zarr", options=options).path
    array = infer(pixels(SHAPE, np.uint16), "identity:2", tmp_path / "array.ome.zarr", options=options).path
    np.testing.assert_array_equal(read_result(made).labels[0][...], read_result(array).labels[0][...])


@pytest.mark.parametrize("signed", [False, True])
def test_mrc_bytes_of_unknown_sign_are_a_guess(signed: bool, tmp_path: Path) -> None:
    smooth = np.rint(60 * np.sin(np.arange(40)[:, None] / 9) + np.cos(np.arange(50) / 7) * 50).astype(np.int8)
    stored = smooth if signed else (smooth.astype(np.int16) + 128).astype(np.uint8)
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(stored.view(np.int8))
        limits = [
            (float(stored.min()), float(stored.max()), signed or stored.max() < 128, ""),
            (0, -1, signed, "guess"),
        ]
        limits += [(0, 0, signed, "guess")]
    whole = path.read_bytes()
    for low, high, as_signed, said in limits:
        path.write_bytes(whole[:76] + np.array([low, high, -2], "<f4").tobytes() + whole[88:])
        with open_image(path) as image:
            expected = stored.view(np.int8).astype(np.float32) if as_signed else stored.view(np.uint8)
            np.testing.assert_array_equal(image[...], expected)
            assert bool(said) == any("the 8-bit pixels" in str(guess) for guess in image.assumptions)
