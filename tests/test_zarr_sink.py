"""Results on disk: the right pixels on every level, the same bytes however the work is split, and valid OME-NGFF."""

from __future__ import annotations

import errno
import json
import pickle
import tempfile
import tracemalloc
from collections.abc import Iterable
from itertools import product, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05.image import Image as NgffImage
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box, boxes
from tilelab.io.results.ome_zarr import OmeZarrSink, partial_path
from tilelab.io.results.result import Result, read_result
from tilelab.io.results.sink import Finished
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.zarr import levels
from tilelab.io.zarr import sharded_array as _zarr_array
from tilelab.io.zarr.layout import Layout
from tilelab.io.zarr.parking import Parked, Parking
from tilelab.io.zarr.sharded_array import ShardedArray
from tilelab.kernels.pyramid import cut_chunks, halve_mean, halve_mode, reference_halve_mean, reference_halve_mode
from tilelab.spec import ClassInfo

CLASSES = (ClassInfo("matrix", "#000000"), ClassInfo("secondary", "#1f77b4"), ClassInfo("tertiary", "#d62728"))

# Small shards, so that small images cross many of them; what Layout.fit gives is used in some tests below.
PLANE = {"chunk": (1, 4, 4), "shard": (1, 16, 16), "z_factor": 1}
VOLUME = {"chunk": (2, 4, 4), "shard": (8, 16, 16), "z_factor": 2}
SLICES = {"chunk": (2, 4, 4), "shard": (8, 16, 16), "z_factor": 1}


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    cut = draw(st.sampled_from([PLANE, VOLUME, SLICES]))
    shape = draw(st.tuples(st.integers(1, 3 if cut is PLANE else 20), st.integers(1, 60), st.integers(1, 40)))
    return Layout(shape, **cut, levels=draw(st.integers(1, 6)))


