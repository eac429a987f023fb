"""Networks with sigmoid outputs: one yes or no per class but the background; trained, validated, exported, used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from tilelab.cli.main import main  # noqa: E402
from tilelab.spec import ClassInfo, ModelSpec, Normalization  # noqa: E402
from tilelab.training import losses  # noqa: E402
from tilelab.training.checkpoint import load_checkpoint, load_network  # noqa: E402
from tilelab.training.engine import TorchEngine  # noqa: E402
from tilelab.training.pairs import make_pair, open_pairs  # noqa: E402
from tilelab.training.recipe import LossTerm, Recipe, RecipeError, load_recipe  # noqa: E402
from tilelab.training.sections import IGNORE  # noqa: E402
from tilelab.training.segmentation import train  # noqa: E402
from tilelab.training.validate import validate  # noqa: E402

KINDS = ["cross-entropy", "balanced-cross-entropy", "dice", "focal"]
LEVELS = (60, 130, 200)


pytestmark = pytest.mark.usefixtures("one_thread")


def draw(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles of one grey level per class on a dark ground."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((96, 96), np.uint8)
    for k in range(8):
        y, x = rng.integers(0, 76, 2)
        mask[y : y + 20, x : x + 20] = k % classes
    image = np.array(LEVELS)[mask] + rng.normal(0, 8, mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module", params=[2, 3])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with two training pairs and one for validation, and the number of classes."""
    root = tmp_path_factory.mktemp(f"rectangles{request.param}")
    for part, seeds in (("train", (0, 1)), ("val", (2,))):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for seed in seeds:
            for kind, plane in zip(("images", "masks"), draw(seed, request.param), strict=True):
                Image.fromarray(plane).save(root / part / kind / f"{seed}.png")
    return root, request.param


def recipe_for(root: Path, classes: int, *overrides: str) -> Recipe:
    names = ", ".join(f'{{ name = "c{k}", color = "#0000{k:02x}" }}' for k in range(classes))
    path = root / "recipe.toml"
    path.write_text(
        f'name = "yes-or-no"\nclasses = [{names}]\n'
        """
[network]
architecture = "unet"
options = { widths = [8, 12] }
[train]
images = "train/images"
masks = "train/masks"
[validation]
images = "val/images"
masks = "val/masks"
[sampling]
crop = 32
batch = 4
[[loss]]
kind = "balanced-cross-entropy"
weight = 0.7
[[loss]]
kind = "dice"
weight = 0.3
[optimizer]
rate = 0.02
[run]
steps = 60
validate = 30
average = 0.9
[inference]
tile = 64
overlap = 16
activation = "sigmoid"
"""
    )
    return load_recipe(str(path), list(overrides))


