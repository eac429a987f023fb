"""`tilelab pretrain RECIPE.toml`: train an encoder, with labels or without, for any decoder to begin with."""

from __future__ import annotations

import argparse

from tilelab.cli import training_run
from tilelab.cli.training_run import run_recipe

EXAMPLES = (
    "tilelab pretrain nasa-classification --data classes/",
    "tilelab pretrain mine.toml --set run.steps=200",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    training_run.add_arguments(parser, "pretrain")
    parser.add_argument(
        "--method",
        choices=("classification", "moco"),
        metavar="KIND",
        help="classification, or moco: without labels\nclasses are folders; momentum contrast (the recipe's)",
    )


def run(args: argparse.Namespace) -> int:
    """Pretrain; prints one line per validation and how to use the best encoder."""
    from tilelab.training.call import require_torch

    require_torch()
    from tilelab.training.pretraining import pretrain
    from tilelab.training.recipe import load_pretraining

    overrides = [*args.overrides, *([f"method={args.method}"] if args.method else [])]
    encoder = run_recipe(args, load_pretraining(args.recipe, overrides), pretrain)
    print(f"best encoder: {encoder.resolve()}")
    print(f"to use it: tilelab train RECIPE --set network.weights={encoder.resolve()}")
    return 0
