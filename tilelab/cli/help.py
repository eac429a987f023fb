"""`tilelab help [COMMAND]`: the page of a command with all that there is to say of each option."""

from __future__ import annotations

import argparse

from tilelab.cli.main import COMMANDS, build_parser, parser_of
from tilelab.errors import InputError
from tilelab.text import did_you_mean

EXAMPLES = ("tilelab help", "tilelab help infer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command."""
    parser.add_argument("about", nargs="?", metavar="COMMAND", help="the command to tell of (all of them, in short)")


def run(args: argparse.Namespace) -> int:
    """Print a page."""
    if args.about is None:
        build_parser().print_help()
        return 0
    if args.about not in COMMANDS:
        raise InputError(f"there is no command {args.about!r}{did_you_mean(args.about, COMMANDS)} (see `tilelab help`)")
    parser_of(args.about).print_help(full=True)
    return 0
