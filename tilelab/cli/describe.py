"""`tilelab describe MODEL ... -o FILE`: write what there is to say of a network into a copy of its file."""

from __future__ import annotations

import argparse
from pathlib import Path

from tilelab.cli.info import show
from tilelab.cli.info_model import examine_model
from tilelab.cli.screen import say
from tilelab.cli.spec_arguments import add_spec_arguments, overrides_from_args
from tilelab.errors import ModelError
from tilelab.io.storage.claims import Write, claim
from tilelab.text import format_bytes

_ABOUT = """\
The flags of the model are those of `tilelab infer`; what is missing is asked for in one message. The copy runs \
without any, and `tilelab export` makes other files of it: int8, OpenVINO, TensorRT.
"""
EXAMPLES = (
    "tilelab describe net.onnx --classes back,cell --mean 128 --std 33 -o m.onnx",
    "tilelab describe m.onnx --tile 512 --like images/ -o membrane.onnx",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _ABOUT
    add = parser.add_argument
    add("model", metavar="MODEL", help=".onnx or OpenVINO .xml, or a package that holds one")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the copy to write")
    add("--name", metavar="NAME", help="of the model (that of the file)")
    add("--like", type=Path, metavar="IMAGES", help="images that it was trained on\nFILE remembers what they look "
        "like, and infer says of an image that is unlike them")  # fmt: skip
    add(
        "--known", type=Path, metavar="IMAGES", help="others that it is at home with\nsuch as those it was validated on"
    )
    add("--force", action="store_true", help="replace an existing file")
    add_spec_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Describe a model, and print what it says of itself now."""
    from tilelab.exporting.describe import describe_model
    from tilelab.exporting.samples import planes_of

    if args.tile == "auto":
        raise ModelError("--tile auto is measured for an image by `tilelab infer`: give --tile N, the usual one")
    if args.known is not None and args.like is None:
        raise ModelError("--known says what else is like the images of --like: give those, too")
    claim({"--like": args.like, "--known": args.known}, [Write(args.output, "-o", "model")])
    done = describe_model(
        Path(args.model),
        args.output,
        overrides_from_args(args),
        name=args.name,
        trained=planes_of(args.like, args.neighbours or 0),
        known=planes_of(args.known, args.neighbours or 0),
        force=args.force,
        report=say,
    )
    print(f"wrote {done.path} ({format_bytes(done.file.size_bytes)})")
    show([{"path": str(done.path), "kind": "model", **examine_model(str(done.path))}])
    return 0
