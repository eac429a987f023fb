"""`tilelab pretrain RECIPE.toml`: train an encoder to tell classes of images apart, for any decoder to begin with."""

from __future__ import annotations

import argparse

from tilelab.cli.training_run import add_arguments, require_torch, run_recipe

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Pretrain; prints one line per validation and how to use the best encoder."""
    require_torch()
    from tilelab.training.classification import pretrain
    from tilelab.training.recipe import load_pretraining

    encoder = run_recipe(args, load_pretraining(args.recipe, args.overrides), pretrain)
    print(f"best encoder: {encoder.resolve()}")
    print(f"to use it: tilelab train RECIPE --set network.weights={encoder.resolve()}")
    return 0