@pytest.fixture(scope="module")
def trained(data: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    return train(recipe_for(*data), data[0], output)


def test_it_learns_with_an_output_less_than_classes(data: tuple[Path, int], trained: Path) -> None:
    root, classes = data
    checkpoint = load_checkpoint(trained)
    network = load_network(checkpoint)
    assert checkpoint.header.spec.activation == "sigmoid"
    assert network(torch.zeros(1, 1, 32, 32)).shape[1] == classes - 1 == checkpoint.header.spec.values
    assert checkpoint.header.scores["mean_iou"] > 0.75
    pairs = open_pairs(checkpoint.header.recipe.validation, root, classes)
    scores = validate(TorchEngine(network, checkpoint.header.spec), pairs)
    assert scores["mean_iou"] == checkpoint.header.scores["mean_iou"]


def test_it_is_exported_and_used(data: tuple[Path, int], trained: Path, tmp_path: Path) -> None:
    """`tilelab infer` gives the labels that validation scored."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tilelab.evaluation import evaluate, find_pairs

    root, _ = data
    model, result = tmp_path / "m.onnx", tmp_path / "r.ome.zarr"
    val = root / "val"
    assert main(["export", str(trained), "--data", str(root), "-o", str(model)]) == 0
    assert main(["infer", str(val / "images" / "2.png"), "--model", str(model), "-o", str(result)]) == 0
    evaluation = evaluate(find_pairs(result, val / "masks" / "2.png")[0])
    expected = load_checkpoint(trained).header.scores["mean_iou"]
    assert evaluation.pooled.mean_iou == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_falls(data: tuple[Path, int], tmp_path: Path, kind: str) -> None:
    root, classes = data
    seen: list[float] = []
    changes = [f"loss=[{{ kind = '{kind}' }}]", "run.steps=12", "run.validate=12"]
    train(recipe_for(root, classes, *changes), root, tmp_path, report=lambda p: seen.append(p.loss))
    assert np.mean(seen[-3:]) < seen[0]


class Thresholds(torch.nn.Module):
    """Class 1 above 0.25, class 2 above 0.65 and then surer of itself than class 1 is."""

    def forward(self, x: Any) -> Any:
        return torch.cat([x - 0.25, 10 * (x - 0.65)], dim=1)


def test_background_is_where_nothing_says_yes() -> None:
    spec = ModelSpec(
        classes=tuple(ClassInfo(name, "#000000") for name in "abc"),
        activation="sigmoid",
        tile=(32, 32),
        overlap=(8, 8),
        normalization=Normalization(mean=(0.0,), std=(255.0,)),
    )
    rng = np.random.default_rng(0)
    mask = np.repeat(np.repeat(rng.integers(0, 3, (10, 12), dtype=np.uint8), 5, axis=0), 5, axis=1)
    image = np.array([0, 120, 250], np.uint8)[mask]
    scores = validate(TorchEngine(Thresholds(), spec), [make_pair("p", image, mask)])
    assert scores["iou"] == {"a": 1.0, "b": 1.0, "c": 1.0}


# --- losses


def example(ignored: bool = False) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 5, 7, generator=generator)
    target = torch.randint(0, 3, (2, 5, 7), generator=generator)
    if ignored:
        target[:, :2] = IGNORE
    return logits, target


def total(kind: Any, logits: Any, target: Any, **options: Any) -> float:
    return float(losses.weighted_sum([LossTerm(kind, **options)], logits, target, "sigmoid"))


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_count_for_nothing(kind: str) -> None:
    logits, target = example(ignored=True)
    assert total(kind, logits, target) == pytest.approx(total(kind, logits[:, :, 2:], target[:, 2:]), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_has_the_least_loss(kind: str) -> None:
    logits, target = example()
    perfect = 40.0 * (target[:, None] == torch.tensor([1, 2])[:, None, None]) - 20.0
    assert total(kind, perfect, target) < 1e-3
    assert total(kind, logits, target) > 0.1


def test_cross_entropy_is_that_of_each_yes_or_no() -> None:
    logits, target = example()
    truth = torch.stack([target == 1, target == 2], dim=1).float()
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=(0, 2, 3))
    assert total("cross-entropy", logits, target) == pytest.approx(float(each.mean()), rel=1e-6)
    weighted = total("cross-entropy", logits, target, class_weights=(3.0, 1.0))
    assert weighted == pytest.approx(float((3 * each[0] + each[1]) / 4), rel=1e-6)
    assert total("focal", logits, target, gamma=0.0) == pytest.approx(float(each.mean()), rel=1e-6)


def test_balance_weighs_yes_and_no_alike() -> None:
    target = torch.tensor([[[0, 0, 0, 1]]])
    logits = torch.full((1, 1, 1, 4), -1.0)
    no, yes = (-float(torch.nn.functional.logsigmoid(torch.tensor(v))) for v in (1.0, -1.0))
    assert total("balanced-cross-entropy", logits, target) == pytest.approx((no + yes) / 2)
    assert total("balanced-cross-entropy", logits[..., :3], target[..., :3]) == pytest.approx(no)
    assert total("cross-entropy", logits, target) == pytest.approx((3 * no + yes) / 4)


def test_focal_looks_at_what_is_doubtful() -> None:
    target = torch.tensor([[[1, 1]]])
    logits = torch.tensor([4.0, 0.0]).reshape(1, 1, 1, 2)
    p = torch.sigmoid(torch.tensor([4.0, 0.0]))
    assert total("focal", logits, target, gamma=2.0) == pytest.approx(
        float((-((1 - p) ** 2) * p.log()).mean()), rel=1e-5
    )


def test_class_weights_are_one_per_output(data: tuple[Path, int]) -> None:
    root, classes = data
    weights = [1.0] * classes
    with pytest.raises(RecipeError, match=f"{classes} entries for {classes - 1} outputs"):
        recipe_for(root, classes, f"loss=[{{ kind = 'focal', class_weights = {weights} }}]")
