"""Write a package of bioimage.io (0.5): an exported ONNX file with what it says, a test and a page, in one zip."""

from __future__ import annotations

import datetime
import importlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.packages.kept import digest_of
from tilelab.engines.registry import load_engine, read_model
from tilelab.errors import ModelError
from tilelab.exporting.package_check import probabilities
from tilelab.exporting.parity import Sample
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.machine.disk import MARK, replacing
from tilelab.machine.version import __version__
from tilelab.run.normalize import normalization_constants
from tilelab.spec import ModelSpec
from tilelab.text import install_hint

FORMAT = "0.5.4"
DOCUMENT = "bioimageio.yaml"
_NAME = 5, 128  # characters, at least and at most
_INPUT, _OUTPUT = "raw", "probabilities"


@dataclass(frozen=True, slots=True)
class Credits:
    """What a package says of its making: names of those who made it, an SPDX identifier, a sentence, what to cite."""

    authors: tuple[str, ...]
    license: str
    description: str = ""
    cite: tuple[str, str] = ("", "")


def write_package(
    onnx: Path, output: Path, sample: Sample, by: Credits, report: Callable[[str], None] = lambda _: None
) -> None:
    """Pack a described ONNX file.

    Args:
        onnx: as `tilelab export` writes it.
        output: the zip; replaced where it is there.
        sample: what the test tensors are cut from.
        by: who made it.
        report: called with a line on how it was checked.

    Raises:
        ModelError: the network has what the format cannot say, or `bioimageio.spec` refuses the package.
    """
    file = read_model(onnx)
    spec = file.spec
    if spec is None or not spec.plain or spec.neighbours or spec.axes != "yx":
        raise ModelError(f"{output}: packages are written for 2-D networks with one output of logits or probabilities")
    raw, given, expected = _test(onnx, file, spec, sample)
    with tempfile.TemporaryDirectory(prefix=".export-", suffix=MARK, dir=output.parent) as scratch:
        folder = Path(scratch)
        shutil.copyfile(onnx, folder / "weights.onnx")
        np.save(folder / "test_input.npy", given)
        np.save(folder / "test_output.npy", expected)
        (folder / "README.md").write_text(_page(spec, by), encoding="utf-8")
        document = _document(file, spec, by, str(raw.dtype), digest_of(onnx))
        (folder / DOCUMENT).write_text(json.dumps(document, indent=1), encoding="utf-8")  # JSON is YAML
        report(validate(folder / DOCUMENT, output))
        with replacing(output) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)


def validate(path: Path, name: Path) -> str:
    """Have `bioimageio.spec` check an unpacked package by its document; returns a line on the outcome.

    Raises:
        ModelError: it is not valid; the message names the first field.
    """
    try:
        library: Any = importlib.import_module("bioimageio.spec")
    except ImportError:
        return f"{name} was not checked by bioimageio.spec, which is not installed: {install_hint('bioimageio')}"
    found = library.load_description(path, perform_io_checks=True)
    summary = found.validation_summary
    if isinstance(found, library.InvalidDescr):
        errors = [f"{'.'.join(map(str, e.loc))}: {e.msg}" for detail in summary.details for e in detail.errors]
        raise ModelError(f"{name} is no valid package of bioimage.io: {errors[0] if errors else summary.status}")
    return f"{name} is valid: bioimageio.spec {importlib.import_module('bioimageio.spec').__version__}"


def _test(onnx: Path, file: ModelFile, spec: ModelSpec, sample: Sample) -> tuple[Array, Array, Float32]:
    """A tile as it is stored, as the package's input, and what the network with its postprocessing makes of it."""
    volume = Volume(sample.image)
    box = Box((0, 0, 0), (1, *(min(n, t) for n, t in zip(volume.shape[1:], spec.tile, strict=True))))
    raw = volume.read(box)[:, 0]
    raw = np.pad(raw, ((0, 0), *((0, t - n) for n, t in zip(raw.shape[1:], spec.tile, strict=True))), mode="symmetric")
    cut = raw if len(raw) > 1 else raw[0]
    with open_image(np.ascontiguousarray(cut), axes="cyx" if len(raw) > 1 else "yx") as image:
        mean, gain, _ = normalization_constants(Volume(image), spec.normalization, spec.channels)
    grey = np.broadcast_to(raw.astype(np.float32), (spec.channels, *spec.tile))
    tile = (grey - mean.reshape(-1, 1, 1)) * gain.reshape(-1, 1, 1)
    if spec.normalization.clip is not None:
        tile = np.clip(tile, *spec.normalization.clip)
    out = np.empty((1, spec.values, *spec.tile), np.float32)
    engine = load_engine(
        onnx, engine="onnxruntime", device="cpu", precision="int8" if file.precision == "int8" else "fp32", batch=1
    )
    try:
        engine.run(np.ascontiguousarray(tile[None], np.float32), out)
    finally:
        engine.close()
    made = probabilities(out, spec.activation, axis=1)
    given = np.ascontiguousarray(grey[None] if not _is_raw(file) else grey[None].astype(raw.dtype))
    return raw, given, made


def _is_raw(file: ModelFile) -> bool:
    return file.inputs[0].raw


