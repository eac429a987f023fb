"""`tilelab infer IMAGE --model M [-o OUT]`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from tilelab.cli.run_arguments import add_run_arguments, options_from_args
from tilelab.cli.screen import ProgressBar, duration, say, summary
from tilelab.machine.disk import write_text
from tilelab.run.options import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_run_arguments(parser)
    parser.add_argument("-o", "--out", metavar="OUT", help="NAME.ome.zarr (default), .ome.tif, .png, .precomputed")
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run left at OUT")
    parser.add_argument("--report", metavar="FILE.json", help="write the run report")
    parser.add_argument("--overview", metavar="FILE.png", help="draw the image with the segmentation over it")
    parser.add_argument(
        "--dry-run", action="store_true", help="rehearse on a small part of the image, say what to expect, keep nothing"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no table")


def run(args: argparse.Namespace) -> int:
    """Segment an image."""
    from tilelab.run.infer import claim_run, infer

    options = options_from_args(args)
    claim_run(args.image, args.model, args.out, options, overview=args.overview, report=args.report)
    if args.dry_run:
        return _rehearse(args, options)
    if threading.current_thread() is threading.main_thread():
        # a scheduler's polite kill is like Ctrl-C: stop, and leave a result that can be continued
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    done = infer(
        args.image,
        args.model,
        args.out,
        options=options,
        overview=args.overview,
        progress=None if args.quiet else ProgressBar(),
        note=say,
    )
    if done.already_finished:
        say(f"{done.path} is already finished; --restart makes it anew")
    elif not args.quiet:
        print(summary(done.report), file=sys.stderr)
    if args.report is not None and not done.already_finished:
        write_text(Path(args.report), json.dumps(done.report, indent=1) + "\n")
    return 0


def _rehearse(args: argparse.Namespace, options: Options) -> int:
    """Say what was checked and what is to be expected."""
    from tilelab.run.autotile import choose_tile
    from tilelab.run.rehearse import dry_run
    from tilelab.text import format_bytes

    if options.auto_tile:
        options = choose_tile(args.model, args.image, options, say)
    found = dry_run(args.image, args.model, args.out, options, say)
    if args.report is not None:
        write_text(Path(args.report), json.dumps(found.document(), indent=1) + "\n")
    expected = found.expected
    workers = f" on {expected.workers} workers" if expected.workers > 1 else ""
    for line in found.checked:
        print(f"checked   {line}")
    print(f"expected  {duration(expected.seconds)}{workers}: {expected.tiles} tiles in {expected.units} units")
    print(
        f"          {format_bytes(expected.bytes_read)} to read (about {duration(expected.seconds_reading)} "
        f"at the rate seen), at most {format_bytes(expected.bytes_written_at_most)} to write before compression"
    )
    print(f"          {format_bytes(expected.memory_per_worker)} of memory per worker beside the engine")
    print("          nothing was kept")
    return 0
