"""What `tilelab info` tells of a model file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tilelab.cli.info_words import Rows, classes_text, confidence_text, pixel_text, plain_text
from tilelab.engines.files.ending import Ending
from tilelab.engines.files.model_file import ModelFile
from tilelab.errors import EngineError
from tilelab.text import format_bytes, sides_text, size_text


def examine_model(model: str) -> dict[str, Any]:
    """What a model file holds and says of itself; raises `ModelError` for a broken one."""
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
            "gives": [_gives(file.endings.get(port.name)) for port in file.outputs],
        },
        "description": None if own is None else msgspec.to_builtins(own),
        "permitted": None if own is None else list(permitted(file, own)),
        **_of_bundled(model, file),
    }


def _of_bundled(model: str, file: ModelFile) -> dict[str, Any]:
    """Of a bundled model: its quantised file, and what it runs in on this machine."""
    from tilelab.engines.bundled import bundled_models, quantised_file
    from tilelab.engines.registry import choose_file, read_model

    if bundled_models().get(model) != file.path or file.spec is None:
        return {}
    beside, told = quantised_file(model), {}
    try:
        if beside is not None:
            own = read_model(beside)
            proved = own.spec.training.get("proved") if own.spec is not None else None
            told["quantised"] = {"path": str(beside), "bytes": own.size_bytes, "proved": proved}
        chosen = choose_file(model, file, file.spec)
        told["runs"] = {"engine": chosen.engine, "device": chosen.device, "precision": chosen.precision}
    except EngineError as error:
        told["runs"] = {"reason": str(error)}
    return told


def _gives(ending: Ending | None) -> str:
    """What an output holds, as far as the graph tells."""
    if ending is None:
        return "logits, or what a trial run tells"
    if ending.kind == "probabilities":
        return f"probabilities ({ending.operator})"
    if ending.kind is None:
        return f"unclear, {ending.span} ({ending.operator})"
    return f"{ending.kind} ({ending.operator})"


def model_rows(model: dict[str, Any]) -> Rows:
    """For people."""
    file, spec = model["file"], model["description"]
    rows: Rows = []
    if file is not None:
        opset = f", opset {file['opset']}" if file["opset"] else ""
        maker = f", from {file['producer']}" if file["producer"] else ""
        rows += [
            ("path", file["path"] if file["path"] != model["path"] else None),
            ("file", f"{file['format']}{opset}, {file['precision']}, {format_bytes(file['bytes'])}{maker}"),
            *(("input", port) for port in file["inputs"]),
            *(("output", f"{port}: {gives}") for port, gives in zip(file["outputs"], file["gives"], strict=True)),
        ]
    if spec is None:
        return [*rows, ("describes itself", "no: infer needs --classes, --mean and --std for it (see its --help)")]
    tile = sides_text(spec["tile"]) + (" (fixed)" if spec["tile_fixed"] else "")
    if not spec["tile_fixed"]:
        tile += f", or any multiple of {spec['stride']}" if spec["stride"] > 1 else ", or any other"
        tile += f" from {sides_text(spec['tile_min'])}" if spec["tile_min"] else ""
    field = spec["receptive_field"]
    size = spec["pixel_size_nm"]
    rows += [
        ("name", spec["name"]),
        ("architecture", spec["architecture"]),
        ("axes", f"{spec['axes']}, {spec['channels']} channel{'s' if spec['channels'] > 1 else ''}"),
        ("neighbours", _neighbours_text(spec["neighbours"])),
        ("classes", classes_text(spec["classes"])),
        ("activation", spec["activation"]),
        *(("uses", line) for line in _outputs_text(spec["outputs"])),
        ("normalization", _normalization_text(spec["normalization"])),
        ("pixel size", pixel_text(None if size is None else list(zip(spec["axes"], size, strict=True)))),
        ("tile", tile),
        ("overlap", f"{sides_text(spec['overlap'])}, {spec['window']} window"),
        ("stride", spec["stride"]),
        ("sees", "the whole tile" if field is None else f"{field} px around each pixel"),
        ("seams", _seams_text(spec.get("seams"))),
        ("confidence", confidence_text(spec.get("confidence"))),
        ("check", model.get("check")),
        ("precisions", ", ".join(model.get("permitted") or spec["precisions"])),
        ("int8", _quantised_text(model.get("quantised"))),
        ("runs here", _runs_text(model.get("runs"))),
    ]
    return rows + [(key.replace("_", " "), plain_text(value)) for key, value in spec["training"].items()]


def _quantised_text(file: dict[str, Any] | None) -> str | None:
    """The second file of a bundled model."""
    if file is None:
        return None
    proved = plain_text((file["proved"] or {}).get("int8", "not proved"))
    return f"{file['path']}, {format_bytes(file['bytes'])}: {proved}"


def _runs_text(runs: dict[str, str] | None) -> str | None:
    """What `infer` takes on this machine."""
    if runs is None:
        return None
    return runs.get("reason") or f"in {runs['precision']} by {runs['engine']} on {runs['device']}"


def _outputs_text(outputs: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each output that is used; none for a single one of logits or probabilities as large as its tile."""
    lines = []
    for output in outputs:
        kind = output.get("kind") or "logits or probabilities"
        words = [f"map of {output.get('channels', 1)}" if kind == "map" else kind]
        words += [f"in steps of {output['step']}"] if "step" in output else []
        words += [f"{size_text(output['halo'])} px less at either side"] if "halo" in output else []
        words += [f"{size_text(f'{s:g}' for s in output['scale'])} of its size"] if "scale" in output else []
        words += [f"from {', '.join(f'{t:g}' for t in output['thresholds'])} on"] if "thresholds" in output else []
        lines.append(f"{output.get('name') or 'its output'}: {', '.join(words)}")
    told = len(outputs) > 1 or {*outputs[0]} & {"halo", "scale", "step", "thresholds"}
    return lines if told or outputs[0].get("kind") in ("labels", "map") else []


def _seams_text(seams: dict[str, Any] | None) -> str | None:
    """What was measured of tiles against the whole image, or against other tiles."""
    if not seams:
        return None
    if seams.get("shifted") is not None:
        return f"{seams['shifted']:.2%} of the labels change when the tiles lie half a step further"
    known = zip(seams["overlap"], seams["labels"], strict=True)
    return "labels that differ for each px of a seam: " + ", ".join(f"{n:g} at overlap {o}" for o, n in known)


def _neighbours_text(count: int) -> str | None:
    return f"the channels are slices z-{count} to z+{count} of a stack" if count else None


def _normalization_text(kind: dict[str, Any]) -> str:
    whose = "each slice" if kind.get("per") == "slice" else "the whole image"
    clip = kind.get("clip")
    cut = "" if clip is None else f", cut off at {clip[0]:g} and {clip[1]:g}"
    if kind["kind"] == "constants":
        pairs = dict.fromkeys(zip(kind["mean"], kind["std"], strict=True))
        return f"{kind['dtype']} " + ", ".join(f"(v - {mean:.6g}) / {std:.6g}" for mean, std in pairs) + cut
    if kind["kind"] == "mean-std":
        return f"mean and standard deviation of {whose}{cut}"
    if kind["kind"] == "min-max":
        return f"least and greatest of {whose} become 0 and 1{cut}"
    return f"percentiles {kind['low']:g} and {kind['high']:g} of {whose} become 0 and 1{cut}"
