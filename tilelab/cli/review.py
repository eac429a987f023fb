"""`tilelab review RESULT`: the places where a correction pays most."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.cli.run_arguments import parse_count
from tilelab.errors import InputError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import write_text

if TYPE_CHECKING:
    from tilelab.geometry import Box
    from tilelab.io.results.result import Result
    from tilelab.measure.doubt import Doubt


Pixel = tuple[int, int, int]
"""Its place (z, y, x)."""

EXAMPLES = (
    "tilelab review big.superalloy.ome.zarr --image big.tif --picture doubt.png",
    "tilelab review big.superalloy.ome.zarr -o all.csv --regions doubt.geojson",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add = parser.add_argument
    add("result", metavar="RESULT", help="a result of infer with its probabilities")
    add("--image", metavar="IMAGE", help="the micrograph, for the picture")
    add("--picture", metavar="FILE.png", help="draw the listed places, the micrograph beside\nwhat was made of it")
    add("-o", "--output", metavar="TABLE", help="write all places: NAME.csv, NAME.parquet\nParquet takes the extra "
        "[tables]")  # fmt: skip
    add("--regions", metavar="FILE.geojson", help="write the listed places for QuPath")
    add("--count", type=parse_count, default=20, metavar="N", help="places to list (%(default)s)")
    add("--block", type=parse_count, default=128, metavar="PX", help="side of a place (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """List the places that the network is least sure of."""
    from tilelab.io.results.result import find_loss, read_result
    from tilelab.measure.doubt import find_doubt
    from tilelab.measure.table import check_table, write_table
    from tilelab.text import markdown_table

    kind: Any = "text" if str(args.output).lower().endswith(".csv") else "any"
    claim(
        {"RESULT": args.result, "--image": args.image},
        [
            Write(args.output, "-o", kind),
            Write(args.picture, "--picture", "png"),
            Write(args.regions, "--regions", "json"),
        ],
    )
    if args.output is not None:
        check_table(Path(args.output))
    if args.picture is not None and args.image is None:
        raise InputError("--picture shows the micrograph, too: give it with --image")
    result = read_result(args.result)
    if (loss := find_loss(args.result)) is not None:
        raise InputError(f"{args.result} has {loss}: copy it anew, or make it anew with `tilelab infer --restart`")
    doubt = find_doubt(result, args.block)
    ranked = doubt.ranked()
    shape: Any = result.info.layout.shape
    start, said = _start(result)
    listed = [(doubt.bits[at], doubt.box(at, shape)) for at in ranked[: args.count]]
    rows = [
        [str(i), *(str(a + s) for a, s in zip(box.start, start, strict=True)), f"{bits:.3f}"]
        for i, (bits, box) in enumerate(listed, 1)
    ]
    print(markdown_table(["rank", "z", "y", "x", "bits a pixel"], rows))
    print(
        f"\nThese {len(listed)} places of {args.block} px hold {doubt.share(len(listed)):.1%} of all doubt, in "
        f"{len(listed) / len(ranked):.1%} of {len(ranked):,} places; the whole has {_mean(doubt):.3f} bits a pixel."
    )
    if said:
        print(said)
    if args.output is not None:
        write_table(Path(args.output), [_columns(doubt, ranked, shape, start)])
    if args.regions is not None:
        write_text(Path(args.regions), json.dumps([_region(box, bits, start) for bits, box in listed]))
    if args.picture is not None:
        _draw(result, [box for _, box in listed], args.image, Path(args.picture))
    return 0


def _mean(doubt: Doubt) -> float:
    return float((doubt.bits * doubt.pixels).sum() / doubt.pixels.sum())


def _start(result: Result) -> tuple[Pixel, str]:
    """What is added to a place in the result to have it in the image, and what there is to say of that."""
    info = result.info
    region, start = info.metadata.get("region"), info.region_start
    if info.resampled_by is not None:
        part = "" if region is None else f", the region {region} of its image"
        return (0, 0, 0), f"Places are counted in pixels of the result{part}, which has others than its image."
    if not any(start):
        return start, ""
    return start, f"Places are counted from the first pixel of the image, whose region {region} the result is."


def _columns(
    doubt: Doubt, ranked: list[tuple[int, int, int]], shape: tuple[int, int, int], start: Pixel
) -> dict[str, Any]:
    import numpy as np

    boxes = [doubt.box(at, shape) for at in ranked]
    corners = {axis: np.array([box.start[i] + start[i] for box in boxes]) for i, axis in enumerate("zyx")}
    sides = {name: np.array([box.shape[i] for box in boxes]) for i, name in ((1, "height"), (2, "width"))}
    return {"rank": np.arange(1, len(boxes) + 1), **corners, **sides, "bits": np.array([doubt.bits[a] for a in ranked])}


def _region(box: Box, bits: float, start: Pixel) -> dict[str, Any]:
    """A rectangle as QuPath reads it: GeoJSON in pixels, its plane beside."""
    (z, y, x), (_, bottom, right) = ([a + s for a, s in zip(end, start, strict=True)] for end in (box.start, box.stop))
    ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring], "plane": {"c": -1, "z": z, "t": 0}},
        "properties": {"objectType": "annotation", "name": f"{bits:.3f} bits"},
    }


def _draw(result: Result, boxes: list[Box], image: str, path: Path) -> None:
    """The listed places in a sheet; of a micrograph of which the result is a region, that region.

    Raises:
        InputError: the micrograph is not of the result's size.
    """
    from tilelab.io.images.open import open_image
    from tilelab.io.results.result import match_result
    from tilelab.io.results.sheet import write_sheet

    with open_image(image, infinite=True) as opened:
        write_sheet(match_result(opened, result.info.layout.shape, result.info), result, boxes, path)
