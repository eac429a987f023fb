"""Neighbouring slices as channels: the bytes of a slow reference, however the work is cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import run_in_simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_parts import Collector, DeviceNetwork, Memory, Network, scramble, sweep_device, whole
from tiny_models import make_spec, save_conv, save_unet

from tilelab.cli.main import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import ModelError
from tilelab.geometry import Box, Frame, Lattice
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Neighbourhood, Volume, network_input
from tilelab.io.results.result import read_result
from tilelab.kernels.reference import SOFTMAX
from tilelab.run.infer import infer, plan
from tilelab.run.options import Options
from tilelab.run.plan.plan import make_plan
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.job import Job
from tilelab.spec import ModelSpec, Normalization

TILE = (32, 32)


def stack(depth: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (depth, 70, 90), np.uint8)


def described(neighbours: int = 1, **more: object) -> ModelSpec:
    means = tuple(
        100.0 + 9 * c for c in range(2 * neighbours + 1)
    )  # every channel has its own, so that none is mixed up
    normalization = Normalization(mean=means, std=tuple(m / 2 for m in means))
    return make_spec(
        TILE, channels=2 * neighbours + 1, neighbours=neighbours, normalization=normalization, stride=4, **more
    )


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_unet(tmp_path_factory.mktemp("model") / "unet.onnx", TILE, channels=3, spec=described())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, whose channels are channels."""
    spec = ModelSpec.from_json(described().to_json().replace('"neighbours":1', '"neighbours":0'))
    return save_unet(tmp_path_factory.mktemp("model") / "plain.onnx", TILE, channels=3, spec=spec)


def with_neighbours(array: np.ndarray, n: int) -> np.ndarray:
    """Every slice with its neighbours, ``(z, c, y, x)``, the slow way."""
    padded = np.pad(array, ((n, n), (0, 0), (0, 0)), "reflect") if len(array) > 1 else np.repeat(array, 2 * n + 1, 0)
    return np.stack([padded[z : z + 2 * n + 1] for z in range(len(array))])


def pixels_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    result = read_result(path)
    return result.labels[0][...], result.probabilities[0][...]


