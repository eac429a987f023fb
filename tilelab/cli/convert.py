"""`tilelab convert SRC DST`: rewrite any image as OME-Zarr or pyramidal TIFF."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from tilelab.cli.run_arguments import AXES_HELP, SERIES_HELP, parse_region
from tilelab.cli.screen import say
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.errors import Interrupted
from tilelab.text import format_bytes, size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add = parser.add_argument
    add("source", metavar="SRC", help="TIFF, OME-Zarr, Zarr, HDF5 (FILE.h5::/path), MRC, N5, PNG, a folder of slices")
    add("destination", metavar="DST", help="NAME.ome.zarr or NAME.ome.tif")
    add("--level", type=int, default=0, metavar="N", help="resolution level of the source (0, the finest)")
    add("--series", metavar="N", help=SERIES_HELP)
    add("--channel", type=int, metavar="N", help="one channel of several, or one colour as it is")
    add("--timepoint", type=int, metavar="N", help="one time point of several")
    add(
        "--region",
        type=parse_region,
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="this part alone (for planes Y0:Y1,X0:X1; an end may be left out, as in 100:)",
    )
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--pixel-size", type=_sizes, metavar="NM", help="pixel size in nm instead of the stated one (or one per axis)")
    add(
        "--labels",
        action=argparse.BooleanOptionalAction,
        help="SRC holds labels: levels keep what is most frequent, whole numbers of any type stay; or it does not",
    )
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    add("--overwrite", action="store_true", help="replace DST if it exists")
    add("-q", "--quiet", action="store_true", help="no progress, no summary")


def run(args: argparse.Namespace) -> int:
    """Rewrite an image."""
    from tilelab.io.convert import convert_image

    try:
        done = convert_image(
            args.source,
            args.destination,
            level=args.level,
            series=args.series,
            channel=args.channel,
            timepoint=args.timepoint,
            axes=args.axes,
            pixel_size_nm=args.pixel_size,
            region=args.region,
            allow_outside=args.allow_outside,
            labels=args.labels,
            overwrite=args.overwrite,
            progress=None if args.quiet or not sys.stderr.isatty() else _show_progress(),
            note=say,
        )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped: {args.destination} was not written") from None
    if not args.quiet:
        size = f"{done['axes']} {size_text(done['shape'])}"
        say(
            f"{done['path']}: {done['format']}, {size} {done['dtype']}, {done['levels']} levels, "
            f"{format_bytes(done['bytes'])}, {done['seconds']:.1f} s"
        )
    return 0


def _show_progress() -> Callable[[int, int], None]:
    """One line that is written over, a few times a second."""
    began = shown = time.perf_counter()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        if now - shown > 0.2 or done == total:
            shown = now
            speed = done / 1e6 / max(1e-9, now - began)
            end = "\n" if done == total else ""
            print(f"\rconverting {done / total:4.0%}, {speed:.0f} MP/s", end=end, file=sys.stderr, flush=True)

    return show


def _sizes(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or numbers with commas between") from None