def pixels(layout: Layout, seed: int, channels: int = 2, logits: int = 0) -> Finished:
    """Random rows with large empty areas."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, layout.shape).astype(np.uint8)
    probabilities = rng.integers(0, 256, (channels, *layout.shape)).astype(np.uint8)
    floats = rng.normal(size=(logits, *layout.shape)).astype(np.float32)
    empty = rng.random(tuple(-(-n // 16) for n in layout.shape)) < 0.4
    for axis in range(3):
        empty = empty.repeat(16, axis)
    empty = empty[tuple(slice(n) for n in layout.shape)]
    labels[empty] = 0
    probabilities[:, empty] = 0
    floats[:, empty] = 0
    return Finished(labels, probabilities if channels else None, floats if logits else None)


def rows(whole: Finished, box: Box) -> Finished:
    return Finished(*(None if a is None else a[(..., *box.slices)] for a in whole))


def write_unit(
    sink: OmeZarrSink, whole: Finished, box: Box, axis: int, rng: np.random.Generator, start: int | None = None
) -> None:
    """Write one unit in random portions; now and then the writer is dropped and another continues where it was."""
    position = box.start[axis] if start is None else start
    writer = sink.writer(box, position, axis)
    durable = position
    while position < box.stop[axis]:
        end = min(box.stop[axis], position + int(rng.integers(1, 24)))
        part = [(a, b) for a, b in zip(box.start, box.stop, strict=True)]
        part[axis] = (position, end)
        some = rows(whole, Box(tuple(a for a, _ in part), tuple(b for _, b in part)))
        durable = writer.write(some, threads=int(rng.integers(1, 4)))
        assert durable == (box.stop[axis] if end == box.stop[axis] else end // sink.grain[axis] * sink.grain[axis])
        position = end
        if rng.random() < 0.2:
            writer.close()
            writer = OmeZarrSink.open(sink.path).writer(box, durable, axis)
            position = durable
    writer.close()


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def make(path: Path, layout: Layout, **options: Any) -> OmeZarrSink:
    axes: Literal["yx", "zyx"] = "yx" if layout.shape[0] == layout.chunk[0] == 1 else "zyx"
    settings_ = {"classes": CLASSES, "probabilities": (1, 2), "axes": axes, "name": "sample"} | options
    return OmeZarrSink.create(path, layout, **settings_)


def write_whole(path: Path, layout: Layout, whole: Finished, threads: int = 1, **options: Any) -> Result:
    sink = make(path, layout, **options)
    writer = sink.writer(Box.whole(layout.shape), 0, 1)
    assert writer.write(whole, threads) == layout.shape[1]
    writer.close()
    sink.finalize()
    return read_result(path)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 4), values=st.sampled_from([2, 5, 256]), factor=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_kernels_equal_their_reference(shape: tuple[int, ...], values: int, factor: int, seed: int) -> None:
    block = np.random.default_rng(seed).integers(0, values, shape).astype(np.uint8)
    np.testing.assert_array_equal(halve_mean(block, factor), reference_halve_mean(block, factor))
    np.testing.assert_array_equal(halve_mode(block, factor), reference_halve_mode(block, factor))


def test_halving_by_hand() -> None:
    block = np.array([[[[0, 1, 7], [2, 1, 9], [3, 5, 8]]]], np.uint8)
    assert halve_mean(block, 1).tolist() == [[[[1, 8], [4, 8]]]]  # 4/4, 16/2, 8/2, 8
    assert halve_mode(block, 1).tolist() == [[[[1, 9], [5, 8]]]]  # two ones, then ties
    assert halve_mean(np.array([[[[0, 1], [0, 1]]]], np.uint8), 1).item() == 1  # a half goes up


@given(shape=st.tuples(st.just(1), *[st.integers(1, 9)] * 3), chunk=st.tuples(*[st.integers(1, 5)] * 3), data=st.data())
def test_chunks_are_padded_with_zeros(shape: tuple[int, ...], chunk: tuple[int, int, int], data: st.DataObject) -> None:
    block = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2, shape).astype(np.float32)
    corners = list(product(*map(range, repeat(0), shape[1:], chunk)))
    whole = np.zeros(tuple(max(corner[i] for corner in corners) + chunk[i] for i in range(3)), np.float32)
    for corner in corners:
        pieces, occupied = cut_chunks(block, *corner[:2], chunk)
        made, filled = pieces[corner[2] // chunk[2]], occupied[corner[2] // chunk[2]]
        part = tuple(slice(at, at + n) for at, n in zip(corner, chunk, strict=True))
        assert filled == block[0][part].any()
        whole[part] = made
    _, z, y, x = shape
    np.testing.assert_array_equal(whole[:z, :y, :x], block[0])
    assert whole.sum() == block.sum()


@settings(max_examples=15)
@given(layout=layouts(), seed=st.integers(0, 2**32 - 1), axis=st.sampled_from([0, 1]), data=st.data())
def test_any_split_and_resume_gives_the_same_files_with_the_right_pixels(
    layout: Layout, seed: int, axis: int, data: st.DataObject
) -> None:
    logits = 2 if layout.chunk[0] == 1 and axis == 1 else 0
    whole = pixels(layout, seed, logits=logits)
    lanes = tuple(g * data.draw(st.integers(1, 4)) for g in layout.grain)
    with tempfile.TemporaryDirectory() as name:
        once = write_whole(Path(name) / "once.ome.zarr", layout, whole, logits=logits)
        sink = make(Path(name) / "split.ome.zarr", layout, logits=logits)
        units = list(boxes(layout.shape, lanes))
        rng = np.random.default_rng(seed)
        rng.shuffle(units)
        for unit in units:
            write_unit(sink, whole, unit, axis, rng)
        sink.finalize()
        split = read_result(sink.path)
        assert files(sink.path) == files(once.path)

        assert whole.labels is not None
        assert whole.probabilities is not None
        labels, probabilities = whole.labels[np.newaxis], whole.probabilities
        group = zarr.open_group(sink.path, mode="r")
        skip = 3 - len(split.info.axes)
        for level in range(layout.levels):
            if level:
                labels = reference_halve_mode(labels, layout.z_factor)
                probabilities = reference_halve_mean(probabilities, layout.z_factor)
            expected = labels.reshape(labels.shape[1 + skip :])
            np.testing.assert_array_equal(split.labels[level][...], expected)
            np.testing.assert_array_equal(group[f"labels/classes/{level}"][...], expected)
            expected = probabilities.reshape(2, *probabilities.shape[1 + skip :])
            np.testing.assert_array_equal(split.probabilities[level][...], expected)
            np.testing.assert_array_equal(group[str(level)][...], expected)
        if logits:
            assert split.logits is not None
            assert whole.logits is not None
            np.testing.assert_array_equal(split.logits[...], whole.logits.reshape(split.logits.shape))
            np.testing.assert_array_equal(group["logits/0"][...], split.logits[...])


@pytest.mark.parametrize("cut", [PLANE, VOLUME])
def test_every_file_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: dict[str, Any]) -> None:
    written: list[Path] = []

    def replace_file(path: Path, pieces: Iterable[bytes], scratch: Path) -> None:
        written.append(path)
        original(path, pieces, scratch)

    original = _zarr_array.replace_file
    monkeypatch.setattr(_zarr_array, "replace_file", replace_file)
    layout = Layout((1 if cut is PLANE else 20, 70, 50), **cut, levels=6)
    result = write_whole(tmp_path / "r.ome.zarr", layout, pixels(layout, 2, channels=3), probabilities=(0, 1, 2))
    shards = [p for p in result.path.rglob("*") if p.is_file() and p.name != "zarr.json"]
    assert len(written) == len(set(written)) == len(shards)


def test_threads_do_not_change_the_bytes(tmp_path: Path) -> None:
    layout = Layout.fit((1, 3000, 2500), (4.0, 4.0))
    whole = pixels(layout, 3)
    once = write_whole(tmp_path / "a.ome.zarr", layout, whole)
    threaded = write_whole(tmp_path / "b.ome.zarr", layout, whole, threads=3)
    assert files(once.path) == files(threaded.path)


@pytest.mark.parametrize(
    ("shape", "kind"), [((1, 1), "2d"), ((5, 7), "2d"), ((3, 600, 300), "2d"), ((40, 70, 600), "3d"), ((1, 2, 3), "3d")]
)
def test_what_is_written_is_plain_zarr_to_others(
    tmp_path: Path, shape: tuple[int, ...], kind: Literal["2d", "3d"]
) -> None:
    """zarr-python and tensorstore read every array, logits and empty chunks included."""
    tensorstore = pytest.importorskip("tensorstore")
    layout = Layout.fit(shape, kind=kind)
    result = write_whole(tmp_path / "r.ome.zarr", layout, pixels(layout, 7, logits=3), logits=3)
    assert result.logits is not None
    for image in (*result.labels, *result.probabilities, result.logits):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": image.uri}}
        np.testing.assert_array_equal(tensorstore.open(spec, read=True).result().read().result(), image[...])
        array = zarr.open_array(image.uri, mode="r")
        np.testing.assert_array_equal(array[...], image[...])


def test_the_description_of_an_array_is_the_one_zarr_writes(tmp_path: Path) -> None:
    for dtype, shape, chunk, shard, axes in (
        ("uint8", (2, 900, 800), (1, 256, 256), (1, 2048, 2048), "cyx"),
        ("uint8", (90, 80), (256, 256), (256, 256), "yx"),
        ("float32", (2, 9, 90, 80), (1, 1, 256, 256), (1, 1, 256, 2048), "czyx"),
    ):
        ours = ShardedArray(LocalPath(tmp_path), shape, np.dtype(dtype), chunk, shard, axes).metadata()
        zarr.create_array(
            tmp_path / f"{axes}.zarr",
            shape=shape,
            dtype=dtype,
            chunks=chunk,
            shards=None if shard == chunk else shard,
            dimension_names=tuple(axes),
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=False),
            fill_value=0,
        )
        theirs = json.loads((tmp_path / f"{axes}.zarr" / "zarr.json").read_text())
        assert ours == theirs


def test_a_shard_that_zarr_wrote_reads_back(tmp_path: Path) -> None:
    """Our reader follows the index, whatever the order of the chunks, and the checksum is CRC-32C."""
    array = ShardedArray(LocalPath(tmp_path / "a"), (40, 60), np.dtype(np.uint8), (8, 8), (32, 32), "yx")
    theirs = zarr.create_array(
        array.path, shape=array.shape, dtype="uint8", chunks=(8, 8), shards=(32, 32),
        compressors=zarr.codecs.ZstdCodec(level=1), fill_value=0,
    )  # fmt: skip
    expected = np.random.default_rng(0).integers(0, 9, array.shape).astype(np.uint8)
    expected[:9, :20] = 0
    theirs[...] = expected
    np.testing.assert_array_equal(array.read(Box((3, 5), (39, 58))), expected[3:39, 5:58])


def test_empty_chunks_and_shards_take_no_space(tmp_path: Path) -> None:
    layout = Layout.fit((1, 5000, 5000))
    whole = Finished(np.zeros(layout.shape, np.uint8), np.zeros((1, *layout.shape), np.uint8), None)
    assert whole.labels is not None
    whole.labels[0, 4999, 4999] = 2
    result = write_whole(tmp_path / "r.ome.zarr", layout, whole, probabilities=(1,))
    assert not (result.path / "0" / "c").exists()
    shards = [
        p.relative_to(result.path).as_posix() for p in (result.path / "labels/classes/0/c").rglob("*") if p.is_file()
    ]
    assert shards == ["labels/classes/0/c/2/2"]


def test_metadata_is_valid_ome_ngff(tmp_path: Path) -> None:
    layout = Layout.fit((1, 1500, 1201), (2.18, 2.2))
    result = write_whole(
        tmp_path / "r.ome.zarr", layout, pixels(layout, 5, logits=3), logits=3, pixel_size_nm=(2.18, 2.2)
    )
    group = zarr.open_group(result.path, mode="r")
    image = NgffImage.from_zarr(group).ome_attributes
    axes = [(axis.name, axis.type, axis.unit) for axis in image.multiscales[0].axes]
    assert axes == [("c", "channel", None), ("y", "space", "nanometer"), ("x", "space", "nanometer")]
    fine, coarse = (d.coordinateTransformations for d in image.multiscales[0].datasets[:2])
    assert (fine[0].scale, fine[1].translation) == ([1, 2.18, 2.2], [0, 0, 0])
    assert (coarse[0].scale, coarse[1].translation) == ([1, 4.36, 4.4], [0, 1.09, 1.1])
    channels = image.omero["channels"]
    assert [(c["label"], c["color"]) for c in channels] == [("secondary", "1F77B4"), ("tertiary", "D62728")]

    names = Labels.from_zarr(zarr.open_group(result.path / "labels", mode="r")).ome_attributes.labels
    assert list(names) == ["classes"]
    label = ImageLabel.from_zarr(zarr.open_group(result.path / "labels/classes", mode="r")).ome_attributes
    assert len(label.multiscales[0].datasets) == len(image.multiscales[0].datasets)
    colors = label.image_label.colors
    assert colors is not None
    assert [(c.label_value, c.rgba) for c in colors] == [
        (0, (0, 0, 0, 0)), (1, (0x1F, 0x77, 0xB4, 255)), (2, (0xD6, 0x27, 0x28, 255)),
    ]  # fmt: skip
    NgffImage.from_zarr(zarr.open_group(result.path / "logits", mode="r"))


@pytest.mark.parametrize("options", [{"labels": True}, {"labels": False, "logits": 3}])
def test_without_probabilities_the_root_is_still_an_image(tmp_path: Path, options: dict[str, Any]) -> None:
    layout = Layout.fit((4, 600, 300), (8.0, 4.0, 4.0))
    whole = pixels(layout, 5, channels=0, logits=options.get("logits", 0))
    result = write_whole(
        tmp_path / "r.ome.zarr", layout, whole, probabilities=(), pixel_size_nm=(8.0, 4.0, 4.0), **options
    )
    assert result.probabilities == ()
    shown = result.labels[0] if options["labels"] else result.logits
    assert shown is not None
    group = zarr.open_group(result.path, mode="r")
    paths = [d.path for d in NgffImage.from_zarr(group).ome_attributes.multiscales[0].datasets]
    np.testing.assert_array_equal(group[paths[0]][...], shown[...])


@pytest.mark.parametrize("labels_only", [False, True])
def test_the_reference_reader_opens_it(tmp_path: Path, labels_only: bool) -> None:
    io = pytest.importorskip(
        "ome_zarr.io", reason="ome-zarr not installed: its s3fs makes pip try hundreds of versions"
    )
    reader = pytest.importorskip("ome_zarr.reader")
    layout = Layout.fit((1, 700, 900), (4.0, 4.0))
    probabilities = () if labels_only else (1, 2)
    whole = pixels(layout, 5, channels=len(probabilities))
    result = write_whole(tmp_path / "r.ome.zarr", layout, whole, probabilities=probabilities, pixel_size_nm=(4.0, 4.0))
    nodes = {str(node.zarr): node for node in reader.Reader(io.parse_url(str(result.path)))()}
    image, label = (node for node in nodes.values() if node.data)
    first = result.labels if labels_only else result.probabilities
    assert [level.shape for level in image.data] == [level.shape for level in first]
    np.testing.assert_array_equal(np.asarray(label.data[1]), result.labels[1][...])
    assert label.metadata["color"][1][:3] == pytest.approx([0x1F / 255, 0x77 / 255, 0xB4 / 255])


def test_an_unfinished_result_can_be_looked_at(tmp_path: Path) -> None:
    layout = Layout.fit((1, 3000, 600))
    sink = make(tmp_path / "r.ome.zarr", layout)
    whole = pixels(layout, 1)
    assert sink.writer(Box.whole(layout.shape), 0, 1).write(rows(whole, Box((0, 0, 0), (1, 2500, 600)))) == 2048
    NgffImage.from_zarr(zarr.open_group(sink.partial, mode="r"))
    seen = read_result(sink.partial).labels[0][...]
    assert whole.labels is not None
    np.testing.assert_array_equal(seen[:2048], whole.labels[0, :2048])
    assert not seen[2048:].any()


def test_a_result_says_what_it_is(tmp_path: Path) -> None:
    layout = Layout.fit((1, 90, 70), (4.0, 5.0))
    sink = make(tmp_path / "r.ome.zarr", layout, pixel_size_nm=(4.0, 5.0), metadata={"model": {"name": "superalloy"}})
    again = pickle.loads(pickle.dumps(OmeZarrSink.open(tmp_path / "r.ome.zarr")))  # noqa: S301
    assert again.info == sink.info
    assert again.info.classes == CLASSES
    assert again.info.layout == layout
    assert again.info.metadata == {"model": {"name": "superalloy"}}
    assert read_result(sink.partial).labels[0].pixel_size_nm == (4.0, 5.0)


def test_leftovers_of_a_kill_are_gone_in_the_end(tmp_path: Path) -> None:
    layout = Layout.fit((1, 90, 70))
    sink = make(tmp_path / "r.ome.zarr", layout)
    leftover = sink.partial / ".tilelab" / "writing" / "0123"
    leftover.write_bytes(b"half a shard")
    journal = sink.partial / ".tilelab" / "journal"
    journal.write_bytes(b"kept")
    report = sink.finalize()
    assert report["path"] == str(sink.path)
    assert (sink.path / ".tilelab" / "journal").read_bytes() == b"kept"
    assert not list(sink.path.rglob("0123"))
    assert report["bytes"] == sum(len(content) for content in files(sink.path).values())
    assert not sink.partial.exists()


def test_a_second_beginning_is_refused(tmp_path: Path) -> None:
    layout = Layout.fit((1, 90, 70))
    path = tmp_path / "r.ome.zarr"
    (partial_path(path) / ".tilelab").mkdir(parents=True)  # a journal may be there before
    make(path, layout)
    with pytest.raises(OutputError, match=r"unfinished result.*--restart"):
        make(path, layout)


def test_an_existing_output_is_kept_and_finalize_may_be_repeated(tmp_path: Path) -> None:
    layout = Layout((1, 100, 70), **PLANE, levels=6)
    whole = pixels(layout, 1)
    expected = write_whole(tmp_path / "expected.ome.zarr", layout, whole)
    sink = make(tmp_path / "r.ome.zarr", layout)
    sink.writer(Box.whole(layout.shape), 0, 1).write(whole)
    sink.path.mkdir()
    with pytest.raises(OutputError, match="exists"):
        sink.finalize()
    assert list(sink.path.iterdir()) == []
    sink.path.rmdir()
    OmeZarrSink.open(sink.path).finalize()
    assert files(sink.path) == files(expected.path)
    assert not (sink.path / ".tilelab").exists()


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    layout = Layout.fit((1, 90, 70))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write .*zarr.json: Not a directory"):
        make(tmp_path / "file" / "r.ome.zarr", layout)


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    layout = Layout.fit((1, 300, 300))
    sink = make(tmp_path / "r.ome.zarr", layout)
    noise = np.random.default_rng(0).integers(0, 256, (1, 300, 300)).astype(np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a file that cannot grow, as on a full disk
    try:
        with pytest.raises(OutputError, match=r"cannot write .*: File too large"):
            sink.writer(Box.whole(layout.shape), 0, 1).write(Finished(noise, noise[np.newaxis].repeat(2, 0), None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(sink.partial.rglob("c/*"))
    assert not list((sink.partial / ".tilelab" / "writing").iterdir())


def test_what_is_not_a_result_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tilelab result at .*no such folder"):
        read_result(tmp_path / "missing")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(InputError, match=r"other\.zarr is not a result"):
        read_result(tmp_path / "other.zarr")


def test_a_corrupt_shard_is_one_line_that_names_it(tmp_path: Path) -> None:
    layout = Layout.fit((1, 600, 600))
    result = write_whole(tmp_path / "r.ome.zarr", layout, pixels(layout, 1))
    shard = result.path / "labels/classes/0/c/0/0"
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"labels/classes/0/c/0/0 is corrupt.*checksum"):
        result.labels[0].read(Box((0, 0), (10, 10)))
    shard.write_bytes(content[:10])
    with pytest.raises(InputError, match=r"labels/classes/0/c/0/0 is truncated"):
        result.labels[0].read(Box((0, 0), (10, 10)))
    assert result.probabilities[0].read(Box((0, 0, 0), (1, 10, 10))).shape == (1, 10, 10)


@pytest.mark.parametrize(
    ("box", "start", "complaint"),
    [
        (Box((0, 0, 0), (1, 100, 300)), 0, "not cut at multiples"),
        (Box((0, 0, 100), (1, 300, 300)), 0, "not cut at multiples"),
        (Box((0, 0, 0), (1, 300, 300)), 10, "cannot begin at 10"),
    ],
)
def test_units_that_would_share_a_shard_are_refused(tmp_path: Path, box: Box, start: int, complaint: str) -> None:
    sink = make(tmp_path / "r.ome.zarr", Layout.fit((1, 300, 300)))
    with pytest.raises(ValueError, match=complaint):
        sink.writer(box, start, 1)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layout = Layout.fit((1, 30, 40))
    whole = pixels(layout, 1)
    writer = make(tmp_path / "r.ome.zarr", layout).writer(Box.whole(layout.shape), 0, 1)
    with pytest.raises(ValueError, match="the finished rows have none"):
        writer.write(whole._replace(probabilities=None))
    with pytest.raises(ValueError, match="do not continue"):
        writer.write(rows(whole, Box((0, 0, 0), (1, 30, 39))))


@pytest.mark.parametrize(("shape", "kind", "axis"), [((1, 2100, 2500), "2d", 1), ((140, 130, 200), "3d", 0)])
def test_a_writer_holds_no_more_than_it_says(
    tmp_path: Path, shape: tuple[int, int, int], kind: Literal["2d", "3d"], axis: int
) -> None:
    """Noise, which does not compress, in small portions."""
    layout = Layout.fit(shape, kind=kind)
    sink = make(tmp_path / "r.ome.zarr", layout, logits=1)
    rng = np.random.default_rng(0)
    box = Box.whole(shape)
    bound = layout.writer_bytes(box, axis, labels=True, probabilities=2, logits=1)
    cut_chunks(np.zeros((1, 1, 1, 1), np.float32), 0, 0, (1, 1, 1))  # compiled before anything is counted
    tracemalloc.start()
    try:
        writer = sink.writer(box, 0, axis)
        for position in range(0, shape[axis], 20):
            part = [n if a != axis else min(20, n - position) for a, n in enumerate(shape)]
            noise = rng.integers(0, 256, (3, *part), np.uint8)
            writer.write(Finished(noise[0], noise[1:], rng.standard_normal((1, *part), np.float32)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bound / 2 < peak < bound


@pytest.mark.parametrize(
    ("shape", "kind", "axis", "threads"), [((1, 900, 2100), "2d", 1, 1), ((70, 130, 200), "3d", 0, 2)]
)
def test_chunks_that_wait_on_the_disk_leave_the_same_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
    kind: Literal["2d", "3d"],
    axis: int,
    threads: int,
) -> None:
    layout = Layout.fit(shape, kind=kind)
    noise = np.random.default_rng(1).integers(0, 256, (3, *shape), np.uint8)
    parked: list[Parked] = []
    put = Parking.put

    def count_put(parking: Parking, chunk: bytes) -> Parked:
        parked.append(put(parking, chunk))
        return parked[-1]

    monkeypatch.setattr(Parking, "put", count_put)
    found = []
    for held in (0.0, 0.05, 2.0):
        monkeypatch.setattr(levels, "HELD", held)
        sink = make(tmp_path / f"{held}.ome.zarr", layout)
        writer, count = sink.writer(Box.whole(shape), 0, axis), len(parked)
        for position in range(0, shape[axis], 50):
            cut = (slice(None),) * (1 + axis) + (slice(position, position + 50),)
            writer.write(Finished(noise[cut][0], noise[cut][1:], None), threads)
        assert (len(parked) > count) == (held < 1), held
        writer.close()
        sink.finalize()
        found.append({name: data for name, data in files(tmp_path / f"{held}.ome.zarr").items() if "/c/" in f"/{name}"})
    assert found[0] == found[1] == found[2] != {}


def test_a_disk_too_full_to_park_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(levels, "HELD", 0.0)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    layout = Layout.fit((1, 600, 300))
    writer = make(tmp_path / "r.ome.zarr", layout).writer(Box.whole(layout.shape), 0, 1)
    with pytest.raises(OutputError, match=r"cannot write .*r\.ome\.zarr.*full"):
        writer.write(pixels(layout, 1))
