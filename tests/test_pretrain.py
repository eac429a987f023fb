"""Pre-training: classes told apart, the best encoder kept, moved into decoders, and going on after a stop."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

import tifffile  # noqa: E402

from tilelab.cli.main import main  # noqa: E402
from tilelab.errors import InputError, ModelError, ResumeError  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.models.encoders import load_encoder_weights  # noqa: E402
from tilelab.training.checkpoint import load_checkpoint, read_checkpoint  # noqa: E402
from tilelab.training.classification import Classification  # noqa: E402
from tilelab.training.encoder_task import EncoderHeader  # noqa: E402
from tilelab.training.folders import find_classes, split_images  # noqa: E402
from tilelab.training.log import ENCODER, LAST  # noqa: E402
from tilelab.training.pretraining import pretrain  # noqa: E402
from tilelab.training.recipe import Pretraining, RecipeError, load_pretraining, shipped_recipes  # noqa: E402
from tilelab.training.sections import ImageFolders  # noqa: E402

RECIPE = """
name = "textures"
seed = 2
[network]
encoder = "tu-resnet10t"
[data]
train = "train"
held_back = 0.25
[sampling]
crop = 32
batch = 8
balance = 0.5
[augmentation]
scale = [0.8, 1.25]
brightness = 0.05
[optimizer]
rate = 3e-3
[run]
steps = 24
validate = 6
"""


def draw_texture(kind: str, seed: int) -> np.ndarray:
    """Stripes or noise, of any size."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 90, 2)
    x = np.mgrid[:height, :width][1]
    waves = np.sin(2 * np.pi * x / 9 + seed) if kind == "stripes" else rng.normal(0, 0.7, (height, width))
    return np.clip(128 + 60 * waves + rng.normal(0, 4, x.shape), 0, 255).astype(np.uint8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight images each, as PNG, TIFF, a TIFF stack and .npy, and a file that is no image."""
    root = tmp_path_factory.mktemp("textures")
    for kind in ("stripes", "noise"):
        folder = root / "train" / kind
        folder.mkdir(parents=True)
        for seed in range(8):
            image = draw_texture(kind, seed)
            if seed == 1:
                tifffile.imwrite(folder / f"{seed}.tif", image)
            elif seed == 2:
                np.save(folder / f"{seed}.npy", image)
            elif seed == 3:
                tifffile.imwrite(folder / f"{seed}.tif", np.stack([image, image[::-1]]), photometric="minisblack")
            else:
                Image.fromarray(image).save(folder / f"{seed}.png")
        (folder / "readme.txt").write_text("of which class this is")
    (root / "recipe.toml").write_text(RECIPE)
    return root


def load(root: Path, *overrides: str) -> Pretraining:
    return load_pretraining(str(root / "recipe.toml"), list(overrides))


@pytest.fixture(scope="module")
def pretrained(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pretrained")
    assert pretrain(load(textures), textures, output) == output / ENCODER
    return output


def test_it_learns_and_says_what_it_learnt(pretrained: Path) -> None:
    header = read_checkpoint(pretrained / ENCODER, EncoderHeader).header
    assert header.classes == ("noise", "stripes")
    assert header.scores["accuracy"] == 1.0
    assert header.scores["images"] == 4
    assert 100 < header.normalization.mean[0] < 150
    with (pretrained / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["6", "12", "18", "24"]
    assert {"accuracy", "validation_loss", "recall noise", "recall stripes"} <= rows[0].keys()
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert max(float(row["accuracy"]) for row in rows) == header.scores["accuracy"]


def test_the_kept_encoder_reproduces_its_score(pretrained: Path, textures: Path) -> None:
    """With the classifier of the last checkpoint, where that is the same step."""
    recipe = load(textures, "run.steps=6")
    task = Classification(recipe, textures)
    header = task.begin(lambda _: None)
    scores = task.validate(task.network.eval(), header, "cpu")
    assert task.validate(task.network, header, "cpu") == scores
    last = read_checkpoint(pretrained / LAST, EncoderHeader)
    task.network.load_state_dict(last.part("model"))
    again = task.validate(task.network.eval(), header, "cpu")
    assert again == {key: value for key, value in last.header.scores.items() if key != "step"}


@pytest.mark.parametrize("decoder", ["unet", "pmcanet", "linknet", "deeplabv3+"])
def test_the_encoder_goes_into_every_decoder(pretrained: Path, decoder: str) -> None:
    network = build_model(f"{decoder}:tu-resnet10t", 1, 3)
    report = load_encoder_weights(network, pretrained / ENCODER)
    assert not report.missing
    assert not report.unused
    stored = read_checkpoint(pretrained / ENCODER, EncoderHeader).tensors
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, stored[name])


def test_other_input_channels_are_adapted_and_other_encoders_refused(pretrained: Path) -> None:
    report = load_encoder_weights(build_model("unet:tu-resnet10t", 3, 2), pretrained / ENCODER)
    assert len(report.adapted) == 1
    with pytest.raises(ModelError, match=r"nothing in .* fits the encoder"):
        load_encoder_weights(build_model("unet:mobilenet_v2", 1, 2), pretrained / ENCODER)


def test_a_segmentation_begins_with_it(pretrained: Path, textures: Path, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    image = draw_texture("stripes", 3)
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    Image.fromarray((image > 128).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\nclasses = [{ name = "dark", color = "#000000" }, { name = "light", color = "#ffffff" }]\n'
        '[network]\narchitecture = "unet:tu-resnet10t"\n[train]\nimages = "images"\nmasks = "masks"\n'
        '[validation]\nimages = "images"\nmasks = "masks"\n[sampling]\ncrop = 32\nbatch = 2\n'
        '[optimizer]\nkind = "sgd"\nrate = 1e-12\n[run]\nsteps = 1\n[inference]\ntile = 64\noverlap = 0\n'
    )
    weights = f"network.weights={pretrained / ENCODER}"
    assert main(["train", str(recipe), "--set", weights, "-o", str(tmp_path / "out")]) == 0
    learned = load_checkpoint(tmp_path / "out" / "best.safetensors").part("model")
    stored = read_checkpoint(pretrained / ENCODER, EncoderHeader).tensors
    name = next(name for name in stored if name.endswith("conv1.weight"))
    torch.testing.assert_close(learned[f"encoder.{name}"], stored[name])


def test_stopped_between_validations_it_ends_with_the_same_weights(
    pretrained: Path, textures: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop_at(step: int) -> Any:
        def report(progress: Any) -> None:
            if progress.step == step:
                raise Stop

        return report

    for step in (3, 8, 18):
        with pytest.raises(Stop):
            pretrain(load(textures), textures, tmp_path, report=stop_at(step))
    pretrain(load(textures), textures, tmp_path)
    for name in (ENCODER, LAST):
        one, two = (read_checkpoint(folder / name, EncoderHeader) for folder in (pretrained, tmp_path))
        assert one.header == two.header
        assert one.tensors.keys() == two.tensors.keys()
        assert all(torch.equal(one.tensors[key], two.tensors[key]) for key in one.tensors)
    assert (pretrained / "log.csv").read_text() == (tmp_path / "log.csv").read_text()


def test_another_recipe_or_a_segmentation_in_the_folder_is_refused(pretrained: Path, textures: Path) -> None:
    with pytest.raises(ResumeError, match="another sampling"):
        pretrain(load(textures, "sampling.balance=0.0"), textures, pretrained)
    with pytest.raises(ModelError, match="header is not valid"):
        load_checkpoint(pretrained / LAST)


def test_what_does_not_fit_together_is_said_before_anything_starts(textures: Path, tmp_path: Path) -> None:
    for overrides, said in (
        (["sampling.crop=40"], "not a multiple of 32"),
        (["data.train=nowhere"], "no such folder.*nowhere"),
        (["classes=['noise', 'clouds']"], "clouds"),
        (["data.validation=val"], "no such folder.*val"),
        (["network.encoder=resnet17"], "unknown encoder 'resnet17'.*resnet18"),
        (["network.weights=none.safetensors"], "no weights file"),
    ):
        with pytest.raises((InputError, ModelError), match=said):
            pretrain(load(textures, *overrides), textures, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for override, said in (
        ("network.architecture=unet", "architecture"),
        ("data.held_back=1.0", "held_back"),
        ("sampling.side=-1", "side"),
        ("network.dropout=1", "dropout"),
        ("classes=['noise']", "at least two"),
        ("augmentation.blur=20.0", "blur"),
        ("run.epochs=3", "epochs"),
    ):
        with pytest.raises(RecipeError, match=said):
            load(textures, override)


def test_recipes_are_for_one_command(textures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(shipped_recipes("pretrain")) == {"materials", "moco", "nasa-classification"}
    assert not set(shipped_recipes()) & set(shipped_recipes("pretrain"))
    for name in shipped_recipes("pretrain"):
        recipe = load_pretraining(name)
        assert recipe.name == name
        assert Pretraining.from_json(recipe.to_json()) == recipe
    assert main(["train", "nasa-classification"]) == 2
    assert "for `tilelab pretrain`" in capsys.readouterr().err
    assert main(["pretrain", "superalloy"]) == 2
    assert "for `tilelab train`" in capsys.readouterr().err
    assert main(["pretrain", "nonesuch"]) == 2
    assert "materials" in capsys.readouterr().err


def test_the_paper_s_values() -> None:
    recipe = load_pretraining("nasa-classification")
    assert (recipe.optimizer.kind, recipe.optimizer.momentum, recipe.optimizer.rate) == ("sgd", 0.9, 0.1)
    assert recipe.optimizer.weight_decay == 1e-4
    assert (recipe.schedule.kind, recipe.schedule.factor) == ("step", 0.9)
    assert recipe.schedule.every == 30 * recipe.run.validate
    assert recipe.run.patience == 30


def test_held_back_images_depend_on_the_seed_alone(textures: Path) -> None:
    data = ImageFolders("train", held_back=0.25)
    names, train, held_back = split_images(data, textures, (), 1)
    assert names == ["noise", "stripes"]
    assert [image.label for image in held_back] == [0, 0, 1, 1]
    assert len(train) == 12
    assert not {image.path for image in train} & {image.path for image in held_back}
    assert split_images(data, textures, (), 1)[2] == held_back
    assert any(split_images(data, textures, (), seed)[2] != held_back for seed in range(2, 6))
    assert split_images(data, textures, ("stripes", "noise"), 1)[0] == ["stripes", "noise"]


def test_the_star_stands_for_the_class(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / "sets" / name / "train").mkdir(parents=True)
    assert find_classes("sets/*/train", tmp_path) == {n: tmp_path / "sets" / n / "train" for n in "ab"}
    assert find_classes("sets", tmp_path, ("b", "a")) == {n: tmp_path / "sets" / n for n in "ba"}
    for pattern in ("sets/x*/train", "*/*", "sets/*x"):
        with pytest.raises(InputError, match=r"one \*"):
            find_classes(pattern, tmp_path)
    (tmp_path / "sets" / "a").rename(tmp_path / "gone")
    with pytest.raises(InputError, match="holds 1 folders"):
        find_classes("sets/*/train", tmp_path)


def test_views_are_the_middle_and_the_corners(textures: Path) -> None:
    task = Classification(load(textures), textures)
    image = np.arange(64 * 80, dtype=np.float32).reshape(64, 80) / 255
    from tilelab.io.images.open import open_image
    from tilelab.io.images.volume import Volume
    from tilelab.spec import Normalization
    from tilelab.training.crops import CropSource

    plain = Normalization(mean=(0.0,), std=(1.0,), dtype="float32")
    views = task.views(CropSource(Volume(open_image(image, axes="yx")), plain, 1))
    corners = [image[16:48, 24:56], image[:32, :32], image[:32, -32:], image[-32:, :32], image[-32:, -32:]]
    np.testing.assert_allclose(views[:, 0], np.stack(corners), atol=1e-4)
    one = task.views(CropSource(Volume(open_image(image[:32, :32], axes="yx")), plain, 1))
    assert len(one) == 1


def test_images_are_brought_to_one_size_where_asked(textures: Path) -> None:
    task = Classification(load(textures, "sampling.side=32"), textures)
    with task.images.open(0) as source:
        assert task._extent(source) == min(source.shape)
        assert task._extent(source, 2.0) == round(min(source.shape) / 2)
        assert task.views(source).shape[1:] == (1, 32, 32)
