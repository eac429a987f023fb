"""What `tilelab info` tells of a result."""

from __future__ import annotations

from typing import Any

import msgspec

from tilelab.cli.info_words import Rows, axes_text, classes_text, levels_text, pixel_text
from tilelab.io.storage.place import Place
from tilelab.text import format_bytes, sides_text


def examine_result(path: Place) -> dict[str, Any]:
    """What a finished result holds; raises `InputError` for anything else."""
    from tilelab.io.results.result import find_loss, read_result

    result = read_result(path)
    info = result.info
    return {
        "name": info.name,
        "axes": info.axes,
        "levels": [
            list(image.shape) for image in result.labels or result.probabilities or list(result.maps.values())[:1]
        ],
        "pixel_size_nm": info.pixel_size_nm,
        "classes": msgspec.to_builtins(info.classes),
        "labels": info.labels,
        "probabilities": [info.classes[index].name for index in info.probabilities],
        "logits": info.logits,
        **(
            {"maps": {known.output or known.name: known.channels for known in info.kept_maps}} if info.kept_maps else {}
        ),
        **_disk_bytes(path),
        **({} if (loss := find_loss(path)) is None else {"damaged": loss}),
        "metadata": info.metadata,
    }


def _disk_bytes(path: Place) -> dict[str, int]:
    """What a local result takes; a store would have to be asked for every object."""
    sizes = path.file_sizes()
    return {} if sizes is None else {"bytes": sum(sizes)}


def result_rows(result: dict[str, Any]) -> Rows:
    """For people."""
    size = result["pixel_size_nm"]
    metadata = result["metadata"]
    engine = metadata.get("fingerprint", {}).get("engine", {})
    lattice = metadata.get("fingerprint", {}).get("lattice", {})
    holds = ["labels"] if result["labels"] else []
    holds += [f"probability of {', '.join(result['probabilities'])}"] if result["probabilities"] else []
    holds += [f"{result['logits']} logits"] if result["logits"] else []
    holds += [f"map {name} ({count} float32)" for name, count in result.get("maps", {}).items()]
    tiles = [
        f"{key} {sides_text(lattice[key].strip('()').split(', '))}"
        for key in ("tile", "overlap", "window")
        if key in lattice
    ]
    return [
        ("of", result["name"]),
        ("size", axes_text(result["axes"], result["levels"][0][-len(result["axes"]) :]) if result["levels"] else None),
        ("pixel size", pixel_text(None if size is None else list(zip(result["axes"], size, strict=True)))),
        ("holds", ", ".join(holds)),
        ("classes", classes_text(result["classes"])),
        ("levels", levels_text(result["levels"])),
        ("on disk", format_bytes(result["bytes"]) if "bytes" in result else None),
        ("damaged", f"it has {result['damaged']}" if "damaged" in result else None),
        ("model", metadata.get("model")),
        ("engine", " ".join(str(engine[key]) for key in ("name", "precision") if key in engine)),
        ("tiles", ", ".join(tiles)),
        ("written by", f"tilelab {metadata['tilelab']}" if "tilelab" in metadata else None),
    ]
