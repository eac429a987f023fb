"""What would make a wrong result in silence is said or refused: no numbers, far intensities, idle flags, formats."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_models import Graph, make_spec, save

import tilelab
from tilelab.cli import main
from tilelab.engines.base import BaseEngine
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.errors import EngineError, ModelError, OutputError, StrictError
from tilelab.io.results.result import read_result
from tilelab.kernels import cpu, reference
from tilelab.run.infer import infer
from tilelab.run.options import Options, with_words
from tilelab.run.rehearse import dry_run
from tilelab.spec import Normalization

PLANE = (np.arange(200 * 300).reshape(200, 300) * 7 % 251).astype(np.uint8)


class Breaks(BaseEngine):
    """Gives NaN (or what is said) in the first class wherever its input is above a limit."""

    name = "breaks"

    def __init__(self, bad: float = np.nan, limit: float = 0.0, **spec: Any) -> None:
        options = {"overlap": (8, 8), "normalization": Normalization(mean=(254.5,), std=(1.0,))}
        super().__init__(make_spec((64, 64), **(options | spec)))
        self.bad, self.limit = np.float32(bad), limit

    def run(self, tiles: Any, out: Any) -> None:
        out[:, 0] = np.where(tiles[:, 0] > self.limit, self.bad, tiles[:, 0])
        out[:, 1] = 0


def spotted(*spots: tuple[int, int]) -> Any:
    image = np.minimum(PLANE, 200)
    for spot in spots:
        image[spot] = 255
    return image


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [Options(), Options(lanes=2), Options(symmetries=True), Options(logits=True)])
def test_logits_that_are_no_numbers_are_said_with_place_and_count(tmp_path: Path, bad: float, options: Options) -> None:
    image = spotted((100, 40), (101, 44), (190, 290))
    with pytest.raises(
        EngineError, match=r"breaks fp32 gave NaN or infinite logits for \d+ pixels in (.*): try"
    ) as found:
        infer(image, Breaks(bad), tmp_path / "r.ome.zarr", options=options)
    if not options.symmetries:
        assert "for 2 pixels in 0:1,100:102,40:45:" in str(found.value)
    assert not (tmp_path / "r.ome.zarr").exists()


def test_a_blank_tile_that_breaks_is_said(tmp_path: Path) -> None:
    class ZScore(BaseEngine):
        def run(self, tiles: Any, out: Any) -> None:
            with np.errstate(all="ignore"):
                out[:] = (tiles - tiles.mean((2, 3), keepdims=True)) / tiles.std((2, 3), keepdims=True)

    image = PLANE.copy()
    image[:100, :110] = 0
    engine = ZScore(make_spec((64, 64), overlap=(8, 8)))
    with pytest.raises(EngineError, match=r"NaN or infinite logits for \d+ pixels in 0:1,0:\d+,0:\d+: .*--mask"):
        infer(image, engine, tmp_path / "r.ome.zarr")


def test_what_a_mask_leaves_out_may_be_no_number(tmp_path: Path) -> None:
    image = spotted((100, 40))
    mask = np.ones(image.shape, np.uint8)
    mask[100, 40] = 0
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    run = infer(image, Breaks(), tmp_path / "r.ome.zarr", options=Options(mask=tmp_path / "mask.tif"))
    result = tilelab.read_result(run.path)
    assert result.labels[0][100, 40] == result.probabilities[0][0, 100, 40] == 0


def square_root(path: Path) -> Path:
    """NaN where the input is negative; the trial batch is not looked at for a network that is described so."""
    graph = Graph(2)
    zero = graph.constant(np.float32(2.5))
    made = graph.node("Concat", graph.node("Sqrt", graph.node("Add", "tiles", zero)), "tiles", axis=1)
    spec = make_spec((64, 64), overlap=(8, 8), normalization=Normalization(mean=(200.0,), std=(50.0,)))
    return save(path, graph, [(made, 2)], (64, 64), spec=spec)


def test_every_path_finds_them(tmp_path: Path) -> None:
    model = square_root(tmp_path / "n.onnx")
    image = np.where(PLANE > 20, 150, 160).astype(np.uint8)
    image[0, 0] = 0
    tifffile.imwrite(tmp_path / "a.tif", image)
    found = "gave NaN or infinite logits for 1 pixels in 0:1,0:1,0:1"
    for options in (Options(), Options(workers=2)):
        with pytest.raises(tilelab.TilelabError, match=found):
            infer(tmp_path / "a.tif", model, tmp_path / "r.ome.zarr", options=options)
    with pytest.raises(EngineError, match=found):
        dry_run(tmp_path / "a.tif", model, tmp_path / "d.ome.zarr", Options(), lambda line: None)
    import dask.array

    with pytest.raises(EngineError, match=found):
        tilelab.map_tiles(dask.array.from_array(image), model).compute(scheduler="synchronous")


@given(arrays.arrays(np.float32, arrays.array_shapes(max_side=9), elements=st.floats(width=32)))
def test_finite_means_finite(values: Any) -> None:
    assert cpu.all_finite(values) == reference.all_finite(values) == bool(np.isfinite(values).all())


NORMALIZED = [  # image dtype, scale, constants, said
    (np.uint8, 1, {"mean": (0.485,), "std": (0.229,)}, r"--mean 123.7 --std 58.4 would be right"),
    (np.uint8, 1, {"mean": (0.5,), "std": (0.5,)}, r"--mean 127.5 --std 127.5 would be right"),
    (np.uint16, 257, {"mean": (0.5,), "std": (0.5,), "intensity_dtype": "uint16"}, r"--mean 3.277e\+04"),
    (np.uint16, 1, {"mean": (32768.0,), "std": (16384.0,), "intensity_dtype": "uint16"}, "are the image's own"),
    (np.float32, 1 / 255, {"mean": (128.0,), "std": (33.0,), "intensity_dtype": "float32"}, "are the image's own"),
    (np.uint8, 1, {"mean": (128.0,), "std": (33.0,)}, None),
    (np.uint8, 1, {"mean": (0.0,), "std": (255.0,)}, None),
    (np.uint8, 1, {"mean": (0.0,), "std": (1.0,)}, None),
    (np.uint8, 1, {"normalization": "mean-std"}, None),
    (np.uint8, 0, {"mean": (128.0,), "std": (33.0,)}, None),
]


@pytest.mark.parametrize(("dtype", "scale", "given_", "said"), NORMALIZED)
def test_intensities_far_from_the_models_are_assumed_to_be_meant(
    tmp_path: Path, dtype: Any, scale: float, given_: dict[str, Any], said: str | None
) -> None:
    graph = Graph(2)
    path = save(tmp_path / "n.onnx", graph, [(graph.conv("tiles", 1, 2), 2)], (64, 64))
    image = (PLANE.astype(np.float64) * scale).astype(dtype)
    options = Options(model=SpecOverrides(**given_))
    notes: list[str] = []
    infer(image, path, tmp_path / "r.ome.zarr", options=options, note=notes.append)
    about = [line for line in notes if "the intensities of" in line]
    assert len(about) == (said is not None)
    if said is not None:
        assert any(word in about[0] for word in (said, said.replace("\\", "")))
        with pytest.raises(StrictError, match="--mean and --std, or --intensity-dtype"):
            infer(image, path, tmp_path / "s.ome.zarr", options=replace(options, strict=True))


ASKED = {
    "labels": {},
    "no labels": {"labels": False},
    "a probability": {"probabilities": ("class 1",)},
    "all probabilities": {"probabilities": ("all",)},
    "no probabilities": {"probabilities": ("none",)},
    "logits": {"logits": True},
    "a probability, no labels": {"labels": False, "probabilities": ("class 1",)},
    "logits, no labels": {"labels": False, "logits": True},
    "nothing": {"labels": False, "probabilities": ("none",)},
}
REFUSED = {
    ".ome.zarr": {"nothing"},
    ".ome.tif": {"logits", "logits, no labels", "nothing"},
    ".png": {*ASKED} - {"labels", "no probabilities"},
    ".precomputed": {*ASKED} - {"labels", "no probabilities"},
}


@pytest.mark.parametrize(("suffix", "asked"), list(product(REFUSED, ASKED)))
def test_every_option_is_written_by_every_format_or_refused_before_anything_runs(
    tmp_path: Path, suffix: str, asked: str
) -> None:
    class Never(Breaks):
        def run(self, tiles: Any, out: Any) -> None:
            pytest.fail("it ran")

    engine, out, options = Breaks(limit=1.0), tmp_path / f"r{suffix}", Options(**ASKED[asked])
    if asked in REFUSED[suffix]:
        with pytest.raises((OutputError, ModelError), match="leave --"):
            infer(PLANE, Never(), out, options=options)
        assert list(tmp_path.iterdir()) == []
        return
    infer(PLANE, engine, out, options=options)
    want = {"labels": options.labels, "logits": options.logits}
    if suffix == ".ome.zarr":
        result = tilelab.read_result(out)
        assert {"labels": bool(result.labels), "logits": bool(result.info.logits)} == want
        named = {None: 1, ("none",): 0, ("all",): 2}.get(options.probabilities, 1)
        assert len(result.info.probabilities) == named
    elif suffix == ".ome.tif":
        pages = tifffile.imread(out, series=0, level=0)
        named = {None: int(not options.labels), ("none",): 0, ("all",): 2}.get(options.probabilities, 1)
        assert (1 if pages.ndim == 2 else len(pages)) == options.labels + named
    else:
        assert out.exists()
    assert infer(PLANE, engine, out, options=options).already_finished


def test_a_tiff_with_probabilities_is_no_tiff_without(tmp_path: Path) -> None:
    infer(PLANE, Breaks(limit=1.0), tmp_path / "r.tif")
    with pytest.raises(OutputError, match="another job"):
        infer(PLANE, Breaks(limit=1.0), tmp_path / "r.tif", options=Options(probabilities=("class 1",)))


def test_a_map_is_written_as_numbers_or_not_at_all(tmp_path: Path) -> None:
    graph = Graph(2)
    path = save(tmp_path / "n.onnx", graph, [(graph.node("Relu", graph.conv("tiles", 1, 1)), 1)], (64, 64))
    model = SpecOverrides(mean=(128.0,), std=(64.0,), output_is="map")
    with pytest.raises(ModelError, match="the model gives maps alone, without classes"):
        infer(PLANE, path, tmp_path / "r.ome.zarr", options=Options(model=model, probabilities=("class 1",)))
    with pytest.raises(OutputError, match="cannot hold the map"):
        infer(PLANE, path, tmp_path / "r.png", options=Options(model=model))
    with pytest.raises(OutputError, match="draws classes, this run has none"):
        infer(PLANE, path, tmp_path / "r.ome.zarr", options=Options(model=model), overview=tmp_path / "o.png")
    run = infer(PLANE, path, tmp_path / "r.ome.zarr", options=Options(model=model))
    assert run.report["output_is"] == "map"
    assert not run.report["assumptions"]
    (kept,) = read_result(run.path).maps.values()
    assert (kept.axes, kept.shape, kept.dtype) == ("cyx", (1, *PLANE.shape), np.float32)
    tiff = infer(PLANE, path, tmp_path / "r.ome.tif", options=Options(model=model)).path
    np.testing.assert_array_equal(tifffile.imread(str(tiff)), kept[0])


IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"lanes": 5}, {}, "--lanes 5: 1 of them here"),
    ({"spans": 3}, {}, "--spans 3: 1 of them here"),
    ({"patience_seconds": 9.0}, {}, "--patience does nothing"),
    ({"model": SpecOverrides(window="hann")}, {"overlap": (0, 0)}, "--window does nothing"),
    ({"mask_axes": "yx"}, {}, "--mask-axes does nothing: there is no --mask"),
    ({"mask_series": "1"}, {}, "--mask-series does nothing: there is no --mask"),
    ({"scale": 0.5, "ignore_pixel_size": True}, {}, "--ignore-pixel-size does nothing: --scale"),
    ({}, {"neighbours": 1, "channels": 3}, "the 1 neighbours on either side are that plane again"),
]


@pytest.mark.parametrize(("options", "spec", "said"), IDLE)
def test_what_a_flag_did_not_do_is_said(
    tmp_path: Path, options: dict[str, Any], spec: dict[str, Any], said: str
) -> None:
    notes: list[str] = []
    infer(PLANE, Breaks(limit=1.0, **spec), tmp_path / "r.ome.zarr", options=Options(**options), note=notes.append)
    assert [line for line in notes if said in line]


def test_flags_that_would_be_believed_are_refused(tmp_path: Path) -> None:
    statistics = Breaks(normalization=Normalization(kind="mean-std"))
    with pytest.raises(ModelError, match=r"--range says .*mean-std: leave it out"):
        infer(PLANE, statistics, tmp_path / "r.ome.zarr", options=Options(intensity_range=(0, 100)))
    graph = Graph(2)
    path = save(tmp_path / "n.onnx", graph, [(graph.conv("tiles", 1, 2), 2)], ("y", "x"))
    for given_, words in (
        ({"mean": (128.0,), "tile": (64,)}, "--mean and --std belong together"),
        ({"std": (33.0,), "tile": (64,)}, "--mean and --std belong together"),
        ({"mean": (np.nan,), "std": (33.0,), "tile": (64,)}, "--mean nan is not a number"),
        ({"mean": (1.0,), "std": (np.inf,), "tile": (64,)}, "--std inf is not a number"),
        ({"mean": (1.0,), "std": (0.0,), "tile": (64,)}, "--std 0 is not positive"),
        ({"mean": (1.0,), "std": (-2.0,), "tile": (64,)}, "--std -2 is not positive"),
        ({"mean": (1.0, 2.0), "std": (1.0, 2.0), "tile": (64,)}, "2 channels, the model 1"),
        ({"mean": (1.0, 2.0), "std": (1.0, 2.0, 3.0), "tile": (64,)}, "2 means and 3 stds"),
        ({"normalization": "percentile", "intensity_dtype": "uint16", "tile": (64,)}, "--intensity-dtype says"),
        ({"mean": (1.0,), "std": (1.0,), "tile": (64,), "classes": ("a", "a")}, "names 'a' twice"),
        ({"mean": (1.0,), "std": (1.0,), "tile": (64,), "classes": ("a", "")}, "empty name"),
        ({"mean": (1.0,), "std": (1.0,), "tile": (64,), "channels": 3}, "takes 1 input channels"),
        ({}, r"how intensities .* and a tile size.*: give --mean M --std S .* and --tile N \(or auto\)"),
    ):
        with pytest.raises(ModelError, match=words):
            load_engine(path, spec_overrides=SpecOverrides(**given_))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("net.pth", r"torch.onnx.export\(net.eval\(\)"),
        ("net.ckpt", r"torch.onnx.export"),
        ("net.h5", "keras.models.load_model"),
        ("net.keras", "keras.models.load_model"),
        ("net.pb", "tf2onnx.convert --graphdef net.pb"),
        ("saved/", "tf2onnx.convert --saved-model saved --output saved.onnx"),
        ("folder/", "is a folder, not a model file: give .*n.onnx"),
    ],
)
def test_files_of_training_frameworks_tell_the_way_to_a_model(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
        (path / ("saved_model.pb" if name == "saved/" else "n.onnx")).write_bytes(b"x")
    else:
        path.write_bytes(b"x")
    with pytest.raises(ModelError, match=words) as found:
        load_engine(path)
    assert "\n" not in str(found.value)


def test_a_tile_is_found_for_a_network_that_names_none(tmp_path: Path) -> None:
    graph = Graph(2)
    path = save(tmp_path / "n.onnx", graph, [(graph.conv("tiles", 1, 2), 2)], ("y", "x"))
    options = Options(model=SpecOverrides(mean=(128.0,), std=(64.0,)), auto_tile=True)
    run = infer(PLANE, path, tmp_path / "r.ome.zarr", options=options)
    assert max(run.report["tile"]) <= 320


def test_a_plan_says_what_the_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph(2)
    path = save(tmp_path / "n.onnx", graph, [(sigmoid_of(graph), 1)], (64, 64))
    tifffile.imwrite(tmp_path / "a.tif", PLANE)
    words = ["plan", str(tmp_path / "a.tif"), "-m", str(path), "--mean", "0.5", "--std", "0.5", "--lanes", "3"]
    assert main([*words, "--no-calibration", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["flag"] for one in document["assumptions"]] == ["--mean and --std, or --intensity-dtype"]
    assert any("probabilities" in note for note in document["notes"])
    assert any("--lanes 3" in note for note in document["notes"])
    assert main([*words, "--no-calibration", "--strict"]) == 2


def sigmoid_of(graph: Graph) -> str:
    """The sigmoid of a convolution."""
    return graph.node("Sigmoid", graph.conv("tiles", 1, 1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep-bar", "--bar", "20"), "--keep-bar and --bar 20 contradict each other: give one of them"),
        (("--overview-size", "400"), "--overview-size is for --overview"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PLANE)
    command = ["infer", str(tmp_path / "a.tif"), "-m", "identity", "-o", str(tmp_path / "r.ome.zarr")]
    assert main([*command, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_report_is_written_of_a_result_that_was_there(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PLANE)
    out, report = tmp_path / "r.ome.zarr", tmp_path / "report.json"
    command = ["infer", str(tmp_path / "a.tif"), "-m", "identity:3", "-q", "-o", str(out), "--report", str(report)]
    assert main(command) == 0
    first = json.loads(report.read_text())
    report.unlink()
    assert main(command) == 0
    again = json.loads(report.read_text())
    assert (first["already_finished"], again["already_finished"]) == (False, True)
    assert again["output"] == first["output"] == str(out)
    assert (again["tiles"]["inferred"], again["megapixels_per_second"]) == (0, 0)


def test_a_class_that_is_named_twice_has_one_channel(tmp_path: Path) -> None:
    run = infer(PLANE, "identity:3", tmp_path / "r.ome.zarr", options=Options(probabilities=("band 1", "band 1")))
    assert len(run.probabilities) == 1


def test_names_may_be_one_text(tmp_path: Path) -> None:
    """A text was taken for a list of its letters: there was no class 'a'."""
    for n, (said, count) in enumerate({"all": 3, "band 1": 1, "band 0, band 2": 2}.items()):
        run = infer(PLANE, "identity:3", tmp_path / f"{n}.ome.zarr", probabilities=said)
        assert len(run.probabilities) == count
    run = infer(PLANE, "identity:3", tmp_path / "c.ome.zarr", classes="a,b,c")
    assert [known.name for known in run.result.info.classes] == ["a", "b", "c"]
    assert with_words(Options(), {"classes": "3"}).model.classes == 3
