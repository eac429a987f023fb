"""The pages of trained networks: what is measured once stays, what is missing is said, budgets are equal."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from benchmarks.trained import ceiling, compare, models, recipes, runs, speed, time_to_score  # noqa: E402
from tilelab.sample import draw_superalloy  # noqa: E402
from tilelab.training.checkpoint import load_checkpoint  # noqa: E402
from tilelab.training.deviations import deviations  # noqa: E402
from tilelab.training.log import LAST  # noqa: E402
from tilelab.training.loop import StepReport  # noqa: E402
from tilelab.training.recipe import Recipe, load_recipe  # noqa: E402


def test_budgets_are_equal() -> None:
    """Of all trainings on one set, nothing differs but network, seed and the weights of the loss."""
    for data in compare.SETS:
        documents = []
        for chosen in (*compare.NETWORKS, *compare.ABLATIONS):
            document = msgspec.to_builtins(compare.variant(data, chosen, 2))
            documents.append({k: v for k, v in document.items() if k not in ("network", "loss")})
            assert {term["kind"] for term in document["loss"]} <= {"cross-entropy", "dice"}
        assert all(document == documents[0] for document in documents)


def test_every_wanted_training_comes_once_and_comparisons_first() -> None:
    wanted = list(compare.wanted())
    assert len(set(wanted)) == len(wanted)
    assert len(wanted) == 3 * (2 * len(compare.NETWORKS) + len(compare.ABLATIONS))
    assert {chosen for _, chosen, _ in wanted[: 6 * len(compare.NETWORKS)]} == set(compare.NETWORKS)


def test_a_page_says_how_many_seeds_it_has() -> None:
    page = compare.as_markdown(
        {
            ("superalloy", "PmcaNet"): {1: (0.8, 0.9), 2: (0.82, 0.92), 3: (0.84, 0.94)},
            ("superalloy", "bin 1"): {3: (0.83, 0.93)},
            ("membrane", "U-Net"): {1: (0.5, 0.75)},
            ("superalloy", "U-Net"): {2: (0.83, 0.9), 3: (0.83, 0.9)},
        }
    )
    pmcanet, unet, part = (
        next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        for name in ("PmcaNet", "U-Net", "bin 1")
    )
    assert "| 0.8200 (0.8000 to 0.8400) |" in pmcanet
    assert pmcanet.endswith("| - |  | - |")
    assert "| 0.8300 (0.8300 to 0.8300, 2 seeds) | +0.0000 (-0.0100 to +0.0100, 2 seeds) |" in unet
    assert unet.endswith("| 0.5000 (one seed) | - | 0.7500 (one seed) |")
    assert part == "| bin 1 | 0.8300 (one seed) | -0.0100 (one seed) |", "beside the same seed, not beside the mean"


def test_rows_that_are_not_asked_for_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (models.Entry("unet"), models.Entry("pidnet", {"size": "s"}, paper=7.6), models.Entry("linknet:resnet18"))

    def fake(entry: models.Entry, _: Path) -> models.Row:
        return models.Row(entry.title, entry.paper, len(calls), 1e3, 8, 1.0, 0.5, 1.0, (), ("fp32",), 0.0, 1.0)

    calls: list[str] = []
    monkeypatch.setattr(models, "examine", lambda entry, folder: calls.append(entry.title) or fake(entry, folder))
    monkeypatch.setattr(models, "_line", lambda row: f"| `{row.name}` | {row.parameters} | {row.paper} |")
    table = tmp_path / "models.md"
    models.write_table(table, entries[:2])
    models.write_table(table, entries, only=("pidnet", "linknet"))
    rows = [line for line in table.read_text().splitlines() if line.startswith("| `")]
    assert rows == ["| `unet` | 1 | None |", "| `pidnet s` | 3 | 7.6 |", "| `linknet:resnet18` | 4 | None |"]


def test_the_table_of_recipes_has_every_deviation() -> None:
    page = recipes.as_markdown()
    for recipe in recipes.recipes():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{recipe.name}` |"))
        assert all(text.replace("|", "\\|") in row for text in deviations(recipe))
        assert row.count(" | ") == 3


def test_speeds_are_told_beside_plain_pytorch() -> None:
    page = speed.as_markdown([("net", {"plain PyTorch": 4.0, "tilelab bf16": 10.0})], 128, 30.0)
    assert "| net | 4.0 (1.00 x) | 10.0 (2.50 x) |" in page
    assert "so that the ratios count" in page


def tiny(tmp_path: Path, *changes: str) -> Recipe:
    for seed in range(3):
        for part in ("train", "val"):
            for folder, pixels in zip(("images", "masks"), draw_superalloy((64, 64), seed), strict=True):
                path = tmp_path / part / folder / f"{seed}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    settings = ("network.options={widths=[4,6]}", "sampling.crop=32", "sampling.batch=2", "schedule.warmup=0")
    fixed = ("inference.tile=32", "inference.overlap=0", "run={steps=6, validate=3}")
    return load_recipe("superalloy", [*settings, *fixed, *changes])


def test_a_kept_training_is_read_and_one_by_another_recipe_is_not(tmp_path: Path) -> None:
    recipe, output = tiny(tmp_path), tmp_path / "out"
    scores = runs.train_once(recipe, tmp_path, output)
    written = (output / LAST).stat().st_mtime_ns
    assert runs.train_once(recipe, tmp_path, output) == scores
    assert (output / LAST).stat().st_mtime_ns == written
    other = tiny(tmp_path, "optimizer.rate=1e-4")
    assert not runs.is_trained(output, other)


def test_a_curve_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, output = tiny(tmp_path), tmp_path / "out"
    report = time_to_score.Stopwatch.report

    def stop(watch: time_to_score.Stopwatch, step: StepReport) -> None:
        report(watch, step)
        if step.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time_to_score.Stopwatch, "report", stop)
        with pytest.raises(KeyboardInterrupt):
            time_to_score.learn(recipe, tmp_path, output)
    (first,) = time_to_score.read_curve(output, recipe)
    time_to_score.learn(recipe, tmp_path, output)
    points = time_to_score.read_curve(output, recipe)
    assert points[0] == first
    assert [point.step for point in points] == [3, 6]
    assert all(one.seconds < two.seconds for one, two in itertools.pairwise(points))
    assert time_to_score.is_finished(points, recipe)
    other = tiny(tmp_path, "optimizer.rate=1e-4")
    assert not time_to_score.read_curve(output, other), "the curve of another recipe is none of this one"
    time_to_score.learn(other, tmp_path, output)
    assert load_checkpoint(output / LAST).header.recipe.optimizer.rate == 1e-4
    assert len(time_to_score.read_curve(output, other)) == 2


def test_goals_are_reached_at_their_first_validation(tmp_path: Path) -> None:
    points = [time_to_score.Point(10 * n, 60.0 * n, score) for n, score in enumerate((0.5, 0.81, 0.79, 0.86), start=1)]
    page = time_to_score.as_markdown({(time_to_score.BEGINNINGS[0], 1): points}, "curves.png")
    (row,) = (line for line in page.splitlines() if "ImageNet" in line)
    assert "| 1 | 2.0 (20) | 4.0 (40) | - | - | 0.860 | 40 of 200 | 6.00 |" in row
    time_to_score.draw({(time_to_score.BEGINNINGS[0], seed): points for seed in (1, 2)}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1050, 600)


def seen(moved: float = 0.0) -> ceiling.Seen:
    """A drawn micrograph and a model that is right but for outlines that are so much off."""
    image, truth = draw_superalloy((96, 96), 3)
    labels = ceiling.moved(truth, moved)
    logits = np.stack([(labels == k).astype(np.float32) for k in range(3)])
    return ceiling.Seen("drawn", image, truth, logits, labels)


def test_moved_outlines_are_told_from_what_is_wrong_as_a_whole() -> None:
    right = ceiling.profile([seen()])
    assert right[:2] == ["1.000", "1.000"]
    off = seen(1.0)
    assert (off.labels[1:, 1:] == off.truth[:-1, :-1]).all(), "a whole pixel is no interpolation"
    score, forgiven, _, itself, near, *_ = ceiling.profile([off])
    assert score == itself < forgiven
    assert int(near[:-1]) > 50, "errors of moved outlines lie at outlines"
    inverted = ceiling.Seen("wrong", off.image, off.truth, -off.logits, np.where(off.truth == 0, 1, 0).astype(np.uint8))
    assert int(ceiling.profile([inverted])[4][:-1]) < int(near[:-1])


def test_the_best_balance_is_no_worse_and_the_page_shows_it(tmp_path: Path) -> None:
    one = seen(0.5)
    assert ceiling.best_balance(one) >= float(ceiling.profile([one])[0]) - 5e-4
    row = ceiling.profile([one])
    page = ceiling.as_markdown([["axon", *row]], [[one.name, *row, "0.9"]], "a.png")
    assert f"| axon | {row[0]} |" in page
    ceiling.draw([one], tmp_path / "a.png")


def test_borders_touch_another_class() -> None:
    labels = np.zeros((5, 6), np.uint8)
    labels[2, 3] = 1
    found = np.argwhere(ceiling.borders(labels)).tolist()
    assert found == [[1, 3], [2, 2], [2, 3], [2, 4], [3, 3]]
    assert ceiling.distances(labels)[2, 0] == 3
