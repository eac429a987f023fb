"""The pages of trained networks: what is measured once stays, what is missing is said, budgets are equal."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from benchmarks.trained import compare, models, recipes, speed  # noqa: E402
from tilelab.training.deviations import deviations  # noqa: E402


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
        {("superalloy", "PmcaNet"): [(0.8, 0.9), (0.82, 0.92), (0.84, 0.94)], ("membrane", "U-Net"): [(0.5, 0.75)]}
    )
    pmcanet, unet = (
        next(line for line in page.splitlines() if line.startswith(f"| {name} |")) for name in ("PmcaNet", "U-Net")
    )
    assert "0.8200 ± 0.0200 |" in pmcanet
    assert "| 0.5000 (1) | 0.7500 (1) |" in unet
    assert pmcanet.endswith("| - | - |")


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
