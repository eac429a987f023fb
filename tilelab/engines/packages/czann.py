"""A .czann of ZEISS (ZEN, arivis): a zip of an ONNX file and the JSON that describes it, after the public format 2."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.files.onnx import read_onnx
from tilelab.engines.overrides import SpecOverrides, resolve_spec
from tilelab.engines.packages.kept import BROKEN, unpacked
from tilelab.errors import ModelError

SUFFIX = ".czann"
_SEGMENTS = ("SingleClassSemanticSegmentation", "MultiClassSemanticSegmentation")
_REGRESSES = "Regression"


def read_czann(path: Path) -> ModelFile:
    """The network of a .czann, described.

    Raises:
        ModelError: it is broken, or holds no ONNX file, or a network that does not segment.
    """
    try:
        folder = unpacked(path, lambda made: _unpack(path, made))
        told: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        kind, shape, gives = told["Type"], told["InputShape"], told["OutputShape"]
    except (*BROKEN, StopIteration, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is not a .czann that can be read: {error!r}") from error
    if kind not in (*_SEGMENTS, _REGRESSES):
        raise ModelError(f"{path} is a model for {kind}: tilelab runs those for {', '.join((*_SEGMENTS, _REGRESSES))}")
    try:
        file = read_onnx(folder / "model.onnx")
    except ModelError as error:
        raise ModelError(f"{path} holds no ONNX file (of TensorFlow, perhaps): save it with an ONNX model") from error
    count, names = int(gives[-1]), tuple(map(str, told.get("Classes") or ()))
    single = count == 1
    if single and len(names) == 1:
        names = ("background", *names)
    scale = told.get("Scaling")  # x and y, in metres
    said = SpecOverrides(
        axes="yx" if len(shape) == 3 else "zyx",
        channels=int(shape[-1]),
        tile=tuple(int(n) for n in shape[:-1]),
        overlap=tuple(int(n) for n in told["MinOverlap"]) if told.get("MinOverlap") else None,
        mean=(0.0,),
        std=(255.0,),  # it takes 0 to 1: black to white
        intensity_dtype="uint8",
        classes=(names if len(names) == count + single else None) if kind != _REGRESSES else None,
        activation=None if kind == _REGRESSES else "sigmoid" if single else "softmax",
        output_is="map" if kind == _REGRESSES else "probabilities",
        pixel_size_nm=(scale[1] * 1e9, scale[0] * 1e9) if scale and len(shape) == 3 else None,
    )
    spec = msgspec.structs.replace(resolve_spec(file, said), name=str(told.get("ModelName") or path.stem))
    return replace(file, description=spec.to_json())


def _unpack(path: Path, folder: Path) -> None:
    """The description and the network, under names of ours."""
    with zipfile.ZipFile(path) as archive:
        for suffix, name in ((".json", "model.json"), (".model", "model.onnx")):
            member = next(one for one in archive.namelist() if one.lower().endswith(suffix) and "/" not in one)
            with archive.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
