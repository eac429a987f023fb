"""Trainings that are kept: what was trained as asked is read, what was interrupted goes on, the rest is made anew."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from tilelab.training.checkpoint import load_checkpoint
from tilelab.training.log import BEST, LAST
from tilelab.training.recipe import Recipe
from tilelab.training.segmentation import train


def is_trained(output: Path, recipe: Recipe) -> bool:
    """Whether a folder holds this very training, done."""
    return _is_of(output, recipe) and load_checkpoint(output / LAST).header.ended


def train_once(recipe: Recipe, data: Path, output: Path) -> dict[str, Any]:
    """Train where that is not done yet; returns the scores of the best weights."""
    if not is_trained(output, recipe):
        train(recipe, data, output, restart=not _is_of(output, recipe))
    return load_checkpoint(output / BEST).header.scores


def digest(recipe: Recipe) -> str:
    """What tells a recipe from every other that would train otherwise; what is said of its data is not part of it."""
    return hashlib.sha256(_plain(recipe).to_json().encode()).hexdigest()[:16]


def _is_of(output: Path, recipe: Recipe) -> bool:
    """Whether a folder holds a training by this recipe; what is said of its data is not part of it."""
    if not (output / LAST).exists():
        return False
    return digest(load_checkpoint(output / LAST).header.recipe) == digest(recipe)


def _plain(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, provenance={}, paper=type(recipe.paper)())
