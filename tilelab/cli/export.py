"""`tilelab export SOURCE -o FILE`: write an engine file and prove that it says what the network says."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tilelab.cli.export_arguments import add_arguments as add_arguments
from tilelab.cli.screen import BuildBar, say
from tilelab.cli.spec_arguments import overrides_from_args
from tilelab.errors import EngineError, InputError, ModelError, OutputError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import MARK
from tilelab.spec import ModelSpec, Precision, parse_precision
from tilelab.text import size_text

if TYPE_CHECKING:
    from tilelab.engines.overrides import SpecOverrides
    from tilelab.exporting.export import Place
    from tilelab.exporting.parity import Sample
    from tilelab.exporting.source import CheckpointSource, OnnxSource
    from tilelab.io.images.image import Image

EXAMPLES = (
    "tilelab export runs/NAME/best.safetensors -o mine.onnx --data data/",
    "tilelab export mine.onnx -o mine.xml                        # OpenVINO",
    "tilelab export mine.onnx -o fast.xml --precision int8 --calibrate images/",
    "tilelab export mine.onnx -o mine.engine --precision fp16    # TensorRT",
)


def run(args: argparse.Namespace) -> int:
    """Export, check, and print what was written."""
    from tilelab.exporting.export import Place, export_model
    from tilelab.exporting.samples import planes_of
    from tilelab.exporting.source import open_network
    from tilelab.exporting.write import Request

    precision = None if args.precision is None else parse_precision(args.precision)
    _claim(args)
    overrides = overrides_from_args(args)
    if args.tile == "auto":
        raise ModelError("--tile auto is measured for an image by `tilelab infer`: give --tile N here")
    checkpoint = args.source.suffix == ".safetensors"
    place = _square_place(overrides) if checkpoint else Place()
    if checkpoint:
        overrides = replace(overrides, tile=None, overlap=None, window=None)
    source = open_network(args.source, overrides, trust=args.trust)
    for line in source.notes:
        say(line)
    if args.output.suffix == ".zip":
        return _export_package(source, replace(place, free_size=args.free_size), precision, args)
    with BuildBar() as bar:
        done = export_model(
            source,
            args.output,
            lambda spec: gather_samples(source, spec, args),
            precision=precision,
            place=replace(place, free_size=args.free_size),
            request=Request(
                calibration=planes_of(args.calibrate, source.spec.neighbours),
                device=args.device,
                batch=args.batch,
                compatibility=args.hardware_compatibility,
                timing_cache=args.timing_cache or _timing_cache(args.output, args.device),
                progress=bar.show,
            ),
            require=[parse_precision(text) for text in args.require],
            trained=_trained(source, args),
            force=args.force,
            report=lambda line: print(line, flush=True),
        )
    file, spec = done.file, done.spec
    opset = f", opset {file.opset}" if file.opset else ""
    print(f"wrote {done.path} ({file.size_bytes / 1e6:.2f} MB): {file.format}{opset}, {file.precision}")
    print(f"  input {'; '.join(map(str, file.inputs))}; output {'; '.join(map(str, file.outputs))}")
    least = "" if spec.tile_min is None else f" from {size_text(spec.tile_min)}"
    size = " (fixed)" if spec.tile_fixed else f", or any multiple of {spec.stride}{least}"
    print(
        f"  tile {size_text(spec.tile)}{size}, overlap {size_text(spec.overlap)}; permits {', '.join(spec.precisions)}"
    )
    return 0


def _export_package(
    source: CheckpointSource | OnnxSource, place: Place, precision: Precision | None, args: argparse.Namespace
) -> int:
    """Export to ONNX, and pack that for bioimage.io."""
    from tilelab.exporting.export import export_model
    from tilelab.exporting.package_file import Credits, write_package
    from tilelab.exporting.samples import planes_of
    from tilelab.exporting.write import Request

    license = args.license or source.spec.training.get("license") or source.spec.training.get("licence")  # noqa: A001
    missing = [flag for flag, value in (("--author NAME", args.author), ("--license SPDX", license)) if not value]
    if missing:
        raise ModelError(f"a package names who made it and under which licence: give {' and '.join(missing)}")
    if args.output.exists() and not args.force:
        raise OutputError(f"{args.output} exists: give another name or --force")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", suffix=MARK, dir=args.output.parent) as folder:
        onnx = Path(folder) / "weights.onnx"
        done = export_model(
            source,
            onnx,
            lambda spec: gather_samples(source, spec, args),
            precision=precision,
            place=place,
            request=Request(calibration=planes_of(args.calibrate, source.spec.neighbours)),
            require=[parse_precision(text) for text in args.require],
            trained=_trained(source, args),
            report=lambda line: print(line, flush=True),
        )
        sample = gather_samples(source, done.spec, args)[0]
        write_package(onnx, args.output, sample, Credits(tuple(args.author), str(license), args.about or ""), say)
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.2f} MB): a package of bioimage.io")
    return 0


def _square_place(given: SpecOverrides) -> Place:
    """How a checkpoint's network is to be tiled; its tiles are squares."""
    from tilelab.exporting.export import Place

    sides = {}
    for flag, value in (("tile", given.tile), ("overlap", given.overlap)):
        if isinstance(value, float):
            raise ModelError(f"--{flag} {value:.0%} is not for checkpoints: give pixels")
        if value is not None and len(set(value)) > 1:
            raise ModelError(f"--{flag} {size_text(value)}: tiles of a checkpoint are squares, give one number")
        sides[flag] = None if value is None else value[0]
    return Place(tile=sides["tile"], overlap=sides["overlap"], window=given.window)


