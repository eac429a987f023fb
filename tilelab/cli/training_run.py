"""What `tilelab train` and `tilelab pretrain` have in common: arguments, a bar, one line per validation, Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.cli.pace import Pace
from tilelab.cli.terminal import drawn
from tilelab.cli.trust_words import TRUST_HELP

if TYPE_CHECKING:
    from tilelab.training.loop import StepReport
    from tilelab.training.recipe import BaseRecipe


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Declare the arguments of ``train`` or ``pretrain``."""
    from tilelab.training.recipe_file import shipped_recipes

    shipped = ", ".join(shipped_recipes(command))
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help=f"a .toml file, or a shipped recipe (see below)\nshipped are {shipped}")
    add("--data", type=Path, metavar="DIR", help="folder of the recipe's data paths (the recipe's)")
    add("-o", "--output", type=Path, metavar="DIR", help="checkpoints and log (runs/NAME)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a key: run.steps=200 (repeat)")  # fmt: skip
    add("--restart", action="store_true", help="begin anew instead of resuming")
    if command == "train":
        add("--trust", action="store_true", help=TRUST_HELP)
    parser.epilog = f"Shipped recipes: {shipped}."


def run_recipe(args: argparse.Namespace, recipe: BaseRecipe, start: Callable[..., Path]) -> Path:
    """Train with `start` (`train` or `pretrain`); returns the file of the best weights.

    Raises:
        Interrupted: the user stopped it; what is needed to go on is on disk.
    """
    from tilelab.training.call import run_training

    screen = Screen()
    try:
        return run_training(
            start, recipe, args.recipe, data=args.data, out=args.output, restart=args.restart,
            report=screen.show, note=partial(print, flush=True),
        )  # fmt: skip
    finally:
        screen.stop()


class Screen:
    """One line per validation on stdout; below them a bar on a terminal, a line a minute anywhere else."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._pace = Pace("training")

    def show(self, progress: StepReport) -> None:
        """Move on."""
        if self._bar is None and sys.stderr.isatty():
            self._start(progress)
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.step, loss=f"loss {progress.loss:.4f}")
        if not sys.stderr.isatty():
            self._pace.show(progress.step, progress.steps, f"loss {progress.loss:.4f}")
        if progress.scores is not None:
            line = f"step {progress.step}/{progress.steps}  rate {progress.rate:.2e}  {progress.summary}"
            if self._bar is not None and sys.stdout.isatty():
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, flush=True)

    def _start(self, progress: StepReport) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(file=drawn(sys.stderr)),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=progress.steps, completed=progress.step, loss="")
        self._bar.start()

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
