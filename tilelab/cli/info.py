"""`tilelab info PATH...`: describe images, models and results without computing anything."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tilelab.cli.info_network import (
    CHECKPOINT,
    architecture_rows,
    checkpoint_rows,
    examine_architecture,
    examine_checkpoint,
    is_architecture,
)
from tilelab.cli.screen import assumption_rows
from tilelab.errors import InputError, TilelabError
from tilelab.io.storage.place import Place
from tilelab.io.storage.remote_access import clean_uri
from tilelab.text import format_bytes, size_text

if TYPE_CHECKING:
    from rich.text import Text

_MODEL_SUFFIXES = (".onnx", ".xml", ".engine", ".plan", ".pt2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, model (file or bundled name), result, "
                        "checkpoint, or name of an architecture (pmcanet:resnet50)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON list, one document for each PATH")


def run(args: argparse.Namespace) -> int:
    """Describe every path that can be; the first that cannot is the error."""
    documents: list[dict[str, Any]] = []
    failures: list[TilelabError] = []
    for path in args.paths:
        try:
            documents.append(examine(path))
        except TilelabError as error:
            failures.append(error)
            documents.append({"path": clean_uri(path), "kind": "error", "error": str(error)})
    if args.json:
        print(json.dumps(documents, indent=1))
    else:
        _show([document for document in documents if document["kind"] != "error"])
        for failure in failures[1:]:
            print(f"tilelab: error: {failure}", file=sys.stderr)
    if failures:
        raise failures[0]
    return 0


def examine(path: str) -> dict[str, Any]:
    """What there is to know about one path, as a document.

    Its ``kind`` is ``image``, ``model``, ``result``, ``checkpoint`` or ``architecture``.

    Raises:
        TilelabError: it is none of these, or broken.
    """
    from tilelab.engines.registry import bundled_models
    from tilelab.io.images.open import describe
    from tilelab.io.storage.place import remote_place

    if (place := remote_place(path)) is not None:
        try:
            return {"path": str(place), "kind": "result", **_examine_result(place)}
        except InputError:
            return {"path": str(place), "kind": "image", **describe(path)}
    here = Path(path)
    named = not here.exists() and (path in bundled_models() or path.partition(":")[0] == "identity")
    if named or here.suffix.lower() in _MODEL_SUFFIXES:
        return {"path": path, "kind": "model", **_examine_model(path)}
    if here.suffix == CHECKPOINT and here.is_file():
        return {"path": path, "kind": "checkpoint", **examine_checkpoint(here)}
    if is_architecture(path) and not here.exists():
        return {"path": path, "kind": "architecture", **examine_architecture(path)}
    if here.is_dir() and (here / "zarr.json").is_file():
        try:
            return {"path": path, "kind": "result", **_examine_result(here)}
        except InputError:
            pass  # a Zarr that tilelab did not write: an image like others
    return {"path": clean_uri(path), "kind": "image", **describe(path)}


def _examine_model(model: str) -> dict[str, Any]:
    from tilelab.engines.registry import identity_outputs, permitted, read_model, read_spec

    if identity_outputs(model) is not None:
        spec = read_spec(model)
        return {"file": None, "description": msgspec.to_builtins(spec)}
    file = read_model(model)
    own = file.spec
    return {
        "file": {
            "path": str(file.path),
            "format": file.format,
            "bytes": file.size_bytes,
            "opset": file.opset,
            "producer": file.producer,
            "precision": file.precision,
            "inputs": [str(port) for port in file.inputs],
            "outputs": [str(port) for port in file.outputs],
        },
        "description": None if own is None else msgspec.to_builtins(own),
        "permitted": None if own is None else list(permitted(file, own)),
    }


def _examine_result(path: Place) -> dict[str, Any]:
    from tilelab.io.results.result import read_result

    result = read_result(path)
    info = result.info
    return {
        "name": info.name,
        "axes": info.axes,
        "levels": [list(image.shape) for image in result.labels or result.probabilities],
        "pixel_size_nm": info.pixel_size_nm,
        "classes": msgspec.to_builtins(info.classes),
        "labels": info.labels,
        "probabilities": [info.classes[index].name for index in info.probabilities],
        "logits": info.logits,
        **_disk_bytes(path),
        "metadata": info.metadata,
    }


def _disk_bytes(path: Place) -> dict[str, int]:
    """What a local result takes; a store would have to be asked for every object."""
    if not isinstance(path, Path):
        return {}
    return {"bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}


def _show(documents: list[dict[str, Any]]) -> None:
    """Print documents for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    tellers = {
        "image": _image_rows,
        "model": _model_rows,
        "result": _result_rows,
        "checkpoint": _checkpoint_rows,
        "architecture": architecture_rows,
    }
    for i, document in enumerate(documents):
        if i:
            console.print()
        console.print(Text.assemble((document["path"], "bold"), f"  {document['kind']}"), soft_wrap=True)
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for name, value in tellers[document["kind"]](document):
            if value is not None and value != "":
                table.add_row(f"  {name}", value if isinstance(value, Text) else Text(str(value)))
        console.print(table)


