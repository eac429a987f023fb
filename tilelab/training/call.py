"""`tilelab.train`: from a recipe to the best checkpoint, as the command does it; torch is imported when it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tilelab.errors import Interrupted, OutputError, Stopped
from tilelab.io.storage.claims import Kind, Write, claim
from tilelab.run.notebook import Bar, in_notebook
from tilelab.text import install_hint
from tilelab.training.recipe import BaseRecipe, Recipe
from tilelab.training.recipe_file import flatten_changes, parse_recipe, read_recipe

if TYPE_CHECKING:
    from tilelab.training.loop import Note, Report, StepReport


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    restart: bool = False,
    trust: bool = False,
    report: Report | None = None,
    note: Note | None = None,
) -> Path:
    """Train a model; the same call goes on where an interrupted one stopped.

    >>> import os
    >>> from PIL import Image
    >>> from tilelab.sample import CLASSES, draw_superalloy
    >>> for seed in range(3):
    ...     for folder, pixels in zip(("images", "masks"), draw_superalloy((96, 96), seed)):
    ...         os.makedirs(folder, exist_ok=True)
    ...         Image.fromarray(pixels).save(f"{folder}/{seed}.png")
    >>> recipe = {
    ...     "name": "tiny",
    ...     "classes": [{"name": known.name, "color": known.color} for known in CLASSES],
    ...     "network": {"architecture": "unet", "options": {"widths": [8, 16]}},
    ...     "train": {"images": "images", "masks": "masks"},
    ...     "validation": {"images": "images", "masks": "masks"},
    ...     "sampling": {"crop": 32, "batch": 2},
    ...     "inference": {"tile": 64, "overlap": 16},
    ...     "run": {"steps": 100, "validate": 50},
    ... }
    >>> best = tilelab.train(recipe, "runs/tiny", changes={"run.steps": 2, "run.validate": 2})
    >>> best.name
    'best.safetensors'

    Args:
        recipe: a TOML file, the name of a shipped recipe, its content as a dictionary, or a `Recipe`.
        out: folder for checkpoints and log; ``runs/NAME`` where left out.
        data: the folder that the recipe's data paths are relative to; left out, that of the recipe's file, or the
            current one.
        changes: keys of the recipe to change, ``{"run.steps": 200}`` or ``{"run": {"steps": 200}}``.
        restart: begin anew, even where `out` holds an unfinished training.
        trust: import the module that the recipe may name as its network.
        report: called after every step; left out, a bar where this is a notebook.
        note: called with one line for each thing the user should know; left out, below that bar.

    Returns:
        The checkpoint with the best validation score: `infer`, `export` and `load_engine` take it.

    Raises:
        TilelabError: the recipe, its data or the output are not as they should be; see the message.
        Interrupted: Ctrl-C; the same call goes on, or begins anew where it is a `tilelab.errors.Stopped`.
    """
    require_torch()
    asked, name = _read(recipe, changes or {}), recipe if isinstance(recipe, str | Path) else None
    from tilelab.training.segmentation import train as start

    bar = TrainingBar() if in_notebook() else None
    return run_training(
        partial(start, trust=trust),
        asked,
        name,
        data=None if data is None else Path(data),
        out=None if out is None else Path(out),
        restart=restart,
        report=report or (_ignore if bar is None else bar.report),
        note=note or (_ignore if bar is None else bar.say),
    )


def _read(recipe: str | Path | Mapping[str, Any] | Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with its changes."""
    if isinstance(recipe, Recipe):
        recipe = msgspec.to_builtins(recipe)
    if isinstance(recipe, Mapping):
        return parse_recipe(dict(recipe), flatten_changes(changes), Recipe, "train", "the recipe")
    return read_recipe(str(recipe), flatten_changes(changes), Recipe, "train")


def run_training(
    start: Callable[..., Path],
    recipe: BaseRecipe,
    name: str | Path | None,
    *,
    data: Path | None,
    out: Path | None,
    restart: bool,
    report: Report,
    note: Note,
) -> Path:
    """Train with `start` (`train` or `pretrain`), after its claims; returns the file of the best weights.

    Raises:
        Interrupted: the user stopped it; what is needed to go on is on disk.
        Stopped: likewise, and nothing is on disk.
    """
    from tilelab.training.deviations import tell

    root = data or (Path(name).parent if name is not None and Path(name).suffix else Path())
    output = out or Path("runs") / recipe.name
    claim_training(name, recipe, root, output)
    for line in tell(recipe):
        note(line)
    try:
        return start(recipe, root, output, restart=restart, report=report, note=note)
    except KeyboardInterrupt:
        raise _stopped(recipe, output) from None


def _stopped(recipe: BaseRecipe, output: Path) -> Interrupted:
    """What to say of a training that Ctrl-C stopped: what is on disk, and how it goes on."""
    from tilelab.training.log import LAST

    weights = output / best_name(recipe)
    kept = f"; best weights so far: {weights}" if weights.exists() else ""
    if (output / LAST).exists():
        return Interrupted(f"training stopped; the same command goes on from {output / LAST}{kept}")
    return Stopped(
        f"training stopped before there was anything to go on from, which is saved every {recipe.run.validate} steps "
        f"(run.validate); the same command begins anew{kept}"
    )


def best_name(recipe: BaseRecipe) -> str:
    """Name of the file with a training's best weights."""
    from tilelab.training.log import BEST, ENCODER

    return BEST if isinstance(recipe, Recipe) else ENCODER


def require_torch() -> None:
    """Refuse where the extra is not installed.

    Raises:
        OutputError: torch, or one of the packages that come with it, is missing.
    """
    for name in ("torch", "kornia", "safetensors"):
        if find_spec(name) is None:
            raise OutputError(f"training needs {name}: {install_hint('train')}")


def claim_training(name: str | Path | None, recipe: BaseRecipe, root: Path, output: Path) -> None:
    """Refuse an output folder in which something that is read, or another's file, would be overwritten.

    Raises:
        OutputError: it names both.
    """
    document = msgspec.to_builtins(recipe)
    network = document["network"]
    data = [document.get(part) or {} for part in ("train", "validation", "data")]
    named = [part.get(key) for part in data for key in ("images", "masks", "train", "validation")]
    reads = {
        "the recipe": name,
        "network.weights": root / network["weights"] if network["weights"] else None,
        "network.checkpoint": root / network["checkpoint"] if network.get("checkpoint") else None,
        "the data": [root / path.partition("*")[0] for path in named if path],
    }
    writes = [Write(output, "-o", "into")]
    if output.is_dir():
        from tilelab.training.log import CSV, CURVES, LAST

        files: dict[str, Kind] = {CSV: "text", CURVES: "png", best_name(recipe): "model", LAST: "model"}
        writes += [Write(output / file, "-o", kind) for file, kind in files.items()]
    claim(reads, writes)


class TrainingBar(Bar):
    """The bar of a training in a notebook, with the last validation."""

    def __init__(self) -> None:
        super().__init__("training")
        self._best = ""

    def report(self, step: StepReport) -> None:
        """Move on."""
        if step.scores is not None:
            self._best = f", {step.summary}"
        self.show(step.step, step.steps, f"step {step.step} of {step.steps}, loss {step.loss:.4f}{self._best}")


def _ignore(_: object) -> None:
    """Tell it to nobody."""
