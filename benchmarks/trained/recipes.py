"""The table of what every shipped recipe does otherwise than its paper: `python -m benchmarks recipes`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tilelab.training.deviations import deviations
from tilelab.training.recipe import BaseRecipe, load_pretraining, load_recipe, shipped_recipes


def write_table(path: Path) -> None:
    """Write the table as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_markdown(), encoding="utf-8")


def recipes() -> Iterator[BaseRecipe]:
    """Every shipped recipe."""
    for name in shipped_recipes("train"):
        yield load_recipe(name)
    for name in shipped_recipes("pretrain"):
        yield load_pretraining(name)


def as_markdown() -> str:
    """One row a recipe."""
    rows = []
    for recipe in sorted(recipes(), key=lambda recipe: (recipe.paper.title, recipe.name)):
        cells = (
            f"`{recipe.name}`",
            recipe.paper.title or "none",
            _lines(deviations(recipe)),
            _lines(recipe.paper.silent),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Recipes and their papers",
            "",
            "Made by `python -m benchmarks recipes` from the recipes themselves; `tilelab train` prints the same",
            "before it starts, and what `--set` changes besides.",
            "",
            "| recipe | follows | but | where the paper is silent |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _lines(texts: list[str] | tuple[str, ...]) -> str:
    return "<br>".join(text.replace("|", "\\|") for text in texts) or "-"
