"""Export from an ONNX file: every format and precision through the gate, and what must be refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_gpu
import msgspec
import numpy as np
import pytest
from fake_tensorrt import FakeTensorRT
from tiny_models import Graph, make_spec, save, save_conv, save_unet

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from tilelab.cli import main  # noqa: E402
from tilelab.engines.cuda import tensorrt  # noqa: E402
from tilelab.engines.files.half import convert_to_half, simulate_half  # noqa: E402
from tilelab.engines.files.tensorrt_plan import read_header  # noqa: E402
from tilelab.engines.loading import Availability  # noqa: E402
from tilelab.engines.registry import availability, load_engine, permitted, read_model, read_spec  # noqa: E402
from tilelab.errors import EngineError, InputError, ModelError, OutputError  # noqa: E402
from tilelab.exporting import export as exporting  # noqa: E402
from tilelab.exporting import write as writing  # noqa: E402
from tilelab.exporting.calibration import Variation, draw_tiles  # noqa: E402
from tilelab.exporting.export import Place, export_model  # noqa: E402
from tilelab.exporting.parity import ParityError, Sample  # noqa: E402
from tilelab.exporting.write import Request  # noqa: E402
from tilelab.io.images.open import open_image  # noqa: E402
from tilelab.run.self_check import find_source  # noqa: E402
from tilelab.run.sweep.host import HostSweep  # noqa: E402
from tilelab.sample import draw_superalloy  # noqa: E402
from tilelab.spec import Normalization  # noqa: E402

SPEC = make_spec((32, 32), classes=3, stride=4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_unet(tmp_path / "m.onnx", classes=3, spec=SPEC)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    image, truth = draw_superalloy((70, 90), seed=2)
    return [Sample("drawn", open_image(image, axes="yx"), truth)]


@pytest.fixture(scope="module")
def calibration() -> Request:
    return Request(calibration=[open_image(draw_superalloy((64, 64), seed=5)[0], axes="yx")], tiles=8)


def without_fp16(engine: str) -> Availability:
    """What an engine can do on a machine whose CPU lacks fp16."""
    found = availability(engine)
    return replace(found, targets=tuple(t for t in found.targets if t.precision != "fp16"))


def holds_no_path(path: Path) -> bool:
    data = path.read_bytes()
    return not any(place.encode() in data for place in (str(Path.cwd()), str(path.parent), "site-packages", "/tmp/"))  # noqa: S108


@pytest.mark.parametrize("native", [None, False], ids=["this machine", "a machine without fp16"])
def test_an_fp32_file_again_learns_what_passes(
    source: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool | None
) -> None:
    if native is None:  # some CPUs have the arithmetic
        native = any(
            t.precision == "fp16" and not t.reason for e in ("openvino", "onnxruntime") for t in availability(e).targets
        )
    else:
        monkeypatch.setattr(exporting, "availability", without_fp16)
    said: list[str] = []
    done = export_model(source, tmp_path / "again.onnx", samples, report=said.append)
    assert (done.file.precision, done.spec.tile) == ("fp32", (32, 32))
    assert "fp16" in done.spec.precisions
    # Where no engine computes it, it is proved by rounding every result.
    assert any(line.startswith("simulated fp16") for line in said) == (not native)
    assert read_spec(done.path) == done.spec
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.onnx", "m.onnx"]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_half_precision(source: Path, samples: list[Sample], tmp_path: Path, suffix: str) -> None:
    done = export_model(source, tmp_path / f"half{suffix}", samples, precision="fp16")
    assert done.file.precision == "fp16"
    assert [port.dtype for port in (*done.file.inputs, *done.file.outputs)] == ["float32", "float32"]
    assert done.file.size_bytes < 0.8 * source.stat().st_size or suffix == ".xml"
    assert done.spec.precisions[0] == "fp16"
    assert read_spec(done.path) == done.spec
    assert load_engine(done.path, device="cpu").precision in permitted(done.file, done.spec)
    assert all(holds_no_path(path) for path in done.file.files)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.filterwarnings("ignore::Warning")  # of the quantisers' own
def test_int8(source: Path, samples: list[Sample], tmp_path: Path, suffix: str, calibration: Request) -> None:
    if suffix == ".xml":
        pytest.importorskip("nncf")
    with pytest.raises(ModelError, match="--calibrate"):
        export_model(source, tmp_path / f"no{suffix}", samples, precision="int8")
    done = export_model(source, tmp_path / f"whole{suffix}", samples, precision="int8", request=calibration)
    assert done.file.precision == "int8"
    assert done.spec.precisions == ("int8",)
    assert {check.precision for check in done.checks} == {"int8"}
    engine = load_engine(done.path)
    assert engine.precision == "int8"
    if suffix == ".xml":  # else CPUs without VNNI cut sums off
        import openvino

        from tilelab.engines.cpu.openvino import wide_weights

        assert wide_weights(openvino.Core().read_model(done.path)) == 0
    assert all(holds_no_path(path) for path in done.file.files)


def test_openvino_runs_without_flags(source: Path, samples: list[Sample], tmp_path: Path) -> None:
    done = export_model(source, tmp_path / "m.xml", samples)
    assert done.file.format == "openvino"
    assert (tmp_path / "m.bin").is_file()
    image = tmp_path / "image.npy"
    np.save(image, draw_superalloy((70, 90))[0])
    assert main(["infer", str(image), "--model", str(done.path), "-o", str(tmp_path / "r.ome.zarr")]) == 0


def test_a_precision_that_breaks_the_network_is_named_with_its_worst_place(
    samples: list[Sample], tmp_path: Path
) -> None:
    """A thousandfold and back: nothing to fp32, beyond the range of fp16."""
    graph = Graph(2)
    large = graph.node("Mul", graph.conv("tiles", 1, 3), graph.constant(np.float32(1e6)))
    made = graph.node("Mul", large, graph.constant(np.float32(1e-6)))
    path = save(tmp_path / "m.onnx", graph, [(made, 3)], (32, 32), spec=make_spec((32, 32), classes=3))
    said: list[str] = []
    done = export_model(path, tmp_path / "n.onnx", samples, report=said.append)
    assert "fp16" not in done.spec.precisions
    assert any("fp16 is not permitted" in line for line in said)
    with pytest.raises(ParityError, match=r"fp16 .*worst at y=\d+ x=\d+ of drawn, class \d"):
        export_model(path, tmp_path / "half.onnx", samples, precision="fp16")
    assert not (tmp_path / "half.onnx").exists()


def test_the_simulation_rounds_every_result(source: Path, tmp_path: Path) -> None:
    import onnxruntime

    half = convert_to_half(source)
    paths = {"half": half, "simulated": simulate_half(half)}
    tiles = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.float32)
    found = {}
    for name, data in paths.items():
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found[name] = session.run(None, {"tiles": tiles})[0]
    assert (found["simulated"] == found["simulated"].astype(np.float16)).all()
    assert 0 < np.abs(found["simulated"] - found["half"]).max() < 0.02


def test_calibration_tiles_are_normalised_repeatable_and_varied() -> None:
    images = [open_image(np.full((20, 50), 100, np.uint8), axes="yx")]
    plain = draw_tiles(images, SPEC, count=3)
    assert [t.shape for t in plain] == [(1, 1, 32, 32)] * 3
    assert all((t == np.float32((100 - 128) / 64)).all() for t in plain)
    varied = [draw_tiles(images, SPEC, count=9, variation=Variation(0.2, (0.5, 2.0))) for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*varied, strict=True))
    assert len({float(t.mean()) for t in varied[0]}) == 9


def test_tiles_are_cut_off_as_inference_cuts_them_off() -> None:
    """Ranges of activations are those of what the network will see."""
    grey = np.random.default_rng(0).integers(0, 256, (90, 90)).astype(np.uint8)
    normalization = msgspec.structs.replace(SPEC.normalization, clip=(-0.25, 0.5))
    spec = msgspec.structs.replace(SPEC, normalization=normalization)
    for variation in (None, Variation(0.2, (0.5, 2.0))):
        plain, cut = (draw_tiles([open_image(grey)], one, count=5, variation=variation) for one in (SPEC, spec))
        for a, b in zip(plain, cut, strict=True):
            assert np.array_equal(np.clip(a, -0.25, 0.5), b)
            assert b.min() == np.float32(-0.25)
            assert b.max() == np.float32(0.5)


def test_images_to_compare_on_are_named_where_they_do_not_suit(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tifffile

    grey = np.random.default_rng(0).random((70, 90)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", grey)
    words = ["export", str(source), "-o", str(tmp_path / "n.onnx"), "--images", str(tmp_path / "a.tif")]
    assert main(words) == 2
    assert re.search(r"a\.tif is float32", capsys.readouterr().err)
    grey[5, 6] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", grey)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert re.search(r"a\.tif holds 1 pixels that are not finite \(NaN or infinite\), the first at z 0, y 5, x 6", said)
    assert "--nan" not in said  # which export has not


def test_no_range_is_learned_of_what_is_no_number() -> None:
    grey = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    grey[5, 5] = np.nan
    normalization = Normalization(kind="min-max")
    with pytest.raises(InputError, match="not finite"):
        draw_tiles([open_image(grey)], msgspec.structs.replace(SPEC, normalization=normalization))


def test_the_users_own_images(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for kind, planes in zip(("i", "t"), draw_superalloy((70, 90), seed=4), strict=True):
        (tmp_path / kind).mkdir()
        Image.fromarray(planes).save(tmp_path / kind / "a.png")
    words = ["export", str(source), "-o", str(tmp_path / "n.onnx"), "--images", str(tmp_path / "i")]
    assert main([*words, "--masks", str(tmp_path / "t")]) == 0
    printed = capsys.readouterr().out
    assert "mean IoU" in printed
    assert re.search(r"wrote .*n\.onnx \(0\.\d+ MB\): onnx, opset 18, fp32", printed)
    assert "input tiles float32" in printed
    assert "tile 32 x 32 (fixed), overlap 8 x 8; permits fp32" in printed
    assert main([*words[:4], "--masks", str(tmp_path / "t"), "--force"]) == 2
    assert "--images" in capsys.readouterr().err


def test_no_torch_is_needed_for_an_onnx_file(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from tilelab.cli import main;"
        f"sys.exit(main(['export', {str(source)!r}, '-o', {str(tmp_path / 'n.onnx')!r}, '--tile', '32']))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_refused(source: Path, samples: list[Sample], tmp_path: Path) -> None:
    def refused(match: str, path: Path = source, name: str = "n.onnx", **options: object) -> None:
        with pytest.raises((ModelError, EngineError, OutputError), match=match):
            export_model(path, tmp_path / name, samples, **options)  # type: ignore[arg-type]

    refused(r"ends with one of \.onnx, \.xml, \.pt2, \.engine", name="n.tflite")
    refused("give its checkpoint", name="n.pt2") if shutil.which("g++") else None
    refused("hold fp32, fp16, int8, not bf16", precision="bf16")
    refused("has its size fixed", place=Place(free_size=True))
    refused("pins its tile", place=Place(tile=64))
    refused("does not say how intensities are normalised", save_conv(tmp_path / "bare.onnx"))
    half = export_model(source, tmp_path / "half.onnx", samples, precision="fp16").path
    refused("holds fp16: export int8 from the fp32 file", half, precision="int8")
    refused("would overwrite what shall be exported", name="m.onnx", force=True)


# --- TensorRT, by its stand-in


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    gpu = fake_gpu.install(monkeypatch)
    module = FakeTensorRT("11.4.1", gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: object())
    # the stand-in's GPU has no kernels: tiles are cut and blended on the CPU
    monkeypatch.setattr("tilelab.training.validate.make_sweep", HostSweep)
    tensorrt.probe.cache_clear()
    yield module
    tensorrt.probe.cache_clear()


def save_as_the_fake_computes(path: Path) -> Path:
    """``(k + 1) * x`` for output k, which is what any plan of the stand-in gives."""
    graph = Graph(2)
    made = graph.node("Conv", "tiles", graph.constant(np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1, 1)))
    return save(path, graph, [(made, 3)], (32, 32), spec=make_spec((32, 32), classes=3))


def test_an_engine_is_built_through_the_gate(trt: FakeTensorRT, samples: list[Sample], tmp_path: Path) -> None:
    path = save_as_the_fake_computes(tmp_path / "m.onnx")
    phases: list[tuple[str, int, int]] = []
    request = Request(
        batch=(1, 2, 4),
        compatibility="ampere+",
        timing_cache=tmp_path / "cache" / "t.timing",
        progress=lambda *step: phases.append(step),
    )
    done = export_model(path, tmp_path / "m.engine", samples, request=request)
    assert [(c.engine, c.precision) for c in done.checks] == [("tensorrt", "fp32")]
    assert phases
    assert (tmp_path / "cache" / "t.timing").is_file()
    header, _, _ = read_header(done.path)
    assert header is not None
    assert (header.batch, header.compatibility, header.source) == ((1, 2, 4), "ampere+", "m.onnx")
    assert find_source(done.path, None) == path
    half = export_model(path, tmp_path / "h.engine", samples, precision="fp16", request=Request(batch=2))
    assert (half.file.precision, half.spec.precisions) == ("fp16", ("fp16",))
    assert find_source(half.path, None) == path  # the fp32 network, not what was made of it on the way


def test_an_engine_that_computes_something_else_is_not_written(
    trt: FakeTensorRT, samples: list[Sample], source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match=r"tensorrt fp32 changes logits .* worst at y="):
        export_model(source, tmp_path / "m.engine", samples)
    assert not (tmp_path / "m.engine").exists()


@pytest.mark.filterwarnings("ignore::Warning")
def test_int8_for_tensorrt_is_symmetric(
    trt: FakeTensorRT, samples: list[Sample], tmp_path: Path, calibration: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, onnx.ModelProto] = {}
    real = writing.build_engine

    def keep(path: Path, *args: object, **options: object) -> object:
        kept["graph"] = onnx.load(path)
        return real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "build_engine", keep)
    path = save_as_the_fake_computes(tmp_path / "m.onnx")
    done = export_model(path, tmp_path / "m.engine", samples, precision="int8", request=calibration)
    assert done.file.precision == "int8"
    zeros = [w for w in kept["graph"].graph.initializer if w.name.endswith("zero_point")]
    assert zeros
    assert all(w.data_type == onnx.TensorProto.INT8 and not onnx.numpy_helper.to_array(w).any() for w in zeros)


def test_without_tensorrt_the_reason_is_told(source: Path, samples: list[Sample], tmp_path: Path) -> None:
    if not tensorrt.probe().reason:
        pytest.skip("there is TensorRT")
    with pytest.raises(EngineError, match=r"\.engine files cannot be made and checked here: .*TensorRT"):
        export_model(source, tmp_path / "m.engine", samples)
    assert read_model(source).precision == "fp32"
