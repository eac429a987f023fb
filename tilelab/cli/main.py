"""`tilelab COMMAND ...`: find the command, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from tilelab.errors import Incomplete, Interrupted, TilelabError
from tilelab.machine.version import __version__

# Each command is a module tilelab.cli.NAME with add_arguments(parser) and run(args) -> int.
COMMANDS = {
    "infer": "segment an image of any size",
    "plan": "say what infer would do: tiles, bytes, memory, time",
    "info": "describe an image, a model or a result",
    "convert": "rewrite any image as OME-Zarr or pyramidal TIFF",
    "eval": "score a segmentation against the truth",
    "train": "train a model from a recipe",
    "pretrain": "train an encoder on images in one folder per class",
    "export": "turn a trained checkpoint into an engine file",
    "demo": "segment a drawn sample with a bundled model and score it",
    "doctor": "say which engines and devices work here, and why others do not",
    "bench": "measure this machine",
}
EXIT_DONE, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_INCOMPLETE = 0, 2, 3, 4


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; the arguments of one command only when `only` names it (imports stay lazy)."""
    parser = argparse.ArgumentParser(
        prog="tilelab", description="Tiled inference for electron micrographs of any size.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tilelab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        if name == only:
            import_module(f"tilelab.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 2 bad usage or input, 3 interrupted and resumable, 4 finished but for some regions, which the same command
    tries again.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    only = next((word for word in words if not word.startswith("-")), None)
    if only not in COMMANDS:
        only = None
    args = build_parser(only).parse_args(words)
    try:
        code: int = import_module(f"tilelab.cli.{args.command}").run(args)
    except Interrupted as stop:
        print(f"tilelab: {stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Incomplete as error:
        print(f"tilelab: incomplete: {error}", file=sys.stderr)
        return EXIT_INCOMPLETE
    except TilelabError as error:
        print(f"tilelab: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # the reader of our output went away (| head)
        sys.stderr.close()
        return EXIT_DONE
    return code
