"""The page of results: what `python -m benchmarks.trained.results` trains and collects."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from benchmarks.trained.results import find_set, main, seconds_of  # noqa: E402
from benchmarks.trained.results_page import draw_example, to_markdown  # noqa: E402
from tilelab.errors import InputError  # noqa: E402
from tilelab.evaluation import Pair  # noqa: E402
from tilelab.spec import ClassInfo  # noqa: E402
from tilelab.training.checkpoint import load_checkpoint  # noqa: E402

RECIPE = """
name = "cells"
classes = [{ name = "inside", color = "#000000" }, { name = "membrane", color = "#f5a623" }]
[network]
architecture = "unet"
options = { widths = [6, 8] }
[train]
images = "train/images"
masks = "train/masks"
labels = "0:1"
[validation]
images = "val/images"
masks = "val/masks"
labels = "0:1"
[sampling]
crop = 32
batch = 4
[optimizer]
rate = 0.02
[run]
steps = 16
validate = 8
threads = 1
[inference]
tile = 64
overlap = 16
"""


def draw_cells(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark lines around bright cells, and a mask that is black on lines."""
    rng = np.random.default_rng(seed)
    lines = np.zeros((72, 90), bool)
    lines[rng.integers(8, 20) :: 24] = True
    lines[:, rng.integers(8, 20) :: 24] = True
    lines[1:] |= lines[:-1]
    image = np.clip(170 - 90 * lines + rng.normal(0, 12, lines.shape), 0, 255)
    return image.astype(np.uint8), np.where(lines, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """The page, the folder of runs and the records of two trainings that differ by their seed."""
    root = tmp_path_factory.mktemp("results")
    for part, seeds in (("train", (0, 1)), ("val", (2, 3)), ("test", (4,))):
        for kind in ("images", "masks"):
            (root / "data" / "cells" / part / kind).mkdir(parents=True)
        for seed in seeds:
            for kind, plane in zip(("images", "masks"), draw_cells(seed), strict=True):
                Image.fromarray(plane).save(root / "data" / "cells" / part / kind / f"{seed}.png")
    recipe, runs, page = root / "cells.toml", root / "runs", root / "out" / "accuracy.md"
    recipe.write_text(RECIPE)
    data = ["--data", str(root / "data")]
    assert main(["train", f"{recipe}=cells", *data, "--runs", str(runs), "--seeds", "1,2"]) == 0
    assert main(["collect", str(runs), *data, "-o", str(page)]) == 0
    return page, runs, json.loads(page.with_suffix(".json").read_text())


def test_scores_are_those_of_the_checkpoints(collected: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    _, runs, records = collected
    assert [record["run"] for record in records] == ["cells-seed1", "cells-seed2"]
    for record in records:
        header = load_checkpoint(runs / record["run"] / "best.safetensors").header
        assert record["mean_iou"] == pytest.approx(header.scores["mean_iou"], abs=1e-4)
        assert record["iou"]["membrane"] == pytest.approx(header.scores["iou"]["membrane"], abs=1e-4)
        assert record["seed"] == header.recipe.seed
        assert record["parameters"] == header.spec.training["parameters"]
        assert 0 < record["isbi"]["v_rand"] <= 1
        assert record["training_seconds"] > 0
        assert "benchmarks.trained.results train" in record["command"]
        assert record["ended"] is True
    assert records[0]["same"] == records[1]["same"]


def test_the_page_has_a_row_for_each_run_and_one_for_the_experiment(
    collected: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    page, _, records = collected
    text = page.read_text()
    for record in records:
        assert f"| {record['run']} | unet |" in text
        assert f"**{record['mean_iou']:.4f}**" in text
    assert "IoU membrane" in text
    assert "V_rand" in text
    mean = np.mean([record["mean_iou"] for record in records])
    assert f"| cells | 1, 2 | {mean:.4f} ±" in text or f"| cells | 2, 1 | {mean:.4f} ±" in text
    assert "![cells](accuracy-cells.png)" in text
    picture = page.with_name("accuracy-cells.png")
    assert picture.stat().st_size < 200_000
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 4 * 300


def test_a_held_out_split_is_scored_on_its_own(
    collected: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    page, runs, _ = collected
    data = ["--data", str(page.parents[1] / "data"), "--split", "test", "--no-pictures"]
    assert main(["collect", str(runs / "cells-seed1"), *data, "-o", str(tmp_path / "test.md")]) == 0
    (record,) = json.loads((tmp_path / "test.json").read_text())
    assert (record["split"], record["images"]) == ("test", 1)
    assert record["mean_iou_while_training"] is None
    assert not list(tmp_path.glob("*.png"))


def test_what_cannot_be_done_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(tmp_path), "--data", str(tmp_path), "-o", str(tmp_path / "a.md")]) == 2
    assert "no best.safetensors" in capsys.readouterr().err
    assert main(["train", "superalloy=nowhere", "--data", str(tmp_path)]) == 2
    assert "RECIPE=SET" in capsys.readouterr().err
    assert find_set("superalloy-pmcanet", ["super", "superalloy"]) == "superalloy"
    with pytest.raises(InputError, match="--set-of"):
        find_set("discs", ["axon"])


def test_time_is_read_off_the_log_of_other_runs(tmp_path: Path) -> None:
    assert seconds_of(tmp_path) is None
    (tmp_path / "tensorboard").mkdir()
    for began, ended in ((1000, 1060), (2000, 2030)):
        path = tmp_path / "tensorboard" / f"events.out.tfevents.{began}.host.1.0"
        path.touch()

        os.utime(path, (ended, ended))
    assert seconds_of(tmp_path) == 90


def test_errors_keep_their_colours(tmp_path: Path) -> None:
    """However rare: one pixel too much and one missed."""
    image = np.random.default_rng(0).integers(0, 256, (60, 60)).astype(np.uint8)
    truth, labels = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
    labels[10:16, 10:16] = 1
    truth[40:46, 40:46] = 1
    for name, plane in (("image", image), ("truth", truth), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", plane)
    pair = Pair("p", tmp_path / "labels.npy", tmp_path / "truth.npy", tmp_path / "image.npy")
    classes = (ClassInfo("a", "#000000"), ClassInfo("b", "#f5a623"))
    draw_example(pair, classes, tmp_path / "out.png", "caption", ignore=255)
    with Image.open(tmp_path / "out.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    errors = pixels[18:348, 3 * 336 :]
    extra, missed = errors[57:85, 57:85].mean(axis=(0, 1)), errors[222:250, 222:250].mean(axis=(0, 1))
    assert min(extra[1], extra[2]) > extra[0] + 100
    assert min(missed[0], missed[2]) > missed[1] + 100


def test_a_page_without_times_or_repeats() -> None:
    record = {
        "run": "r", "dataset": "d", "recipe": "r", "same": "x", "architecture": "unet", "weights": "w.pth",
        "training_images": 3, "images": 1, "parameters": None, "seed": 0, "steps": 5, "best_step": 4,
        "training_seconds": None, "pixel_accuracy": 0.5, "mean_iou": 0.25, "iou": {"a": None}, "foreground_f1": 0.1,
        "isbi": None, "mean_iou_while_training": 0.5, "ended": False,
    }  # fmt: skip
    text = to_markdown([record], {}, "command")
    assert "| r | unet from w.pth | - | 3 + 1 | 0 | 4 of 5 | - | 0.5000 | **0.2500** | - | 0.1000 |" in text
    assert "measured a mean IoU of 0.5000" in text
    assert "has not ended" in text
