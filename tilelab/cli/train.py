"""`tilelab train RECIPE.toml`: train a model, keep the best, go on where an interrupted training stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tilelab.errors import Interrupted, OutputError

if TYPE_CHECKING:
    from tilelab.training.loop import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", help="a .toml file, or the name of a shipped recipe")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that the recipe's data paths are relative to "
                        "(default: the recipe's own folder)")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="checkpoints and log (default: runs/NAME)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="change one key of the recipe, e.g. run.steps=200; may be repeated")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="begin anew instead of resuming")


def run(args: argparse.Namespace) -> int:
    """Train; prints one line per validation and where the best checkpoint is."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise OutputError("training needs torch: install tilelab[train]") from None
    from tilelab.training.loop import LAST, train
    from tilelab.training.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    root = args.data or (Path(args.recipe).parent if Path(args.recipe).suffix else Path())
    output = args.output or Path("runs") / recipe.name
    try:
        best = train(recipe, root, output, restart=args.restart, report=_print, note=print)
    except KeyboardInterrupt:
        last = output / LAST
        rest = "the same command resumes it" if last.exists() else "nothing was saved yet"
        raise Interrupted(f"training stopped; {rest}") from None
    print(f"best checkpoint: {best}")
    return 0


def _print(progress: Progress) -> None:
    if progress.scores is not None:
        scores = progress.scores
        classes = "  ".join(f"{name} {value:.4f}" for name, value in scores["iou"].items())
        line = f"step {progress.step}/{progress.steps}  rate {progress.rate:.2e}  "
        print(f"{line}mean IoU {scores['mean_iou']:.4f}  ({classes})", flush=True)
    elif sys.stderr.isatty():
        print(f"\rstep {progress.step}/{progress.steps}  loss {progress.loss:.4f} ", end="", file=sys.stderr)
