"""`tilelab sharpness IMAGE...`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tilelab.cli.run_arguments import AXES_HELP, SERIES_HELP
from tilelab.cli.screen import say
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.errors import InputError
from tilelab.io.storage.claims import Write, claim

EXAMPLES = (
    "tilelab sharpness big.tif --map look/",
    "tilelab sharpness micrographs/ -o sharpness.csv",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="images, or folders of them")
    add("-o", "--output", metavar="TABLE", help="write the table: NAME.csv, NAME.parquet\nParquet takes the extra "
        "[tables]")  # fmt: skip
    add("--map", metavar="DIR", help="draw where each image is sharp")
    add("--block", type=int, default=256, metavar="N", help="side of the blocks of the maps in pixels (256)")
    add("--shrink", default="1", metavar="N,...", help="average N pixels a side first (1)\nseveral for a row each")
    add("--channel", type=int, metavar="N", help="one channel of several")
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--series", metavar="N", help=SERIES_HELP)
    add("--keep-bar", action="store_true", help="measure the info bar too")
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Measure the sharpness of images."""
    import numpy as np

    from tilelab.evaluation.pairs import is_file, list_files, name_of
    from tilelab.io.images.open import open_image
    from tilelab.measure.sharpness import MEASURES, measure_sharpness
    from tilelab.measure.table import check_table, write_table
    from tilelab.text import distinct, markdown_table

    paths = [p for image in map(Path, args.images) for p in ([image] if is_file(image) else list_files(image).values())]
    factors = _factors(args.shrink)
    if args.block < 2:
        raise InputError(f"--block {args.block} was given: 2 or more pixels")
    _claim(args)
    if args.output is not None:
        check_table(Path(args.output))
    chosen = {"axes": args.axes, "series": args.series, "channel": args.channel, "allow_outside": args.allow_outside}
    chosen |= {"bar": 0 if args.keep_bar else None}
    table: dict[str, list[Any]] = {name: [] for name in ("image", "shrink", "pixels", *MEASURES)}
    for path, name in zip(paths, distinct(map(name_of, paths)), strict=True):
        with open_image(path, **chosen, infinite=True) as image:
            for one in (*image.warnings, *image.assumptions):
                say(str(one))
            for factor in factors:
                found = measure_sharpness(image, block=args.block, shrink=factor)
                if found.left_out:
                    say(f"{path}: {found.left_out} pixels that are no number (NaN or infinite) are left out")
                row = [path.name, factor, found.pixels, *(found.values[name] for name in MEASURES)]
                for column, value in zip(table.values(), row, strict=True):
                    column.append(value)
                if args.map is not None and factor == factors[0]:
                    from tilelab.measure.pictures import draw_maps

                    for picture in draw_maps(found.maps, name, Path(args.map)):
                        say(str(picture))
    lines = [[f"{v:.5g}" if isinstance(v, float) else f"{v}" for v in row] for row in zip(*table.values(), strict=True)]
    print(markdown_table(list(table), lines))
    print("\nEach over the number of pixels, in squares of the image's intensities; larger is sharper.")
    if args.output is not None:
        write_table(Path(args.output), [{name: np.array(column) for name, column in table.items()}])
    return 0


def _factors(text: str) -> list[int]:
    """Numbers of pixels that are averaged.

    Raises:
        InputError: they are no whole numbers above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--shrink {text} was given: whole numbers from 1 on, with commas between")
    return list(map(int, parts))


def _claim(args: argparse.Namespace) -> None:
    """Refuse what could not be written, or would overwrite what is measured.

    Raises:
        OutputError: it names both.
    """
    kind: Any = "text" if str(args.output).lower().endswith(".csv") else "any"
    claim({"IMAGE": list(args.images)}, [Write(args.output, "-o", kind), Write(args.map, "--map", "into")])
