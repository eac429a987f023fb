"""What is not stored, or stored in another way than the metadata say, is never read as zeros without a word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr

from tests.image_files import Array, pixels
from tests.result_files import make_result
from tilelab.errors import InputError
from tilelab.io import describe, open_image
from tilelab.io.convert import convert_image
from tilelab.io.results.result import read_result

SHAPE = (5, 40, 50)


def make(path: Path, version: int = 2, **options: Any) -> Array:
    stored = pixels(SHAPE, "uint16")
    array = zarr.create_array(
        path, shape=SHAPE, dtype="uint16", zarr_format=version, **{"chunks": (2, 16, 16), **options}
    )
    array[...] = stored
    return stored


def rewrite(document: Path, **changes: Any) -> None:
    """Change what is at the top of a JSON document; None removes it."""
    found = json.loads(document.read_text()) | changes
    document.write_text(json.dumps({key: value for key, value in found.items() if value != "gone"}))


@pytest.mark.parametrize(
    "encoding",
    [{"name": "v2", "separator": "/"}, {"name": "v2", "separator": "."}, {"name": "default", "separator": "."}],
)
def test_chunks_are_counted(tmp_path: Path, encoding: Any) -> None:
    stored = make(tmp_path / "a.zarr", 3, chunk_key_encoding=encoding)
    assert describe(tmp_path / "a.zarr")["stored"] == "36 of 36"
    with open_image(tmp_path / "a.zarr") as image:
        assert image.warnings == ()
        np.testing.assert_array_equal(image[...], stored)
    next(p for p in tmp_path.rglob("*") if p.is_file() and p.name != "zarr.json").unlink()
    with open_image(tmp_path / "a.zarr") as image:
        assert "35 of 36 chunks are stored" in image.warnings[0]


@pytest.mark.parametrize("version", [2, 3])
def test_of_more_chunks_than_are_listed_some_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    monkeypatch.setattr("tilelab.io.zarr.presence.MOST_LISTED", 8)
    make(tmp_path / "a.zarr", version)
    with open_image(tmp_path / "a.zarr") as image:
        assert image.warnings == ()
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.name[-1].isdecimal())[::3]:
        path.unlink()
    with open_image(tmp_path / "a.zarr") as image:
        assert re.search(
            r"of 3\d chunks looked at 2\d are stored, the others read as the fill value", image.warnings[0]
        )


@pytest.mark.parametrize(("separator", "wrong"), [("/", "."), (".", "/"), ("/", "gone")])
def test_the_other_separator(tmp_path: Path, separator: str, wrong: str) -> None:
    make(tmp_path / "a.zarr", chunk_key_encoding={"name": "v2", "separator": separator})
    rewrite(tmp_path / "a.zarr" / ".zarray", dimension_separator=wrong)
    with pytest.raises(InputError, match=r"has no chunk where its metadata say .*correct the separator"):
        open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_without_chunks(tmp_path: Path, version: int) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, dtype="uint16", chunks=(2, 16, 16), zarr_format=version)
    with pytest.raises(InputError, match="is empty: none of its 36 chunks"):
        open_image(tmp_path / "a.zarr")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", SHAPE, np.uint8, chunks=(2, 16, 16))
    with pytest.raises(InputError, match="is empty"):
        open_image(tmp_path / "a.h5")


def test_what_tilelab_wrote_may_be_black(tmp_path: Path) -> None:
    convert_image(np.zeros((70, 90), np.uint8), tmp_path / "a.ome.zarr")
    with open_image(tmp_path / "a.ome.zarr") as image:
        assert image.warnings == ()
        assert not image[...].any()


def test_what_was_converted_knows_what_was_written(tmp_path: Path) -> None:
    """What was all zeros has no file, and what has lost its file is no zeros."""
    stored = pixels((2, 2100, 4200))
    stored[0, :, :2048] = 0
    path = tmp_path / "a.ome.zarr"
    convert_image(stored, path, axes="cyx")
    with open_image(path) as image:
        assert image.warnings == ()
        np.testing.assert_array_equal(image[...], stored)
    array = json.loads((path / "0" / "zarr.json").read_text())
    size = sum(file.stat().st_size for file in (path / "0" / "c").rglob("*") if file.is_file())
    assert array["attributes"]["tilelab_written"] == {"files": 10, "bytes": size, "zeros": [[0, 1], [3, 4]]}
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[...], stored)
    with open_image(path) as image:
        (path / "0" / "c" / "1" / "0" / "2").unlink()
        assert not image[0, :100, :100].any()
        np.testing.assert_array_equal(image[1, :, :4096], stored[1, :, :4096])
        with pytest.raises(InputError, match=r"c/1/0/2 is missing: it was written, and not copied"):
            image[...]
    for what in (path, path / "0"):
        with pytest.raises(InputError, match="is not whole: 9 of the 10 shards that were written are there: copy it"):
            open_image(what)
    rewrite(path / "0" / "zarr.json", attributes={})  # as it was before
    with open_image(path) as image:
        assert "9 of 12 shards are stored, the others read as 0" in image.warnings[0]


def test_what_was_written_is_not_taken_for_that_of_an_array_made_of_it(tmp_path: Path) -> None:
    """Programs copy attributes along: what is cut otherwise has other files."""
    stored = pixels((100, 4200))
    convert_image(stored, tmp_path / "a.ome.zarr", axes="yx")
    first = zarr.open_array(tmp_path / "a.ome.zarr" / "0", mode="r")
    more: dict[str, Any] = {"dimension_names": ["y", "x"], "attributes": dict(first.attrs)}
    zarr.create_array(tmp_path / "b.zarr", data=first[:, :2000], chunks=(100, 1000), **more)
    with open_image(tmp_path / "b.zarr") as image:
        np.testing.assert_array_equal(image[...], stored[:, :2000])


def test_what_another_program_left_blank_can_be_said(tmp_path: Path) -> None:
    convert_image(pixels((100, 4200)), tmp_path / "a.ome.zarr", axes="yx")
    array = zarr.open_array(tmp_path / "a.ome.zarr" / "0", mode="r+")
    array[:, :2048] = 0  # its file goes
    with pytest.raises(InputError, match=r"2 of the 3 shards .*as it is all zeros now, take tilelab_written out"):
        open_image(tmp_path / "a.ome.zarr")
    del array.attrs["tilelab_written"]
    with open_image(tmp_path / "a.ome.zarr") as image:
        assert not image[:, :2048].any()


def test_what_was_written_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with each region that is read: it may tell of 65,536 runs."""
    level = read_result(make_result(tmp_path / "r.ome.zarr", (300, 2100)).path).labels[0]
    assert level[:300, :10].shape == (300, 10)
    parsed: list[Any] = []
    monkeypatch.setattr("tilelab.io.zarr.metadata._written", lambda told, grid: parsed.append(told.attributes))
    assert level[:, 2050:].shape == (300, 50)
    assert parsed == [{}]