def _claim(args: argparse.Namespace) -> None:
    """Refuse to overwrite what is read.

    Raises:
        OutputError: it names both.
    """
    reads = {
        "SOURCE": args.source,
        "--calibrate": args.calibrate,
        "--images": args.images,
        "--masks": args.masks,
        "--like": args.like,
    }
    cache = args.timing_cache
    ours = cache is None or cache.suffix in (".timing", ".cache")
    weights = args.output.with_suffix(".bin") if args.output.suffix == ".xml" else None
    claim(
        reads | {"--data": args.data},
        [
            Write(cache, "--timing-cache", replace=ours),
            *(Write(file, "-o", "result") for file in (args.output, weights)),
        ],
    )


def gather_samples(
    source: CheckpointSource | OnnxSource, spec: ModelSpec, args: argparse.Namespace
) -> Sequence[Sample]:
    """The images to compare on.

    Raises:
        InputError: flags that contradict each other, or images that are not there.
    """
    from tilelab.exporting.samples import drawn_sample, user_samples, validation_samples

    if args.images is not None and args.data is not None:
        raise InputError("--images and --data both say what to compare on: leave one out")
    if args.images is None and (args.masks is not None or args.labels):
        raise InputError("--masks and --labels are about --images: give those, too")
    if args.images is not None:
        return user_samples(args.images, args.masks, args.labels, spec)
    if args.data is not None:
        if source.recipe is None:
            raise InputError(f"--data needs the recipe of a checkpoint, {source.path} has none: give --images")
        return validation_samples(source.recipe, args.data)
    return [drawn_sample(spec)]


def _trained(source: CheckpointSource | OnnxSource, args: argparse.Namespace) -> Sequence[Image]:
    """The images that the network was trained on, as far as they are named."""
    from tilelab.exporting.samples import planes_of, training_images

    if args.like is not None:
        return planes_of(args.like, source.spec.neighbours)
    return [] if args.data is None or source.recipe is None else training_images(source.recipe, args.data)


def _timing_cache(output: Path, device_name: str) -> Path | None:
    """The user's own, for this version of TensorRT and this GPU."""
    if output.suffix != ".engine":
        return None
    from tilelab.engines.builders.tensorrt import default_timing_cache
    from tilelab.engines.registry import availability

    found = availability("tensorrt")
    if found.reason:
        raise EngineError(found.reason)
    from tilelab.kernels import device

    index = 0 if device_name == "auto" else device.parse_index(device_name)
    return default_timing_cache(found.version, device.select(index).capability)