_Rows = list[tuple[str, Any]]


def _image_rows(image: dict[str, Any]) -> _Rows:
    known = image["pixel_size_nm"]
    rows: _Rows = [
        ("format", ", ".join(str(image[key]) for key in ("format", "layout", "compression") if image.get(key))),
        ("size", f"{_axes_text(image['axes'], image['shape'])}, {image['dtype']}"),
        ("pixel size", _pixel_text(None if known is None else list(known.items()))),
        (
            "chunks",
            size_text(image["chunks"]) + (f" in shards of {size_text(image['shards'])}" if image.get("shards") else ""),
        ),
        ("levels", _levels_text(image["levels"])),
        ("on disk", format_bytes(image["bytes"]) if image.get("bytes") else None),
    ]
    seen = image.get("image")
    if seen is not None and (seen["axes"], seen["shape"], seen["dtype"]) != (
        image["axes"],
        image["shape"],
        image["dtype"],
    ):
        rows.append(("read as", f"{_axes_text(seen['axes'], seen['shape'])}, {seen['dtype']}"))
    rows += [("needs", image.get("error"))]
    rows += [
        (key, _plain(image[key])) for key in ("images", "slices", "labels", "name") if image.get(key) not in (None, 1)
    ]
    rows += [("warning", warning) for warning in image.get("warnings", ())]
    return rows + [("assumed", text) for text in assumption_rows(image["assumptions"]).values()]


def _model_rows(model: dict[str, Any]) -> _Rows:
    file, spec = model["file"], model["description"]
    rows: _Rows = []
    if file is not None:
        opset = f", opset {file['opset']}" if file["opset"] else ""
        maker = f", from {file['producer']}" if file["producer"] else ""
        rows += [
            ("path", file["path"] if file["path"] != model["path"] else None),
            ("file", f"{file['format']}{opset}, {file['precision']}, {format_bytes(file['bytes'])}{maker}"),
            *(("input", port) for port in file["inputs"]),
            *(("output", port) for port in file["outputs"]),
        ]
    if spec is None:
        return [*rows, ("describes itself", "no: infer needs --classes, --mean and --std for it (see its --help)")]
    tile = size_text(spec["tile"]) + (" (fixed)" if spec["tile_fixed"] else "")
    if not spec["tile_fixed"]:
        tile += f", or any multiple of {spec['stride']}" if spec["stride"] > 1 else ", or any other"
        tile += f" from {size_text(spec['tile_min'])}" if spec["tile_min"] else ""
    field = spec["receptive_field"]
    size = spec["pixel_size_nm"]
    rows += [
        ("name", spec["name"]),
        ("architecture", spec["architecture"]),
        ("axes", f"{spec['axes']}, {spec['channels']} channel{'s' if spec['channels'] > 1 else ''}"),
        ("neighbours", _neighbours_text(spec["neighbours"])),
        ("classes", _classes_text(spec["classes"])),
        ("activation", spec["activation"]),
        ("normalization", _normalization_text(spec["normalization"])),
        ("pixel size", _pixel_text(None if size is None else list(zip(spec["axes"], size, strict=True)))),
        ("tile", tile),
        ("overlap", f"{size_text(spec['overlap'])}, {spec['window']} window"),
        ("stride", spec["stride"]),
        ("sees", "the whole tile" if field is None else f"{field} px around each pixel"),
        ("precisions", ", ".join(model.get("permitted") or spec["precisions"])),
    ]
    return rows + [(key.replace("_", " "), _plain(value)) for key, value in spec["training"].items()]


