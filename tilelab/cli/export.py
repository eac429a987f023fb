"""`tilelab export SOURCE -o FILE`: write an engine file and prove that it says what the network says."""

from __future__ import annotations

import argparse

from tilelab.cli.export_arguments import add_arguments as add_arguments
from tilelab.cli.screen import BuildBar, say
from tilelab.cli.spec_arguments import overrides_from_args
from tilelab.errors import ModelError
from tilelab.spec import parse_precision
from tilelab.text import sides_text

EXAMPLES = (
    "tilelab export runs/NAME/best.safetensors -o mine.onnx --data data/",
    "tilelab export mine.onnx -o mine.xml                        # OpenVINO",
    "tilelab export mine.onnx -o fast.xml --precision int8 --calibrate images/",
    "tilelab export mine.onnx -o mine.engine --precision fp16    # TensorRT",
)


def run(args: argparse.Namespace) -> int:
    """Export, check, and print what was written."""
    from tilelab.exporting.call import Comparison, export_file
    from tilelab.exporting.package_file import Credits
    from tilelab.exporting.write import Request

    precision = None if args.precision is None else parse_precision(args.precision)
    overrides = overrides_from_args(args)
    if args.tile == "auto":
        raise ModelError("--tile auto is measured for an image by `tilelab infer`: give --tile N here")
    with BuildBar() as bar:
        done = export_file(
            args.source,
            args.output,
            Comparison(images=args.images, masks=args.masks, labels=args.labels, data=args.data, like=args.like),
            overrides=overrides,
            precision=precision,
            require=[parse_precision(text) for text in args.require],
            calibrate=args.calibrate,
            free_size=args.free_size,
            request=Request(
                device=args.device,
                batch=args.batch,
                compatibility=args.hardware_compatibility,
                timing_cache=args.timing_cache,
                progress=bar.show,
            ),
            credits=Credits(tuple(args.author), args.license or "", args.about or ""),
            force=args.force,
            trust=args.trust,
            note=lambda line: print(line, flush=True),
            warn=say,
        )
    file, spec = done.file, done.spec
    if done.path.suffix == ".zip":
        print(f"wrote {done.path} ({done.path.stat().st_size / 1e6:.2f} MB): a package of bioimage.io")
        return 0
    opset = f", opset {file.opset}" if file.opset else ""
    print(f"wrote {done.path} ({file.size_bytes / 1e6:.2f} MB): {file.format}{opset}, {file.precision}")
    print(f"  input {'; '.join(map(str, file.inputs))}; output {'; '.join(map(str, file.outputs))}")
    least = "" if spec.tile_min is None else f" from {sides_text(spec.tile_min)}"
    size = " (fixed)" if spec.tile_fixed else f", or any multiple of {spec.stride}{least}"
    overlap, permitted = sides_text(spec.overlap), ", ".join(spec.precisions)
    print(f"  tile {sides_text(spec.tile)}{size}, overlap {overlap}; permits {permitted}")
    return 0
