"""A region of an image is an image: its own size, its pixels, its place in the whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import boxes, check_reads, pixels
from sweep_parts import Collector, Memory, Network

from tilelab.cli.main import main
from tilelab.errors import InputError, ModelError, OutputError
from tilelab.geometry import Box
from tilelab.io.convert import convert_image
from tilelab.io.images.open import open_image
from tilelab.io.images.region import RegionImage, crop, format_region, parse_region
from tilelab.io.results.result import read_result
from tilelab.run.infer import infer, plan
from tilelab.run.options import Options

STACK = pixels((7, 90, 110))


def options(**more: object) -> Options:
    from tilelab.engines.overrides import SpecOverrides

    return Options(engine="identity", model=SpecOverrides(tile=(32, 32), overlap=(8, 8)), **more)  # type: ignore[arg-type]


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(
        path, STACK, ome=True, tile=(32, 32), metadata={
            "axes": "ZYX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 4, "PhysicalSizeYUnit": "nm",
            "PhysicalSizeZ": 30, "PhysicalSizeZUnit": "nm",
        },
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:4,10:50,20:30", Box((0, 10, 20), (4, 50, 30))),
        (":,10:,:30", Box((0, 10, 0), (7, 90, 30))),
        (" 2 : 3 , : , 5 : 6 ", Box((2, 0, 5), (3, 90, 6))),
    ],
)
def test_text(stack: Path, text: str, expected: Box) -> None:
    with open_image(stack, region=text) as image:
        assert isinstance(image, RegionImage)
        assert image.box == expected
        assert image.pixel_size_nm == (30, 4, 4)
        assert image.origin_px == expected.start
        check_reads(image, STACK[expected.slices])
    assert parse_region(format_region(parse_region(text))) == parse_region(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:4,10:50", "2 ranges.*axes z,y,x.*give 3"),
        ("0:8,:,:", "reaches beyond it: z goes from 0 to 7"),
        (":,:,110:", "empty along x"),
        (":,:,111:", "reaches beyond it: x goes from 0 to 110"),
        (":,5:5,:", "empty along y"),
        (":,9:5,:", "empty along y"),
        ("a:b,:,:", "not understood"),
        ("-1:3,:,:", "not understood"),
        ("1,2,3", "not understood"),
        ("", "not understood"),
        ([(0, 1), (0, 2)], "2 ranges"),
        ([(0, 1), (0, 2), (-3, 2)], "reaches beyond"),
        ([1, 2, 3], "not understood"),
    ],
)
def test_bad_regions_are_one_line(stack: Path, text: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_image(stack, region=text)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_channels_and_levels(tmp_path: Path) -> None:
    array = pixels((3, 40, 50))
    with open_image(array, axes="cyx", region="5:25,7:") as image:
        assert (image.axes, image.shape) == ("cyx", (3, 20, 43))
        check_reads(image, array[:, 5:25, 7:])
    with open_image(array, axes="cyx", channel=1, region="5:25,7:") as image:
        check_reads(image, array[1, 5:25, 7:])
    convert_image(pixels((1100, 600)), tmp_path / "a.ome.zarr")
    with open_image(tmp_path / "a.ome.zarr", level=1) as whole, open_image(
        tmp_path / "a.ome.zarr", level=1, region="500:550,10:20"
    ) as part:  # fmt: skip
        np.testing.assert_array_equal(part[...], whole[500:550, 10:20])


def test_a_region_of_an_open_image_and_of_a_region() -> None:
    whole = open_image(STACK)
    part = open_image(whole, region="1:6,10:80,:")
    inner = crop(part, "1:,5:,3:")
    np.testing.assert_array_equal(inner[...], STACK[2:6, 15:80, 3:])
    assert inner.origin_px == (2, 15, 3)
    assert len({str(i.fingerprint()) for i in (whole, part, inner)}) == 3


@settings(max_examples=60)
@given(box=boxes((50, 60)), chunks=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_chunks_are_read_where_they_end(box: Box, chunks: tuple[int, int]) -> None:
    """The phase says where in the region chunks of the whole begin."""
    whole = Memory(np.zeros((50, 60), np.uint8), "yx", tuple(min(c, n) for c, n in zip(chunks, (50, 60), strict=True)))
    part = RegionImage(whole, box)
    for axis in range(2):
        assert part.chunks[axis] <= part.shape[axis]
        edges = {n - box.start[axis] for n in range(0, 60, whole.chunks[axis])} & set(range(1, part.shape[axis]))
        said = {n for n in range(1, part.shape[axis]) if (n + part.chunk_phase[axis]) % part.chunks[axis] == 0}
        assert edges <= said


def test_each_chunk_is_decoded_once(tmp_path: Path) -> None:
    """Along the sweep, which no cache hides."""

    from tilelab.geometry import Frame, Lattice
    from tilelab.io.images.volume import Volume
    from tilelab.kernels.reference import SOFTMAX
    from tilelab.run.sweep.host import HostSweep
    from tilelab.run.sweep.job import Job

    rows = []

    class Recording(Memory):
        def read(self, box: Box) -> np.ndarray:
            rows.append((box.start[0], box.stop[0]))
            return super().read(box)

    whole = Recording(pixels((300, 40)), "yx", (64, 40))
    part = Volume(RegionImage(whole, Box((50, 0), (290, 40))))
    engine = Network(lambda t: np.concatenate([t, -t], 1), (32, 32), outputs=2)
    lattice = Lattice.fit(part.shape, (1, 32, 32), (0, 8, 8))
    one = np.ones(1, np.float32)
    job = Job(part, lattice, Frame(1), 0 * one, one, SOFTMAX, np.zeros(0, np.int64))
    result = {"labels": np.zeros(part.shape, np.uint8)}
    HostSweep(job, engine, Box.whole(part.shape)).run(Collector(result, Box.whole(part.shape), 0, 1))
    assert rows[0][0] == 50
    assert rows[-1][1] == 290
    for start, _ in rows[1:]:
        assert start % 64 == 0


def test_the_result_is_that_of_the_region_and_keeps_its_place(stack: Path, tmp_path: Path) -> None:
    region = "2:5,10:80,20:"
    run = infer(stack, "identity:3", tmp_path / "part.ome.zarr", options=options(region=region))
    infer(STACK[2:5, 10:80, 20:], "identity:3", tmp_path / "alone.ome.zarr", options=options())
    part, alone = read_result(run.path), read_result(tmp_path / "alone.ome.zarr")
    assert part.labels[0].shape == (3, 70, 90)
    np.testing.assert_array_equal(part.labels[0][...], alone.labels[0][...])
    np.testing.assert_array_equal(part.probabilities[0][...], alone.probabilities[0][...])
    assert part.info.metadata["region"] == "2:5,10:80,20:110"
    assert part.info.origin_px == (2, 10, 20)
    assert "region" not in alone.info.metadata
    for node in ("", "labels/classes"):
        scales = zarr.open_group(run.path / node, mode="r").attrs["ome"]["multiscales"][0]
        shift = scales["datasets"][0]["coordinateTransformations"][1]
        assert shift == {"type": "translation", "translation": [*([0] * (node == "")), 60, 40, 80]}


def test_the_region_counts_as_another_job(stack: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.ome.zarr"
    infer(stack, "identity:2", out, options=options(region="2:5,10:80,20:"))
    assert infer(stack, "identity:2", out, options=options(region="2:5,10:80,20:110")).already_finished
    with pytest.raises(OutputError, match=r"region: 2:5,10:80,20:110 -> 2:5,10:80,21:110"):
        infer(stack, "identity:2", out, options=options(region="2:5,10:80,21:"))
    with pytest.raises(OutputError, match=r"region: 2:5,10:80,20:110 -> absent"):
        infer(stack, "identity:2", out, options=options())


def test_a_mask_of_the_region_or_of_the_whole(stack: Path, tmp_path: Path) -> None:
    mask = (pixels(STACK.shape, seed=3) > 100).astype(np.uint8)
    results = []
    for name, array in (("whole", mask), ("part", mask[1:4, 5:60, :80])):
        np.save(tmp_path / f"{name}.npy", array)
        chosen = options(region="1:4,5:60,:80", mask=tmp_path / f"{name}.npy")
        results.append(read_result(infer(stack, "identity:2", tmp_path / f"{name}.ome.zarr", options=chosen).path))
    np.testing.assert_array_equal(results[0].labels[0][...], results[1].labels[0][...])
    assert not results[0].labels[0][...][mask[1:4, 5:60, :80] == 0].any()
    np.save(tmp_path / "plane.npy", mask[0])
    chosen = options(region="1:4,5:60,:80", mask=tmp_path / "plane.npy")
    made = read_result(infer(stack, "identity:2", tmp_path / "plane.ome.zarr", options=chosen).path).labels[0][...]
    assert made.any()
    assert not made[:, mask[0, 5:60, :80] == 0].any()
    np.save(tmp_path / "other.npy", mask[:2])
    with pytest.raises(InputError, match="same size"):
        infer(
            stack,
            "identity:2",
            tmp_path / "x.ome.zarr",
            options=options(region="1:4,5:60,:80", mask=tmp_path / "other.npy"),
        )


def test_convert_keeps_the_place(stack: Path, tmp_path: Path) -> None:
    done = convert_image(stack, tmp_path / "part.ome.zarr", region="1:3,40:,:33")
    assert done["shape"] == [2, 50, 33]
    with open_image(tmp_path / "part.ome.zarr") as image:
        np.testing.assert_array_equal(image[...], STACK[1:3, 40:, :33])
        assert image.pixel_size_nm == (30, 4, 4)
        assert image.origin_px == (1, 40, 0)
    # and so does what is made of that
    infer(tmp_path / "part.ome.zarr", "identity:2", tmp_path / "r.ome.zarr", options=options(region=":,5:,3:"))
    assert read_result(tmp_path / "r.ome.zarr").info.origin_px == (1, 45, 3)


def test_rescaling_keeps_the_place(stack: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    chosen = options(region="1:3,40:,:33", rescale=True)
    chosen = replace(chosen, model=replace(chosen.model, pixel_size_nm=(8.0,)))
    info = read_result(infer(stack, "identity:2", tmp_path / "r.ome.zarr", options=chosen).path).info
    assert info.pixel_size_nm == (30, 8, 8)
    # the centre of the first pixel is half a pixel of 4 nm from that of the region's first
    assert np.multiply(info.origin_px, info.pixel_size_nm).tolist() == [30, 162, 2]


def test_plan_and_map_tiles(stack: Path) -> None:
    assert plan(stack, "identity:2", options=options(region="1:3,40:,:33")).source.shape == (2, 50, 33)
    dask = pytest.importorskip("dask.array")
    from tilelab.run.map_tiles import map_tiles

    with pytest.raises(ModelError, match="slice the array"):
        map_tiles(dask.from_array(STACK), "identity:2", options=options(region="1:3,40:,:33"))


def test_command_line(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "part.ome.zarr"
    flags = ["--tile", "32", "--overlap", "8", "--region", "1:2,:,20:"]
    assert main(["infer", str(stack), "--model", "identity:2", "-o", str(out), "-q", *flags]) == 0
    assert read_result(out).labels[0].shape == (1, 90, 90)
    assert main(["plan", str(stack), "--model", "identity:2", "--json", "--no-calibration", *flags]) == 0
    assert "90" in json.dumps(json.loads(capsys.readouterr().out))
    assert main(["convert", str(stack), str(tmp_path / "c.ome.tif"), "-q", "--region", "0:1,0:50,:"]) == 0
    assert open_image(tmp_path / "c.ome.tif").shape[-2:] == (50, 110)
    assert (
        main(["infer", str(stack), "--model", "identity:2", "--region", "0:99,:,:", "-o", str(tmp_path / "n.zarr")])
        == 2
    )
    assert "reaches beyond" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["infer", str(stack), "--model", "identity:2", "--region", "5"])
    assert caught.value.code == 2
    assert "not understood" in capsys.readouterr().err
