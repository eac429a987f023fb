"""The flags that `infer` and `plan` share, and what they mean as `Options`."""

from __future__ import annotations

import argparse

from tilelab.cli.spec_arguments import add_spec_arguments, overrides_from_args
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.engines.combined import KINDS
from tilelab.errors import InputError
from tilelab.io.images.region import Ends
from tilelab.run.options import Options
from tilelab.spec import PRECISIONS
from tilelab.text import parse_bytes

SERIES_HELP = "which of several images in it, by number or name\n`tilelab info` lists them; numbers begin at 0"
STACK_HELP = "a folder or pattern is one stack, or many images\nwithout it, names and sizes of the images say"
EMPTY_HELP = "no network where the image is empty\nresin, black borders: class 0 there, as `plan --overview` shows it"
AXES_HELP = "what the stored axes mean, e.g. zyx (of t c z y x s)\nwhere that is not stated, or stated wrongly"
LEVEL_HELP = "resolution level of the image (0, the finest)"
CHANNEL_HELP = "channel of the image, if it has several"
TIMEPOINT_HELP = "time point of the image, if it has several"
PIXEL_SIZE_HELP = "pixel size in nm instead of the stated one\none for all axes, or one for each: 30,4,4"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that go below a command's own; `options_from_args` reads them."""
    add = parser.add_argument_group("which part of the image").add_argument
    add(
        "--region",
        type=parse_region,
        metavar="Y0:Y1,X0:X1",
        help="this part alone; of stacks Z0:Z1,Y0:Y1,X0:X1\nas if it were the image: tiles begin at its corner, its "
        "edges are reflected, statistics are its own; an end may be left out, as in 100:",
    )
    add("--mask", metavar="FILE", help="only where this image is not zero\nclass 0 elsewhere")
    add("--skip-empty", action="store_true", help=EMPTY_HELP)
    add("--bar", type=parse_count, metavar="ROWS", help="height of the info bar that is left out (found)")
    add("--keep-bar", action="store_true", help="segment the info bar too")
    add("--stack", action=argparse.BooleanOptionalAction, help=STACK_HELP)
    add("--level", type=int, default=0, metavar="N", help=LEVEL_HELP)
    add("--series", metavar="N", help=SERIES_HELP)
    add("--channel", type=int, metavar="N", help=CHANNEL_HELP)
    add("--timepoint", type=int, metavar="N", help=TIMEPOINT_HELP)
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--mask-axes", metavar="LETTERS", help="as --axes, for the mask")
    add("--mask-series", metavar="N", help="as --series, for the mask")
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    add = parser.add_argument_group("how the image is taken").add_argument
    add("--pixel-size", type=parse_sizes, metavar="NM", help=PIXEL_SIZE_HELP)
    add("--rescale", action="store_true", help="resample the image to the model's pixel size")
    add("--ignore-pixel-size", action="store_true", help="run although the model was trained at another one")
    add("--scale", type=float, metavar="F", help="resample to F of its height and width, e.g. 0.5")
    add("--fit", action="store_true", help="find the scale, polarity, contrast of the training\nthat is, those at "
        "which the model is most at home")  # fmt: skip
    add("--invert", action="store_true", help="turn dark into bright")
    add("--range", type=parse_range, metavar="LOW:HIGH", help="intensities that are black and white, 120:4095")
    add("--nan", type=_finite, metavar="VALUE", help="intensity of pixels that are NaN or infinite\nin a mask's gaps: "
        "mean")  # fmt: skip
    add = parser.add_argument_group("what is written").add_argument
    add("--probabilities", type=_names, metavar="WHICH", help="class names, all or none (all but the first)")
    add("--logits", action="store_true", help="the blended float32 logits too")
    add("--uncertainty", nargs="?", const="entropy", choices=KINDS, metavar="KIND", help="a map of it: entropy, "
        "symmetries or models (entropy)\nsymmetries: what eight turned and mirrored tiles disagree about; models: "
        "those of --model A,B")  # fmt: skip
    add("--with-image", action="store_true", help="a copy of the image in the OME-Zarr, too\nbelow the labels")
    add("--no-labels", action="store_true", help="no class labels")
    add = parser.add_argument_group("how it runs").add_argument
    add("--device", default="auto", metavar="D", help="cpu, cuda:0; many: cpu*2, cuda:0,1, all (auto)")
    add("--precision", default="auto", choices=("auto", *PRECISIONS), metavar="P", help="fp32, bf16, fp16, int8 (auto)"
        "\nauto: the fastest that the model permits")  # fmt: skip
    add("--engine", default="auto", metavar="NAME", help="openvino, onnxruntime, tensorrt, ... (auto)\nauto: the "
        "fastest permitted; `tilelab doctor` lists them")  # fmt: skip
    add(
        "--memory",
        type=parse_memory,
        metavar="SIZE",
        help="limit beside the engine, e.g. 4GB\n400 MB, or what it needs up to half of the free, <= 2GiB",
    )
    add("--workers", type=parse_count, metavar="N", help="processes that share the work\nwith --scheduler: wait for so "
        "many")  # fmt: skip
    add("--scheduler", metavar="ADDRESS", help="a Dask scheduler whose workers do it\ne.g. tcp://10.0.0.1:8786")
    add("--exact", action="store_true", help="equal to the whole image at once: more overlap\ntiles overlap by all "
        "that a pixel depends on")  # fmt: skip
    add("--tta", action="store_true", help="average over 8 symmetries: 8 times the work")
    add("--batch", type=parse_count, metavar="N", help="tiles per engine run")
    add("--threads", type=parse_count, metavar="N", help="threads of the engine (one for each core)")
    add("--patience", type=_seconds, default=300.0, metavar="S", help="silent seconds until a worker counts as hung "
        "(300)")  # fmt: skip
    add("--lanes", type=parse_count, metavar="N", help="cut the x axis into N lanes\nnever inside a shard")
    add("--spans", type=parse_count, metavar="N", help="cut the swept axis into N spans\nnever inside a shard")
    add_spec_arguments(parser)


def add_image_and_model(parser: argparse.ArgumentParser) -> None:
    """Add what every run has: images and a model."""
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="an image, a folder of slices; many: files, folders\nTIFF, OME-Zarr, Zarr, HDF5 (FILE.h5::/path), MRC, "
        "N5, PNG, DM3, CZI, ...; patterns, s3://, gs://, https://",
    )
    parser.add_argument(
        "--model",
        "-m",
        required=True,
        metavar="M",
        help="a file, or a bundled one: see `tilelab models`\n.onnx, OpenVINO .xml, a checkpoint, a package of "
        "bioimage.io; .engine and .pt2 are machine code; A,B averages the probabilities of several",
    )


def options_from_args(args: argparse.Namespace) -> Options:
    """What the user asked for.

    Raises:
        InputError: two flags contradict each other.
    """
    if args.keep_bar and args.bar is not None:
        raise InputError(f"--keep-bar and --bar {args.bar} contradict each other: give one of them")
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
        with_image=args.with_image,
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
    """Pixel sizes, for argparse."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not 1 <= len(values) <= 3 or not all(0 < v < 1e9 for v in values):
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


def parse_range(text: str) -> tuple[float, float]:
    """``LOW:HIGH`` as numbers."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH, e.g. 0:4095 or -5:30") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
