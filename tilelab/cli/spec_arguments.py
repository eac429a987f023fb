"""The flags that describe a model, shared by every command that takes one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

from tilelab.engines.overrides import Axes, SpecOverrides
from tilelab.geometry import WINDOWS
from tilelab.spec import Activation, NormalizationKind, OutputKind, Statistics

_T = TypeVar("_T")
_DTYPES = ("uint8", "uint16", "float32")


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `overrides_from_args` reads them."""
    add = parser.add_argument_group("tiles").add_argument
    add("--tile", type=_tile, metavar="PX", help="tile size; auto measures some (chosen)\nwhere the model is free it "
        "is chosen for image and machine")  # fmt: skip
    add("--overlap", type=_overlap, metavar="PX", help="least overlap of neighbours, pixels or 25%% (chosen)")
    add("--window", choices=WINDOWS, metavar="W", help=f"how they are blended\n{', '.join(WINDOWS)}")
    group = parser.add_argument_group("the model, where its file does not say it")
    add = group.add_argument
    add("--classes", type=_classes, metavar="NAMES", help="background,membrane,...: or how many there are")
    add("--mean", type=_floats, metavar="M", help="mean of the raw intensities, or one per channel")
    add("--std", type=_floats, metavar="S", help="standard deviation of the raw intensities")
    add("--intensity-dtype", choices=_DTYPES, metavar="TYPE", help=f"units of those: {', '.join(_DTYPES)}\n"
        "of --mean and --std; uint8 where nothing is said")  # fmt: skip
    add("--normalization", choices=get_args(NormalizationKind), metavar="KIND",
        help=f"{', '.join(get_args(NormalizationKind))}\nconstants, or statistics of the whole image")  # fmt: skip
    add("--percentiles", type=_pair, metavar="LOW,HIGH", help="these of the image become 0 and 1: 1,99.8")
    add("--statistics", choices=get_args(Statistics), metavar="OF", help="of the whole stack, or of each slice (stack)")
    add("--clip", type=_pair, metavar="LOW,HIGH", help="cut normalised intensities off at these: -1,1")
    add("--activation", choices=get_args(Activation), metavar="A",
        help=f"{', '.join(get_args(Activation))}\nwhat makes probabilities of the network's outputs")  # fmt: skip
    add("--output-is", type=_kinds, metavar="KIND", help="logits, probabilities, labels or map\nwhat the output holds, "
        "where graph and values leave doubt; map: numbers, without classes; one for each of several: "
        "logits,map")  # fmt: skip
    add("--model-output", metavar="NAME", help="which output, of several: NAME or NAME,NAME,...\nthe first has the "
        "classes, the others are kept as float maps")  # fmt: skip
    add("--threshold", type=_floats, metavar="P", help="probability from which a sigmoid's class counts\n0.5; one for "
        "all or one each; a pixel gets the class that exceeds its own most, in log-odds")  # fmt: skip
    add("--neighbours", type=_whole, metavar="N", help="2.5-D: channels are slices z-N to z+N of a stack\nreflected at "
        "its ends")  # fmt: skip
    add("--colors", type=_texts, metavar="COLORS", help="#rrggbb,...: one for each class")
    add("--model-axes", choices=get_args(Axes), metavar="AXES", help=f"axes of a tile: {', '.join(get_args(Axes))}")
    add("--channels", type=_positive, metavar="N", help="input channels")
    add("--stride", type=_positive, metavar="PX", help="total stride: tiles lie at multiples of it")
    add("--model-pixel-size", type=_floats, metavar="NM", help="pixel size of the training images in nm")


def overrides_from_args(args: argparse.Namespace) -> SpecOverrides:
    """What the user said of the model; ``--tile auto`` is left to the command (`args.tile` is then ``"auto"``)."""
    return SpecOverrides(
        classes=args.classes,
        colors=args.colors,
        mean=args.mean,
        std=args.std,
        intensity_dtype=args.intensity_dtype,
        normalization=args.normalization,
        percentiles=args.percentiles,
        statistics=args.statistics,
        clip=args.clip,
        activation=args.activation,
        axes=args.model_axes,
        channels=args.channels,
        neighbours=args.neighbours,
        tile=None if args.tile == "auto" else args.tile,
        overlap=args.overlap,
        window=args.window,
        stride=args.stride,
        pixel_size_nm=args.model_pixel_size,
        output=args.model_output,
        output_is=args.output_is,
        thresholds=args.threshold,
        uncertainty=getattr(args, "uncertainty", None),
    )


def _list(text: str, kind: Callable[[str], _T], what: str) -> tuple[_T, ...]:
    try:
        return tuple(kind(word.strip()) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None


def _texts(text: str) -> tuple[str, ...]:
    return _list(text, str, "a list of words")


def _floats(text: str) -> tuple[float, ...]:
    return _list(text, float, "a number, or numbers with commas between")


def _pair(text: str) -> tuple[float, float]:
    values = _floats(text)
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH")
    return values[0], values[1]


def _kinds(text: str) -> OutputKind | tuple[OutputKind, ...]:
    known: dict[str, OutputKind] = {kind: kind for kind in get_args(OutputKind)}
    words = _texts(text)
    if unknown := [word for word in words if word not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    kinds = tuple(known[word] for word in words)
    return kinds[0] if len(kinds) == 1 else kinds


def _positive(text: str) -> int:
    value = _list(text, int, "a whole number")
    if len(value) != 1 or value[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value[0]


def _whole(text: str) -> int:
    return 0 if text.strip() == "0" else _positive(text)


def _classes(text: str) -> int | tuple[str, ...]:
    return _positive(text) if text.strip().isdecimal() else _texts(text)


def _tile(text: str) -> tuple[int, ...] | Literal["auto"]:
    return "auto" if text == "auto" else _list(text, int, "a number of pixels, or auto")


def _overlap(text: str) -> Any:
    if not text.endswith("%"):
        return _list(text, int, "a number of pixels, or a percentage of the tile such as 25%")
    (percent,) = _list(text[:-1], float, "a percentage")[:1]
    if not 0 <= percent < 100:
        raise argparse.ArgumentTypeError(f"an overlap of {text} is not possible: give 0% to 99%")
    return percent / 100
