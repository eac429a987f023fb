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
The flags are those of `tilelab infer`; what is missing is asked for in one message.  The copy runs without any, and
`tilelab export` makes other files of it: int8, OpenVINO, TensorRT.

  tilelab describe net.onnx --classes background,membrane --mean 128 --std 33 --tile 512 -o membrane.onnx
  tilelab infer big.tif --model membrane.onnx
  tilelab export membrane.onnx --precision int8 --calibrate big.tif -o membrane-int8.xml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _ABOUT
    parser.add_argument("model", metavar="MODEL", help="an .onnx or OpenVINO .xml file, or a package that holds one")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the copy to write")
    parser.add_argument("--name", metavar="NAME", help="of the model (default: that of the file)")
    parser.add_argument("--like", type=Path, metavar="IMAGES", help="images that the network was trained on: FILE "
                        "remembers what they look like, and infer says of an image that is unlike them")  # fmt: skip
    parser.add_argument("--known", type=Path, metavar="IMAGES", help="others that it is at home with, such as those it "
                        "was validated on")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an existing file")
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
