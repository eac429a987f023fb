"""Export: one clean file, the same numbers, and a gate that closes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tilelab.engines.registry import availability, load_engine, read_spec  # noqa: E402
from tilelab.errors import EngineError, ModelError, OutputError  # noqa: E402
from tilelab.exporting import parity  # noqa: E402
from tilelab.exporting.export import Place, export_model  # noqa: E402
from tilelab.exporting.onnx_file import write_onnx  # noqa: E402
from tilelab.exporting.parity import ParityError, Reference, Sample, check_parity, compare  # noqa: E402
from tilelab.io.images.open import open_image  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.models.build import initialise  # noqa: E402
from tilelab.spec import METADATA_KEY, ClassInfo, ModelSpec  # noqa: E402
from tilelab.training.checkpoint import Checkpoint, Header, load_checkpoint, save_checkpoint  # noqa: E402
from tilelab.training.engine import TorchEngine  # noqa: E402
from tilelab.training.recipe import load_recipe  # noqa: E402
from tilelab.training.segmentation import describe  # noqa: E402

CLASSES = tuple(ClassInfo(name, "#000000") for name in ("a", "b", "c"))
SPEC = ModelSpec(
    name="small",
    architecture="unet",
    classes=CLASSES,
    tile=(64, 64),
    overlap=(16, 16),
    stride=4,
    receptive_field=44,
    tile_fixed=False,
    tile_min=(16, 16),
)


pytestmark = pytest.mark.usefixtures("one_thread")


def reference(network: Any, samples: list[Sample]) -> Reference:
    return Reference(lambda spec: TorchEngine(network, spec), samples)


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Give batch normalisation statistics that matter, so that folding them wrongly would show."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> Any:
    return randomise(initialise(0, "unet", 1, 3, widths=[4, 6, 8]))


@pytest.fixture(scope="module")
def written(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    write_onnx(network, SPEC, path)
    return path


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (100, 140), dtype=np.uint8)
    return [Sample("noise", open_image(image, axes="yx"), (image // 100).astype(np.uint8))]


@pytest.fixture
def checkpoint(network: Any, tmp_path: Path) -> Path:
    recipe = load_recipe(
        "superalloy", ["network.options.widths=[4, 6, 8]", "inference.tile=64", "inference.overlap=16"]
    )
    spec = describe(recipe, network, recipe.normalization)
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, Checkpoint(Header(recipe=recipe, spec=spec, step=3, scores={"mean_iou": 0.5}), tensors))
    return path


def test_the_file_holds_nothing_of_this_machine(written: Path) -> None:
    data = written.read_bytes()
    for word in (b"/site-packages", b"stack_trace", b"forward", __file__.encode(), str(Path.cwd()).encode(), b".py"):
        assert word not in data
    assert not list(written.parent.glob("*.data"))


def test_normalisation_is_folded_and_names_are_fixed(written: Path) -> None:
    model = onnx.load(written)
    operators = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in operators
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["logits"]
    batch, channels, height, _ = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert channels.dim_value == 1
    assert height.dim_param


def test_the_description_is_inside(written: Path) -> None:
    assert read_spec(written) == SPEC


def test_a_fixed_tile_is_fixed(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    write_onnx(network, msgspec.structs.replace(SPEC, tile_fixed=True, tile_min=None), path)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [d.dim_value for d in shape[1:]] == [1, 64, 64]


@pytest.mark.parametrize("size", [(1, 16, 16), (3, 64, 64), (2, 20, 100)])
def test_any_size_gives_what_torch_gives(network: Any, written: Path, size: tuple[int, int, int]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(size[0], 1, *size[1:])).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"input": x})[0], expected, atol=1e-4)


def test_exporting_twice_gives_the_same_bytes(network: Any, written: Path, tmp_path: Path) -> None:
    write_onnx(network, SPEC, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == written.read_bytes()


def test_parity_of_a_faithful_file(network: Any, written: Path, samples: list[Sample]) -> None:
    for tile in (None, 32, 52):
        found = check_parity(reference(network, samples), written, engine="onnxruntime", tile=tile)
        assert found.failure() is None
        assert found.changed == 0
        assert found.iou_before == found.iou_after


def test_the_gate_sees_one_wrong_weight(network: Any, written: Path, samples: list[Sample]) -> None:
    other = build_model("unet", 1, 3, widths=[4, 6, 8]).eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        other.head.bias[1] += 0.05
    found = check_parity(reference(other, samples), written, engine="onnxruntime", precision="fp32")
    failure = found.failure()
    assert failure is not None
    assert "fp32" in failure
    assert "noise, class 1" in failure


def test_the_gate_names_the_worst_place(samples: list[Sample]) -> None:
    spec = msgspec.structs.replace(SPEC, tile=(160, 160), overlap=(0, 0))

    class Good(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cat([-x, 0 * x, x], dim=1)

    class Bad(Good):
        def forward(self, x: Any) -> Any:
            logits = super().forward(x)
            logits[:, 2, 40, 77] = torch.nan
            return logits

    found = compare(reference(Good(), samples), TorchEngine(Bad(), spec))
    assert found.worst == ("noise", 2, 40, 77)
    assert "y=40 x=77 of noise, class 2" in str(found.failure())


def test_export_writes_a_file_that_runs(checkpoint: Path, samples: list[Sample], tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "deep" / "m.onnx"
    output.parent.mkdir()
    done = export_model(checkpoint, output, samples, place=Place(free_size=True), report=said.append)
    spec = read_spec(output)
    assert spec == done.spec
    assert spec is not None
    assert not spec.tile_fixed
    assert spec.training["steps"] == 3
    assert spec.training["validation"] == {"mean_iou": 0.5}
    assert sum("(tile " in line for line in said) == 3
    assert [p.name for p in output.parent.iterdir()] == ["m.onnx"]
    engine = load_engine(output, engine="onnxruntime", precision="fp32")
    out = np.empty((1, 3, 64, 64), np.float32)
    engine.run(np.zeros((1, 1, 64, 64), np.float32), out)
    assert np.isfinite(out).all()


def test_what_fails_is_not_written(
    checkpoint: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {**parity.TOLERANCES, "fp32": parity.Tolerance(0.0, 0.0, -1.0)}
    monkeypatch.setattr(parity, "TOLERANCES", strict)
    output = tmp_path / "out" / "m.onnx"
    output.parent.mkdir()
    with pytest.raises(ParityError, match="fp32"):
        export_model(checkpoint, output, samples)
    assert not list(output.parent.iterdir())


def test_a_precision_that_fails_is_not_permitted_and_an_asked_one_is_an_error(
    checkpoint: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if all(t.precision != "bf16" or t.reason for t in availability("openvino").targets):
        pytest.skip("no bf16 on this machine")
    strict = {**parity.TOLERANCES, "bf16": parity.Tolerance(0.0, 0.0, -1.0)}
    monkeypatch.setattr(parity, "TOLERANCES", strict)
    said: list[str] = []
    done = export_model(checkpoint, tmp_path / "m.onnx", samples, report=said.append)
    assert "bf16" not in done.spec.precisions
    assert any("bf16 is not permitted" in line for line in said)
    with pytest.raises(ParityError, match="bf16"):
        export_model(checkpoint, tmp_path / "n.onnx", samples, require=["bf16"])
    assert not (tmp_path / "n.onnx").exists()


def test_requests_that_cannot_be_met(checkpoint: Path, samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.onnx"):
        export_model(checkpoint, tmp_path / "m.h5", samples)
    (tmp_path / "m.onnx").touch()
    with pytest.raises(OutputError, match="--force"):
        export_model(checkpoint, tmp_path / "m.onnx", samples)
    with pytest.raises(ModelError, match="multiple of stride"):
        export_model(checkpoint, tmp_path / "n.onnx", samples, place=Place(tile=63))
    with pytest.raises(EngineError, match=r"no engine on this machine computes n\.onnx in int8"):
        export_model(checkpoint, tmp_path / "n.onnx", samples, require=["int8"])
    with pytest.raises(EngineError, match=r"hold fp32, fp16, int8, not bf16: .* --require"):
        export_model(checkpoint, tmp_path / "n.onnx", samples, precision="bf16")
    with pytest.raises(ModelError, match="--calibrate"):
        export_model(checkpoint, tmp_path / "n.onnx", samples, precision="int8")
    with pytest.raises(ModelError, match=r"no model file .*gone.onnx"):
        export_model(tmp_path / "gone.onnx", tmp_path / "n.onnx", samples)


def test_a_network_that_sees_its_whole_tile_keeps_it(checkpoint: Path, samples: list[Sample], tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    header = msgspec.structs.replace(
        loaded.header, spec=msgspec.structs.replace(loaded.header.spec, receptive_field=None)
    )
    save_checkpoint(checkpoint, Checkpoint(header, loaded.tensors))
    with pytest.raises(ModelError, match="whole tile"):
        export_model(checkpoint, tmp_path / "m.onnx", samples, place=Place(free_size=True))


# --- what is bundled


def test_the_bundled_superalloy_model_is_small_clean_and_described() -> None:
    from tilelab.engines.registry import locate_model

    path = locate_model("superalloy")
    assert path.stat().st_size <= 8_000_000
    assert path.with_suffix(".md").is_file()
    spec = read_spec(path)
    assert spec is not None
    assert [c.name for c in spec.classes] == ["matrix", "secondary precipitate", "tertiary precipitate"]
    assert spec.training["licence"] == "MIT"
    model = onnx.load(path)
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_bundled_superalloy_model_keeps_its_promise(real_data: Path) -> None:
    """Mean IoU on the real validation images, as its card says, at every precision that it permits here."""
    from tilelab.training.pairs import open_pairs
    from tilelab.training.recipe import Data
    from tilelab.training.validate import validate

    pairs = open_pairs(Data("val/images", "val/masks"), real_data / "superalloy", 3)
    spec = read_spec("superalloy")
    assert spec is not None
    for precision in spec.precisions:
        try:
            engine = load_engine("superalloy", precision=precision)
        except EngineError:
            continue
        scores = validate(engine, pairs)
        assert scores["mean_iou"] >= 0.85
        assert scores["mean_iou"] == pytest.approx(spec.training["validation"]["mean_iou"], abs=0.005)


def test_a_question_whether_all_is_true_is_exported(tmp_path: Path) -> None:
    """The exporter has no words for it; OneFormer asks."""

    class Asking(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            positive = torch.ops.aten._is_all_true(x > 0)
            return torch.cat([x, x * 2, x + torch.where(positive, 1.0, 5.0)], dim=1)

    file = tmp_path / "asking.onnx"
    spec = msgspec.structs.replace(SPEC, tile_fixed=True, tile_min=None, tile=(16, 16), overlap=(4, 4))
    write_onnx(Asking().eval(), spec, file)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for value, added in ((1.0, 1.0), (-1.0, 5.0)):
        x = np.ones((1, 1, 16, 16), np.float32)
        x[0, 0, 3, 3] = value
        assert session.run(None, {"input": x})[0][0, 2, 0, 0] == 1 + added


def test_a_network_that_gives_nan_itself_proves_nothing(samples: list[Sample]) -> None:
    class Nan(TorchEngine):
        def run(self, tiles: Any, out: Any) -> None:
            super().run(tiles, out)
            out[..., 3, 3] = np.nan

    plain = torch.nn.Conv2d(1, 3, 1)
    parity = compare(Reference(lambda spec: Nan(plain, spec), samples), TorchEngine(plain, SPEC))
    assert parity.failure() is not None
