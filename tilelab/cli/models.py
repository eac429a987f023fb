"""`tilelab models [NAME]`: the models that come along, and what their cards say."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from tilelab.cli.command_parser import terminal_width
from tilelab.cli.info_words import confidence_text, pixel_text
from tilelab.cli.json_output import add_json, json_file, put_json
from tilelab.errors import ModelError
from tilelab.io.storage.claims import Write, claim
from tilelab.text import counted, did_you_mean, format_bytes

EXAMPLES = ("tilelab models", "tilelab models superalloy    # the whole card", "tilelab models --json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a bundled model: its whole card")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """List the bundled models, or print the card of one."""
    from tilelab.engines.bundled import bundled_models

    claim({}, [Write(json_file(args.json), "--json", "json")])
    known = bundled_models()
    if args.name is not None and args.name not in known:
        likely = did_you_mean(args.name, known)
        raise ModelError(f"{args.name!r} does not come along, there are {', '.join(known)}{likely}")
    named = {args.name: known[args.name]} if args.name is not None else known
    found = [describe_bundled(name, file) for name, file in named.items()]
    if put_json(args.json, json.dumps(found, indent=1)):
        return 0
    if args.name is not None:
        print(read_card(known[args.name]).rstrip())
        print(f"\nTo use it: tilelab infer IMAGE --model {args.name}")
        return 0
    print("\n\n".join(map(in_short, found)))
    print("\n`tilelab models NAME` prints the whole card. Others are named by their file: --model mine.onnx")
    return 0


def read_card(file: Path) -> str:
    """The card of a bundled model.

    Raises:
        ModelError: it is not there.
    """
    try:
        return file.with_suffix(".md").read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"the card of {file.stem} cannot be read: {error.strerror}") from error


def describe_bundled(name: str, file: Path) -> dict[str, Any]:
    """What card and file say in short."""
    import msgspec

    from tilelab.engines.bundled import quantised_file
    from tilelab.engines.registry import permitted, read_model

    model, beside = read_model(file), quantised_file(name)
    quick = [] if beside is None else [beside, beside.with_suffix(".bin")]
    spec = model.spec
    assert spec is not None  # noqa: S101 - ours describe themselves
    scores = spec.training.get("validation", {})
    card = read_card(file)
    about = re.search(r"^# .*\n+(.+(?:\n.+)*)", card)
    return {
        "name": name,
        "about": " ".join(about[1].split()) if about else "",
        "classes": {info.name: scores.get("iou", {}).get(info.name) for info in spec.classes},
        "mean_iou": scores.get("mean_iou"),
        "confidence": msgspec.to_builtins(spec.confidence),
        "validation_images": scores.get("images"),
        "pixel_size_nm": None if spec.pixel_size_nm is None else dict(zip(spec.axes, spec.pixel_size_nm, strict=True)),
        "axes": spec.axes,
        "precisions": [*(["int8"] if quick else []), *permitted(model, spec)],
        "bytes": model.size_bytes + sum(part.stat().st_size for part in quick),
        "licence": spec.training.get("licence", spec.training.get("license")),
        "card": str(file.with_suffix(".md")),
    }


def in_short(model: dict[str, Any]) -> str:
    """A paragraph of a model."""
    classes = ", ".join(name if score is None else f"{name} {score:.3f}" for name, score in model["classes"].items())
    size = model["pixel_size_nm"]
    images = f" on {counted(model['validation_images'], 'image')}" if model["validation_images"] else ""
    rows = {
        "": model["about"],
        "classes": classes,
        "mean IoU": f"{model['mean_iou']:.3f}{images} it was not trained on" if model["mean_iou"] else "not measured",
        "confidence": confidence_text(model["confidence"]) or "not calibrated",
        "pixel size": pixel_text(list(size.items())) if size else "not recorded",
        "file": f"{format_bytes(model['bytes'])}, {', '.join(model['precisions'])}, licence {model['licence']}",
    }
    lines = [model["name"]]
    for name, text in rows.items():
        head = f"  {name:<12}" if name else "  "
        lines += textwrap.wrap(
            text, terminal_width(), initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        )
    return "\n".join(lines)