@pytest.mark.parametrize("bound", ["MOST_TOLD", "MOST_RUNS"])
def test_of_too_many_files_it_is_known_how_many_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(f"tilelab.io.zarr.presence.{bound}", 0)
    stored = np.zeros((100, 4200), np.uint8)
    stored[:, 3000:] = 7
    convert_image(stored, tmp_path / "a.ome.zarr", axes="yx")
    kept = json.loads((tmp_path / "a.ome.zarr" / "0" / "zarr.json").read_text())["attributes"]["tilelab_written"]
    assert (kept["files"], kept["zeros"]) == (2, None)
    with open_image(tmp_path / "a.ome.zarr") as image:
        np.testing.assert_array_equal(image[...], stored)
    (tmp_path / "a.ome.zarr" / "0" / "c" / "0" / "2").unlink()
    with pytest.raises(InputError, match="is not whole: 1 of the 2 shards"):
        open_image(tmp_path / "a.ome.zarr")


def test_results_know_what_was_written(tmp_path: Path) -> None:
    make_result(tmp_path / "r.ome.zarr", (300, 2100))
    labels = tmp_path / "r.ome.zarr" / "labels" / "classes"
    with open_image(labels) as image:
        assert not any("stored" in said for said in image.warnings)
    (labels / "0" / "c" / "0" / "1").unlink()
    with pytest.raises(InputError, match="is not whole: 1 of the 2 shards"):
        open_image(labels)
    finest = read_result(tmp_path / "r.ome.zarr").labels[0]
    assert finest[:, :2048].any()
    with pytest.raises(InputError, match="0/c/0/1 is missing: it was written"):
        finest[...]
    for name in ("b.ome.zarr", "b.ome.tif"):
        with pytest.raises(InputError, match=r"is not whole|that were written: copy it anew"):
            convert_image(tmp_path / "r.ome.zarr", tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.ome.zarr"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [5, -1, 50]}, ">= 0"),
        ({"shape": [5, 40.5, 50]}, "Expected `int`"),
        ({"chunks": [2, 16, 1e300]}, "Expected `int`"),
        ({"chunks": [2, 16, 0]}, ">= 1"),
        ({"chunks": [2, 16]}, "chunks of"),
        ({"dimension_separator": "-"}, "separator"),
        ({"dimension_separator": {}}, "Expected `str`"),
        ({"order": "K"}, "order"),
        ({"dtype": "<u3"}, "understood"),
        ({"dtype": "<c8"}, "no kind of number"),
        ({"dtype": [["a", "<u2"]]}, "no kind of number"),
        ({"compressor": {"id": "nonesuch"}}, "nonesuch"),
        ({"filters": [{}]}, "id"),
        ({"zarr_format": 4}, "zarr_format"),
        ({"shape": [2**40, 40, 50]}, "not copied as a whole"),
    ],
)
def test_version_2_is_typed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path / "a.zarr")
    rewrite(tmp_path / "a.zarr" / ".zarray", **changes)
    with pytest.raises(InputError, match=message) as refusal:
        open_image(tmp_path / "a.zarr")[...]
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [5, -1, 50]}, ">= 0"),
        ({"data_type": "uint24"}, "'uint24', which is no kind of number here"),
        ({"data_type": {"name": "numpy.datetime64"}}, "no kind of number"),
        ({"storage_transformers": [{"name": "mystery"}]}, "mystery"),
        ({"chunk_grid": {"name": "rectangular", "configuration": {"chunk_shape": [1, 1, 1]}}}, "rectangular"),
        ({"chunk_key_encoding": {"name": "fanout"}}, "fanout"),
        ({"chunk_key_encoding": {"name": "default", "configuration": {"separator": "-"}}}, "separator"),
        ({"codecs": []}, "length"),
        ({"codecs": [{"name": "mystery"}]}, "mystery"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "middle"}}]}, "middle"),
        ({"mystery": {"must_understand": True}}, "mystery"),
    ],
)
def test_version_3_is_typed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path / "a.zarr", 3)
    rewrite(tmp_path / "a.zarr" / "zarr.json", **changes)
    with pytest.raises(InputError, match=message) as refusal:
        open_image(tmp_path / "a.zarr")[...]
    assert "\n" not in str(refusal.value)


