"""`tilelab eval PRED TRUTH`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.cli.main import EXIT_DONE, EXIT_INCOMPLETE
from tilelab.cli.screen import say
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.errors import OutputError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import write_text

EXAMPLES = (
    "tilelab eval big.superalloy.ome.zarr truth.tif",
    "tilelab eval results/ masks/ --image images/ --pictures look/",
    "tilelab eval cells.ome.zarr truth.tif --objects --tolerance 2",
    "tilelab eval pred.png truth.png --truth-map 255:1 --json scores.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.epilog = "Of several pairs the exit code is 4 when some cannot be read; they are named and in no score."
    add = parser.add_argument
    add("prediction", metavar="PRED", help="a result of infer, a label image, a folder of them")
    add("truth", metavar="TRUTH", help="a label image, or a folder, paired by name")
    add("--image", metavar="IMAGE", help="the micrograph, or a folder, shown under errors")
    add("--pictures", metavar="DIR", help="write accuracy maps, and an overlay of errors")
    add("--picture-size", metavar="N", type=int, default=2048, help="longest side of pictures in pixels (2048)")
    add("--objects", action="store_true", help="match the objects of each class: PQ, AP, F1\nand Rand error")
    add("--markdown", metavar="FILE", help="write the table")
    add_json(parser, "all numbers")
    group = parser.add_argument_group("what the values mean")
    add = group.add_argument
    add(
        "--truth-map",
        metavar="MAP",
        help="classes of stored values of TRUTH: 255:1\n0-127:1,128-255:0, or colours, '#0000ff:1,#ff0000:2'; a class "
        "may be 'ignore', all others are *:CLASS, else 0",
    )
    add("--pred-map", metavar="MAP", help="as --truth-map, for PRED")
    add("--ignore", metavar="N", type=int, help="leave out pixels whose true class is N")
    add("--classes", metavar="A,B,...", help="class names, where PRED does not know them")
    group = parser.add_argument_group("more scores")
    add = group.add_argument
    add(
        "--tolerance",
        "--boundary-f",
        dest="tolerance",
        metavar="PX",
        nargs="?",
        const=2.0,
        type=float,
        help="also IoU, and F of outlines, within PX pixels (2)\nthe truth moved by half a pixel is not 1 without",
    )
    add("--assd", action="store_true", help="mean distance between the outlines of a class")
    add("--isbi", metavar="CLASS", nargs="?", const="1", help="V_rand, V_info of what CLASS parts (1)\nof the regions "
        "between CLASS")  # fmt: skip
    add("--min-size", metavar="N", type=int, default=0, help="objects of fewer than N pixels are none")
    add("--connectivity", metavar="N", type=int, choices=(1, 2, 3), default=1, help="pixels touch by faces (1), edges "
        "or corners")  # fmt: skip
    group = parser.add_argument_group("how they are read")
    add = group.add_argument
    add("--axes", metavar="LETTERS", help="what the stored axes of all three mean, e.g. zyx\nof t c z y x s")
    for name in ("pred", "truth", "image"):
        add(f"--{name}-axes", metavar="LETTERS", help=f"as --axes, of {name.upper()} alone")
        add(f"--{name}-series", metavar="N", help=f"which of several images in {name.upper()}")
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Score a segmentation against the truth."""
    from tilelab.evaluation.label_map import LabelMap
    from tilelab.evaluation.pairs import find_pairs
    from tilelab.evaluation.report import to_json, to_markdown
    from tilelab.evaluation.scoring import Question, evaluate

    question = Question(
        prediction_map=LabelMap.parse(args.pred_map) if args.pred_map else None,
        truth_map=LabelMap.parse(args.truth_map) if args.truth_map else None,
        prediction_axes=args.pred_axes or args.axes,
        truth_axes=args.truth_axes or args.axes,
        image_axes=args.image_axes or args.axes,
        prediction_series=args.pred_series,
        truth_series=args.truth_series,
        image_series=args.image_series,
        allow_outside=args.allow_outside,
        ignore=args.ignore,
        classes=tuple(name.strip() for name in args.classes.split(",")) if args.classes else (),
        surfaces=args.assd,
        tolerance=args.tolerance,
        lines=args.isbi,
    )
    _claim(args)
    pairs, notes = find_pairs(Path(args.prediction), Path(args.truth), Path(args.image) if args.image else None)
    if args.image is not None:
        notes += [f"{args.image} has no image of {pair.name}" for pair in pairs if pair.image is None]
    if args.pictures is not None:
        from tilelab.evaluation.pictures import check_image

        for pair in pairs:
            check_image(pair, question)
    evaluation = evaluate(pairs, question)
    if args.objects:
        from tilelab.measure.matching import add_object_scores

        add_object_scores(evaluation, question, connectivity=args.connectivity, min_pixels=args.min_size)
    evaluation.notes += notes
    for line in evaluation.notes:
        print(f"tilelab: {line}", file=sys.stderr)
    text = to_markdown(evaluation)
    if not put_json(args.json, to_json(evaluation)):
        print(text, end="")
    if args.markdown is not None:
        write_text(Path(args.markdown), text)
    if args.pictures is not None:
        from tilelab.evaluation.pictures import draw_pair

        for scored in evaluation.pairs:
            for picture in draw_pair(scored, evaluation.classes, question, Path(args.pictures), args.picture_size):
                print(picture, file=sys.stderr)
    for pair, why in evaluation.failed:
        say(f"failed: {pair.name}: {why}")
    return EXIT_INCOMPLETE if evaluation.failed else EXIT_DONE


def _claim(args: argparse.Namespace) -> None:
    """Refuse what could not be written, or would overwrite what is compared, before anything is counted.

    Raises:
        OutputError: it names both.
    """
    if args.pictures is not None and args.picture_size < 1:
        raise OutputError(f"--picture-size {args.picture_size} was given: at least 1 pixel")
    claim(
        {"PRED": args.prediction, "TRUTH": args.truth, "--image": args.image},
        [
            Write(args.markdown, "--markdown", "text"),
            Write(json_file(args.json), "--json", "json"),
            Write(args.pictures, "--pictures", "into"),
        ],
    )
