"""Integrated gradients against networks whose gradient is known, their completeness, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

torch = pytest.importorskip("torch", reason="extra `train` is not installed")
pytest.importorskip("captum", reason="extra `attribute` is not installed")

from tilelab.cli import main  # noqa: E402
from tilelab.errors import InputError, ModelError  # noqa: E402
from tilelab.io import open_image  # noqa: E402
from tilelab.io.images.volume import Volume  # noqa: E402
from tilelab.spec import ClassInfo, ModelSpec, Normalization  # noqa: E402
from tilelab.training.attribution import KINDS, Attribution, Field, Sample, kinds, mean_field, summarise  # noqa: E402
from tilelab.training.attribution_pictures import draw_kinds  # noqa: E402

CLASSES = (ClassInfo("background", "#000000"), ClassInfo("cell", "#ff0000"))


def spec_of(**fields: Any) -> ModelSpec:
    known: dict[str, Any] = {
        "classes": CLASSES, "tile": (32, 32), "overlap": (8, 8), "tile_fixed": False, "receptive_field": 5,
        "normalization": Normalization(mean=(10.0,), std=(4.0,)),
    }  # fmt: skip
    return ModelSpec(**known | fields)


class Linear(torch.nn.Module):
    """Class 1 is a 5 x 5 filter of the image, class 0 nothing."""

    def __init__(self, kernel: Any) -> None:
        super().__init__()
        self.kernel = torch.as_tensor(kernel, dtype=torch.float32)[None, None]

    def forward(self, x: Any) -> Any:
        found = torch.nn.functional.conv2d(x[:, :1], self.kernel, padding=2)
        return torch.cat([torch.zeros_like(found), found], 1)


class Squared(torch.nn.Module):
    """Class 1 is the square of each pixel: the gradient is twice its value."""

    def forward(self, x: Any) -> Any:
        return torch.cat([torch.zeros_like(x), x**2 - 4], 1)


def random_image(seed: int, shape: tuple[int, int] = (60, 70)) -> Any:
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def ask(image: Any, network: Any, at: tuple[int, int], **options: Any) -> Attribution:
    spec = options.pop("spec", spec_of())
    options.setdefault("side", 32)
    return Attribution(network.eval(), spec, Volume(open_image(image)), (0, *at), **options)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 59), st.integers(0, 69))
def test_of_a_linear_network_it_is_weight_times_input(seed: int, y: int, x: int) -> None:
    """Wherever the pixel lies, at the edges too."""
    kernel = np.random.default_rng(seed).normal(size=(5, 5)).astype(np.float32)
    image = random_image(seed)
    asked = ask(image, Linear(kernel), (y, x), steps=3)
    found = asked.explain((y, x), 1)
    wanted = np.zeros((60, 70))
    scaled = (image.astype(float) - 10) / 4
    oy, ox = asked.origin
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            v, u = y + dy, x + dx
            if oy <= v < oy + 32 and ox <= u < ox + 32:
                wanted[v, u] = kernel[dy + 2, dx + 2] * scaled[v, u]
    np.testing.assert_allclose(found.values, wanted[oy : oy + 32, ox : ox + 32], atol=2e-3, rtol=1e-4)
    assert abs(found.values.sum() - (found.logit - found.baseline_logit)) < 1e-2
    assert 0 <= oy <= 60 - 32
    assert 0 <= ox <= 70 - 32
    assert oy <= y < oy + 32
    assert ox <= x < ox + 32


@pytest.mark.parametrize("steps", [2, 10, 100])
def test_a_right_sum_of_a_square_is_too_large_by_one_step(steps: int) -> None:
    """sum of 2 (i / n) / n over i = 1 to n is 1 + 1 / n, where the integral is 1."""
    image = random_image(1)
    found = ask(image, Squared(), (20, 30), steps=steps).explain((20, 30), 1)
    inside = (20 - found.origin[0], 30 - found.origin[1])
    value = ((float(image[20, 30]) - 10) / 4) ** 2
    assert found.values[inside] == pytest.approx(value * (1 + 1 / steps), rel=1e-4)
    assert np.count_nonzero(found.values) == 1
    assert found.residue == pytest.approx(1 / steps, rel=1e-3)
    assert found.pixels() == found.magnitude_pixels() == 1


def test_completeness_of_a_network_that_is_not_linear() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Softplus(), torch.nn.Conv2d(8, 2, 3, padding=1)
    )
    asked = ask(random_image(2), layers, (31, 31), steps=200)
    found = asked.explain((31, 31))
    assert abs(found.residue) < 0.02
    again = ask(random_image(2), layers, (31, 31), steps=200).explain((31, 31))
    assert np.array_equal(found.values, again.values)
    assert found.label == int(asked.labels[31 - found.origin[0], 31 - found.origin[1]])


def test_a_crop_of_what_a_pixel_sees_gives_the_same_field() -> None:
    kernel = np.random.default_rng(0).normal(size=(5, 5))
    small, large = (ask(random_image(7), Linear(kernel), (30, 30), steps=2, side=side) for side in (None, 32))
    one, other = (asked.explain((30, 30), 1) for asked in (small, large))
    assert small.side == 6
    assert one.logit == pytest.approx(other.logit, rel=1e-5)
    assert one.pixels() == other.pixels()


def test_black_begins_at_intensity_zero() -> None:
    kernel = np.zeros((5, 5), np.float32)
    kernel[2, 2] = 1
    image = random_image(3)
    found = ask(image, Linear(kernel), (9, 9), baseline="black", steps=2).explain((9, 9), 1)
    assert found.baseline_logit == pytest.approx(-10 / 4)
    assert found.values[9 - found.origin[0], 9 - found.origin[1]] == pytest.approx(image[9, 9] / 4, rel=1e-4)


def test_images_smaller_than_the_crop_are_reflected() -> None:
    image = random_image(4, (20, 70))
    asked = ask(image, Squared(), (3, 60), steps=2)
    assert asked.origin[0] == -6
    rows = np.abs(np.arange(-6, 26))
    rows = np.where(rows > 19, 38 - rows, rows)
    assert np.array_equal(asked.grey, image[rows][:, asked.origin[1] : asked.origin[1] + 32])
    assert asked.explain((3, 60), 1).values[9, 60 - asked.origin[1]] != 0


def test_a_sigmoid_has_a_logit_for_its_first_class() -> None:
    class Half(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 0.5

    image = random_image(5)
    asked = ask(image, Half(), (9, 9), spec=spec_of(activation="sigmoid"), steps=2)
    one, none = asked.explain((9, 9), 1), asked.explain((9, 9), 0)
    assert np.allclose(one.values, -none.values)
    there = int(asked.labels[9 - asked.origin[0], 9 - asked.origin[1]])
    assert there == int(image[9, 9] > 10)


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(InputError, match="outside"):
        ask(random_image(0), Squared(), (60, 3))
    with pytest.raises(ModelError, match="stride 4"):
        ask(random_image(0), Squared(), (5, 3), spec=spec_of(stride=4), side=30)
    volume = spec_of(axes="zyx", tile=(8, 32, 32), overlap=(0, 8, 8))
    with pytest.raises(ModelError, match="2-D"):
        ask(random_image(0), Squared(), (5, 3), spec=volume)
    with pytest.raises(ModelError, match="0 to 1"):
        ask(random_image(0), Squared(), (5, 3)).explain((5, 3), 2)


def field_at(y: int, x: int, values: Any) -> Field:
    return Field((y, x), 1, (0, 0), np.asarray(values, np.float32), 1.0, 0.0)


def test_s_k_counts_weights_above_the_share_of_the_strongest() -> None:
    found = field_at(0, 0, [[2.0, 0.021, 0.019], [-0.5, -0.01, 0.0]])
    assert found.pixels(0.01) == 2
    assert found.magnitude_pixels(0.01) == 3
    assert field_at(0, 0, np.zeros((2, 2))).pixels() == 0
    samples = [Sample("correct", field_at(1, 1, np.ones((3, 3)))), Sample("correct", found)]
    told = summarise(samples, 4.0)
    assert told == {
        "correct": {"pixels": 2.0, "mean": 22.0, "sd": pytest.approx(np.std([36, 8], ddof=1)), "median": 22.0}
    }


def test_the_mean_field_is_around_the_pixel() -> None:
    values = np.zeros((9, 9))
    values[2, 7], values[3, 7] = 1, 0.5
    mean = mean_field([Sample("correct", field_at(2, 7, values))], "correct", 4)
    assert mean.shape == (4, 4)
    assert (mean[2, 2], mean[3, 2]) == (1, 0.5)
    assert mean.sum() == 1.5
    assert draw_kinds([Sample("correct", field_at(2, 7, values))], "title", 1.0, "px2").width > 300


def test_kinds_are_what_a_confusion_matrix_counts() -> None:
    labels, truth = np.array([[1, 1, 0, 0]], np.uint8), np.array([[1, 0, 1, 0]], np.uint8)
    found = kinds(labels, truth, 1)
    assert [found[kind].tolist() for kind in KINDS] == [
        [[True, False, False, False]], [[False, True, False, False]], [[False, False, True, False]]
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an image and its truth."""
    from tilelab.sample import draw_superalloy
    from tilelab.training.recipe import load_recipe
    from tilelab.training.segmentation import train

    folder = tmp_path_factory.mktemp("attribution")
    image, truth = draw_superalloy((128, 160), seed=1)
    truth = np.minimum(truth, 1)
    for split in ("train", "val"):
        for what, pixels in (("images", image), ("masks", truth)):
            (folder / split / what).mkdir(parents=True)
            Picture.fromarray(pixels).save(folder / split / what / "a.png")
    tifffile.imwrite(folder / "drawn.tif", image)
    tifffile.imwrite(folder / "truth.tif", truth)
    recipe = load_recipe("membrane", [
        "network.options={widths=[4, 8]}", "sampling.crop=32", "sampling.batch=2",
        "run.steps=2", "run.validate=2", "schedule.warmup=0", "inference.tile=64", "inference.overlap=16",
    ])  # fmt: skip
    train(recipe, folder, folder / "run")
    return folder