def _checkpoint_rows(checkpoint: dict[str, Any]) -> _Rows:
    own = checkpoint_rows(checkpoint)
    said = {name for name, _ in own}
    use = _model_rows(checkpoint | {"file": None})
    return own + [(name, value) for name, value in use if name not in {*said, "precisions", "macs per pixel"}]


def _result_rows(result: dict[str, Any]) -> _Rows:
    size = result["pixel_size_nm"]
    metadata = result["metadata"]
    engine = metadata.get("fingerprint", {}).get("engine", {})
    lattice = metadata.get("fingerprint", {}).get("lattice", {})
    holds = ["labels"] if result["labels"] else []
    holds += [f"probability of {', '.join(result['probabilities'])}"] if result["probabilities"] else []
    holds += [f"{result['logits']} logits"] if result["logits"] else []
    tiles = [
        f"{key} {lattice[key].strip('()').replace(', ', ' x ')}"
        for key in ("tile", "overlap", "window")
        if key in lattice
    ]
    return [
        ("of", result["name"]),
        ("size", _axes_text(result["axes"], result["levels"][0][-len(result["axes"]) :]) if result["levels"] else None),
        ("pixel size", _pixel_text(None if size is None else list(zip(result["axes"], size, strict=True)))),
        ("holds", ", ".join(holds)),
        ("classes", _classes_text(result["classes"])),
        ("levels", _levels_text(result["levels"])),
        ("on disk", format_bytes(result["bytes"]) if "bytes" in result else None),
        ("model", metadata.get("model")),
        ("engine", " ".join(str(engine[key]) for key in ("name", "precision") if key in engine)),
        ("tiles", ", ".join(tiles)),
        ("written by", f"tilelab {metadata['tilelab']}" if "tilelab" in metadata else None),
    ]


def _classes_text(classes: list[dict[str, str]]) -> Text:
    from rich.text import Text

    text = Text()
    for index, entry in enumerate(classes):
        if index:
            text.append("\n")
        text.append(f"{index} ")
        text.append("  ", style=f"on {entry['color']}")
        text.append(f" {entry['name']} ({entry['color']})")
    return text


def _neighbours_text(count: int) -> str | None:
    return f"the channels are slices z-{count} to z+{count} of a stack" if count else None


def _normalization_text(kind: dict[str, Any]) -> str:
    if kind["kind"] == "constants":
        pairs = dict.fromkeys(zip(kind["mean"], kind["std"], strict=True))
        return f"{kind['dtype']} " + ", ".join(f"(v - {mean:.6g}) / {std:.6g}" for mean, std in pairs)
    if kind["kind"] == "mean-std":
        return "mean and standard deviation of the whole image"
    return f"percentiles {kind['low']:g} and {kind['high']:g} of the whole image become 0 and 1"


def _pixel_text(sizes: list[tuple[str, float]] | None) -> str:
    if not sizes:
        return "unknown"
    values = {value for _, value in sizes}
    if len(values) == 1:
        return f"{sizes[0][1]:g} nm"
    return ", ".join(f"{axis} {value:g} nm" for axis, value in sizes)


def _axes_text(axes: str, shape: list[int]) -> str:
    pixels = 1
    for axis, n in zip(axes, shape, strict=True):
        pixels *= n if axis in "zyx" else 1
    return f"{size_text(shape)} ({', '.join(axes)}), {pixels / 1e6:.4g} MP"


def _levels_text(levels: list[list[int]]) -> str:
    return f"{len(levels)}, down to {size_text(levels[-1])}" if len(levels) > 1 else "1"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
