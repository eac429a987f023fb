"""The flags of `tilelab export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from tilelab.cli.spec_arguments import add_spec_arguments
from tilelab.cli.trust_words import TRUST_HELP
from tilelab.spec import PRECISIONS

_ABOUT = """\
The suffix of FILE is its format:
  .onnx    for ONNX Runtime, OpenVINO and, as a source, the others
  .xml     OpenVINO, with a .bin beside it
  .engine  TensorRT, for the GPU of this machine
  .zip     a package of bioimage.io around the .onnx, checked by its library
  .pt2     AOTInductor, for this machine's GPU or CPU; of checkpoints; no int8
An .engine and a .pt2 are machine code: whoever loads one runs it.

--precision is the arithmetic that the file holds. Engines may compute an fp32 .onnx or .xml in less (bf16 on CPUs, \
fp16 on GPUs); every such precision that this machine has is tried as well, and what passes is permitted to \
`tilelab infer --precision auto`. fp16 is simulated where no engine here computes it; bf16 is for .pt2 alone.

Before FILE gets its name, `tilelab infer`'s own sweep runs it on images and its blended result is compared with the \
network in fp32: the greatest difference of a logit, the share of pixels whose label changed and, where there is \
truth, the change of mean IoU. A file that differs too much is not written.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _ABOUT
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a checkpoint of `tilelab train`, or any .onnx\nwhat it does not "
        "say of itself, the flags below do")  # fmt: skip
    add("-o", "--output", type=Path, required=True, metavar="FILE", help=".onnx, .xml, .engine, .pt2 or .zip\n.engine "
        "and .pt2 are machine code")  # fmt: skip
    add("--precision", metavar="P", help=f"{', '.join(PRECISIONS)} (that of SOURCE)\narithmetic of the file")
    add("--calibrate", type=Path, metavar="IMAGES", help="for int8: images that show the usual values\nimage or folder "
        "that the ranges of activations are taken from")  # fmt: skip
    add("--require", action="append", default=[], metavar="P", help="fail unless engines here reach P, too")
    add("--free-size", action="store_true", help="leave height and width free, in .onnx and .xml")
    add("--force", action="store_true", help="replace an existing file")
    add("--trust", action="store_true", help=TRUST_HELP)
    add = parser.add_argument_group("images to compare on (a drawn micrograph)").add_argument
    add("--data", type=Path, metavar="DIR", help="data folder of the recipe: its validation set\nof the checkpoint's")
    add("--images", type=Path, metavar="PATH", help="an image, or a folder: 8 of it\nof each at most the middle "
        "2048 x 2048 px")  # fmt: skip
    add("--masks", type=Path, metavar="PATH", help="their truth: scores are compared, too")
    add("--labels", default="", metavar="MAP", help="classes of stored values of masks: 255:1\nor "
        "#0000ff:1,#ff0000:2 (the values are the classes)")  # fmt: skip
    add("--like", type=Path, metavar="IMAGES", help="images that it was trained on (with --data theirs)\nFILE "
        "remembers what they look like, and infer says of an image that is unlike them")  # fmt: skip
    add = parser.add_argument_group("compiled files (.engine, .pt2)").add_argument
    add("--device", default="auto", metavar="D", help="compile for cuda:N, or cpu (the first GPU)\ncpu for .pt2 alone")
    add("--batch", type=_batch, metavar="N", help="tiles per run (8 on a GPU, 1 on a CPU)\n.engine also takes "
        "LEAST,BEST,MOST")  # fmt: skip
    add("--hardware-compatibility", choices=_compatibilities(), default="this", metavar="GPUS",
        help=f"GPUs of .engine: {', '.join(_compatibilities())}\nthis model, its compute capability, or "
        "all from Ampere on, slower (%(default)s)")  # fmt: skip
    add("--timing-cache", type=Path, metavar="FILE", help="where TensorRT keeps what it timed\nin the user's cache "
        "folder")  # fmt: skip
    add = parser.add_argument_group("packages (.zip)").add_argument
    add("--author", action="append", default=[], metavar="NAME", help="who made the network (repeat)")
    add("--license", metavar="SPDX", help="of the network: CC-BY-4.0")
    add("--about", metavar="TEXT", help="a sentence on what it is for")
    add_spec_arguments(parser)


def _compatibilities() -> tuple[str, ...]:
    from tilelab.engines.files.tensorrt_plan import Compatibility

    return get_args(Compatibility)


def _batch(text: str) -> int | tuple[int, ...]:
    numbers = tuple(int(word) for word in text.split(","))
    if len(numbers) not in (1, 3) or min(numbers) < 1 or list(numbers) != sorted(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor LEAST,BEST,MOST")
    return numbers[0] if len(numbers) == 1 else numbers
