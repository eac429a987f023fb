"""`tilelab infer IMAGE... --model M [-o OUT]`: one image, or many with one engine."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tilelab.cli.found import Found, where_to_look
from tilelab.cli.many import FORMATS, ManyBar, Notes, are_many, one_stack, say_end
from tilelab.cli.run_arguments import add_image_and_model, add_run_arguments, options_from_args, parse_count
from tilelab.cli.screen import ProgressBar, duration, say, summary
from tilelab.errors import OutputError
from tilelab.machine.disk import write_text
from tilelab.run.options import Options
from tilelab.run.progress import Progress, Silent
from tilelab.text import counted

if TYPE_CHECKING:
    from tilelab.view.growing import GrowingPage
    from tilelab.view.server import ViewServer


EXAMPLES = (
    "tilelab infer big.tif --model superalloy --overview look.png",
    "tilelab infer micrographs/ --model mine.onnx -o results/   # many images",
    "tilelab infer stack/ --model mine.onnx -o cells.ome.tif    # slices",
    "tilelab infer em.h5::/raw -m mine.onnx --region 0:64,1000:3000,1000:3000",
    "tilelab infer big.tif -m superalloy --view                 # watch it grow",
    "tilelab infer big.tif -m superalloy --workers 4            # processes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_image_and_model(parser)
    add = parser.add_argument
    add(
        "-o",
        "--out",
        metavar="OUT",
        help="the result (IMAGE.MODEL.ome.zarr), or a folder\nNAME.ome.zarr, .ome.tif, .png, .precomputed; of many "
        "images a folder, which gets a result and a picture each, summary.csv and summary.html",
    )
    add("--overview", metavar="FILE", help="draw the image with the segmentation over it\nPNG or JPEG")
    add("--overview-size", type=parse_count, metavar="PX", help="longer side of the picture (1600)")
    add("--page", metavar="FILE.html", help="write a page: picture, areas, times, assumptions")
    add("--view", action="store_true", help="open a page in the browser: the result grows in it")
    add("--no-open", action="store_true", help="with --view: say the link only")
    add("--dry-run", action="store_true", help="rehearse on a small part, say what to expect\nkeeps nothing")
    add("--restart", action="store_true", help="throw away what an earlier run left at OUT")
    add("--strict", action="store_true", help="refuse to assume anything of image or model")
    add("-q", "--quiet", action="store_true", help="no progress, no table")
    add("--report", metavar="FILE.json", help="write the run report")
    add("--format", choices=FORMATS, metavar="KIND", help=f"in a folder: {', '.join(FORMATS)}\nome.zarr "
        "where nothing is said")  # fmt: skip
    add("--at-once", type=parse_count, metavar="N", help="of many images, so many at a time\nas the engine needs")
    add_run_arguments(parser)
    parser.epilog = (
        "An .engine and a .pt2 are machine code: whoever loads one runs it.\n\n"
        "Of many images the exit code is 0 when all are done, 4 when some failed (they are named at the end, and the "
        "same command tries them again), 2 when none could be done."
    )


def run(args: argparse.Namespace) -> int:
    """Segment an image, or many."""
    _announce_export(Path(args.model))
    from tilelab.run.infer import claim_run

    options = options_from_args(args)
    if are_many(args.images, args.out, options):
        return _infer_many(args, options)
    for flag, given in (("--format", args.format), ("--at-once", args.at_once)):
        if given is not None:
            raise OutputError(f"{flag} is for many images, one was given: leave it out, or give a folder, -o FOLDER/")
    if args.overview_size is not None and args.overview is None:
        raise OutputError("--overview-size is for --overview: give that, too, or leave it out")
    (args.image,) = args.images
    options = replace(options, stack=one_stack(args.image, args.out, options))
    claim_run(args.image, args.model, args.out, options, overview=args.overview, report=args.report, page=args.page)
    if args.dry_run:
        return _rehearse(args, options)
    _stop_politely()
    with _page(args, options) as page:
        return _infer_one(args, options, page)


def _infer_one(args: argparse.Namespace, options: Options, page: GrowingPage | None) -> int:
    """Segment an image, in the sight of a page or not."""
    from tilelab.run.infer import OVERVIEW_PX, infer

    bar: Progress = Silent() if args.quiet else ProgressBar()
    found = Found()
    done = infer(
        args.image,
        args.model,
        args.out,
        options=options,
        overview=args.overview,
        overview_size=args.overview_size or OVERVIEW_PX,
        page=args.page,
        progress=bar if page is None else page.wrap(bar),
        note=say,
        finished=None if args.quiet else found.look,
    )
    look = where_to_look(str(done.path), args.overview, args.page)
    if done.already_finished:
        say(f"{done.path} is already finished; --restart makes it anew")
    elif not args.quiet:
        print(summary(done.report, found.rows(done.report) | look), file=sys.stderr)
    if args.report is not None:
        write_text(Path(args.report), json.dumps(done.report, indent=1) + "\n")
    if page is not None:
        _stay(page.finish(str(done.path)))
    return 0


def _announce_export(model: Path) -> None:
    """Say that a checkpoint becomes a file first, before the half minute that it takes."""
    from tilelab.engines.packages.checkpoint import is_checkpoint, is_exported

    if is_checkpoint(model) and not is_exported(model):
        say(f"{model} is a checkpoint: it is exported first, once")


@contextlib.contextmanager
def _page(args: argparse.Namespace, options: Options) -> Iterator[GrowingPage | None]:
    """The page that was asked for."""
    if not args.view:
        if args.no_open:
            raise OutputError("--no-open is for --view: give that, too, or leave it out")
        yield None
        return
    from tilelab.run.target import output_path, work_path
    from tilelab.view.growing import GrowingPage
    from tilelab.view.server import client_folder

    def opened(server: ViewServer) -> None:
        print(server.url, flush=True)
        if not args.no_open:
            webbrowser.open(server.url)

    client_folder()
    names = ("level", "series", "channel", "timepoint", "axes", "allow_outside", "pixel_size_nm")
    choices = {name: getattr(options, name) for name in names}
    page = GrowingPage(args.image, choices, work_path(output_path(args.image, args.out, args.model)), say, opened)
    try:
        yield page
    finally:
        page.close()


def _stay(server: ViewServer) -> None:
    """Let the page stand until Ctrl-C."""
    say("the page is there until Ctrl-C")
    with contextlib.suppress(KeyboardInterrupt):
        while server.wait(3600.0):
            continue


def _stop_politely() -> None:
    """Take a scheduler's polite kill like Ctrl-C: stop, and leave a result that can be continued."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def _infer_many(args: argparse.Namespace, options: Options) -> int:
    """Segment many images; returns the exit code."""
    from tilelab.cli.main import EXIT_DONE, EXIT_INCOMPLETE, EXIT_USAGE
    from tilelab.run.batch.many import PAGE, Batch, Outcome
    from tilelab.run.cluster.devices import is_distributed

    for flag, given in (
        ("--report", args.report),
        ("--overview", args.overview),
        ("--overview-size", args.overview_size),
        ("--page", args.page),
        ("--view", args.view),
        ("--no-open", args.no_open),
        ("--dry-run", args.dry_run),
    ):
        if given:
            raise OutputError(f"{flag} is for one image; of many the folder holds a report and a picture each")
    if args.at_once is not None and is_distributed(options):
        raise OutputError("--at-once is for one process: several share one image after the other, leave it out")
    began, notes = time.perf_counter(), Notes()
    batch = Batch.of(args.images, args.model, args.out, options, suffix=f".{args.format or 'ome.zarr'}", note=notes)
    bar = None if args.quiet else ManyBar(len(batch.names))
    _stop_politely()
    done = before = 0
    failed: list[Outcome] = []
    try:
        for outcome in batch.run(args.at_once, bar or Silent()):
            if outcome.run is None:
                failed.append(outcome)
            elif outcome.run.already_finished:
                before += 1
            else:
                done += 1
            if bar is not None:
                bar.ended(outcome)
    except KeyboardInterrupt:
        raise batch.interrupted() from None
    finally:
        if bar is not None:
            bar.close()
    notes.end()
    say_end(done, before, failed, time.perf_counter() - began, str(batch.folder / PAGE))
    if not failed:
        return EXIT_DONE
    return EXIT_INCOMPLETE if done or before else EXIT_USAGE


def _rehearse(args: argparse.Namespace, options: Options) -> int:
    """Say what was checked and what is to be expected."""
    from tilelab.run.autotile import choose_tile
    from tilelab.run.rehearse import dry_run
    from tilelab.text import format_bytes

    options = choose_tile(args.model, args.image, options, say)
    found = dry_run(args.image, args.model, args.out, options, say)
    if args.report is not None:
        write_text(Path(args.report), json.dumps(found.document(), indent=1) + "\n")
    expected = found.expected
    workers = f" on {expected.workers} workers" if expected.workers > 1 else ""
    for line in found.checked:
        print(f"checked   {line}")
    work = f"{counted(expected.tiles, 'tile')} in {counted(expected.units, 'unit')}"
    print(f"expected  {duration(expected.seconds)}{workers}: {work}")
    print(
        f"          {format_bytes(expected.bytes_read)} to read (about {duration(expected.seconds_reading)} "
        f"at the rate seen), at most {format_bytes(expected.bytes_written_at_most)} to write before compression"
    )
    print(f"          {format_bytes(expected.memory_per_worker)} of memory per worker beside the engine")
    print("          nothing was kept")
    return 0
