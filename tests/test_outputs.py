"""Outputs that are no logits: thresholds, labels, maps; what is written of them in which format, or refused before."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as Picture
from tiny_models import Graph, make_spec, save

import tilelab
from tilelab.cli.main import main
from tilelab.engines.base import BaseEngine
from tilelab.engines.files.onnx import embed_spec
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.errors import EngineError, ModelError, OutputError, TilelabError
from tilelab.geometry import Box
from tilelab.kernels import cpu, reference
from tilelab.run.infer import infer
from tilelab.run.map_tiles import map_tiles
from tilelab.run.options import Options
from tilelab.run.prepare import prepare
from tilelab.run.rehearse import CopyingEngine
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.start import make_sweep
from tilelab.spec import Confidence, ModelSpec, Normalization, Output

PLANE = np.random.default_rng(4).integers(0, 255, (150, 210), np.uint8)
GIVEN = SpecOverrides(mean=(128.0,), std=(64.0,), stride=1)


def network(path: Path, *ends: tuple[str, str, int], tile: tuple[int, ...] = (64, 64)) -> Path:
    """A convolution for each of (name, operator, channels)."""
    graph = Graph(len(tile))
    made = []
    for name, operator, channels in ends:
        out = graph.conv("tiles", 1, channels)
        attributes = {"axis": 1} if operator == "Softmax" else {}
        last = graph.node(operator, out, **attributes) if operator else out
        graph.nodes[-1].output[0] = name
        assert last
        made.append((name, channels))
    return save(path, graph, made, tile)


def semantic_and_maps(path: Path) -> Path:
    return network(path, ("sem_logits", "", 2), ("centre", "Sigmoid", 1), ("offsets", "", 2))


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(np.float32, (3, 5, 2, 7), elements=st.floats(-4, 4, width=32)),
    st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3),
    st.integers(0, 9),
)
def test_thresholds_of_the_kernels_agree(canvas: np.ndarray, thresholds: list[float], row: int) -> None:
    limits = np.log(np.array(thresholds) / (1 - np.array(thresholds))).astype(np.float32)
    found, wanted = (np.full((4, 2, 7), 9, np.uint8) for _ in range(2))
    before = canvas.copy()
    cpu.find_over(canvas, row, limits, found)
    reference.find_over(canvas, row, limits, wanted)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(canvas, before)


def test_a_threshold_each_decides_the_labels_and_leaves_the_probabilities(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", ("out", "Sigmoid", 3))
    runs = {}
    for name, thresholds in {"plain": None, "half": (0.5,), "own": (0.9, 0.5, 0.2)}.items():
        flags = SpecOverrides(mean=(128.0,), std=(64.0,), stride=1, thresholds=thresholds)
        notes: list[str] = []
        options = Options(model=flags, logits=True, probabilities=("all",))
        runs[name] = tilelab.read_result(
            infer(PLANE, path, tmp_path / f"{name}.ome.zarr", options=options, note=notes.append).path
        )
        assert any("may overlap" in line for line in notes)
    labels = {name: run.labels[0][...] for name, run in runs.items()}
    np.testing.assert_array_equal(labels["plain"], labels["half"])
    logits = runs["own"].logits
    assert logits is not None
    over = logits[...] - np.log(np.array([0.9, 0.5, 0.2]) / np.array([0.1, 0.5, 0.8])).astype(np.float32)[:, None, None]
    clear = np.sort(np.concatenate([over, np.zeros_like(over[:1])]), axis=0)
    clear_enough = clear[-1] - clear[-2] > 1e-4
    wanted = np.where(over.max(0) > 0, over.argmax(0) + 1, 0)
    np.testing.assert_array_equal(labels["own"][clear_enough], wanted[clear_enough])
    assert len(np.unique(labels["own"])) > 2
    for run in runs.values():
        np.testing.assert_array_equal(run.probabilities[0][...], runs["plain"].probabilities[0][...])


def test_a_threshold_is_of_the_probability_that_is_written(tmp_path: Path) -> None:
    spec = make_spec(
        (32, 32),
        classes=3,
        activation="sigmoid",
        normalization=Normalization(mean=(128.0,), std=(20.0,)),
        outputs=(Output(thresholds=(0.8,)),),
        confidence=Confidence(temperature=2.5),
    )
    run = infer(PLANE, CopyingEngine(spec, spec.tile, 1), tmp_path / "r.ome.zarr")
    result = tilelab.read_result(run.path)
    likeliest = result.probabilities[0][...].max(axis=0).astype(float)
    clear = np.abs(likeliest - 0.8 * 255) > 1
    np.testing.assert_array_equal((result.labels[0][...] > 0)[clear], (likeliest > 0.8 * 255)[clear])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"thresholds": (0.2, 0.3)}, "2 thresholds for 3 outputs"),
        ({"thresholds": (1.5,)}, "numbers between 0 and 1"),
        ({"output_is": "labels"}, "gives 3 channels of whole numbers"),
        ({"output": "nope"}, "has no output 'nope': choose one of out"),
        ({"output_is": ("logits", "map")}, "--output-is says what 2 outputs are, but 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, flags: dict[str, Any], said: str) -> None:
    path = network(tmp_path / "n.onnx", ("out", "Sigmoid", 3))
    with pytest.raises(ModelError, match=said):
        load_engine(path, spec_overrides=SpecOverrides(mean=(128.0,), std=(64.0,), **flags))


def test_thresholds_are_for_sigmoids(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", ("out", "Softmax", 3))
    with pytest.raises(ModelError, match="thresholds are for classes with a sigmoid each"):
        load_engine(path, spec_overrides=SpecOverrides(mean=(128.0,), std=(64.0,), thresholds=(0.5,)))


def test_several_outputs_are_evident_or_asked_for(tmp_path: Path) -> None:
    engine = load_engine(semantic_and_maps(tmp_path / "n.onnx"), spec_overrides=GIVEN)
    assert [output.name for output in engine.spec.outputs] == ["sem_logits", "centre", "offsets"]
    assert [guess.flag for guess in engine.assumptions] == ["--model-output"]
    side = load_engine(network(tmp_path / "d.onnx", ("out0", "", 2), ("out1", "", 2)), spec_overrides=GIVEN)
    assert (len(side.spec.outputs), side.assumptions[0].taken) == (1, "out0, without out1")
    other = network(tmp_path / "o.onnx", ("a", "", 2), ("b", "", 1))
    with pytest.raises(ModelError, match=r"has 2 outputs \(a, b\): choose one with --model-output NAME, or several"):
        load_engine(other, spec_overrides=GIVEN)
    asked = SpecOverrides(mean=(128.0,), std=(64.0,), stride=1, output="b,a", output_is=("map", "logits"))
    chosen = load_engine(other, spec_overrides=asked)
    assert [(o.name, o.kind, o.channels) for o in chosen.spec.outputs] == [("a", None, 1), ("b", "map", 1)]
    assert chosen.assumptions == ()


def test_a_description_with_outputs_needs_no_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = semantic_and_maps(tmp_path / "n.onnx")
    outputs = (
        Output(name="sem_logits", kind="logits"),
        Output(name="offsets", kind="map", channels=2),
    )
    spec = make_spec((64, 64), outputs=outputs, normalization=Normalization(kind="min-max", per="slice", clip=(0, 1)))
    embed_spec(path, spec)
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert main(["info", str(path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "uses sem_logits: logits uses offsets: map of 2" in told
    assert "least and greatest of each slice become 0 and 1, cut off at 0 and 1" in told
    engine = load_engine(path)
    assert engine.spec == spec
    assert engine.assumptions == ()
    result = tilelab.read_result(infer(PLANE, engine, tmp_path / "r.ome.zarr").path)
    assert list(result.maps) == ["offsets"]
    other = load_engine(path, spec_overrides=SpecOverrides(output="sem_logits,centre"))
    assert [(o.name, o.kind) for o in other.spec.outputs] == [("sem_logits", "logits"), ("centre", "map")]
    alone = load_engine(path, spec_overrides=SpecOverrides(output="offsets"))
    assert (alone.spec.classified, alone.spec.values) == (False, 2)
    embed_spec(path, make_spec((64, 64)))  # as earlier files do: one output, without its name
    assert load_engine(path).assumptions[0].taken == "sem_logits"


def test_what_is_said_of_an_output_goes_before_what_its_description_says(tmp_path: Path) -> None:
    """It was not heard where the description had labels, or maps."""
    path = network(tmp_path / "n.onnx", ("out", "Softmax", 3))
    said = SpecOverrides(output_is="probabilities")
    for wrong in (Output(name="out", kind="labels"), Output(name="out", kind="map", channels=3)):
        embed_spec(path, make_spec((64, 64), classes=3, outputs=(wrong,)))
        engine = load_engine(path, spec_overrides=said)
        assert (engine.output_is, engine.spec.class_values) == ("probabilities", 3)
        assert infer(PLANE, engine, tmp_path / f"{wrong.kind}.ome.zarr").report["output_is"] == "probabilities"
    path = network(tmp_path / "one.onnx", ("out", "Round", 1))
    embed_spec(path, make_spec((64, 64), classes=3, outputs=(Output(kind="labels"),)))
    with pytest.raises(ModelError, match=r"gives 1 output channels, but its description, or --classes .*, says 3"):
        load_engine(path, spec_overrides=SpecOverrides(output_is="logits"))


class Says(BaseEngine):
    """Gives one label everywhere."""

    def __init__(self, label: float) -> None:
        outputs = (Output(name="out", kind="labels"),)
        super().__init__(make_spec((64, 64), classes=3, outputs=outputs, overlap=(8, 8)))
        self.label = label

    def run(self, tiles: Any, out: Any) -> None:
        assert len(tiles) == len(out)
        out[...] = self.label


def test_labels_that_are_no_classes_are_an_error(tmp_path: Path) -> None:
    fine = infer(PLANE, Says(2.0), tmp_path / "r.ome.zarr")
    assert set(np.unique(tilelab.read_result(fine.path).labels[0][...])) == {2}
    for label in (3.0, -1.0):
        with pytest.raises(EngineError, match=r"gives labels from .* but has 3 classes"):
            infer(PLANE, Says(label), tmp_path / "s.ome.zarr")


ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "logits": {"logits": True},
    "probabilities": {"probabilities": ("class 1",)},
    "no labels": {"labels": False},
    "overview": {},
    "tta": {"symmetries": True},
}


@pytest.mark.parametrize(
    ("kind", "asked", "suffix"),
    list(product(("labels", "map", "several"), ASKED, (".ome.zarr", ".ome.tif", ".png", ".precomputed"))),
)
def test_every_option_is_written_by_every_format_or_refused_before_anything_runs(
    tmp_path: Path, kind: str, asked: str, suffix: str
) -> None:
    if kind == "labels":
        engine: Any = Says(1.0)
    elif kind == "map":
        engine = Gives(make_spec((64, 64), outputs=(Output(name="m", kind="map", channels=2),)))
    else:
        outputs = (Output(name="sem", kind="logits"), Output(name="m/n", kind="map", channels=2))
        engine = Gives(make_spec((64, 64), outputs=outputs))
    out, options = tmp_path / f"r{suffix}", Options(**ASKED[asked])
    overview = tmp_path / "o.png" if asked == "overview" else None
    try:
        infer(PLANE, engine, out, options=options, overview=overview)
    except (OutputError, ModelError) as error:
        said = str(error)
        assert [path.name for path in tmp_path.iterdir()] == []
        assert getattr(engine, "runs", 0) == 0
        assert "\n" not in said
        return
    assert out.exists()
    assert overview is None or overview.exists()
    check_written(out, kind, asked)


class Gives(BaseEngine):
    """Ramps, by output."""

    runs = 0

    def run(self, tiles: Any, out: Any) -> None:
        self.runs += 1
        out[...] = np.arange(out.shape[1], dtype=np.float32)[:, None, None] * 0.5 + 0.25
        assert len(tiles)


def check_written(out: Path, kind: str, asked: str) -> None:
    """What was asked for is there."""
    if out.name.endswith(".zarr"):
        result = tilelab.read_result(out)
        assert bool(result.labels) == (kind != "map" and asked != "no labels")
        assert (result.logits is not None) == (asked == "logits" and kind == "several")
        if kind != "labels":
            (name, values), = result.maps.items()  # fmt: skip
            assert name == ("m" if kind == "map" else "m/n")
            want = (0.25, 0.75) if kind == "map" else (1.25, 1.75)
            wanted = np.broadcast_to(np.array(want)[:, None, None], values.shape)
            np.testing.assert_allclose(values[...], wanted, atol=1e-6)
            folder = "m" if kind == "map" else "m_n"
            assert zarr.open_group(out / "maps" / folder, mode="r").attrs["ome"]["multiscales"]
    elif out.suffix == ".tif":
        pixels = tifffile.imread(out)
        assert pixels.shape[-2:] == PLANE.shape
        assert pixels.dtype == (np.float32 if kind == "map" else np.uint8)
    elif out.suffix == ".png":
        assert np.asarray(Picture.open(out)).shape == PLANE.shape


def test_maps_are_the_same_however_the_work_is_cut(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 255, (2200, 300), np.uint8)
    path = semantic_and_maps(tmp_path / "n.onnx")
    mask = np.zeros_like(image)
    mask[200:1900] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    found = []
    for spans in (1, 2):
        options = Options(model=GIVEN, spans=spans, mask=tmp_path / "mask.tif")
        result = tilelab.read_result(infer(image, path, tmp_path / f"{spans}.ome.zarr", options=options).path)
        found.append([values[...] for values in result.maps.values()])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not one[:, mask == 0].any()
        assert one[:, mask > 0].any()


def test_a_run_of_maps_is_rehearsed_told_of_and_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "i.npy", PLANE)
    path = str(semantic_and_maps(tmp_path / "n.onnx"))
    run = ["infer", str(tmp_path / "i.npy"), "-m", path, "--mean", "128", "--std", "64", "--stride", "1", "-q"]
    assert main([*run, "--dry-run", "-o", str(tmp_path / "r.ome.zarr")]) == 0
    assert main([*run, "-o", str(tmp_path / "r.ome.zarr")]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "r.ome.zarr")]) == 0
    assert "map offsets (2 float32)" in " ".join(capsys.readouterr().out.split())
    assert main([*run, "-o", str(tmp_path / "w.ome.zarr"), "--workers", "2"]) == 0
    a, b = (tilelab.read_result(tmp_path / f"{name}.ome.zarr").maps for name in "rw")
    for name in ("centre", "offsets"):
        np.testing.assert_array_equal(a[name][...], b[name][...])


def test_lazily_only_what_is_known_before(tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array")
    array = da.from_array(PLANE, chunks=(64, 64))
    path = semantic_and_maps(tmp_path / "n.onnx")
    labels = map_tiles(array, path, options=Options(model=GIVEN)).compute()
    result = tilelab.read_result(infer(PLANE, path, tmp_path / "r.ome.zarr", options=Options(model=GIVEN)).path)
    np.testing.assert_array_equal(labels, result.labels[0][...])
    alone = SpecOverrides(mean=(128.0,), std=(64.0,), stride=1, output="centre", output_is="map")
    with pytest.raises(TilelabError, match="maps alone"):
        map_tiles(array, path, options=Options(model=alone))


class Breaks(Gives):
    """Fails after so many batches, once."""

    limit = 10**9

    def run(self, tiles: Any, out: Any) -> None:
        super().run(tiles, out)
        out += tiles[:, :1, : out.shape[2], : out.shape[3]]
        if self.runs > self.limit:
            raise EngineError("it broke")


def test_a_broken_run_of_maps_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 255, (4300, 130), np.uint8)
    outputs = (Output(name="sem", kind="logits"), Output(name="m", kind="map", channels=2, halo=(4, 4)))
    spec = make_spec((64, 64), outputs=outputs, overlap=(16, 16))
    infer(image, Breaks(spec), tmp_path / "whole.ome.zarr")
    broken = Breaks(spec)
    broken.limit = 150
    with pytest.raises(EngineError, match="it broke"):
        infer(image, broken, tmp_path / "parts.ome.zarr")
    assert (tmp_path / "parts.ome.zarr.partial").exists()
    going_on = Breaks(spec)
    infer(image, going_on, tmp_path / "parts.ome.zarr")
    assert going_on.runs < 250  # of about 300: something was there
    files = [
        {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}
        for root in (tmp_path / "whole.ome.zarr", tmp_path / "parts.ome.zarr")
    ]
    assert files[0] == files[1]


def test_many_images_of_maps(tmp_path: Path) -> None:
    for i in range(2):
        tifffile.imwrite(tmp_path / f"i{i}.tif", PLANE)
    path = network(tmp_path / "n.onnx", ("dist", "Relu", 1))
    run = ["infer", *(str(tmp_path / f"i{i}.tif") for i in range(2)), "-m", str(path), "--mean", "128", "--std", "64"]
    assert main([*run, "--stride", "1", "--output-is", "map", "-q", "-o", str(tmp_path / "out")]) == 0
    kept = tilelab.read_result(tmp_path / "out" / "i1.ome.zarr").maps
    assert list(kept) == ["dist"]


def test_a_description_says_which_of_two_readings_of_a_size_is_meant(tmp_path: Path) -> None:
    graph = Graph(2)
    made = graph.conv("tiles", 1, 2, size=33, pad=0)  # 64 px become 32: halved, or not padded?
    path = save(tmp_path / "n.onnx", graph, [(made, 2)], (64, 64), output_tile=(32, 32))
    engine = load_engine(path, spec_overrides=GIVEN)
    assert engine.spec.outputs[0].scale == (0.5, 0.5)
    embed_spec(path, make_spec((64, 64), outputs=(Output(halo=(16, 16)),), overlap=(40, 40)))
    engine = load_engine(path)
    assert (engine.spec.core, engine.spec.core_overlap) == ((32, 32), (8, 8))
    result = tilelab.read_result(infer(PLANE, engine, tmp_path / "r.ome.zarr", options=Options(logits=True)).path)
    assert result.logits is not None
    out = np.empty((1, 2, 32, 32), np.float32)
    tile = (np.pad(PLANE, 16, mode="reflect")[40:104, 70:134].astype(np.float32) - 128) / 64
    engine.run(np.ascontiguousarray(tile[None, None]), out)
    np.testing.assert_allclose(result.logits[:, 40:72, 70:102], out[0], atol=1e-4)


class OnDevice(Gives):
    """Would take arrays on a GPU, if there were one."""

    on_device = property(lambda self: self)  # type: ignore[assignment]


@pytest.mark.parametrize(
    "spec",
    [
        make_spec((64, 64), activation="sigmoid", outputs=(Output(thresholds=(0.7,)),)),
        make_spec((64, 64), normalization=Normalization(kind="mean-std", clip=(0, 1))),
        make_spec((64, 64), normalization=Normalization(kind="mean-std", per="slice")),
        make_spec((64, 64), outputs=(Output(kind="labels", name="l"),)),
        make_spec((64, 64), outputs=(Output(), Output(kind="map", name="m"))),
    ],
)
def test_what_a_gpu_sweep_does_not_do_yet_the_host_does(tmp_path: Path, spec: ModelSpec) -> None:
    engine = OnDevice(spec)
    with prepare(PLANE, engine, Options()) as prepared:
        assert isinstance(make_sweep(prepared.job, engine, Box.whole(prepared.job.image.shape)), HostSweep)
        assert prepared.plan.request.gpu is None
    plain = OnDevice(make_spec((64, 64)))
    with prepare(PLANE, plain, Options()) as prepared:
        assert prepared.job.suits_device(plain.spec)
    assert not list(tmp_path.iterdir())


def test_workers_learn_of_halos_from_their_engines(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 255, (2100, 150), np.uint8)
    np.save(tmp_path / "i.npy", image)
    graph = Graph(2)
    path = save(tmp_path / "n.onnx", graph, [(graph.conv("tiles", 1, 2, size=9, pad=0), 2)], ("h", "w"),
                output_tile=("h", "w"))  # fmt: skip
    run = ["infer", str(tmp_path / "i.npy"), "-m", str(path), "--mean", "128", "--std", "64", "-q", "--tile", "64"]
    found = []
    for workers in ([], ["--workers", "2"]):
        out = tmp_path / f"r{len(workers)}.ome.zarr"
        assert main([*run, *workers, "-o", str(out)]) == 0
        found.append(tilelab.read_result(out).probabilities[0][...])
    np.testing.assert_array_equal(*found)
    assert main(["plan", str(tmp_path / "i.npy"), "-m", str(path), "--mean", "128", "--std", "64", "--tile", "64"]) == 0
