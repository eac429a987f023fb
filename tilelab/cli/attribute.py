"""`tilelab attribute IMAGE --model CHECKPOINT --at Y,X`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.assumptions import check_strict
from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.cli.run_arguments import (
    AXES_HELP,
    CHANNEL_HELP,
    PIXEL_SIZE_HELP,
    SERIES_HELP,
    parse_count,
    parse_sizes,
)
from tilelab.cli.screen import say
from tilelab.cli.trust_words import OUTSIDE_HELP, TRUST_HELP
from tilelab.errors import EngineError, InputError, ModelError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import replacing
from tilelab.text import install_hint

if TYPE_CHECKING:
    from tilelab.arrays import UInt8
    from tilelab.io.images.volume import Volume
    from tilelab.spec import ModelSpec
    from tilelab.training.attribution import Attribution, Field, Sample


EXAMPLES = (
    "tilelab attribute cell.tif -m runs/membrane/best.safetensors --at 200,310",
    "tilelab attribute cell.tif -m best.safetensors --at 200,310 --pictures look/",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.epilog = "The area S_k is that of the pixels whose attribution exceeds a share k of the greatest."
    add = parser.add_argument
    add("image", metavar="IMAGE", help="a micrograph, of any size: one crop of it is read")
    add("--model", "-m", required=True, metavar="M", help="a checkpoint of `tilelab train`\ngradients need its network")
    add("--at", required=True, type=_place, metavar="Y,X", help="the pixel; Z,Y,X in a stack")
    add("--class", dest="label", metavar="NAME", help="class whose logit is explained (that of the pixel)")
    add("--pictures", metavar="DIR", help="draw the field, and with --truth those of the kinds")
    add("-o", "--output", metavar="FILE.tif", help="write the attributions of the crop, float32")
    add_json(parser, "all numbers")
    add("--truth", metavar="MASK", help="its labels: explain found and missed pixels, too\nright, falsely found and "
        "missed pixels of the class")  # fmt: skip
    add("--truth-map", metavar="MAP", help="classes of the values stored in MASK, as for eval")
    add("--pixels", type=parse_count, default=16, metavar="N", help="pixels of each of these kinds (%(default)s)")
    add("--strict", action="store_true", help="refuse to assume anything of the image")
    add("--trust", action="store_true", help=TRUST_HELP)
    add = parser.add_argument_group("how it is computed").add_argument
    add("--crop", type=parse_count, metavar="PX", help="side of the crop around the pixel\nwhat it sees, at most the "
        "tile")  # fmt: skip
    add("--steps", type=parse_count, default=100, metavar="N", help="of the Riemann sum (%(default)s)")
    add("--share", type=float, default=0.01, metavar="K", help="k of S_k (%(default)s)")
    add("--baseline", choices=("zero", "black"), default="zero", metavar="B",
        help="begin at zero, or at a black image (zero)\nzeros of the network's input")  # fmt: skip
    add = parser.add_argument_group("how the image is read").add_argument
    add("--pixel-size", type=parse_sizes, metavar="NM", help=PIXEL_SIZE_HELP)
    add("--ignore-pixel-size", action="store_true", help="go on although the model was trained at another")
    add("--channel", type=int, metavar="N", help=CHANNEL_HELP)
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--series", metavar="N", help=SERIES_HELP)
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Explain what a network decided at a pixel."""
    _check(args)
    network, spec = _load(Path(args.model), trust=args.trust)
    from tilelab.io.images.volume import Volume
    from tilelab.run.opening import open_source
    from tilelab.run.options import Options
    from tilelab.training.attribution import Attribution, summarise

    options = Options(
        channel=args.channel, axes=args.axes, series=args.series, pixel_size_nm=args.pixel_size,
        ignore_pixel_size=args.ignore_pixel_size, allow_outside=args.allow_outside, strict=args.strict,
    )  # fmt: skip
    with open_source(args.image, options, spec) as opened:
        for line in map(str, (*opened.notes, *opened.assumptions)):
            say(line)
        check_strict(opened.assumptions, args.strict)
        volume = Volume(opened.image)
        at: Any = args.at if len(args.at) == 3 else (0, *args.at)
        asked = Attribution(
            network, spec, volume, at, side=args.crop, steps=args.steps, baseline=args.baseline
        )  # fmt: skip
        label = None if args.label is None else _find_class(spec, args.label)
        found = asked.explain(at[1:], label)
        size = None if volume.pixel_size_nm is None else volume.pixel_size_nm[1:]
        truth = None if args.truth is None else _read_truth(args, volume, asked, at[0])
    samples: list[Sample] = []
    if truth is not None:
        _check_label(spec, found.label)
        samples = list(asked.sample(truth, found.label, args.pixels))
    area, unit = _area(size)
    document = _document(found, spec, area, unit, args) | {"kinds": summarise(samples, area, args.share)}
    if not put_json(args.json, json.dumps(document, indent=1)):
        _tell(document, unit)
    _write(args, found, samples, asked, spec, size)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what could not be done or written, before anything is read."""
    if not 0 < args.share < 1:
        raise InputError(f"--share {args.share:g} was given: between 0 and 1")
    if args.steps < 2:
        raise InputError(f"--steps {args.steps} was given: 2 or more")
    if args.output is not None and not args.output.lower().endswith((".tif", ".tiff")):
        raise InputError(f"-o {args.output} is of no kind that attributions can be: name it NAME.tif")
    claim(
        {"IMAGE": args.image, "--truth": args.truth, "--model": args.model},
        [
            Write(args.output, "-o"),
            Write(json_file(args.json), "--json", "json"),
            Write(args.pictures, "--pictures", "into"),
        ],
    )


def _load(path: Path, *, trust: bool) -> tuple[Any, ModelSpec]:
    """The network of a checkpoint in torch.

    Raises:
        ModelError: it is no checkpoint.
        EngineError: torch is not installed.
    """
    if path.suffix.lower() != ".safetensors":
        raise ModelError(f"{path} gives no gradients: attribute takes the .safetensors checkpoint that it was made of")
    try:
        from tilelab.training.checkpoint import load_checkpoint, load_network
    except ModuleNotFoundError as error:
        raise EngineError(f"attributions need {error.name}: {install_hint('train,attribute')}") from None
    checkpoint = load_checkpoint(path)
    return load_network(checkpoint, trust=trust), checkpoint.header.spec


def _find_class(spec: ModelSpec, name: str) -> int:
    names = [info.name for info in spec.classes]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise ModelError(f"no class {name!r}: the model has {', '.join(f'{i} {n}' for i, n in enumerate(names))}")


def _check_label(spec: ModelSpec, label: int) -> None:
    if label == 0:
        say(f"right and wrong pixels are those of class 0, {spec.classes[0].name}: name another with --class")


def _read_truth(args: argparse.Namespace, volume: Volume, asked: Attribution, z: int) -> UInt8:
    """The labels of the crop.

    Raises:
        InputError: they are not of the image's size.
    """
    from contextlib import closing

    from tilelab.evaluation.label_map import LabelMap
    from tilelab.evaluation.labels import open_labels
    from tilelab.geometry import Box

    mapping = LabelMap.parse(args.truth_map) if args.truth_map else None
    with closing(open_labels(args.truth, mapping, allow_outside=args.allow_outside)) as labels:
        if labels.shape[0] != volume.shape[0] or any(a < b for a, b in zip(labels.shape, volume.shape, strict=True)):
            raise InputError(f"{args.truth} has {labels.shape} pixels (z, y, x), {args.image} {volume.shape}")
        rows, columns = asked.region(volume.shape)
        low, high = (int(rows.min()), int(columns.min())), (int(rows.max()) + 1, int(columns.max()) + 1)
        block = labels.read(Box((z, *low), (z + 1, *high)))[0]
    truth: UInt8 = block[(rows - low[0])[:, None], columns - low[1]]
    return truth


def _document(found: Field, spec: ModelSpec, area: float, unit: str, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "at": list(found.at), "class": spec.classes[found.label].name, "logit": found.logit,
        "baseline_logit": found.baseline_logit, "residue": found.residue, "share": args.share, "steps": args.steps,
        "baseline": args.baseline, "origin": list(found.origin), "crop_px": found.values.shape[0],
        f"s_k_{unit}": found.pixels(args.share) * area,
        f"magnitude_s_k_{unit}": found.magnitude_pixels(args.share) * area,
    }  # fmt: skip


def _tell(document: dict[str, Any], unit: str) -> None:
    """The numbers for people."""
    from tilelab.text import markdown_table

    y, x = document["at"]
    print(
        f"{document['class']} at {y}, {x}: logit {document['logit']:.4g}, {document['baseline_logit']:.4g} of the "
        f"baseline; attributions sum to the difference within {abs(document['residue']):.2%}."
    )
    print(
        f"S_{document['share']:g} = {document[f's_k_{unit}']:,.5g} {unit}; "
        f"{document[f'magnitude_s_k_{unit}']:,.5g} with what spoke against it."
    )
    if document["kinds"]:
        rows = [
            [kind, f"{row['pixels']:.0f}", *(f"{row[key]:,.5g}" for key in ("mean", "sd", "median"))]
            for kind, row in document["kinds"].items()
        ]
        head = ["pixels", "number", *(f"{name} S_k, {unit}" for name in ("mean", "sd", "median"))]
        print("\n" + markdown_table(head, rows))


def _write(
    args: argparse.Namespace, found: Field, samples: list[Sample], asked: Attribution,
    spec: ModelSpec, size: tuple[float, ...] | None,
) -> None:  # fmt: skip
    """Whatever files were asked for."""
    if args.output is not None:
        import tifffile

        with replacing(Path(args.output)) as temporary:
            tifffile.imwrite(temporary, found.values, metadata={"axes": "YX"})
    if args.pictures is None:
        return
    from tilelab.evaluation.pairs import name_of
    from tilelab.training.attribution_pictures import draw_field, draw_kinds

    folder, name = Path(args.pictures), name_of(Path(args.image))
    folder.mkdir(parents=True, exist_ok=True)
    area, unit = _area(size)
    title = f"{spec.classes[found.label].name} at {found.at[0]}, {found.at[1]}: S_{args.share:g} = "
    title += f"{found.pixels(args.share) * area:,.5g} {unit}"
    pictures = {"field": draw_field(found, asked.grey, title, size[1] if size else None, args.share)}
    if samples:
        pictures["kinds"] = draw_kinds(samples, f"Pixels of {spec.classes[found.label].name}", area, unit, args.share)
    for what, picture in pictures.items():
        path = folder / f"{name}.{what}.png"
        with replacing(path) as temporary:
            picture.save(temporary, "PNG")
        print(path, file=sys.stderr)


def _area(size: tuple[float, ...] | None) -> tuple[float, str]:
    """Of a pixel, and in which unit."""
    return (1.0, "px2") if size is None else (size[0] * size[1], "nm2")


def _place(text: str) -> tuple[int, ...]:
    try:
        place = tuple(int(part) for part in text.split(","))
    except ValueError:
        place = ()
    if len(place) not in (2, 3) or min(place) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no pixel: Y,X or Z,Y,X, whole numbers from 0")
    return place