def test_what_need_not_be_understood(tmp_path: Path) -> None:
    stored = make(tmp_path / "a.zarr", 3)
    rewrite(tmp_path / "a.zarr" / "zarr.json", mystery={"must_understand": False})
    np.testing.assert_array_equal(open_image(tmp_path / "a.zarr")[...], stored)


@pytest.mark.parametrize("fill", [-1, 65536, 0.5, 1e300, "NaN", "x", [], {}])
@pytest.mark.parametrize("version", [2, 3])
def test_a_fill_value_out_of_range_matters_where_a_chunk_is_absent(tmp_path: Path, fill: Any, version: int) -> None:
    stored = make(tmp_path / "a.zarr", version)
    rewrite(tmp_path / "a.zarr" / (".zarray" if version == 2 else "zarr.json"), fill_value=fill)
    np.testing.assert_array_equal(open_image(tmp_path / "a.zarr")[...], stored)
    (tmp_path / "a.zarr" / ("0.1.2" if version == 2 else "c/0/1/2")).unlink()
    with pytest.raises(InputError, match=r"no chunk \(0, 1, 2\), and its fill_value"):
        open_image(tmp_path / "a.zarr")[...]


@pytest.mark.parametrize("name", [".zarray", ".zattrs", "zarr.json", "attributes.json", "info"])
def test_deep_json(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    if name == ".zattrs":
        make(tmp_path / "a")
    (tmp_path / "a" / name).write_text("[" * 50_000)
    with pytest.raises(InputError, match="nested too deeply" if name != "info" else "folder without images"):
        open_image(tmp_path / "a")


def _without(path: Path, code: int, new: int) -> None:
    """Give a tag another code, as a damaged byte does."""
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags[code].offset
    data = bytearray(path.read_bytes())
    data[at : at + 2] = new.to_bytes(2, "little")
    path.write_bytes(data)


def test_tiff_tags_that_are_gone(tmp_path: Path) -> None:
    stored = pixels((70, 90), "uint8")
    for name, compression in (("bare", None), ("lzw", "lzw")):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, stored, photometric="minisblack", compression=compression, rowsperstrip=16)
        whole = path.read_bytes()
        _without(path, 262, 261)
        with open_image(path) as image:
            np.testing.assert_array_equal(image[...], stored)
            assert "0 is black" in {a.taken for a in image.assumptions}
        path.write_bytes(whole)
        _without(path, 258, 2)
        with pytest.raises(InputError, match="how many bits"):
            open_image(path)
        path.write_bytes(whole)
        _without(path, 256, 253)
        with pytest.raises(InputError):
            open_image(path)


def test_tiff_bytes_that_contradict_the_shape(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels((70, 90), "uint8"), photometric="minisblack", rowsperstrip=16)
    with open_image(tmp_path / "a.tif") as image:
        assert image.warnings == ()
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        at = tiff.pages.first.tags["ImageWidth"].valueoffset
    data[at] = 88
    (tmp_path / "a.tif").write_bytes(data)
    with open_image(tmp_path / "a.tif") as image:
        assert any("contradicts itself" in warning for warning in image.warnings)


