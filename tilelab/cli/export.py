"""`tilelab export CHECKPOINT -o FILE.onnx`: write an engine file and prove that it says what the network says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tilelab.errors import OutputError
from tilelab.geometry import WINDOWS
from tilelab.spec import PRECISIONS, parse_precision

if TYPE_CHECKING:
    from tilelab.exporting.parity import Sample
    from tilelab.training.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file written by `tilelab train`")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder of the checkpoint's recipe: compare on "
                        "its validation images (default: on a drawn micrograph)")  # fmt: skip
    parser.add_argument("--tile", type=int, metavar="PX", help="tile size (default: the recipe's)")
    parser.add_argument("--overlap", type=int, metavar="PX", help="overlap (default: the recipe's)")
    parser.add_argument("--window", choices=WINDOWS, help="blending window (default: the recipe's)")
    parser.add_argument("--free-size", action="store_true", help="leave height and width free")
    parser.add_argument("--precision", action="append", default=[], metavar="P", help="prove this precision too, or "
                        f"fail ({', '.join(PRECISIONS)}; default: those this machine has)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Export, check, and print what was written."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise OutputError("exporting needs torch: install tilelab[train]") from None
    from tilelab.exporting.export import export_checkpoint
    from tilelab.training.checkpoint import load_checkpoint

    precisions = [parse_precision(text) for text in args.precision]
    samples = gather_samples(load_checkpoint(args.checkpoint).header.recipe, args.data)
    done = export_checkpoint(
        args.checkpoint,
        args.output,
        samples,
        tile=args.tile,
        overlap=args.overlap,
        window=args.window,
        free_size=args.free_size,
        precisions=precisions,
        force=args.force,
        report=print,
    )
    spec = done.spec
    size = "fixed" if spec.tile_fixed else f"free, at least {spec.tile_min}, multiples of {spec.stride}"
    written = f"wrote {done.path} ({done.path.stat().st_size / 1e6:.2f} MB)"
    print(f"{written}, tile {spec.tile} {size}, precisions {', '.join(spec.precisions)}")
    return 0


def gather_samples(recipe: Recipe, root: Path | None) -> list[Sample]:
    """The images to compare on: the recipe's validation set, or a drawn micrograph where there is no data."""
    from tilelab.exporting.parity import Sample
    from tilelab.geometry import Box
    from tilelab.training.pairs import open_pairs

    if root is not None:
        pairs = open_pairs(recipe.validation, root, len(recipe.classes))
        return [Sample(pair.name, pair.image, pair.mask.read(Box.whole(pair.shape))) for pair in pairs]
    from tilelab.io.open import open_image
    from tilelab.sample import draw_superalloy

    return [Sample("drawn micrograph", open_image(draw_superalloy((768, 768))[0], axes="yx"))]
