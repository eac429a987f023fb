"""`tilelab COMMAND ...`: find the command, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module

from tilelab.cli.command_parser import CommandParser
from tilelab.cli.terminal import allow_open_files, explain_stop, ignore_interrupts, one_line, plain_streams
from tilelab.errors import Incomplete, Interrupted, Stopped, TilelabError
from tilelab.machine.version import __version__

# Each command is a module tilelab.cli.NAME with EXAMPLES, add_arguments(parser) and run(args) -> int.
GROUPS = {
    "segment": {
        "demo": "segment a drawn sample with a bundled model and score it",
        "models": "list the bundled models: classes, scores, limits",
        "infer": "segment an image of any size, or a folder of them",
        "plan": "say what infer would do: tiles, memory, time, cost",
        "view": "look at an image or a result in the browser",
    },
    "what came out": {
        "measure": "areas and objects of a segmentation, in numbers",
        "review": "list the places where a segmentation is least sure",
        "attribute": "show what made a network decide at a pixel",
        "eval": "score a segmentation against the truth",
    },
    "images": {
        "info": "describe an image, a model or a result",
        "convert": "rewrite any image as OME-Zarr or pyramidal TIFF",
        "sharpness": "say how sharp images are, and where",
    },
    "models of your own": {
        "train": "train a model from a recipe",
        "pretrain": "train an encoder on images, with labels or without",
        "improve": "learn from corrections, keep what was known",
        "export": "turn a checkpoint into a fast file that is checked",
        "describe": "write what a network needs to know into its file",
    },
    "this machine": {
        "doctor": "say which engines and devices work here, and why",
        "bench": "measure how fast this machine segments",
        "completion": "let the shell complete commands and options",
        "help": "tell more of a command",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}
EXAMPLES = (
    "tilelab demo                                # a minute, from drawing to score",
    "tilelab infer big.tif --model superalloy    # -> big.superalloy.ome.zarr",
    "tilelab view big.superalloy.ome.zarr        # in the browser, over its image",
)
EXIT_DONE, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_INCOMPLETE, EXIT_STOPPED = 0, 2, 3, 4, 130


def build_parser(only: str | None = None) -> CommandParser:
    """The whole command line; the arguments of one command only when `only` names it (imports stay lazy)."""
    parser = CommandParser(prog="tilelab", description="tiled inference for electron micrographs of any size")
    parser.commands, parser.examples = GROUPS, EXAMPLES
    parser.add_argument("--version", action="version", version=f"tilelab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == only:
            _fill(sub, name)
    return parser


def parser_of(command: str) -> CommandParser:
    """The parser of one command alone."""
    parser = CommandParser(prog=f"tilelab {command}", description=COMMANDS[command])
    _fill(parser, command)
    return parser


def _fill(parser: CommandParser, command: str) -> None:
    module = import_module(f"tilelab.cli.{command}")
    parser.examples = module.EXAMPLES
    module.add_arguments(parser)


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
    if not words:
        build_parser().print_help()
        return EXIT_USAGE
    try:
        only = next((word for word in words if not word.startswith("-")), None)
        args = build_parser(only if only in COMMANDS else None).parse_args(words)
        code: int = import_module(f"tilelab.cli.{args.command}").run(args)
    except Interrupted as stop:
        ignore_interrupts()
        _say(str(stop))
        return EXIT_STOPPED if isinstance(stop, Stopped) else EXIT_INTERRUPTED
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
