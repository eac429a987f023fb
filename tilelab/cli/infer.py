"""`tilelab infer IMAGE --model M [-o OUT]`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from tilelab.cli.run_arguments import add_run_arguments, options_from_args
from tilelab.cli.screen import ProgressBar, say, summary
from tilelab.errors import OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_run_arguments(parser)
    parser.add_argument("-o", "--out", metavar="OUT", help="NAME.ome.zarr (default), .ome.tif, .png, .precomputed")
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run left at OUT")
    parser.add_argument("--report", metavar="FILE.json", help="write the run report")
    parser.add_argument("--overview", metavar="FILE.png", help="draw the image with the segmentation over it")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no table")


def run(args: argparse.Namespace) -> int:
    """Segment an image."""
    from tilelab.run import infer

    for path in (args.report, args.overview):
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise OutputError(f"{path} cannot be written: there is no folder {Path(path).resolve().parent}")
    if threading.current_thread() is threading.main_thread():
        # a scheduler's polite kill is like Ctrl-C: stop, and leave a result that can be continued
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    done = infer(
        args.image,
        args.model,
        args.out,
        options=options_from_args(args),
        overview=args.overview,
        progress=None if args.quiet else ProgressBar(),
        note=say,
    )
    if done.already_finished:
        say(f"{done.path} is already finished; --restart makes it anew")
    elif not args.quiet:
        print(summary(done.report), file=sys.stderr)
    if args.report is not None and not done.already_finished:
        Path(args.report).write_text(json.dumps(done.report, indent=1) + "\n")
    return 0
