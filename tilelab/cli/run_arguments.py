"""The flags that `infer` and `plan` share, and what they mean as `Options`."""

from __future__ import annotations

import argparse

from tilelab.cli.spec_arguments import add_spec_arguments, overrides_from_args
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.io.images.region import Ends
from tilelab.run.options import Options
from tilelab.spec import PRECISIONS
from tilelab.text import parse_bytes

SERIES_HELP = "which of several images in the file or folder, by number from 0 or by name, as `tilelab info` lists them"
STACK_HELP = "the images of a folder or pattern are slices of one stack, or are not (what their names and sizes say)"
EMPTY_HELP = "leave out where the image is empty (resin, black borders: class 0), as `plan --overview` shows it"
AXES_HELP = "what the stored axes mean, of t c z y x s, where that is not stated, or stated wrongly (zyx)"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `options_from_args` reads them."""
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="TIFF, OME-Zarr, HDF5 (FILE.h5::/path), MRC, N5, a folder of slices, ...; many: files, folders, patterns",
    )
    parser.add_argument(
        "--model",
        "-m",
        required=True,
        metavar="M",
        help="an .onnx or OpenVINO file, or a bundled model (superalloy); .engine and .pt2 are machine code",
    )
    group = parser.add_argument_group("what is read and written")
    add = group.add_argument
    add("--level", type=int, default=0, metavar="N", help="resolution level of the image (0, the finest)")
    add("--series", metavar="N", help=SERIES_HELP)
    add("--stack", action=argparse.BooleanOptionalAction, help=STACK_HELP)
    add("--channel", type=int, metavar="N", help="channel of the image, if it has several")
    add("--timepoint", type=int, metavar="N", help="time point of the image, if it has several")
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add(
        "--region",
        type=parse_region,
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="segment this part as if it were the image: tiles begin at its corner, its edges are reflected, "
        "statistics are its own; for planes Y0:Y1,X0:X1; an end may be left out, as in 100:",
    )
    add(
        "--bar",
        type=parse_count,
        metavar="ROWS",
        help="height of the info bar at the bottom, which is left out (found)",
    )
    add("--keep-bar", action="store_true", help="segment the info bar too")
    add("--pixel-size", type=parse_sizes, metavar="NM", help="pixel size of the image in nm (per axis, or one for all)")
    add("--ignore-pixel-size", action="store_true", help="run although the model was trained at another pixel size")
    add("--rescale", action="store_true", help="resample the image to the model's pixel size")
    add("--scale", type=float, metavar="F", help="resample the image to F of its height and width, e.g. 0.5")
    add("--invert", action="store_true", help="turn dark into bright")
    add("--fit", action="store_true", help="find scale, polarity and contrast at which the model is most at home")
    add(
        "--range", type=_range, metavar="LOW:HIGH", help="intensities that are black and white, e.g. 120:4095 of uint16"
    )
    add("--mask", metavar="FILE", help="only where this image is not zero (elsewhere: class 0)")
    add("--skip-empty", action="store_true", help=EMPTY_HELP)
    add("--mask-axes", metavar="LETTERS", help="the same as --axes for the mask")
    add("--mask-series", metavar="N", help="the same as --series for the mask")
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    add(
        "--nan",
        type=_finite,
        metavar="VALUE",
        help="intensity of pixels that are NaN or infinite (in a mask's gaps: mean)",
    )
    add("--no-labels", action="store_true", help="write no class labels")
    add("--probabilities", type=_names, metavar="WHICH", help="class names, all or none (default: all but the first)")
    add("--logits", action="store_true", help="write the blended float32 logits too")
    add("--strict", action="store_true", help="refuse whatever would have to be assumed of the image or the model")
    group = parser.add_argument_group("how it runs")
    add = group.add_argument
    add("--engine", default="auto", metavar="NAME", help="openvino, onnxruntime, ... (auto: the fastest permitted)")
    add("--device", default="auto", metavar="D", help="cpu, cuda:0; many: cpu*2, cuda:0,1, all (auto)")
    add("--precision", default="auto", choices=("auto", *PRECISIONS), help="auto: the fastest that the model permits")
    add("--batch", type=parse_count, metavar="N", help="tiles per engine run")
    add("--threads", type=parse_count, metavar="N", help="threads of the engine (one for each core)")
    add("--exact", action="store_true", help="overlap tiles by all that a pixel depends on: equal to the whole image")
    add("--tta", action="store_true", help="average over the 8 symmetries of the square: 8 times the work")
    add(
        "--memory",
        type=parse_memory,
        metavar="SIZE",
        help="limit beside the engine, e.g. 4GB (400 MB, or what it needs up to half of the free, <= 2GiB)",
    )
    add("--lanes", type=parse_count, metavar="N", help="cut the x axis into N lanes (never inside a shard)")
    add(
        "--workers",
        type=parse_count,
        metavar="N",
        help="processes that share the work; with --scheduler: wait for so many",
    )
    add(
        "--scheduler", metavar="ADDRESS", help="of a Dask scheduler whose workers do the work, e.g. tcp://10.0.0.1:8786"
    )
    add(
        "--patience",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="seconds of silence after which a worker counts as hung (300)",
    )
    add("--spans", type=parse_count, metavar="N", help="cut the swept axis into N spans (never inside a shard)")
    add_spec_arguments(parser)


def options_from_args(args: argparse.Namespace) -> Options:
    """What the user asked for."""
    return Options(
        engine=args.engine,
        device=args.device,
        precision=args.precision,
        batch=args.batch,
        threads=args.threads,
        model=overrides_from_args(args),
        auto_tile=args.tile == "auto",
        exact=args.exact,
        level=args.level,
        series=args.series,
        stack=args.stack,
        channel=args.channel,
        timepoint=args.timepoint,
        axes=args.axes,
        region=args.region,
        bar=0 if args.keep_bar else args.bar,
        pixel_size_nm=args.pixel_size,
        ignore_pixel_size=args.ignore_pixel_size,
        rescale=args.rescale,
        scale=args.scale,
        invert=args.invert,
        fit=args.fit,
        intensity_range=args.range,
        mask=args.mask,
        mask_axes=args.mask_axes,
        mask_series=args.mask_series,
        skip_empty=args.skip_empty,
        nan=args.nan,
        symmetries=args.tta,
        labels=not args.no_labels,
        probabilities=args.probabilities,
        logits=args.logits,
        memory_bytes=args.memory,
        lanes=args.lanes,
        spans=args.spans,
        strict=args.strict,
        allow_outside=args.allow_outside,
        restart=getattr(args, "restart", False),
        workers=args.workers,
        scheduler=args.scheduler,
        patience_seconds=args.patience,
    )


def parse_memory(text: str) -> int:
    """An amount of memory, for argparse."""
    from tilelab.errors import PlanError

    try:
        return parse_bytes(text)
    except PlanError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_region(text: str) -> tuple[Ends, ...]:
    """A region, for argparse."""
    from tilelab.errors import InputError
    from tilelab.io.images.region import parse_region as parse

    try:
        return parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_count(text: str) -> int:
    """A number of things, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def parse_sizes(text: str) -> tuple[float, ...]:
    """Pixel sizes in nm, for argparse."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not v > 0 for v in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in nanometres, e.g. 4 or 30,4,4")
    return values


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, e.g. 0")
    return value


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH, e.g. 0:4095") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