def put_together(path: Path, sources: list[tuple[str, str]]) -> None:
    """A virtual dataset with a plane from each of some datasets."""
    layout = h5py.VirtualLayout((len(sources), 40, 50), np.uint16)
    for i, (file, name) in enumerate(sources):
        layout[i] = h5py.VirtualSource(file, name, (40, 50))
    with h5py.File(path, "w") as opened:
        opened.create_virtual_dataset("raw", layout)


def test_what_a_virtual_dataset_is_made_of_and_is_not_there(tmp_path: Path) -> None:
    """HDF5 itself reads zeros there, as where a master file was copied without its data."""
    stored = pixels(SHAPE, "uint16")
    for i, plane in enumerate(stored):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["raw"] = plane
    put_together(tmp_path / "inner.h5", [(f"{i}.h5", "raw") for i in range(4)] + [(str(tmp_path / "4.h5"), "raw")])
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    layout[...] = h5py.VirtualSource("inner.h5", "raw", SHAPE)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    for name in ("inner.h5", "a.h5"):
        with open_image(tmp_path / name) as image:
            assert image.warnings == ()
            np.testing.assert_array_equal(image[...], stored)
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["other"] = stored[1]
    (tmp_path / "2.h5").unlink()
    for name in ("inner.h5", "a.h5"):
        with open_image(tmp_path / name) as image:
            (warning,) = image.warnings
            assert "3 of 5 datasets that it is put together from are there" in warning
            assert "1.h5::raw" in warning
    for i in range(5):
        (tmp_path / f"{i}.h5").unlink(missing_ok=True)
    for name in ("inner.h5", "a.h5"):
        with pytest.raises(InputError, match=r"put together from 5 other datasets, none of which is there"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("form", ["zarr 2", "zarr 3", "shards", "other codec", "n5", "precomputed"])
def test_a_link_to_what_was_not_fetched_is_no_absent_chunk(tmp_path: Path, form: str) -> None:
    """As in a DataLad set or another of git-annex."""
    stored = pixels((20, 40, 50), "uint16")
    place = tmp_path / "a"
    if form in ("n5", "precomputed"):
        tensorstore = pytest.importorskip("tensorstore")
        driver = {"n5": "n5", "precomputed": "neuroglancer_precomputed"}[form]
        spec: dict[str, Any] = {"driver": driver, "kvstore": {"driver": "file", "path": f"{place}/"}, "create": True}
        options: dict[str, Any] = {"dtype": "uint16", "shape": (50, 40, 20), "chunk_layout": tensorstore.ChunkLayout(
            read_chunk_shape=(16, 16, 16))}  # fmt: skip
        if form == "precomputed":
            options["shape"] = (50, 40, 20, 1)
            options["chunk_layout"] = tensorstore.ChunkLayout(read_chunk_shape=(16, 16, 16, 1))
        store = tensorstore.open(spec, **options).result()
        store[...] = stored.T if form == "n5" else stored.T[..., None]
    else:
        more: dict[str, Any] = {"zarr_format": 2 if form in ("zarr 2", "other codec") else 3, "chunks": (4, 16, 16)}
        more |= {"shards": (8, 32, 32)} if form == "shards" else {}
        more |= {"filters": [numcodecs.Delta("u2")]} if form == "other codec" else {}
        zarr.create_array(place, shape=stored.shape, dtype="uint16", **more)[...] = stored
    with open_image(place) as image:
        np.testing.assert_array_equal(image[...], stored)
    metadata = {"zarr.json", ".zarray", ".zattrs", "attributes.json", "info"}
    chunk = sorted(p for p in place.rglob("*") if p.is_file() and p.name not in metadata)[1]
    chunk.rename(tmp_path / "annex")
    chunk.symlink_to(tmp_path / "annex")
    with open_image(place) as image:
        np.testing.assert_array_equal(image[...], stored)
        if form in ("zarr 2", "zarr 3", "shards"):
            (tmp_path / "annex").rename(tmp_path / "elsewhere")
            with pytest.raises(InputError, match=f"{chunk.name} is a link to what is not there"):
                image[...]
            (tmp_path / "elsewhere").rename(tmp_path / "annex")
    (tmp_path / "annex").unlink()
    with pytest.raises(InputError, match=f"{chunk.name} is a link to what is not there"):
        open_image(place)


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_cannot_be_looked_at_is_no_absent_one(tmp_path: Path, version: int) -> None:
    stored = make(tmp_path / "a.zarr", version)
    with open_image(tmp_path / "a.zarr") as image:
        np.testing.assert_array_equal(image[...], stored)
        metadata = {"zarr.json", ".zarray", ".zattrs"}
        chunk = next(p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file() and p.name not in metadata)
        chunk.unlink()
        chunk.symlink_to(chunk)  # the only error of a disk that a test can make as any user
        with pytest.raises(InputError, match="cannot be read"):
            image[...]
