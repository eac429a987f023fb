"""The benchmark's network in int8: post-training quantisation on training tiles, for each engine by its own means.

OpenVINO by NNCF, ONNX Runtime by its static quantisation to QDQ; both with 8-bit activations and per-channel weights,
calibrated on the same tiles.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.model import Model, calibration_tiles
from benchmarks.settings import Scale
from tilelab.spec import METADATA_KEY

TILES = 48

Tiles = list[npt.NDArray[np.float32]]


def prepare_quantized(
    scale: Scale, cache: Path, model: Model, say: Callable[[str], None] = lambda _: None
) -> dict[str, Path]:
    """Quantised files by engine, made once and kept beside the model."""
    found: dict[str, Path] = {}
    makers: dict[str, tuple[str, str, Callable[[Model, Tiles, Path], None]]] = {
        "openvino": ("nncf", "int8.xml", quantize_openvino),
        "onnxruntime": ("onnxruntime", "int8.onnx", quantize_onnxruntime),
    }
    for engine, (package, name, make) in makers.items():
        path = model.onnx.parent / name
        if not path.exists():
            if importlib.util.find_spec(package) is None:
                say(f"{package} is not installed: no int8 for {engine}")
                continue
            say(f"quantising for {engine}")
            count = TILES if scale.tile > 64 else 4
            make(model, calibration_tiles(scale, cache, model.spec, count), path)
        found[engine] = path
    return found


def quantize_openvino(model: Model, tiles: Tiles, path: Path) -> None:
    """Write an OpenVINO IR by NNCF's post-training quantisation."""
    import nncf  # type: ignore[import-untyped,import-not-found,unused-ignore]

    from tilelab.engines.ov import import_openvino

    openvino = import_openvino()
    logging.getLogger("nncf").setLevel(logging.ERROR)
    network = openvino.Core().read_model(model.onnx)
    network.reshape([1, model.spec.channels, *model.spec.tile])
    from nncf.quantization.range_estimator import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        RangeEstimatorParametersSet,
    )

    # the default, a mean of each tile's range, clips what is brighter or darker than most: 10 % of the labels change
    ranges = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)
    quantized = nncf.quantize(
        network,
        nncf.Dataset(tiles),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
        advanced_parameters=ranges,
    )
    quantized.reshape([-1, model.spec.channels, *model.spec.tile])
    for key in (["framework", METADATA_KEY], [METADATA_KEY]):
        quantized.set_rt_info(_int8(model), key)
    openvino.save_model(quantized, path.with_suffix(".partial.xml"), compress_to_fp16=False)
    path.with_suffix(".partial.bin").replace(path.with_suffix(".bin"))
    path.with_suffix(".partial.xml").replace(path)


def quantize_onnxruntime(model: Model, tiles: Tiles, path: Path) -> None:
    """Write a QDQ ONNX file by ONNX Runtime's static quantisation."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from tilelab.engines.onnx_file import embed_spec

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.tiles: Iterator[Any] = iter(tiles)

        def get_next(self) -> Any:
            tile = next(self.tiles, None)
            return None if tile is None else {"input": tile}

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / path.name
        quant_pre_process(str(model.onnx), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(made),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        embed_spec(made, msgspec.json.decode(_int8(model), type=type(model.spec)))
        shutil.move(made, path)


def _int8(model: Model) -> str:
    """The description of the quantised network."""
    return msgspec.structs.replace(model.spec, precisions=("int8",)).to_json()
