"""Post-training quantisation to int8, 8-bit activations and per-channel weights: NNCF for OpenVINO, QDQ for others."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.engines.cpu.onnxruntime import import_onnxruntime
from tilelab.engines.cpu.openvino import import_converter, without_telemetry
from tilelab.engines.cpu.openvino_rewriting import constant_of, rewrite, take_place
from tilelab.engines.cpu.openvino_upsampling import fold_upsampling
from tilelab.errors import EngineError, ModelError
from tilelab.exporting.calibration import Tiles
from tilelab.exporting.openvino_file import read_network
from tilelab.spec import ModelSpec
from tilelab.text import explain, install_hint


def quantize_openvino(onnx: Path, spec: ModelSpec, tiles: Tiles) -> Any:
    """An OpenVINO model in int8, by NNCF.

    Args:
        onnx: the network in fp32.
        spec: its description.
        tiles: normalised, as `draw_tiles` makes them.

    Raises:
        EngineError: NNCF or OpenVINO is not installed.
        ModelError: NNCF cannot quantise the network.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no GPU, on every import
    try:
        import_converter()
        with without_telemetry():
            import nncf  # type: ignore[import-untyped,import-not-found,unused-ignore]
            from nncf.quantization.range_estimator import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
                RangeEstimatorParametersSet,
            )
    except ImportError as error:
        raise EngineError(f"int8 for OpenVINO needs NNCF ({explain(error)}): {install_hint('export')}") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    network = read_network(onnx)
    network.reshape([1, spec.channels, *spec.tile])
    fold_normalization(network)  # before: quantised weights cannot be scaled or summed
    fold_upsampling(network)
    # the default, a mean of each tile's range, clips what is brighter or darker than most: 10 % of the labels change
    ranges = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        overflow_fix=nncf.OverflowFix.ENABLE,  # weights of 7 bits: CPUs without VNNI add products in 16
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            quantized = nncf.quantize(
                network,
                nncf.Dataset(tiles),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(tiles),
                advanced_parameters=ranges,
            )
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"NNCF cannot quantise {spec.architecture or 'the network'}: {explain(error)}") from error
    sides = [-1 for _ in spec.tile] if not spec.tile_fixed else list(spec.tile)
    quantized.reshape([-1, spec.channels, *sides])
    return quantized


_OUTPUT_AXES = {"Convolution": (0,), "ConvolutionBackpropData": (1,), "GroupConvolution": (0, 1)}
"""Of their weights."""


def fold_normalization(network: Any) -> int:
    """Scale the weights of convolutions that are normalised, in place; between the two would be one more rounding.

    Exporters do so themselves but where something else asks for the size of what a convolution makes, as U-Nets do of
    the maps that they join.

    Args:
        network: an ``openvino.Model``.

    Returns:
        How many normalisations were folded.
    """
    return rewrite(network, "BatchNormInference", _fold_one)


def _fold_one(normalization: Any) -> bool:
    """Fold one, if a convolution of known weights is read by it alone."""
    convolution = normalization.input_value(0).get_node()
    axes = _OUTPUT_AXES.get(convolution.get_type_name())
    readers = {i.get_node().get_type_name() for i in convolution.output(0).get_target_inputs()}
    if axes is None or not readers <= {"BatchNormInference", "ShapeOf"}:
        return False
    weights, *known = (constant_of(v) for v in (convolution.input_value(1), *normalization.input_values()[1:]))
    if weights is None or any(values is None for values in known):
        return False

    from openvino import opset13 as ops

    gain, offset, mean, variance = (np.asarray(values, np.float64) for values in known)
    gain = gain / np.sqrt(variance + normalization.get_attributes()["epsilon"])
    scaled = weights * gain.reshape([n if axis in axes else 1 for axis, n in enumerate(weights.shape)])
    convolution.input(1).replace_source_output(ops.constant(scaled.astype(np.float32)).output(0))
    shift = (offset - mean * gain).astype(np.float32)
    each = (1, -1, *[1] * (len(normalization.get_output_shape(0)) - 2))
    take_place(ops.add(convolution.output(0), ops.constant(shift.reshape(each))), normalization)
    return True


def quantize_onnx(onnx: Path, source: str, tiles: Tiles, path: Path, *, symmetric: bool = False) -> None:
    """Write a QDQ ONNX file, by ONNX Runtime's static quantisation; it carries no description.

    Args:
        onnx: the network in fp32.
        source: name of its input.
        tiles: normalised, as `draw_tiles` makes them.
        path: to write.
        symmetric: ranges about zero, the only ones that TensorRT computes with.

    Raises:
        EngineError: the package onnx is not installed.
        ModelError: ONNX Runtime cannot quantise the network.
    """
    import_onnxruntime()
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise EngineError(f"int8 needs the package onnx ({explain(error)}): pip install onnx") from error

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.tiles: Iterator[Any] = iter(tiles)

        def get_next(self) -> Any:
            tile = next(self.tiles, None)
            return None if tile is None else {source: tile}

    kinds = {"activation_type": QuantType.QInt8 if symmetric else QuantType.QUInt8, "weight_type": QuantType.QInt8}
    options = {"ActivationSymmetric": symmetric, "WeightSymmetric": True}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet_root_logger():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(onnx), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                extra_options=options,
                **kinds,
            )
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"ONNX Runtime cannot quantise {onnx.name}: {explain(error)}") from error


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """ONNX Runtime advises through the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
