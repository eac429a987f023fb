"""The benchmark's network in int8, as `tilelab export --precision int8` makes it, for each engine by its own means."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.bench.model import Model, micrographs
from benchmarks.bench.settings import Scale
from tilelab.engines.files.onnx import embed_spec
from tilelab.exporting.calibration import TILES, Tiles, Variation, draw_tiles
from tilelab.exporting.openvino_file import write_ir
from tilelab.exporting.quantize import quantize_onnx, quantize_openvino
from tilelab.exporting.samples import find_images
from tilelab.io.images.open import open_image
from tilelab.spec import ModelSpec

TRAINED = Variation(brightness=0.25, contrast=(0.6, 1.7))  # as in the recipe


def prepare_quantized(
    scale: Scale, cache: Path, model: Model, say: Callable[[str], None] = lambda _: None
) -> dict[str, Path]:
    """Quantised files by engine, made once and kept beside the model."""
    found: dict[str, Path] = {}
    makers: dict[str, tuple[str, str, Callable[[Path, ModelSpec, Tiles, Path], None]]] = {
        "openvino": ("nncf", "int8.xml", _for_openvino),
        "onnxruntime": ("onnxruntime", "int8.onnx", _for_onnxruntime),
    }
    for engine, (package, name, make) in makers.items():
        path = model.onnx.parent / name
        if not path.exists():
            if importlib.util.find_spec(package) is None:
                say(f"{package} is not installed: no int8 for {engine}")
                continue
            say(f"quantising for {engine}")
            images = [open_image(p) for p in find_images(micrographs(scale, cache) / "train" / "images").values()]
            tiles = draw_tiles(images, model.spec, count=TILES if scale.tile > 64 else 4, variation=TRAINED)
            make(model.onnx, model.spec, tiles, path)
        found[engine] = path
    return found


def _for_openvino(onnx: Path, spec: ModelSpec, tiles: Tiles, path: Path) -> None:
    partial = path.with_suffix(".partial.xml")
    write_ir(quantize_openvino(onnx, spec, tiles), _int8(spec), partial)
    partial.with_suffix(".bin").replace(path.with_suffix(".bin"))
    partial.replace(path)


def _for_onnxruntime(onnx: Path, spec: ModelSpec, tiles: Tiles, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        quantize_onnx(onnx, "input", tiles, made)
        embed_spec(made, _int8(spec))
        made.replace(path)


def _int8(spec: ModelSpec) -> ModelSpec:
    """The description of the quantised network."""
    return msgspec.structs.replace(spec, precisions=("int8",))