def reference(array: np.ndarray, plain: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Each slice as an image of its own, with channels."""
    labels, probabilities = [], []
    for z, channels in enumerate(with_neighbours(array, 1)):
        with open_image(channels, axes="cyx") as image:
            found = pixels_of(infer(image, plain, folder / f"{z}.ome.zarr").path)
        labels.append(found[0])
        probabilities.append(found[1])
    return np.stack(labels), np.stack(probabilities, axis=1)


@given(
    depth=st.integers(1, 9),
    n=st.integers(1, 4),
    start=st.integers(0, 8),
    extent=st.integers(0, 9),
)
def test_a_region_with_its_neighbours(depth: int, n: int, start: int, extent: int) -> None:
    array = np.random.default_rng(depth).integers(0, 256, (depth, 5, 6), np.uint8)
    padded = with_neighbours(array, n) if n < depth or depth == 1 else None
    seen = Neighbourhood(Volume(Memory(array, "zyx")), n)
    a, b = min(start, depth), min(start + extent, depth)
    box = Box((a, 1, 2), (b, 4, 6))
    found = seen.read(box)
    assert found.shape == (2 * n + 1, b - a, 3, 4)
    assert found.flags.c_contiguous
    if padded is not None:
        np.testing.assert_array_equal(found, padded[a:b, :, 1:4, 2:6].swapaxes(0, 1))


def test_the_bytes_of_the_reference(unet: Path, plain: Path, tmp_path: Path) -> None:
    array = stack(6)
    expected = reference(array, plain, tmp_path)
    found = pixels_of(infer(array, unet, tmp_path / "all.ome.zarr").path)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    # a stack in a file, a plane, and a region, whose first slice has neighbours of the region alone
    tifffile.imwrite(tmp_path / "stack.tif", array, metadata={"axes": "ZYX"})
    found = pixels_of(infer(tmp_path / "stack.tif", unet, tmp_path / "file.ome.zarr").path)
    np.testing.assert_array_equal(found[1], expected[1])
    part = infer(tmp_path / "stack.tif", unet, tmp_path / "part.ome.zarr", options=Options(region="1:5,:,:"))
    (tmp_path / "again").mkdir()
    np.testing.assert_array_equal(pixels_of(part.path)[1], reference(array[1:5], plain, tmp_path / "again")[1])
    (tmp_path / "plane").mkdir()
    plane = pixels_of(infer(array[0], unet, tmp_path / "plane.ome.zarr").path)
    np.testing.assert_array_equal(plane[0], reference(array[:1], plain, tmp_path / "plane")[0][0])


@settings(max_examples=15)
@given(data=st.data(), n=st.integers(1, 2))
def test_any_split_gives_the_same_bytes(data: st.DataObject, n: int) -> None:
    array = stack(7, seed=3)[:, :50, :60]
    weights = np.random.default_rng(1).normal(size=(2, 2 * n + 1)).astype(np.float32)
    engine = Network(
        lambda t: np.einsum("kc,bcyx->bkyx", weights, t + np.roll(t, 1, -1)), TILE, channels=2 * n + 1, outputs=2
    )
    image = Neighbourhood(Volume(Memory(array, "zyx", (1, 16, 60))), n)
    one = np.ones(2 * n + 1, np.float32)
    job = Job(
        image, Lattice.fit(image.shape, (1, *TILE), (0, 8, 8)), Frame(1), 3 * one, one / 9, SOFTMAX,
        np.zeros(0, np.int64), logits=True,
    )  # fmt: skip
    expected, _ = whole(job, engine)
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in image.shape]
    units = [
        Box((z, y, x), (z2, y2, x2))
        for z, z2 in zip(cuts[0], cuts[0][1:], strict=False)
        for y, y2 in zip(cuts[1], cuts[1][1:], strict=False)
        for x, x2 in zip(cuts[2], cuts[2][1:], strict=False)
    ]
    found, _ = whole(job, engine, units)
    for name in ("labels", "logits"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_slices_are_decoded_once_per_unit() -> None:
    array = stack(20)
    source = Memory(array, "zyx", (1, *array.shape[1:]))
    image = Neighbourhood(Volume(source), 1)
    engine = Network(lambda t: t[:, :2], TILE, channels=3, outputs=2)
    spec = replace_spec(engine.spec, neighbours=1)
    planned = make_plan(Request.of(ImageFacts.of(image), spec, Written(labels=True)))
    assert [unit.box.shape[0] for unit in planned.units] == [7, 7, 6]
    one = np.ones(3, np.float32)
    job = Job(image, planned.lattice, planned.frame, 0 * one, one, SOFTMAX, np.zeros(0, np.int64))
    for unit in planned.units:
        result = {"labels": np.zeros(image.shape, np.uint8)}
        HostSweep(job, engine, unit.box).run(Collector(result, unit.box, unit.box.start[1], 1))
    per_slice = source.reads.reshape(20, -1).max(axis=1)
    assert per_slice.tolist() == [1] * 6 + [2, 2] + [1] * 5 + [2, 2] + [1] * 5


def replace_spec(spec: ModelSpec, **changes: object) -> ModelSpec:
    import msgspec

    return msgspec.convert(msgspec.to_builtins(spec) | changes, ModelSpec)


def test_workers_and_kept_memory(unet: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    np.save(tmp_path / "stack.npy", stack(20))
    alone = pixels_of(infer(tmp_path / "stack.npy", unet, tmp_path / "alone.ome.zarr").path)
    shared = infer(tmp_path / "stack.npy", unet, tmp_path / "shared.ome.zarr", options=Options(workers=2, threads=1))
    for a, b in zip(alone, pixels_of(shared.path), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lazy_arrays(unet: Path, tmp_path: Path) -> None:
    dask = pytest.importorskip("dask.array")
    from tilelab.run.map_tiles import map_tiles

    array = stack(9)
    labels, _ = pixels_of(infer(array, unet, tmp_path / "out.ome.zarr").path)
    found = map_tiles(dask.from_array(array, chunks=(3, 40, 90)), unet, chunks=(2, 33, 90))
    np.testing.assert_array_equal(found.compute(), labels)


def test_undescribed_models_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = stack(5)
    np.save(tmp_path / "stack.npy", array)
    described_model = save_conv(
        tmp_path / "said.onnx", TILE, channels=3, spec=make_spec(TILE, channels=3, neighbours=1)
    )
    silent = save_conv(tmp_path / "silent.onnx", TILE, channels=3)
    flags = [
        "--classes",
        "2",
        "--mean",
        "128",
        "--std",
        "64",
        "--neighbours",
        "1",
        "--overlap",
        "8",
        "--stride",
        "1",
        "-q",
    ]
    said = tmp_path / "said.ome.zarr"
    assert main(["infer", str(tmp_path / "stack.npy"), "-m", str(described_model), "-o", str(said), "-q"]) == 0
    made = tmp_path / "flags.ome.zarr"
    assert main(["infer", str(tmp_path / "stack.npy"), "-m", str(silent), "-o", str(made), *flags]) == 0
    np.testing.assert_array_equal(pixels_of(said)[0], pixels_of(made)[0])
    capsys.readouterr()
    assert main(["info", str(described_model)]) == 0
    assert "slices z-1 to z+1 of a stack" in capsys.readouterr().out
    assert main(["info", str(described_model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["description"]["neighbours"] == 1
    flags[flags.index("--neighbours") + 1] = "2"
    assert main(["infer", str(tmp_path / "stack.npy"), "-m", str(silent), "-o", str(tmp_path / "x.zarr"), *flags]) == 2
    assert "2 neighbours on either side make 5 channels, the model has 3" in capsys.readouterr().err
    # without them, the three channels are the same slice
    plainly = SpecOverrides(neighbours=0)
    grey = infer(array, described_model, tmp_path / "grey.ome.zarr", options=Options(model=plainly))
    assert not np.array_equal(pixels_of(grey.path)[0], pixels_of(said)[0])


def test_what_cannot_be(unet: Path) -> None:
    with pytest.raises(ModelError, match="make 3 channels, the model has 1"):
        ModelSpec.from_json(make_spec(TILE).to_json().replace('"neighbours":0', '"neighbours":1'))
    with pytest.raises(ValueError, match="2-D models"):
        make_spec((8, 8, 8), channels=3, neighbours=1)
    with pytest.raises(ValueError, match="at least 0"):
        make_spec(TILE, neighbours=-1)
    colours = Volume(Memory(np.zeros((3, 5, 40, 40), np.uint8), "czyx"))
    with pytest.raises(ModelError, match="3 channels of its own: choose one with --channel"):
        network_input(colours, described())
    image = open_image(np.zeros((3, 5, 40, 40), np.uint8), axes="czyx")
    with pytest.raises(ModelError, match="choose one with --channel"):
        plan(image, unet)


def test_another_number_of_neighbours_is_another_job(tmp_path: Path) -> None:
    from tilelab.errors import OutputError

    options = Options(model=SpecOverrides(tile=TILE, overlap=(8, 8), neighbours=1))
    infer(stack(4), "identity:3", tmp_path / "a.ome.zarr", options=options)
    assert infer(stack(4), "identity:3", tmp_path / "a.ome.zarr", options=options).already_finished
    other = replace(options, model=replace(options.model, neighbours=0))
    with pytest.raises(OutputError, match="another job"):
        infer(stack(4), "identity:3", tmp_path / "a.ome.zarr", options=other)


def test_device_gives_the_bytes_of_the_cpu(device: Any) -> None:
    """On a GPU, or in Numba's simulator, where `test_the_simulator` runs it."""
    array = np.random.default_rng(0).integers(0, 256, (5, 14, 11), np.uint8)
    image = Neighbourhood(Volume(Memory(array, "zyx", (1, 5, 11))), 1)
    one = np.ones(3, np.float32)
    job = Job(
        image, Lattice.fit(image.shape, (1, 6, 6), (0, 2, 2)), Frame(1), 3 * one, one / 9, SOFTMAX,
        np.arange(2), logits=True,
    )  # fmt: skip

    def mix(tiles: np.ndarray) -> np.ndarray:
        return scramble(tiles) + tiles[:, 1:2] * 2 - tiles[:, 2:3]

    expected, _ = whole(job, Network(mix, (6, 6), channels=3, outputs=3))
    engine = DeviceNetwork(mix, (6, 6), channels=3, outputs=3).on(device)
    for units in (None, [Box((0, 0, 0), (2, 14, 11)), Box((2, 0, 0), (5, 14, 11))]):
        found, _ = sweep_device(job, engine, units)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_the_simulator() -> None:
    run_in_simulator(__file__, "device_gives")


# --- training

RECIPE = """
name = "lag"
seed = 1
classes = [{ name = "dark", color = "#000000" }, { name = "bright", color = "#ffffff" }]
normalization = { mean = [128.0], std = [70.0] }
[network]
architecture = "unet"
channels = 3
neighbours = 1
options = { widths = [6, 8] }
[train]
images = "train.tif"
masks = "train-masks.tif"
[validation]
images = "val.tif"
masks = "val-masks.tif"
planes = [2, 6]
[sampling]
crop = 32
batch = 4
[optimizer]
rate = 0.02
[run]
steps = 60
validate = 30
threads = 1
[inference]
tile = 32
overlap = 16
"""


def test_a_network_learns_from_the_slices_beside(tmp_path: Path) -> None:
    """The truth of a slice is what the next one shows, which says nothing of it itself."""
    pytest.importorskip("torch", reason="training needs torch")
    from tilelab.training.checkpoint import load_checkpoint
    from tilelab.training.recipe import RecipeError, load_recipe
    from tilelab.training.segmentation import train

    rng = np.random.default_rng(5)
    for name in ("train", "val"):
        coarse = rng.random((9, 12, 12)) < 0.5
        bright = coarse.repeat(8, axis=1).repeat(8, axis=2)
        truth = np.concatenate([bright[1:], bright[-2:-1]])
        tifffile.imwrite(tmp_path / f"{name}.tif", np.where(bright, 190, 60).astype(np.uint8))
        tifffile.imwrite(tmp_path / f"{name}-masks.tif", truth.astype(np.uint8))
    (tmp_path / "lag.toml").write_text(RECIPE)
    with pytest.raises(RecipeError, match="channels must be 5 with neighbours = 2, not 3"):
        load_recipe(str(tmp_path / "lag.toml"), ["network.neighbours=2"])
    best = train(load_recipe(str(tmp_path / "lag.toml")), tmp_path, tmp_path / "run")
    scores = load_checkpoint(best).header.scores
    assert scores["mean_iou"] > 0.8  # by chance 0.33

    assert main(["export", str(best), "-o", str(tmp_path / "lag.onnx"), "--data", str(tmp_path)]) == 0
    found = pixels_of(infer(tmp_path / "val.tif", tmp_path / "lag.onnx", tmp_path / "out.ome.zarr").path)[0][2:6]
    there = tifffile.imread(tmp_path / "val-masks.tif")[2:6]
    iou = [((found == k) & (there == k)).sum() / ((found == k) | (there == k)).sum() for k in (0, 1)]
    assert np.mean(iou) == pytest.approx(scores["mean_iou"], abs=1e-3)
