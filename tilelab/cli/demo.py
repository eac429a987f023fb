"""`tilelab demo`: the main job on a drawn micrograph, scored against the truth it was drawn from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tilelab.cli.command_parser import program
from tilelab.errors import Interrupted, OutputError, PlanError, Stopped
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import replacing, why_unwritten, write_text

_MODEL = "superalloy"
_LEAST = 256


EXAMPLES = (
    "tilelab demo",
    "tilelab demo --size 8192 --folder try/",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add = parser.add_argument
    add("--folder", metavar="DIR", default="demo", help="where everything goes (%(default)s)")
    add("--size", metavar="N", type=int, default=4096, help="pixels per side of the sample (%(default)s)")
    add("--seed", metavar="N", type=int, default=0, help="draws another micrograph")


def run(args: argparse.Namespace) -> int:
    """Draw, segment, score, show."""
    from tilelab.cli.screen import ProgressBar, say
    from tilelab.evaluation import Pair, evaluate
    from tilelab.io.images.open import open_image
    from tilelab.io.results.overview import write_overview
    from tilelab.run.infer import infer
    from tilelab.run.options import Options

    if args.size < _LEAST or args.seed < 0:
        raise PlanError(f"--size is at least {_LEAST} and --seed at least 0, not {args.size} and {args.seed}")
    folder = Path(args.folder)
    image, truth = folder / f"sample-{args.size}-{args.seed}.tif", folder / f"truth-{args.size}-{args.seed}.tif"
    result, picture = folder / f"sample.{_MODEL}.ome.zarr", folder / "overview.png"
    claim({}, [Write(folder, "--folder", "into")])
    if folder.is_dir():
        files = [Write(folder / "report.json", "--folder", "json"), Write(picture, "--folder", "png")]
        claim({"the sample": image, "its truth": truth}, files)
    if not (image.exists() and truth.exists()):
        say(f"drawing a micrograph of {args.size} x {args.size} pixels, with known truth")
        _draw(image, truth, args.size, args.seed)
    say(f"segmenting it: tilelab infer {image} --model {_MODEL} -o {result} --overview {picture}")
    try:
        done = infer(image, _MODEL, result, options=Options(restart=True), progress=ProgressBar(), note=say)
    except Interrupted:
        raise Stopped("stopped; the same command segments it anew") from None
    write_text(folder / "report.json", json.dumps(done.report, indent=1) + "\n")
    with open_image(image) as opened:
        write_overview(opened, result, picture)
    evaluation = evaluate([Pair("sample", result, truth)])
    scores = evaluation.pooled
    each = ", ".join(f"{info.name} {iou:.3f}" for info, iou in zip(evaluation.classes, scores.iou, strict=True))
    speed = f"{done.report['seconds']['wall']:.1f} s, {done.report['megapixels_per_second']:.2f} MP/s"
    command = program()
    print(
        f"image    {image}, {args.size} x {args.size} pixels, drawn to look like a nickel superalloy\n"
        f"result   {result} (OME-Zarr: napari, neuroglancer), {speed}\n"
        f"score    mean IoU {scores.mean_iou:.3f} against the truth it was drawn from ({each})\n"
        f"picture  {picture}\n"
        "\n"
        "Next, with your own micrograph and, if you have it, its true labels:\n"
        f"  {command} infer IMAGE --model {_MODEL} --overview picture.png\n"
        f"  {command} eval IMAGE.{_MODEL}.ome.zarr TRUTH"
    )
    return 0


def _draw(image: Path, truth: Path, size: int, seed: int) -> None:
    """Draw both files; they appear whole or not at all.

    Raises:
        OutputError: they cannot be written.
    """
    from tilelab.sample import write_superalloy

    try:
        image.parent.mkdir(parents=True, exist_ok=True)
        with replacing(image, suffix=".tif") as unfinished, replacing(truth, suffix=".tif") as beside:
            write_superalloy(unfinished, beside, (size, size), seed)
    except OSError as error:
        raise OutputError(f"the sample cannot be written to {image.parent}: {why_unwritten(error)}") from error
