"""OpenVINO IR: an .xml with the graph and the model's description, a .bin with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilelab.engines.cpu.openvino import import_openvino, probe
from tilelab.errors import EngineError, ModelError, OutputError
from tilelab.spec import METADATA_KEY, ModelSpec
from tilelab.text import explain


def read_network(onnx: Path) -> Any:
    """An ONNX file as an OpenVINO model.

    Raises:
        EngineError: OpenVINO is not installed.
        ModelError: it does not understand the network.
    """
    available = probe()
    if available.reason:
        raise EngineError(available.reason)
    try:
        return import_openvino().Core().read_model(onnx)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot read the network: {explain(error)}") from error


def write_ir(network: Any, spec: ModelSpec, path: Path, *, half: bool = False) -> None:
    """Write `path` and the .bin beside it; where the engine looks first lies `spec`.

    Args:
        network: an OpenVINO model; its own description is replaced.
        spec: the description.
        path: ends with .xml; not the file that `network` was read from.
        half: store weights as fp16.

    Raises:
        OutputError: it cannot be written, or what was written is not whole: OpenVINO does not say that a disk is full.
    """
    for key in (["framework", METADATA_KEY], [METADATA_KEY]):
        network.set_rt_info(spec.to_json(), key)
    library = import_openvino()
    try:
        library.save_model(network, path, compress_to_fp16=half)
        library.Core().read_model(path)
    except RuntimeError as error:
        raise OutputError(
            f"{path.name} cannot be written: what was written is not whole ({explain(error)}); free some space and run "
            "the same command again"
        ) from error