def _document(file: ModelFile, spec: ModelSpec, by: Credits, dtype: str, digest: str) -> dict[str, Any]:
    """The description, as the format has it."""
    stated = spec.pixel_size_nm
    sizes = [
        {"size": n} if spec.tile_fixed else {"size": {"min": _least(spec, i), "step": spec.stride}}
        for i, n in enumerate(spec.tile)
    ]
    scales = [{} if stated is None else {"unit": "nanometer", "scale": nm} for nm in stated or (0, 0)]
    space = [{"type": "space", "id": letter} for letter in "yx"]
    inputs = [axis | size | scale for axis, size, scale in zip(space, sizes, scales, strict=True)]
    outputs = [
        axis | {"size": {"tensor_id": _INPUT, "axis_id": axis["id"]}, "halo": max(1, overlap // 2)} | scale
        for axis, overlap, scale in zip(space, spec.overlap, scales, strict=True)
    ]
    names = [one.name for one in spec.classes[spec.activation == "sigmoid" :]]
    after: dict[str, Any] = {"id": "sigmoid"}
    if spec.activation == "softmax":
        after = {"id": "softmax", "kwargs": {"axis": "channel"}}
    ending = file.endings.get(file.outputs[0].name)
    kind = spec.outputs[0].kind or (ending.kind if ending is not None else None)
    text, link = by.cite
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": _allowed(spec.name or "tilelab model"),
        "description": by.description or f"Segments {', '.join(one.name for one in spec.classes)}",
        "authors": [{"name": name} for name in by.authors],
        "cite": [{"text": text or "tilelab", "url": link or "https://bioimage.io"}],
        "license": by.license,
        "documentation": "README.md",
        "tags": ["electron-microscopy", "semantic-segmentation", "tilelab"],
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs": [
            {
                "id": _INPUT,
                "axes": [{"type": "batch"}, _channels([f"channel{i}" for i in range(spec.channels)]), *inputs],
                "data": {"type": dtype if _is_raw(file) else "float32"},
                "preprocessing": [] if _is_raw(file) else _preprocessing(spec),
                "test_tensor": {"source": "test_input.npy"},
            }
        ],
        "outputs": [
            {
                "id": _OUTPUT,
                "axes": [{"type": "batch"}, _channels(names), *outputs],
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "postprocessing": [] if kind == "probabilities" else [after],
                "test_tensor": {"source": "test_output.npy"},
            }
        ],
        "weights": {"onnx": {"source": "weights.onnx", "sha256": digest, "opset_version": file.opset or 18}},
        "config": {"tilelab": {"version": __version__}},
    }


def _channels(names: list[str]) -> dict[str, Any]:
    """The axis; names of the format are words of letters, digits and underscores."""
    plain = ["".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_").lower() for name in names]
    plain = [name if name[:1].isalpha() else f"class_{name}" for name in plain]
    if len(set(plain)) < len(plain):
        plain = [f"class_{i}" for i in range(len(plain))]
    return {"type": "channel", "channel_names": plain}


def _least(spec: ModelSpec, axis: int) -> int:
    """The smallest size that leaves something between the halos."""
    promised = spec.tile_min[axis] if spec.tile_min is not None else 2 * spec.stride
    return max(promised, (spec.overlap[axis] // spec.stride + 1) * spec.stride)


def _preprocessing(spec: ModelSpec) -> list[dict[str, Any]]:
    """The normalisation, step by step."""
    norm = spec.normalization
    steps: list[dict[str, Any]] = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]
    if norm.kind == "constants":
        gains = [1 / s for s in norm.std]
        offsets = [-m / s for m, s in zip(norm.mean, norm.std, strict=True)]
        words: dict[str, Any] = {"gain": gains[0], "offset": offsets[0]}
        if len(set(gains)) > 1 or len(set(offsets)) > 1:
            words = {"axis": "channel", "gain": gains, "offset": offsets}
        steps.append({"id": "scale_linear", "kwargs": words})
    elif norm.kind == "mean-std":
        steps.append({"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"]}})
    else:
        low, high = (norm.low, norm.high) if norm.kind == "percentile" else (0.0, 100.0)
        words = {"axes": ["y", "x"], "min_percentile": low, "max_percentile": high}
        steps.append({"id": "scale_range", "kwargs": words})
    if norm.clip is not None:
        steps.append({"id": "clip", "kwargs": {"min": norm.clip[0], "max": norm.clip[1]}})
    return steps


def _allowed(name: str) -> str:
    """Letters, digits and what else a name may have there, as long as it may be."""
    plain = "".join(c if c.isalnum() or c in " _+-()" else " " for c in name).strip()[: _NAME[1]]
    return plain if len(plain) >= _NAME[0] else f"{plain} network".strip()


def _page(spec: ModelSpec, by: Credits) -> str:
    classes = "\n".join(f"- {i}: {one.name}" for i, one in enumerate(spec.classes))
    told = "\n".join(f"- {key}: {value}" for key, value in spec.training.items())
    return (
        f"# {spec.name}\n\n{by.description}\n\nMade by {', '.join(by.authors)} with tilelab {__version__}. Classes:\n\n"
        f"{classes}\n\n{told}\n\n## Validation\n\n"
        "Compare with masks of your own: `tilelab infer IMAGE --model THIS.zip`, then `tilelab eval RESULT MASK`.\n"
    )
