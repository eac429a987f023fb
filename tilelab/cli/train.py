"""`tilelab train RECIPE.toml`: train a model, keep the best, go on where an interrupted training stopped."""

from __future__ import annotations

import argparse
from functools import partial

from tilelab.cli import training_run
from tilelab.cli.training_run import run_recipe

EXAMPLES = (
    "tilelab train superalloy-quick --data superalloy/    # a shipped recipe",
    "tilelab train mine.toml",
    "tilelab train mine.toml --set run.steps=200 -o runs/short",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    training_run.add_arguments(parser, "train")


def run(args: argparse.Namespace) -> int:
    """Train; prints one line per validation and where the best checkpoint is."""
    from tilelab.training.call import require_torch

    require_torch()
    from tilelab.training.recipe import load_recipe
    from tilelab.training.segmentation import train

    start = partial(train, trust=args.trust)
    print(f"best checkpoint: {run_recipe(args, load_recipe(args.recipe, args.overrides), start)}")
    return 0
