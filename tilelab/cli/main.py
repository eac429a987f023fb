"""`tilelab COMMAND ...`: find the command, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module

from tilelab.cli.terminal import allow_open_files, explain_stop, ignore_interrupts, one_line, plain_streams
from tilelab.errors import Incomplete, Interrupted, TilelabError
from tilelab.machine.version import __version__

# Each command is a module tilelab.cli.NAME with add_arguments(parser) and run(args) -> int.
COMMANDS = {
    "infer": "segment an image of any size",
    "view": "look at an image or a result in the browser",
    "plan": "say what infer would do: tiles, bytes, memory, time",
    "info": "describe an image, a model or a result",
    "convert": "rewrite any image as OME-Zarr or pyramidal TIFF",
    "measure": "areas and objects of a segmentation, in numbers",
    "sharpness": "say how sharp images are, and where",
    "review": "list the places where a segmentation is least sure",
    "attribute": "show what made a network decide at a pixel",
    "eval": "score a segmentation against the truth",
    "train": "train a model from a recipe",
    "pretrain": "train an encoder on images in one folder per class",
    "describe": "write what there is to say of a network into a copy of its file",
    "export": "turn a trained checkpoint into an engine file",
    "demo": "segment a drawn sample with a bundled model and score it",
    "doctor": "say which engines and devices work here, and why others do not",
    "bench": "measure this machine",
}
EXIT_DONE, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_INCOMPLETE, EXIT_STOPPED = 0, 2, 3, 4, 130


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; the arguments of one command only when `only` names it (imports stay lazy)."""
    parser = argparse.ArgumentParser(
        prog="tilelab", description="Tiled inference for electron micrographs of any size.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tilelab {__version__}")
    setattr(parser, "color", False)  # noqa: B010 - of Python 3.14 on: standard streams take no control characters
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        setattr(sub, "color", False)  # noqa: B010
        if name == only:
            import_module(f"tilelab.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 2 bad usage or input, 3 interrupted and resumable, 4 finished but for some regions, which the same command
    tries again, 130 interrupted with nothing to resume.
    """
    allow_open_files()
    try:
        with plain_streams(), _few_collections() if argv is None else contextlib.nullcontext():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # a second one, while the first was being answered
        ignore_interrupts()
        return EXIT_STOPPED
    except OSError as error:  # standard output is a full disk
        _say(f"error: {explain_stop(error)}")
        return EXIT_USAGE


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Look for garbage rarely, in a process that is all ours: imports make none, and a tenth of a start went to it."""
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.freeze()  # the interpreter looks through everything when it ends


def _run(words: Sequence[str]) -> int:
    """Run one command; what it was stopped by becomes one line."""
    try:
        only = next((word for word in words if not word.startswith("-")), None)
        args = build_parser(only if only in COMMANDS else None).parse_args(words)
        code: int = import_module(f"tilelab.cli.{args.command}").run(args)
    except Interrupted as stop:
        ignore_interrupts()
        _say(str(stop))
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        ignore_interrupts()
        _say("stopped")
        return EXIT_STOPPED
    except Incomplete as error:
        _say(f"incomplete: {error}")
        return EXIT_INCOMPLETE
    except TilelabError as error:
        _say(f"error: {error}")
        return EXIT_USAGE
    except Exception as error:
        reason = explain_stop(error)
        if reason is None:
            raise
        _say(f"error: {reason}")
        return EXIT_USAGE
    return code


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"tilelab: {one_line(line)}", file=sys.stderr)
