"""`tilelab improve MODEL --corrections DIR`: a model learns from what was corrected, and keeps what it knew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tilelab.cli.run_arguments import parse_range
from tilelab.cli.screen import say
from tilelab.cli.training_run import Screen
from tilelab.errors import InputError
from tilelab.io.storage.claims import Write, claim

if TYPE_CHECKING:
    from tilelab.exporting.improved import Home
    from tilelab.training.loop import StepReport

_ABOUT = """\
DIR holds images/NAME.tif and labels/NAME.tif: what the napari plug-in keeps, or crops and whole micrographs with a \
label image of the same name drawn elsewhere (Fiji, ...), in which 255 is what nobody looked at. labels/NAME.geojson \
holds outlines that QuPath exported: what lies outside of all of them is not known.

Half of every step the model is held to what it said before: on images of --home, on drawn micrographs where it is at \
home with them, on images with the texture that it remembers of its training. The new weights are a mean of the old \
ones and of those that were learned; a model that is worse on any of these images is not written.
"""
EXAMPLES = (
    "tilelab improve superalloy --corrections corrections -o mine.onnx",
    "tilelab improve mine.onnx --corrections more --home good/ -o better.onnx",
    "tilelab improve net.onnx --corrections fiji --labels 0:ignore,1:0,2:1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _ABOUT
    add = parser.add_argument
    add("model", metavar="MODEL", help="a bundled one, a checkpoint, an fp32 .onnx")
    add("--corrections", type=Path, required=True, metavar="DIR", help="folder with images/ and labels/")
    add("--labels", default="", metavar="MAP", help="which value of a label image is which class, 255:1\nas they are "
        "without, and 255 is not known; 0:ignore leaves out what was not drawn")  # fmt: skip
    add("--range", metavar="LOW:HIGH", type=parse_range, help="intensities that are black and white\nwhere the images "
        "are of another type than the model's")  # fmt: skip
    add("-o", "--output", type=Path, metavar="NEW", help="the model to write (NAME-improved.onnx)")
    add("--force", action="store_true", help="replace an existing file")
    known = parser.add_argument_group("what it must keep")
    known.add_argument("--home", type=Path, metavar="DIR", help="images on which it is good today\na folder of them, "
                       "or one with images/ and masks/, their truth")  # fmt: skip
    known.add_argument("--home-labels", default="", metavar="MAP", help="which value of these masks is which class")
    effort = parser.add_argument_group("effort")
    effort.add_argument("--minutes", type=float, default=10.0, metavar="M", help="for training, about (10)")
    effort.add_argument("--steps", type=int, default=240, metavar="N", help="at most (240)")
    effort.add_argument("--crop", type=int, default=192, metavar="PX", help="side of what is learned from (192)")
    effort.add_argument("--rate", type=float, default=1e-3, metavar="R", help="of learning (0.001)")
    effort.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn (0)")
    effort.add_argument("--tell-steps", action="store_true", help="a line for every twentieth of the steps\nfor "
                        "programs that watch")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Improve a model and say what was gained and what was checked."""
    from tilelab.training.call import require_torch

    require_torch()
    from tilelab.exporting.improved import improve_model
    from tilelab.training.improve import Effort

    if min(args.steps, args.crop) < 1 or args.minutes <= 0 or args.rate <= 0:
        raise InputError("--steps, --crop, --minutes and --rate must be positive")
    output = args.output or Path(f"{Path(args.model).name.split('.')[0]}-improved.onnx")
    claim(
        {"MODEL": args.model, "--corrections": args.corrections, "--home": args.home}, [Write(output, "-o", "result")]
    )
    screen: Screen | _Steps = _Steps() if args.tell_steps else Screen()
    try:
        done = improve_model(
            args.model,
            args.corrections,
            output,
            home=_home(args),
            labels=args.labels,
            black_white=args.range,
            effort=Effort(steps=args.steps, minutes=args.minutes, rate=args.rate, crop=args.crop, seed=args.seed),
            force=args.force,
            say=say,
            report=screen.show,
        )
    finally:
        screen.stop()
    learned = done.learned
    print(
        f"wrote {done.exported.path}: {learned.steps} steps in {learned.seconds:.0f} s, "
        f"{learned.share:.0%} of the new weights"
    )
    return 0


class _Steps:
    """A line for every twentieth of the steps, where a program watches."""

    def show(self, progress: StepReport) -> None:
        """Move on."""
        every = max(1, progress.steps // 20)
        if progress.step % every == 0 or progress.step == progress.steps:
            say(f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}")

    def stop(self) -> None:
        """Nothing is left open."""


def _home(args: argparse.Namespace) -> Home:
    """Images, and masks where there are some."""
    from tilelab.exporting.improved import Home

    if args.home is None:
        if args.home_labels:
            raise InputError("--home-labels says what the masks of --home hold: give --home, or leave it out")
        return Home()
    if not args.home.exists():
        raise InputError(f"--home {args.home} does not exist")
    images = args.home / "images" if (args.home / "images").is_dir() else args.home
    folders = (args.home / name for name in ("masks", "labels"))
    masks = None if images == args.home else next((folder for folder in folders if folder.is_dir()), None)
    if args.home_labels and masks is None:
        raise InputError(
            f"--home {args.home} has no masks that --home-labels could tell of: put them into {args.home}/masks beside "
            f"{args.home}/images, or leave --home-labels out"
        )
    return Home(images=images, masks=masks, labels=args.home_labels)
