"""`tilelab pretrain`: an encoder learns from classes of images, or from images alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tilelab.training.classification import Classification
from tilelab.training.contrastive import Contrastive
from tilelab.training.loop import Note, Report, ignore, run_task
from tilelab.training.recipe import Pretraining


def pretrain(
    recipe: Pretraining,
    root: Path,
    output: Path,
    *,
    restart: bool = False,
    report: Report = ignore,
    note: Note = ignore,
) -> Path:
    """Pretrain as `recipe` says, or go on with what an interrupted call left in `output`.

    Arguments and errors as `tilelab.training.segmentation.train`.

    Returns:
        The weights of the encoder with the best validation accuracy.
    """
    if recipe.method == "moco":
        contrastive = partial(Contrastive, recipe, root)
        return run_task(contrastive, recipe, output, restart=restart, report=report, note=note)
    return run_task(partial(Classification, recipe, root), recipe, output, restart=restart, report=report, note=note)