def test_the_command_draws_tells_and_writes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    words = ["attribute", "drawn.tif", "--model", "run/best.safetensors", "--at", "64,100", "--steps", "4"]
    words += ["--truth", "truth.tif", "--class", "1", "--pixels", "2", "--pixel-size", "2.5"]
    outs = ["-o", str(tmp_path / "f.tif"), "--json", str(tmp_path / "f.json"), "--pictures", str(tmp_path / "look")]
    assert main([*words, *outs]) == 0
    said = capsys.readouterr().out
    document = json.loads((tmp_path / "f.json").read_text())
    assert document["class"] in said
    values = tifffile.imread(tmp_path / "f.tif")
    assert values.shape == (20, 20)  # all that the pixel sees
    weights = values / np.abs(values).max()
    assert document["s_k_nm2"] == pytest.approx(np.count_nonzero(weights > 0.01) * 6.25)
    assert (tmp_path / "look" / "drawn.field.png").exists()
    assert document["kinds"] == {} or (tmp_path / "look" / "drawn.kinds.png").exists()
    assert main([*words, "--json", str(tmp_path / "g.json")]) == 0
    assert json.loads((tmp_path / "g.json").read_text()) == document


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--at", "400,2"], "outside"),
        (["--at", "4,2", "--class", "gold"], "no class 'gold'"),
        (["--at", "4,2", "-o", "f.png"], "NAME.tif"),
        (["--at", "4,2", "--share", "2"], "between 0 and 1"),
        (["--at", "4,2", "--steps", "1"], "2 or more"),
        (["--at", "4,2", "-o", "truth.tif"], "truth.tif"),
    ],
)
def test_the_command_refuses(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    monkeypatch.chdir(trained)
    assert main(["attribute", "drawn.tif", "--model", "run/best.safetensors", "--truth", "truth.tif", *words]) == 2
    assert told in capsys.readouterr().err


def test_an_engine_file_has_no_gradients(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribute", str(trained / "drawn.tif"), "--model", "superalloy", "--at", "4,2"]) == 2
    assert "checkpoint" in capsys.readouterr().err
