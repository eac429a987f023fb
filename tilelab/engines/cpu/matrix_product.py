"""The machine's own limit: how many operations per second its best matrix product reaches, per precision."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from tilelab.engines.cpu.openvino import HINTS, import_openvino, probe
from tilelab.machine.cpu import physical_core_count
from tilelab.spec import Precision

Shape = tuple[int, int, int]

_SHAPES: tuple[Shape, ...] = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024))
"""Rows, columns and depth: which is fastest differs with precision and caches."""
_MAPS = ((64, 256), (32, 512))
"""Sides and channels of maps that are convolved with 3 x 3: products, too, and in int8 the fastest ones."""


def best_product(precision: Precision, seconds: float = 0.5) -> float | None:
    """Operations per second of products of matrices, one on each core, the best that was seen of several shapes.

    A multiplication and an addition are two.  The products are OpenVINO's, as most engines' convolutions are, and
    convolutions themselves among them: what an engine does cannot be above its best.

    Args:
        precision: of the multiplications.
        seconds: for all shapes.

    Returns:
        None where OpenVINO or this CPU does not compute in `precision`.
    """
    targets = {target.precision: target.reason for target in probe().targets}
    if targets.get(precision, "unknown"):
        return None
    eight = precision == "int8"
    works = [(_product(shape, quantized=eight), math.prod(shape)) for shape in _SHAPES]
    works += [(_convolution(side, channels, quantized=eight), (3 * side * channels) ** 2) for side, channels in _MAPS]
    return max(_rate(model, macs, precision, seconds / len(works)) for model, macs in works)


def _rate(model: Any, macs: int, precision: Precision, seconds: float) -> float:
    openvino, count = import_openvino(), physical_core_count()
    config = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": count,
        "INFERENCE_NUM_THREADS": count,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(model, "CPU", config)
    requests = [compiled.create_infer_request() for _ in range(count)]
    best, until = 0.0, time.perf_counter() + seconds
    for turn in range(1 << 20):
        began = time.perf_counter()
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        ended = time.perf_counter()
        if turn:  # the first one makes the kernels
            best = max(best, len(requests) * 2 * macs / (ended - began))
        if turn > 2 and ended > until:
            break
    return best


def _product(shape: Shape, *, quantized: bool) -> Any:
    """A matrix that is given times one that is known, of which little is kept: writing is no part of a product."""
    openvino = import_openvino()
    ops: Any = openvino.opset13
    rows, columns, depth = shape
    source = ops.parameter([rows, depth], np.float32, name="source")
    factor = ops.constant(np.random.default_rng(0).standard_normal((columns, depth), np.float32))
    left, right = _factors(ops, source, factor, quantized=quantized)
    return openvino.Model([ops.reduce_max(ops.matmul(left, right, False, True), 1)], [source])


def _convolution(side: int, channels: int, *, quantized: bool) -> Any:
    """A map that is given, convolved with known weights, of which little is kept."""
    openvino = import_openvino()
    ops: Any = openvino.opset13
    source = ops.parameter([1, channels, side, side], np.float32, name="source")
    weights = ops.constant(np.random.default_rng(0).standard_normal((channels, channels, 3, 3), np.float32))
    left, right = _factors(ops, source, weights, quantized=quantized)
    ones = [1, 1]
    return openvino.Model([ops.reduce_max(ops.convolution(left, right, ones, ones, ones, ones), [1, 2, 3])], [source])


def _factors(ops: Any, source: Any, known: Any, *, quantized: bool) -> tuple[Any, Any]:
    """What is multiplied: in int8 the known factor has one level less, as weights that are symmetric about 0 have."""
    return (_eight_bits(ops, source, 256), _eight_bits(ops, known, 255)) if quantized else (source, known)


def _eight_bits(ops: Any, node: Any, levels: int) -> Any:
    low, high = (ops.constant(np.float32(end)) for end in (-4.0, 4.0))
    return ops.fake_quantize(node, low, high, low, high, levels)
